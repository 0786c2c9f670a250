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
//! A file is a JSON list, JSON lines, or text. It knows nothing of tokens or training steps.

use super::row::parse_row;
use super::types::Row;
use crate::base::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBadRow {
    /// Stop with an error naming it.
    Error,
    /// Leave it out and count it.
    Skip,
}

/// The rows left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadRows {
    /// How many.
    pub count: usize,
    /// One line about each of the first few.
    pub first: Vec<String>,
}

impl BadRows {
    const SHOWN: usize = 5;

    /// Adds another file's count.
    pub fn add(&mut self, other: BadRows) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(Self::SHOWN);
    }
}

/// Collects the rows of one file under its policy for bad ones.
struct Reader {
    file: Arc<str>,
    on_bad: OnBadRow,
    rows: Vec<Row>,
    bad: BadRows,
}

impl Reader {
    /// Takes the outcome of one row. `Err` only when the policy is to stop.
    fn take(&mut self, row: usize, parsed: std::result::Result<Row, String>) -> Result<()> {
        let message = match parsed {
            Ok(parsed) => {
                self.rows.push(Row { file: self.file.clone(), row, ..parsed });
                return Ok(());
            }
            Err(message) => format!("{} row {row}: {message}", self.file),
        };
        if self.on_bad == OnBadRow::Error {
            let hint = "use --on-bad-row skip to leave such rows out";
            return Err(Error::user(format!("{message}; {hint}")));
        }
        self.bad.add(BadRows { count: 1, first: vec![message] });
        Ok(())
    }
}

/// Reads all rows of a file: `.txt` as text, anything else as a JSON list or JSON lines. Errors
/// name the file and the row; a file without any usable row is an error too.
pub fn read_rows(path: &Path, on_bad: OnBadRow) -> Result<(Vec<Row>, BadRows)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read data file", path, &e))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let file: Arc<str> = path.display().to_string().into();
    let mut reader = Reader { file, on_bad, rows: Vec::new(), bad: BadRows::default() };
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) {
        read_text(bytes, &mut reader)?;
    } else if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        read_list(bytes, &mut reader)?;
    } else {
        read_lines(bytes, &mut reader)?;
    }
    let Reader { file, rows, bad, .. } = reader;
    match (rows.is_empty(), bad.first.first()) {
        (false, _) => Ok((rows, bad)),
        (true, None) => Err(Error::user(format!("{file} is empty: it holds no row of data"))),
        (true, Some(first)) => Err(Error::user(format!(
            "{file}: no row is left, all {} were bad; the first: {first}",
            bad.count
        ))),
    }
}

fn read_lines(bytes: &[u8], reader: &mut Reader) -> Result<()> {
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let parsed = utf8(line)
            .and_then(|s| serde_json::from_str::<Value>(s).map_err(|e| bad_json(&e)))
            .and_then(|v| parse_row(&v));
        reader.take(i + 1, parsed)?;
    }
    Ok(())
}

fn utf8(bytes: &[u8]) -> std::result::Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("invalid UTF-8 at byte {}", e.valid_up_to() + 1))
}

/// serde_json counts lines within what it was given, which here is one row: only the column helps.
fn bad_json(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("bad JSON at column {}: {what}", e.column())
}

/// A JSON list, one element at a time, so that an error can name its row. After broken JSON there
/// is no next row, hence that is an error under either policy.
fn read_list(bytes: &[u8], reader: &mut Reader) -> Result<()> {
    struct List<'a>(&'a mut Reader, &'a mut Option<Error>, &'a mut usize);
    impl<'de> serde::de::Visitor<'de> for List<'_> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a list of rows")
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> std::result::Result<(), A::Error> {
            let List(reader, stop, row) = self;
            while let Some(value) = list.next_element::<Value>()? {
                *row += 1;
                if let Err(e) = reader.take(*row, parse_row(&value)) {
                    *stop = Some(e);
                    return Err(serde::de::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
    let (mut stop, mut row) = (None, 0);
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let list = List(&mut *reader, &mut stop, &mut row);
    let outcome =
        serde::de::Deserializer::deserialize_seq(&mut json, list).and_then(|()| json.end());
    match (stop, outcome) {
        (Some(e), _) => Err(e),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => Err(Error::user(format!(
            "{} row {}: bad JSON: {e}; a JSON list must be whole, JSON lines may leave rows out",
            reader.file,
            row + 1
        ))),
    }
}

/// Paragraphs (blocks between blank lines) of a text file; a row's number is its first line.
fn read_text(bytes: &[u8], reader: &mut Reader) -> Result<()> {
    let mut start = 0;
    let mut paragraph: Vec<&[u8]> = Vec::new();
    let lines = bytes.split(|&b| b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    // One more blank line ends the last paragraph.
    for (i, line) in lines.chain(std::iter::once(&b""[..])).enumerate() {
        if !line.trim_ascii().is_empty() {
            if paragraph.is_empty() {
                start = i + 1;
            }
            paragraph.push(line);
        } else if !paragraph.is_empty() {
            let joined = paragraph.join(&b'\n');
            reader.take(start, utf8(&joined).and_then(super::row::text_row))?;
            paragraph.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
