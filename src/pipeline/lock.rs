//! The lock by which one process at a time has a run directory. It names its owner, and the kernel
//! drops it when the process ends, however it ends.

use crate::base::{Error, Result, machine_name};
use crate::formats::OutDir;
use rustix::io::{Errno, retry_on_intr};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The name of its file in the run directory.
pub(super) const LOCK: &str = "duplex.lock";

/// Beginning of the note in it.
const OWNER: &str = "process ";

/// Largest note that is read, in bytes.
const MAX_NOTE: u64 = 4096;

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Lock {
    // Held for its lock. That of the directory itself holds where somebody removes the file.
    _file: File,
}

impl Lock {
    /// Takes the lock of a directory.
    ///
    /// # Errors
    /// Another process has it, its file is none of ours, or the file system cannot lock.
    pub(super) fn take(dir: &OutDir) -> Result<Lock> {
        let (at, mut file) = (dir.path().display(), dir.file(LOCK)?);
        let path = dir.path().join(LOCK);
        let note = note(&mut file, &path)?;
        let asked = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match retry_on_intr(|| rustix::fs::flock(&file, asked)) {
            Ok(()) if dir.lock() => {}
            Ok(()) | Err(Errno::WOULDBLOCK) => {
                let owner = if note.is_empty() { "another process" } else { &note };
                return Err(Error::user(format!(
                    "--output-dir {at}: in use by {owner}; wait for it or choose another directory"
                )));
            }
            Err(e) => {
                return Err(Error::resource(format!(
                    "--output-dir {at}: its file system cannot lock files ({e}), so another run \
                     could write there at the same time; choose a directory on another one"
                )));
            }
        }
        let note = format!("{OWNER}{} on {}\n", std::process::id(), machine_name());
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(note.as_bytes()));
        written.map_err(|e| Error::io("write", &path, &e))?;
        Ok(Lock { _file: file })
    }
}

/// Reads the note of the last owner. A file of somebody else is not taken for a lock.
fn note(file: &mut File, path: &Path) -> Result<String> {
    let failed = |e| Error::io("read", path, &e);
    let mut text = vec![];
    file.take(MAX_NOTE + 1).read_to_end(&mut text).map_err(failed)?;
    let links = file.metadata().map_err(failed)?.nlink();
    let ours = text.is_empty() || text.starts_with(OWNER.as_bytes());
    if !ours || links > 1 || text.len() as u64 > MAX_NOTE {
        return Err(Error::user(format!(
            "{} is not a lock that Duplex made; move it away, or choose another --output-dir",
            path.display()
        )));
    }
    Ok(String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned())
}
