//! The library that makes calls fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, compiled once for each of its versions.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = include_bytes!("inject.c");
        let name = format!("libinject-{}.so", &blake3::hash(source).to_hex()[..16]);
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if library.exists() {
            return library;
        }
        let draft = library.with_extension(format!("{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/injected/inject.c");
        let words = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"];
        let out = Command::new("cc").args(words).arg(&draft).arg(source).arg("-ldl").output();
        let out = out.expect("a C compiler");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        // Another test process may do the same.
        std::fs::rename(&draft, &library).unwrap();
        library
    })
}
