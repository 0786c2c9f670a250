//! Files that a command writes for the user.

use crate::base::{Error, Result};
use std::path::Path;

/// Writes `text` to a file that the user named.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
