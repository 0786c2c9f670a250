//! Results on standard output, written at once. A reader that has gone away (`duplex --help |
//! head`) is no error.

use super::error::{Error, Result};
use super::text::printable_lines;
use super::voice::finish_saying;
use std::io::{ErrorKind, Write};

/// Prints text. What would drive a terminal is shown by its number, also where standard output is a
/// file: what is in it is shown on one sooner or later.
pub fn print(text: &str) -> Result<()> {
    // What was said before is read before.
    finish_saying();
    let text = printable_lines(text);
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output".as_ref(), &e))
        }
        _ => Ok(()),
    }
}
