//! The format of a data file by its first bytes and its name, before anything is parsed: a file
//! that Duplex cannot read is named for what it is, with the way to a file that it can.

use std::path::Path;

/// A format that rows are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A list of rows.
    JsonList,
    /// Objects one after the other, usually one a line.
    JsonLines,
    /// A table with a header and this byte between its fields.
    Table(u8),
    /// Paragraphs.
    Text,
}

/// The way out of a format.
#[derive(Clone, Copy)]
enum Way {
    /// A function of pandas reads it.
    Pandas(&'static str),
    /// A command unpacks it.
    Unpack(&'static str),
    /// A command gets the data that it stands for.
    Fetch(&'static str),
    /// It is text in another encoding, which the format names.
    Recode,
    /// In words.
    Words(&'static str),
}

/// First bytes, the format they stand for, and the way out.
const MAGIC: &[(&[u8], &str, Way)] = &[
    (b"\x1f\x8b", "compressed with gzip", Way::Unpack("gunzip -k")),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", Way::Unpack("unzstd -k")),
    (b"BZh", "compressed with bzip2", Way::Unpack("bunzip2 -k")),
    (b"\xfd7zXZ\0", "compressed with xz", Way::Unpack("unxz -k")),
    (b"\x04\x22\x4d\x18", "compressed with lz4", Way::Unpack("unlz4 -k")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", Way::Unpack("7z x")),
    (b"PAR1", "a parquet file", Way::Pandas("read_parquet")),
    (b"PARE", "an encrypted parquet file", Way::Words("decrypt it and write JSON lines")),
    (b"ARROW1\0\0", "an Arrow (Feather) file", Way::Pandas("read_feather")),
    (b"\xff\xff\xff\xff", "an Arrow stream", Way::Words(ARROW)),
    (b"FEA1", "a Feather file", Way::Pandas("read_feather")),
    (b"ORC", "an ORC file", Way::Pandas("read_orc")),
    (b"Obj\x01", "an Avro file", Way::Words("write JSON lines from it")),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", Way::Pandas("read_hdf")),
    (
        b"SQLite format 3\0",
        "an SQLite database",
        Way::Words("export the query's rows as JSON lines"),
    ),
    (b"%PDF-", "a PDF document", Way::Words("extract its text to a .txt file")),
    (b"\x93NUMPY", "a NumPy array", Way::Words("write JSON lines from it")),
    (b"GGUF", "a GGUF model", Way::Words("name a data file")),
    (b"\x7fELF", "a program", Way::Words("name a data file")),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the data itself",
        Way::Fetch("git lfs pull --include"),
    ),
    (b"\xff\xfe\0\0", "UTF-32", Way::Recode),
    (b"\0\0\xfe\xff", "UTF-32", Way::Recode),
    (b"\xff\xfe", "UTF-16", Way::Recode),
    (b"\xfe\xff", "UTF-16", Way::Recode),
];

const ARROW: &str = "load it with `datasets.Dataset.from_file(FILE)` and write it with \
    `.to_json(\"data.jsonl\")`";

/// Bytes of a zip archive in which its first names stand.
const HEAD: usize = 4096;

/// The format of `bytes`, the content of `path` without a UTF-8 mark; or a line on what it is and
/// what to do, to be put behind the file's name.
pub(super) fn sniff(path: &Path, bytes: &[u8]) -> Result<Format, String> {
    if let Some(what) = binary(path, bytes) {
        return Err(what);
    }
    let ends = |ends: &[&str]| {
        let end = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        ends.iter().any(|e| end.eq_ignore_ascii_case(e))
    };
    if ends(&["txt"]) {
        return Ok(Format::Text);
    }
    match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
        None | Some(b'{') => return Ok(Format::JsonLines),
        Some(b'[') => return Ok(Format::JsonList),
        Some(_) => {}
    }
    let mut lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty());
    let first = lines.next().unwrap_or_default();
    if ends(&["csv"]) {
        return Ok(Format::Table(b','));
    }
    if ends(&["tsv", "tab"]) {
        return Ok(Format::Table(b'\t'));
    }
    if html(first) {
        return Err(
            "is a web page, not data; download the file itself; on the hub its address has \
             \"resolve\" where the page's has \"blob\""
                .into(),
        );
    }
    // A broken line before good ones is a bad row like another.
    if lines.clone().any(|l| l.starts_with(b"{")) {
        return Ok(Format::JsonLines);
    }
    if ends(&["yaml", "yml"]) || yaml(first, lines.next()) {
        let load = "json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
        return Err(unread(
            "YAML",
            &format!("python -c 'import json, sys, yaml; {load}' {} > data.json", shown(path)),
        ));
    }
    if let Some(header) = header(first) {
        return Err(format!(
            "looks like a table in CSV with the header {header:?}; give it a name that ends in \
             .csv or .tsv"
        ));
    }
    if first.starts_with(b"<?xml") {
        return Err("is XML, which Duplex does not read; write JSON lines from it".into());
    }
    Err("holds text, but no JSON; rows are read from JSON lines, a JSON list, or a table whose \
        name ends in .csv or .tsv, plain text from a file whose name ends in .txt"
        .into())
}

/// The line on a file that is no text.
fn binary(path: &Path, bytes: &[u8]) -> Option<String> {
    if let Some((_, what, way)) = MAGIC.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return Some(match way {
            Way::Pandas(read) => pandas(what, read, path),
            Way::Unpack(command) => unpack(what, command, path),
            Way::Fetch(command) => format!("is {what}; fetch that: {command} {}", shown(path)),
            Way::Recode => recode(what, path),
            Way::Words(words) => format!("is {what}, which Duplex does not read; {words}"),
        });
    }
    let head = &bytes[..bytes.len().min(HEAD)];
    let holds = |name: &[u8]| head.windows(name.len()).any(|w| w == name);
    if bytes.starts_with(b"PK\x03\x04") {
        return Some(if holds(b"[Content_Types].xml") || holds(b"xl/") {
            pandas("an Excel workbook", "read_excel", path)
        } else if holds(b"data.pkl") {
            "is a PyTorch file, which Duplex does not read as data; write JSON lines from it".into()
        } else {
            unpack("a zip archive", "unzip", path)
        });
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(unpack("a tar archive", "tar -xf", path));
    }
    let claimed = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    if bytes.get(8) == Some(&b'{') && claimed.is_some_and(|n| n < bytes.len() as u64) {
        return Some("is a safetensors file: weights of a model; name a data file".into());
    }
    // Opcode PROTO, and the end of every pickle.
    if matches!(bytes, [0x80, 2..=5, .., b'.']) {
        return Some(
            "is a Python pickle, which Duplex does not read: it can run code; load it where you \
             trust it and write JSON lines"
                .into(),
        );
    }
    let zeros = |odd: usize| head.iter().skip(odd).step_by(2).all(|b| *b == 0);
    if head.len() > 3 && (zeros(0) || zeros(1)) && !head.iter().all(|b| *b == 0) {
        return Some(recode(if zeros(1) { "UTF-16LE" } else { "UTF-16BE" }, path));
    }
    // Text holds no zeros; that of a row is told of with the row.
    let binary = head.iter().filter(|b| **b == 0).count() > 2 + head.len() / 20;
    binary.then(|| "is a binary file of an unknown format; rows are read from JSON lines".into())
}

fn pandas(what: &str, read: &str, path: &Path) -> String {
    let way = format!(
        "python -c 'import pandas, sys; pandas.{read}(sys.argv[1]).to_json(\"data.jsonl\", \
         orient=\"records\", lines=True)' {}",
        shown(path)
    );
    unread(what, &way)
}

fn unpack(what: &str, command: &str, path: &Path) -> String {
    format!("is {what}, which Duplex does not read; unpack it: {command} {}", shown(path))
}

fn recode(encoding: &str, path: &Path) -> String {
    let file = shown(path);
    format!("is text in {encoding}; convert it: iconv -f {encoding} -t UTF-8 {file} > data.jsonl")
}

fn unread(what: &str, way: &str) -> String {
    format!("is {what}, which Duplex does not read; convert it: {way}")
}

/// The path as a word of the shell.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./+:@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn html(first: &[u8]) -> bool {
    let first = first.to_ascii_lowercase();
    first.starts_with(b"<!doctype html") || first.starts_with(b"<html")
}

