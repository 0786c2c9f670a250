//! Reads the files that others wrote. Only regular files are read, and what they are is asked of
//! the open descriptor: a pipe, a device or a directory in a file's place is one line and never a
//! wait. A file that is cut while it is read is an error, not a signal, because nothing is mapped.

use super::{Error, Result, check_stop};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that are read between two looks at whether the process is to stop.
const PIECE: usize = 8 << 20;

/// A regular file that is open for reading.
#[derive(Debug)]
pub struct InFile {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl InFile {
    /// Opens `path`, following links.
    ///
    /// # Errors
    /// There is no such file, or it is not a regular one.
    pub fn open(path: &Path) -> Result<InFile> {
        // Looked at first, since opening alone can set a device in motion.
        let seen = std::fs::metadata(path).map_err(|e| unopened(path, &e))?;
        regular(path, &seen)?;
        // A pipe that has come into the place meanwhile is not waited for.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.map_err(|e| unopened(path, &e))?;
        let opened = file.metadata().map_err(|e| Error::io("read", path, &e))?;
        regular(path, &opened)?;
        Ok(InFile { file, path: path.to_owned(), bytes: opened.len() })
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads `into.len()` bytes from byte `at` on.
    ///
    /// # Errors
    /// The file ends before: it was cut since it was opened.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let mut at = at;
        for piece in into.chunks_mut(PIECE) {
            check_stop()?;
            self.file.read_exact_at(piece, at).map_err(|e| self.unread(&e))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// The bytes from `at` on, as many as `len`.
    pub fn read_vec(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = self.room(len)?;
        bytes.resize(len, 0);
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Hands all bytes to `each`, a piece after the other.
    pub fn pieces(mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        // Small files need no large piece.
        let piece = (self.bytes as usize).clamp(4 << 10, 256 << 10);
        let (mut buffer, mut read) = (self.room(piece)?, 0);
        buffer.resize(piece, 0);
        loop {
            check_stop()?;
            match self.file.read(&mut buffer) {
                Ok(0) if read < self.bytes => return Err(self.cut()),
                Ok(0) => return Ok(()),
                Ok(n) => {
                    each(&buffer[..n]);
                    read += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.unread(&e)),
            }
        }
    }

    /// Reads the whole file, of at most `most` bytes.
    pub fn read_all(self, most: u64) -> Result<Vec<u8>> {
        if self.bytes > most {
            return Err(too_large(&self.path, most));
        }
        let mut bytes = self.room(self.bytes as usize)?;
        let (path, mut grown) = (self.path.clone(), false);
        self.pieces(|piece| {
            grown |= (bytes.len() + piece.len()) as u64 > most;
            if !grown {
                bytes.extend_from_slice(piece);
            }
        })?;
        if grown { Err(too_large(&path, most)) } else { Ok(bytes) }
    }

    /// `e`, which is about the content, unless the file was cut since it was opened.
    pub fn unless_cut(&self, e: Error) -> Error {
        match self.file.metadata() {
            Ok(now) if now.len() < self.bytes => self.cut(),
            _ => e,
        }
    }

    /// Memory for so many bytes.
    fn room(&self, bytes: usize) -> Result<Vec<u8>> {
        let mut room = Vec::new();
        room.try_reserve_exact(bytes).map_err(|_| {
            let path = self.path.display();
            Error::memory(format!("{path}: no memory for {} MiB of it", bytes.div_ceil(1 << 20)))
        })?;
        Ok(room)
    }

    fn unread(&self, e: &std::io::Error) -> Error {
        match e.kind() {
            ErrorKind::UnexpectedEof => self.cut(),
            _ => Error::io("read", &self.path, e),
        }
    }

    fn cut(&self) -> Error {
        let path = self.path.display();
        Error::resource(format!(
            "{path} was cut short while it was read: it had {} bytes; put it back and run the same \
             command again",
            self.bytes
        ))
    }
}

impl Read for InFile {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(into)
    }
}

impl Seek for InFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// Identity of a file: it differs if the file was changed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId([i64; 7]);

impl FileId {
    /// That of the file at `path`, links followed; `None` where the path leads to nothing.
    pub fn of(path: &Path) -> Result<Option<FileId>> {
        let m = match path.metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ELOOP) => {
                return Ok(None);
            }
            other => other.map_err(|e| Error::io("look for", path, &e))?,
        };
        let [device, inode, size] = [m.dev(), m.ino(), m.size()].map(|n| n as i64);
        let (seconds, nanos) = ([m.mtime(), m.ctime()], [m.mtime_nsec(), m.ctime_nsec()]);
        Ok(Some(FileId([device, inode, size, seconds[0], seconds[1], nanos[0], nanos[1]])))
    }
}

/// Reads a file of at most `most` bytes.
pub fn read_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    InFile::open(path)?.read_all(most)
}

/// Reads a file of at most `most` bytes, if there is one. A link that leads nowhere is an error:
/// somebody put it there for a file.
pub fn read_if_there(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    is_there(path)?.then(|| read_file(path, most)).transpose()
}

/// Reads a text of at most `most` bytes.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_file(path, most)?)
        .map_err(|_| Error::user(format!("{} is not UTF-8 text", path.display())))
}

/// True if something has this name, be it a link that leads nowhere.
///
/// # Errors
/// The system cannot tell.
pub fn is_there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("look for", path, &e)),
    }
}

fn too_large(path: &Path, most: u64) -> Error {
    let path = path.display();
    Error::user(format!("{path} has more than {most} bytes; is it the file that is meant?"))
}

/// True if `path` is a directory, or a link to one.
///
/// # Errors
/// The system cannot tell.
pub fn is_dir(path: &Path) -> Result<bool> {
    match path.metadata() {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("look for", path, &e)),
    }
}

/// True if `path` is a regular file, or a link to one.
///
/// # Errors
/// The system cannot tell.
pub fn is_file(path: &Path) -> Result<bool> {
    match path.metadata() {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("look for", path, &e)),
    }
}

/// The paths of all that lies in a directory, in order.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Error::io("read", dir, &e);
    let all = std::fs::read_dir(dir).map_err(failed)?;
    let mut paths: Vec<PathBuf> =
        all.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Refuses all but regular files.
fn regular(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe, which can be read only once",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Error::user(format!("{} is {what}; give a regular file", path.display())))
}

/// The error of a file that cannot be opened. A link that leads nowhere is named as one.
fn unopened(path: &Path, e: &std::io::Error) -> Error {
    match (e.kind(), std::fs::read_link(path)) {
        (ErrorKind::NotFound, Ok(to)) => Error::user(format!(
            "{} is a link to {}, which does not exist; put the file there",
            path.display(),
            to.display()
        )),
        _ => Error::io("open", path, e),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
