//! Output that a command writes itself.

use crate::base::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes `text` to a file that the user named.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}

/// Writes to standard output at once.
pub(super) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    done.map_err(|e| Error::io("write", "standard output".as_ref(), &e))
}
