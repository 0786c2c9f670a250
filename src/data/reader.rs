//! The rows of a file's bytes, one format at a time. A row that cannot be used is kept as a line
//! about it; whether that stops the run is decided at the end, when it is known whether any row is
//! good.

use super::bad_rows::{BadRows, OnBadRow};
use super::json::{self, Fault, skip_space};
use super::row::{parse_row, text_row};
use super::sniff::Format;
use super::types::Row;
use crate::base::{Error, Result, check_stop};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// Keys of an object that holds the rows of a whole file, beside what is told of them.
const LISTS: [&str; 12] = [
    "data",
    "rows",
    "examples",
    "instances",
    "items",
    "records",
    "train",
    "test",
    "validation",
    "valid",
    "dev",
    "eval",
];

/// Keys that make an object a row.
const ROW_KEYS: [&str; 12] = [
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "response",
    "messages",
    "conversations",
    "instruction",
    "question",
    "input",
    "output",
    "text",
];

/// Parses a row, which the hub's viewer wraps. It cuts long texts short, and lists their columns.
fn parse_value(mut value: Value, columns: bool) -> std::result::Result<Row, String> {
    let wraps = value.get("row").is_some_and(Value::is_object) && value.get("row_idx").is_some();
    if !wraps {
        return with_columns(value, columns);
    }
    let cut = value.get("truncated_cells").and_then(Value::as_array).filter(|c| !c.is_empty());
    match cut {
        Some(cut) => {
            let columns: Vec<String> = cut.iter().map(Value::to_string).collect();
            let (noun, verb) =
                if columns.len() == 1 { ("column", "is") } else { ("columns", "are") };
            Err(format!(
                "the {noun} {} {verb} cut short by the hub's viewer (\"truncated_cells\"); \
                 download the data set's files instead",
                columns.join(", ")
            ))
        }
        None => with_columns(value["row"].take(), columns),
    }
}

/// Parses a row, which keeps its columns if `columns` says so. None of them is then unread.
fn with_columns(value: Value, columns: bool) -> std::result::Result<Row, String> {
    let row = parse_row(&value)?;
    match value {
        Value::Object(object) if columns => {
            Ok(Row { columns: Arc::new(object), unused: vec![], ..row })
        }
        _ => Ok(row),
    }
}

/// Collects the rows of one file.
pub(super) struct Reader {
    file: Arc<str>,
    rows: Vec<Row>,
    bad: BadRows,
    /// Rows that hold a key twice, and the first of them.
    repeated: (usize, String),
    /// The error that ended the reading.
    stop: Option<Error>,
    /// True if rows keep their columns.
    columns: bool,
}

impl Reader {
    pub(super) fn new(file: Arc<str>, columns: bool) -> Reader {
        let (rows, bad) = (vec![], BadRows::default());
        Reader { file, rows, bad, repeated: (0, String::new()), stop: None, columns }
    }

    /// Reads all rows of `bytes`.
    pub(super) fn read(&mut self, format: Format, bytes: &[u8]) {
        match format {
            Format::JsonList => self.list(bytes),
            Format::JsonLines => self.lines(bytes),
            Format::Table(separator) => self.table(bytes, separator),
            Format::Text => self.text(bytes),
        }
    }

    /// The rows, and those left out under the policy `on_bad`.
    pub(super) fn finish(mut self, on_bad: OnBadRow) -> Result<(Vec<Row>, BadRows)> {
        // The reading has ended early.
        check_stop()?;
        let file = &self.file;
        let first = self.bad.first.first();
        match (on_bad, first, self.stop) {
            (OnBadRow::Error, Some(first), None) if self.rows.is_empty() => {
                let all = if self.bad.count == 1 { "" } else { "; no row of the file can be used" };
                return Err(Error::user(format!("{first}{all}")));
            }
            (OnBadRow::Error, Some(first), _) => {
                let hint = "use --on-bad-row skip to leave such rows out";
                return Err(Error::user(format!("{first}; {hint}")));
            }
            (_, _, Some(stop)) => return Err(stop),
            (OnBadRow::Skip, Some(first), None) if self.rows.is_empty() => {
                return Err(Error::user(format!(
                    "{file}: no row is left, all {} were bad; the first: {first}",
                    self.bad.count
                )));
            }
            _ if self.rows.is_empty() => {
                return Err(Error::user(format!("{file} is empty: it holds no row of data")));
            }
            _ => {}
        }
        if self.repeated.0 > 0 {
            let (count, first) = &self.repeated;
            self.bad.notes.push(format!(
                "{count} rows hold a key twice, of which the last value counts, first: {first}"
            ));
        }
        Ok((self.rows, self.bad))
    }