/// True if a file that begins with these lines is YAML: a list of maps, or a map.
fn yaml(first: &[u8], second: Option<&[u8]>) -> bool {
    let key = |line: &[u8]| {
        let line = line.strip_prefix(b"- ").unwrap_or(line);
        let name = line.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        name > 0 && line[name..].starts_with(b":") && line.get(name + 1).is_none_or(|b| *b == b' ')
    };
    first == b"---" || key(first) && second.is_none_or(key)
}

/// The line as a table's header: short names between commas or tabs.
fn header(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?;
    let name = |s: &str| {
        let s = s.trim().trim_matches('"');
        !s.is_empty()
            && s.len() < 40
            && s.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c))
    };
    let split = |by: char| line.contains(by) && line.split(by).all(name);
    (split(',') || split('\t')).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, bytes: &[u8]) -> String {
        match sniff(Path::new(name), bytes) {
            Ok(format) => format!("{format:?}"),
            Err(what) => format!("{name} {what}"),
        }
    }

    fn wide(text: &str, big: bool) -> Vec<u8> {
        let pair = |u: u16| if big { u.to_be_bytes() } else { u.to_le_bytes() };
        text.encode_utf16().flat_map(pair).collect()
    }

    /// Asserts that a file is not read: its kind, and what to do about it.
    fn unread(name: &str, bytes: &[u8], kind: &str, cure: &str) {
        let want = format!("{name} is {kind}, which Duplex does not read{cure}");
        assert_eq!(told(name, bytes), want);
    }

    #[test]
    fn every_packed_file_has_its_line() {
        let gz = b"\x1f\x8b\x08\0abc";
        unread("a.jsonl.gz", gz, "compressed with gzip", "; unpack it: gunzip -k a.jsonl.gz");
        // The name may lie.
        let zst = b"\x28\xb5\x2f\xfdabc";
        unread("a.jsonl", zst, "compressed with zstd", "; unpack it: unzstd -k a.jsonl");
        let cure = "; unpack it: bunzip2 -k 'my file.bz2'";
        unread("my file.bz2", b"BZh91AY", "compressed with bzip2", cure);
        unread("a.xz", b"\xfd7zXZ\0\0", "compressed with xz", "; unpack it: unxz -k a.xz");
        let zip = b"PK\x03\x04....train.jsonl";
        unread("a.zip", zip, "a zip archive", "; unpack it: unzip a.zip");
    }

    #[test]
    fn every_other_format_has_its_line() {
        let pandas = |read: &str, file: &str| {
            format!(
                "; convert it: python -c 'import pandas, sys; pandas.{read}(sys.argv[1]).to_json(\
                 \"data.jsonl\", orient=\"records\", lines=True)' {file}"
            )
        };
        let cure = pandas("read_parquet", "a.parquet");
        unread("a.parquet", b"PAR1\x15\x04PAR1", "a parquet file", &cure);
        let cure = pandas("read_feather", "a.arrow");
        unread("a.arrow", b"ARROW1\0\0\xff", "an Arrow (Feather) file", &cure);
        let stream = b"\xff\xff\xff\xff\x10\0\0\0";
        unread("a.arrow", stream, "an Arrow stream", &format!("; {ARROW}"));
        unread("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file", &pandas("read_hdf", "a.h5"));
        let cure = pandas("read_excel", "a.xlsx");
        unread("a.xlsx", b"PK\x03\x04....[Content_Types].xml", "an Excel workbook", &cure);
        let cure = "; export the query's rows as JSON lines";
        unread("a.db", b"SQLite format 3\0", "an SQLite database", cure);
        unread("a.json", b"%PDF-1.7", "a PDF document", "; extract its text to a .txt file");
        let cure = ": it can run code; load it where you trust it and write JSON lines";
        unread("a.pkl", b"\x80\x04\x95\x10\0}.", "a Python pickle", cure);
        let cure = "; convert it: python -c 'import json, sys, yaml; \
            json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)' a.yaml > data.json";
        unread("a.yaml", b"- prompt: hi\n  chosen: yes\n", "YAML", cure);
    }

    #[test]
    fn what_is_no_data_has_its_line() {
        let is = |name: &str, bytes: &[u8], what: &str| {
            assert_eq!(told(name, bytes), format!("{name} {what}"));
        };
        let weights = [&9u64.to_le_bytes()[..], b"{\"a\":{}} 0123"].concat();
        let what = "is a safetensors file: weights of a model; name a data file";
        is("m.safetensors", &weights, what);
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n";
        let what = "is a Git LFS pointer, not the data itself; fetch that: git lfs pull --include \
            a.json";
        is("a.json", pointer, what);
        let what = "is a web page, not data; download the file itself; on the hub its address has \
            \"resolve\" where the page's has \"blob\"";
        is("a.json", b"<!DOCTYPE html>\n<html>", what);
        let what = "looks like a table in CSV with the header \"prompt,chosen,rejected\"; give it \
            a name that ends in .csv or .tsv";
        is("data", b"prompt,chosen,rejected\na,b,c\n", what);
        let what = "holds text, but no JSON; rows are read from JSON lines, a JSON list, or a \
            table whose name ends in .csv or .tsv, plain text from a file whose name ends in .txt";
        is("notes.md", b"# Notes\n\nSome text.\n", what);
        let binary = b"\x01\0\0\0\x02\0\0\0\x09\x09\0\x07\0\0";
        let what = "is a binary file of an unknown format; rows are read from JSON lines";
        is("a.dat", binary, what);
    }

    #[test]
    fn every_wide_encoding_has_its_line() {
        let is = |name: &str, bytes: &[u8], code: &str| {
            let cure = format!("convert it: iconv -f {code} -t UTF-8 {name} > data.jsonl");
            assert_eq!(told(name, bytes), format!("{name} is text in {code}; {cure}"));
        };
        let row = "{\"prompt\":1}";
        let marked = [b"\xff\xfe".to_vec(), wide(row, false)].concat();
        is("a.json", &marked, "UTF-16");
        is("a.json", b"\xff\xfe\0\0{\0\0\0", "UTF-32");
        is("a.json", &wide(row, true), "UTF-16BE");
        is("a.txt", &wide("plain text", false), "UTF-16LE");
    }

    #[test]
    fn what_can_be_read_is_known() {
        for (name, bytes, want) in [
            ("a.json", &b"\n [{}]"[..], "JsonList"),
            ("a", b"{\"prompt\": 1}", "JsonLines"),
            ("a.parquet", b"{\"prompt\": 1}", "JsonLines"),
            ("a.txt", b"[not] json", "Text"),
            ("a.csv", b"prompt,chosen\na,b", "Table(44)"),
            ("a.TSV", b"prompt\tchosen\na\tb", "Table(9)"),
            // A row that is broken is not the file's format.
            ("a.jsonl", b"oops\n{\"prompt\": 1}\n", "JsonLines"),
            ("a.jsonl", b"", "JsonLines"),
        ] {
            assert_eq!(told(name, bytes), want, "{name}");
        }
    }
}
