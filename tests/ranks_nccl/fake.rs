//! The library that stands for NCCL, and what processes need to use it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// The library, compiled once for each of its versions.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = include_bytes!("../fake_nccl.cpp");
        let name = format!("libfake_nccl-{}.so", &blake3::hash(source).to_hex()[..16]);
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if library.exists() {
            return library;
        }
        let draft = library.with_extension(format!("{}", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or("g++".into());
        let flags = "-std=c++20 -O2 -Wall -Wextra -Werror -shared -fPIC -pthread";
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nccl.cpp");
        let words = flags.split(' ').map(String::from);
        let out = Command::new(compiler).args(words).arg("-o").arg(&draft).arg(source).output();
        let out = out.expect("a C++ compiler");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        // Another test process may do the same.
        std::fs::rename(&draft, &library).unwrap();
        library
    })
}

/// A folder for the messages of a run, in memory where that is possible.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// The environment of processes that use the library over `folder`.
pub(crate) fn environment(folder: &TempDir) -> [(&'static str, PathBuf); 2] {
    [("DUPLEX_NCCL", library().into()), ("DUPLEX_FAKE_NCCL", folder.path().into())]
}