    /// Takes the outcome of one row.
    fn take(&mut self, row: usize, parsed: std::result::Result<Row, String>) {
        match parsed {
            Ok(parsed) => self.rows.push(Row { file: self.file.clone(), row, ..parsed }),
            Err(message) => {
                let first = vec![format!("{} row {row}: {message}", self.file)];
                self.bad.add(BadRows { count: 1, first, ..BadRows::default() });
            }
        }
    }

    fn take_value(&mut self, row: usize, parsed: json::Parsed) {
        if let Some(key) = &parsed.repeated {
            self.repeated.0 += 1;
            if self.repeated.0 == 1 {
                self.repeated.1 = format!("{} row {row}, key {key:?}", self.file);
            }
        }
        self.take(row, parse_value(parsed.value, self.columns));
    }

    fn stop(&mut self, what: impl std::fmt::Display) {
        self.stop = Some(Error::user(format!("{} {what}", self.file)));
    }

    /// Objects one after the other: usually one a line, also several, also over several lines.
    fn lines(&mut self, bytes: &[u8]) {
        let (mut at, mut line, mut counted) = (0, 1, 0);
        while check_stop().is_ok() {
            let start = skip_space(bytes, at);
            line += newlines(&bytes[counted..start]);
            counted = start;
            if start == bytes.len() {
                return;
            }
            let end = end_of_line(bytes, start);
            let in_line = json::value(&bytes[..end], start);
            // A line that is cut short in the middle is no object over several lines.
            let last = bytes[start..end].trim_ascii_end().last();
            let open = last.is_some_and(|b| b"{[,:".contains(b));
            let beyond = match &in_line {
                Err(fault) if fault.cut && end < bytes.len() => Some(json::value(bytes, start)),
                _ => None,
            };
            let beyond = beyond.filter(|parsed| parsed.is_ok() || open);
            at = match (in_line, beyond) {
                (_, Some(Ok(parsed))) | (Ok(parsed), None) => {
                    self.after(bytes, start, line, parsed)
                }
                (_, Some(Err(fault))) => {
                    self.take(line, Err(bad_json(bytes, start, line, &fault)));
                    next_object(bytes, end)
                }
                (Err(fault), None) => {
                    self.take(line, Err(bad_json(bytes, start, line, &fault)));
                    end
                }
            };
        }
    }

    /// Takes a value that begins at `start`, unless something that is no JSON follows it. Returns
    /// where the next one may begin.
    fn after(&mut self, bytes: &[u8], start: usize, line: usize, parsed: json::Parsed) -> usize {
        let blank = |b: &&u8| matches!(b, b' ' | b'\t' | b'\r');
        let next = parsed.end + bytes[parsed.end..].iter().take_while(blank).count();
        let what = match bytes.get(next) {
            None | Some(b'\n' | b'{' | b'[') => {
                let alone = self.rows.is_empty() && self.bad.count == 0;
                if alone && skip_space(bytes, next) == bytes.len() {
                    self.whole_file(line, parsed);
                } else {
                    self.take_value(line, parsed);
                }
                return next;
            }
            Some(b',') => "a comma behind it: JSON lines have none, a JSON list begins with `[`",
            Some(_) => "characters behind it",
        };
        let fault = Fault { at: next, what: what.into(), cut: false };
        self.take(line, Err(bad_json(bytes, start, line, &fault)));
        end_of_line(bytes, next)
    }

    /// The only value of a file: a row, or an object that holds all rows.
    fn whole_file(&mut self, line: usize, mut parsed: json::Parsed) {
        let Value::Object(object) = &mut parsed.value else {
            return self.take_value(line, parsed);
        };
        if ROW_KEYS.iter().any(|k| object.get(*k).is_some_and(|v| !is_column(v))) {
            return self.take_value(line, parsed);
        }
        let holds_rows = |key: &&str| {
            let list = object.get(*key).and_then(Value::as_array);
            list.and_then(|l| l.first()).is_some_and(Value::is_object)
        };
        let lists: Vec<&str> = LISTS.into_iter().filter(holds_rows).collect();
        match lists[..] {
            [key] => {
                let total = object.get("num_rows_total").and_then(Value::as_u64);
                let Some(Value::Array(rows)) = object.remove(key) else { return };
                if total.is_some_and(|t| t > rows.len() as u64) {
                    self.bad.notes.push(format!(
                        "{} holds {} rows of {}: it is one page of the hub's viewer",
                        self.file,
                        rows.len(),
                        total.unwrap_or_default()
                    ));
                }
                for (i, row) in rows.into_iter().enumerate() {
                    self.take(i + 1, parse_value(row, self.columns));
                }
            }
            [] if !object.is_empty() && object.values().all(is_column) => self.stop(
                "is one object of columns; rows are one object each: with pandas, write it by \
                 `.to_json(FILE, orient=\"records\", lines=True)`",
            ),
            [] => self.take_value(line, parsed),
            _ => {
                let names = lists.iter().map(|l| format!("{l:?}")).collect::<Vec<_>>().join(", ");
                self.stop(format!("is one object with the lists {names}; save each as a file"));
            }
        }
    }

