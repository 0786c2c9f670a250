//! Errors of files that are not as they were written.

use crate::base::{Error, Kind, Result};
use crate::formats::safetensors::SafetensorsFile;
use std::fmt::Display;
use std::path::Path;

/// The error of a file that is not as it was written.
pub(super) fn damaged(path: &Path, what: impl Display) -> Error {
    Error::user(format!("{} is damaged: {what}", path.display()))
}

/// Opens a file of tensors. It is damaged if it cannot be understood, but not if the machine has no
/// room for it.
pub(super) fn opened(path: &Path) -> Result<SafetensorsFile> {
    SafetensorsFile::open(path).map_err(|e| match e.kind() {
        Kind::User => damaged(path, e),
        _ => e,
    })
}
