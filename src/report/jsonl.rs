//! `metrics.jsonl`: one JSON object a line, an event with its wall time. Numbers that are not
//! finite are null. The file is the run's memory: a resumed run appends to it and the report is
//! rebuilt from it.

use super::{Event, Sink};
use crate::base::{Error, InFile, Result, is_there};
use crate::formats::OutDir;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Appends events to a file, each line handed to the operating system at once.
pub struct Jsonl {
    file: File,
    path: PathBuf,
    /// The file ends in the middle of a line, after a crash or a failed write.
    torn: bool,
}

#[derive(Serialize)]
struct LineOut<'a> {
    time: f64,
    #[serde(flatten)]
    event: &'a Event,
}

#[derive(Deserialize)]
struct LineIn {
    time: f64,
    #[serde(flatten)]
    event: Event,
}

impl Jsonl {
    /// Opens the file of this name at its end, creating it if needed.
    pub fn append(dir: &OutDir, name: &str) -> Result<Jsonl> {
        let (mut file, path) = (dir.file(name)?, dir.path().join(name));
        let torn = ends_torn(&mut file).map_err(|e| Error::io("read", &path, &e))?;
        Ok(Jsonl { torn, ..Jsonl::new(file, path) })
    }

    /// Writes to the end of `file`, which is called `path` in messages.
    pub(super) fn new(file: File, path: PathBuf) -> Jsonl {
        Jsonl { file, path, torn: false }
    }
}

impl Sink for Jsonl {
    fn name(&self) -> &str {
        "metrics.jsonl"
    }

    fn write(&mut self, time: f64, event: &Event) -> Result<()> {
        let mut line = Vec::new();
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, &LineOut { time, event })
            .map_err(|e| Error::internal(format!("cannot write an event as JSON: {e}")))?;
        line.push(b'\n');
        let done = self.file.seek(SeekFrom::End(0)).and_then(|_| self.file.write_all(&line));
        self.torn = done.is_err();
        done.map_err(|e| Error::io("write", &self.path, &e))
    }
}

/// Drops what a file of `dir` holds after its first `bytes` bytes, which end a line: the events
/// after the snapshot that a run goes on from. One call of the operating system cuts the file, so a
/// crash leaves either length. A file that is shorter, or that has no line end there, is another
/// one and left alone.
pub fn cut_log(dir: &OutDir, name: &str, bytes: u64) -> Result<()> {
    if dir.size_of(name)?.is_none() {
        return Ok(());
    }
    let failed = |e| Error::io("cut", &dir.path().join(name), &e);
    let mut file = dir.file(name)?;
    let mut last = [b'\n'];
    if bytes > 0 {
        let read = file.seek(SeekFrom::Start(bytes - 1)).and_then(|_| file.read_exact(&mut last));
        match read {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(failed)?,
        }
    }
    if last != *b"\n" {
        return Ok(());
    }
    file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// True if the last byte exists and is not a line end.
fn ends_torn(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Reads back the events of `path` with their times; a missing file has none. Lines that do not
/// parse (torn by a crash, or of another version) are passed over.
pub(super) fn replay(path: &Path, mut each: impl FnMut(f64, Event)) -> Result<()> {
    if !is_there(path)? {
        return Ok(());
    }
    let mut lines = BufReader::new(InFile::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = lines.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, &e))?;
        if n == 0 {
            return Ok(());
        }
        if let Ok(LineIn { time, event }) = serde_json::from_slice(&line) {
            each(time, event);
        }
    }
}