    /// A JSON list. After broken JSON there is no next row, hence that is an error under any
    /// policy.
    fn list(&mut self, bytes: &[u8]) {
        let mut at = skip_space(bytes, 0) + 1;
        let mut row = 0;
        if bytes.get(skip_space(bytes, at)) == Some(&b']') {
            at = skip_space(bytes, at);
        } else {
            loop {
                row += 1;
                if check_stop().is_err() {
                    return;
                }
                let parsed = match json::value(bytes, at) {
                    Ok(parsed) => parsed,
                    Err(fault) => return self.broken_list(bytes, row, &fault),
                };
                at = skip_space(bytes, parsed.end);
                self.take_value(row, parsed);
                let what = match bytes.get(at) {
                    Some(b']') => break,
                    Some(b',') if bytes.get(skip_space(bytes, at + 1)) == Some(&b']') => {
                        "a comma before `]`"
                    }
                    Some(b',') => {
                        at += 1;
                        continue;
                    }
                    Some(_) => "expected `,` or `]`",
                    None => "the list does not end",
                };
                let fault = Fault { at, what: what.into(), cut: at == bytes.len() };
                return self.broken_list(bytes, row + 1, &fault);
            }
        }
        let end = skip_space(bytes, at + 1);
        if end < bytes.len() {
            let fault = Fault { at: end, what: "characters behind the list".into(), cut: false };
            self.broken_list(bytes, row + 1, &fault);
        }
    }

    fn broken_list(&mut self, bytes: &[u8], row: usize, fault: &Fault) {
        let (line, column) = place(bytes, fault.at);
        let way = match fault.cut {
            true => "the file is cut short, write or download it again",
            false => "a JSON list must be whole, JSON lines may leave rows out",
        };
        let what = &fault.what;
        self.stop(format!("row {row}: bad JSON at line {line} column {column}: {what}; {way}"));
    }

    /// A table with a header. An empty field is an absent key.
    fn table(&mut self, bytes: &[u8], separator: u8) {
        let mut records = Records { bytes, at: 0, line: 1, separator };
        let Some((_, header)) = records.next() else { return };
        let header: Vec<String> = match header {
            Ok(header) => header.iter().map(|name| name.trim().to_owned()).collect(),
            Err(what) => return self.stop(format!("has a broken header: {what}")),
        };
        if let Some(twice) = header.iter().enumerate().find(|(i, n)| header[..*i].contains(n)) {
            return self.stop(format!("has two columns {:?}", twice.1));
        }
        for (line, record) in records.take_while(|_| check_stop().is_ok()) {
            let row = record.and_then(|fields| {
                if fields.len() != header.len() {
                    let (n, m) = (fields.len(), header.len());
                    return Err(format!("has {n} fields, the header has {m}"));
                }
                let value = |f: Cow<'_, str>| match f.is_empty() {
                    true => Value::Null,
                    false => Value::String(f.into_owned()),
                };
                let object: Map<String, Value> =
                    header.iter().cloned().zip(fields.into_iter().map(value)).collect();
                with_columns(Value::Object(object), self.columns)
            });
            self.take(line, row);
        }
    }

    /// Paragraphs (blocks between blank lines); a row's number is its first line.
    fn text(&mut self, bytes: &[u8]) {
        let mut start = 0;
        let mut paragraph: Vec<&[u8]> = Vec::new();
        let lines = bytes.split(|&b| b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
        // One more blank line ends the last paragraph.
        for (i, line) in lines.chain(std::iter::once(&b""[..])).enumerate() {
            if check_stop().is_err() {
                return;
            }
            if !line.trim_ascii().is_empty() {
                if paragraph.is_empty() {
                    start = i + 1;
                }
                paragraph.push(line);
            } else if !paragraph.is_empty() {
                let joined = paragraph.join(&b'\n');
                self.take(start, utf8(&joined).and_then(text_row));
                paragraph.clear();
            }
        }
    }
}

