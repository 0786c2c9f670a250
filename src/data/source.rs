//! Reads one data file or directory into rows. The format of every row is recognised by its keys:
//!
//! - `prompt`, `chosen`, `rejected` as strings (DeepSpeed-Chat's local JSON, TRL's preference
//!   format). Prompt and answer are joined with one space if neither has white space at the joint
//!   and the prompt ends in ASCII, as in "Assistant:" + "Yes"; otherwise they are joined verbatim.
//! - `prompt`, `completion`: joined verbatim. `prompt`, `response`: joined like `chosen`.
//! - `prompt` alone (PPO needs no answer).
//! - the same keys with lists of `{role, content}`; the prompt may be left out when `chosen` and
//!   `rejected` are whole conversations, which may differ only in their last message.
//! - `messages`: a conversation. Its last message is the answer if the assistant wrote it.
//! - `chosen`, `rejected` as transcripts ("\n\nHuman: ...\n\nAssistant: ..."): the prompt is their
//!   common beginning up to the last "\n\nAssistant:" in it.
//! - `text`, and paragraphs of a `.txt` file: for the mixture loss and plain language modelling.
//!
//! A file is a JSON list, JSON lines, a table in CSV, or text; `reader` reads them. It knows
//! nothing of tokens or training steps.

use super::bad_rows::{BadRows, OnBadRow};
use super::reader::Reader;
use super::sniff::sniff;
use super::types::Row;
use crate::base::{Error, Result, read_file};
use crate::formats::Fingerprint;
use std::path::Path;

/// Reads all rows of a file: a JSON list, JSON lines, a table (`.csv`, `.tsv`), or text (`.txt`).
/// Errors name the file and the row; a file of another format is named for what it is, and a file
/// without any usable row is an error too.
pub fn read_rows(path: &Path, on_bad: OnBadRow) -> Result<(Vec<Row>, BadRows)> {
    rows_of(path, &read_file(path, u64::MAX)?, on_bad, false)
}

/// Reads all rows of a file, with their columns if `columns` says so, and the fingerprint of the
/// very bytes that they were read from.
pub(super) fn read(
    path: &Path,
    on_bad: OnBadRow,
    columns: bool,
) -> Result<(Vec<Row>, BadRows, Fingerprint)> {
    let bytes = read_file(path, u64::MAX)?;
    let stamp = Fingerprint::of(&bytes);
    rows_of(path, &bytes, on_bad, columns).map(|(rows, bad)| (rows, bad, stamp))
}

fn rows_of(
    path: &Path,
    bytes: &[u8],
    on_bad: OnBadRow,
    columns: bool,
) -> Result<(Vec<Row>, BadRows)> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let format =
        sniff(path, bytes).map_err(|what| Error::user(format!("{} {what}", path.display())))?;
    let mut reader = Reader::new(path.display().to_string().into(), columns);
    reader.read(format, bytes);
    reader.finish(on_bad)
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
