//! A weight file that is open, with the mistakes common to all weight files caught early.

use crate::base::{Error, InFile, Kind, Result};
use std::path::Path;

/// How a Git LFS pointer starts.
const POINTER: &[u8] = b"version https://git-lfs";

/// Opens `path` for reading. Refuses empty files and Git LFS pointers.
pub(super) fn open_weights(path: &Path) -> Result<InFile> {
    let (shown, file) = (path.display(), InFile::open(path)?);
    if file.bytes() == 0 {
        return Err(Error::user(format!("{shown} is empty; download or save it again")));
    }
    let length = file.bytes().min(POINTER.len() as u64) as usize;
    if file.read_vec(0, length)? == POINTER {
        return Err(Error::user(format!(
            "{shown} is a Git LFS pointer, not the weights; run `git lfs pull` in its directory"
        )));
    }
    Ok(file)
}

/// Names the file in an error about its content. An error of reading names it already.
pub(super) fn about(path: &Path) -> impl Fn(Error) -> Error {
    move |e| match e.kind() {
        Kind::User => e.context(path.display()),
        _ => e,
    }
}