/// The records of a table after RFC 4180, with their lines: fields in double quotes may hold
/// separators and line breaks, and quotes twice.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
    separator: u8,
}

impl<'a> Iterator for Records<'a> {
    type Item = (usize, std::result::Result<Vec<Cow<'a, str>>, String>);

    fn next(&mut self) -> Option<Self::Item> {
        // Blank lines hold no record.
        let start = skip_lines(self.bytes, self.at);
        self.line += newlines(&self.bytes[self.at..start]);
        self.at = start;
        if start == self.bytes.len() {
            return None;
        }
        let record = self.record();
        let line = self.line;
        self.line += newlines(&self.bytes[start..self.at]);
        Some((line, record))
    }
}

impl<'a> Records<'a> {
    /// One record; leaves `at` behind its line break.
    fn record(&mut self) -> std::result::Result<Vec<Cow<'a, str>>, String> {
        let bytes = self.bytes;
        let mut fields = vec![];
        loop {
            let field = match bytes.get(self.at) {
                Some(b'"') => self.quoted()?,
                _ => {
                    let stop = |b: &u8| *b == self.separator || *b == b'\n';
                    let rest = &bytes[self.at..];
                    let length = rest.iter().position(stop).unwrap_or(rest.len());
                    self.at += length;
                    let field = &rest[..length];
                    Cow::Borrowed(utf8(field.strip_suffix(b"\r").unwrap_or(field))?)
                }
            };
            fields.push(field);
            match bytes.get(self.at) {
                Some(b) if *b == self.separator => self.at += 1,
                Some(_) => {
                    self.at += 1;
                    return Ok(fields);
                }
                None => return Ok(fields),
            }
        }
    }

    /// A field in quotes; leaves `at` at the separator or line break behind it.
    fn quoted(&mut self) -> std::result::Result<Cow<'a, str>, String> {
        let bytes = self.bytes;
        let start = self.at + 1;
        let (mut at, mut twice) = (start, false);
        loop {
            let Some(length) = bytes[at..].iter().position(|b| *b == b'"') else {
                self.at = bytes.len();
                return Err("a field in quotes does not end".into());
            };
            at += length;
            if bytes.get(at + 1) != Some(&b'"') {
                break;
            }
            (at, twice) = (at + 2, true);
        }
        let text = utf8(&bytes[start..at]);
        self.at = at + 1 + usize::from(bytes[at + 1..].starts_with(b"\r\n"));
        match bytes.get(self.at) {
            None | Some(b'\n') => {}
            Some(b) if *b == self.separator => {}
            Some(_) => {
                self.at = (end_of_line(bytes, self.at) + 1).min(bytes.len());
                return Err("characters follow the closing quote of a field".into());
            }
        }
        let text = text?;
        Ok(if twice { text.replace("\"\"", "\"").into() } else { text.into() })
    }
}

fn skip_lines(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|b| matches!(b, b'\n' | b'\r')).count()
}

fn utf8(bytes: &[u8]) -> std::result::Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        format!("byte {} (0x{:02x}) is not UTF-8", at + 1, bytes[at])
    })
}

/// A column of a table: many values, none of them an object, or a map from row numbers.
fn is_column(value: &Value) -> bool {
    match value {
        Value::Array(list) => !list.is_empty() && !list.iter().any(Value::is_object),
        Value::Object(map) => map.contains_key("0"),
        _ => false,
    }
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at)
}

/// The next line from `at`, an end of a line, that begins with an object.
fn next_object(bytes: &[u8], at: usize) -> usize {
    let found = bytes[at..].windows(2).position(|w| w == b"\n{");
    found.map_or(bytes.len(), |n| at + n)
}

/// Line and column of a byte, from 1; columns count characters.
fn place(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = &bytes[..at.min(bytes.len())];
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let characters = before[start..].iter().filter(|b| **b & 0xc0 != 0x80).count();
    (newlines(before) + 1, characters + 1)
}

/// A fault in the value at `start`, in the row of line `line`.
fn bad_json(bytes: &[u8], start: usize, line: usize, fault: &Fault) -> String {
    let from = bytes[..start].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let (lines, column) = place(&bytes[from..], fault.at - from);
    let what = &fault.what;
    match lines {
        1 => format!("bad JSON at column {column}: {what}"),
        _ => format!("bad JSON at line {} column {column}: {what}", line + lines - 1),
    }
}
