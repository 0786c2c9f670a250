//! The library that makes calls fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, compiled once for each of its versions.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let sources =
            concat!(include_str!("inject.c"), include_str!("inject.h"), include_str!("calls.c"));
        let hash = blake3::hash(sources.as_bytes()).to_hex();
        let name = format!("libinject-{}.so", &hash[..16]);
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if library.exists() {
            return library;
        }
        let draft = library.with_extension(format!("{}", std::process::id()));
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/injected");
        let words = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"];
        let mut cc = Command::new("cc");
        cc.args(words).arg(&draft).args(["inject.c", "calls.c", "-ldl"]).current_dir(dir);
        let out = cc.output();
        let out = out.expect("a C compiler");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        // Another test process may do the same.
        std::fs::rename(&draft, &library).unwrap();
        library
    })
}
