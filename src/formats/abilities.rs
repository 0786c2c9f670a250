//! The abilities of a file system that a run makes use of, found out by trying them.

use super::direct_io::set_direct;
use super::out_dir::OutDir;
use crate::base::Result;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};

/// The abilities of the file system of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Files can be locked, so that one process at a time has a run.
    pub locks: bool,
    /// Two names can be exchanged in one call, so that a model is replaced at one moment.
    pub exchanges: bool,
    /// Files can be written past the system's memory.
    pub writes_directly: bool,
}

impl OutDir {
    /// Finds out in a directory of its own inside, which is removed again.
    pub fn abilities(&self) -> Result<Abilities> {
        let name = format!(".duplex-doctor-{}", std::process::id());
        let found = self.sub(&name).and_then(|dir| {
            let file = dir.file("a")?;
            dir.sub("b")?;
            Ok(Abilities {
                locks: flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
                exchanges: renameat_with(dir.fd(), "a", dir.fd(), "b", RenameFlags::EXCHANGE)
                    .is_ok(),
                writes_directly: set_direct(&file, true),
            })
        });
        let removed = self.remove(&name);
        found.and_then(|found| removed.map(|()| found))
    }
}
