//! A directory to write into, held open: what is done here is done in this very directory, even if
//! it is moved, or another one takes its name.

use crate::base::{Error, Result};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Beginning of the names of files and directories that are being made or removed.
pub(super) const HIDDEN: &str = ".tmp-";

/// A directory held open.
#[derive(Clone, Debug)]
pub struct OutDir {
    fd: Arc<OwnedFd>,
    /// Its name when it was opened: for messages.
    path: PathBuf,
}

impl OutDir {
    /// Opens a directory that is there.
    pub fn open(path: &Path) -> Result<OutDir> {
        let place = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = retry_on_intr(|| rustix::fs::open(place, directory(), Mode::empty()));
        let fd = fd.map_err(|e| Error::io("open", path, &e.into()))?;
        Ok(OutDir { fd: Arc::new(fd), path: path.to_owned() })
    }

    /// Opens a directory, which is made if absent, with those above it.
    pub fn create(path: &Path) -> Result<OutDir> {
        std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, &e))?;
        OutDir::open(path)
    }

    /// The directory of this name inside, which is made if absent. A link is not followed.
    pub fn sub(&self, name: &str) -> Result<OutDir> {
        self.sub_for(name, name)
    }

    /// The same with the name `shown` in messages.
    pub(super) fn sub_for(&self, name: &str, shown: &str) -> Result<OutDir> {
        let path = self.path.join(shown);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("create", &path, &e.into())),
        }
        self.open_inside(name, shown)
    }

    /// The directory of this name inside, if it is there.
    pub fn find(&self, name: &str) -> Result<Option<OutDir>> {
        let there = self.stat(name)?.is_some();
        there.then(|| self.open_inside(name, name)).transpose()
    }

    fn open_inside(&self, name: &str, shown: &str) -> Result<OutDir> {
        let path = self.path.join(shown);
        let flags = directory() | OFlags::NOFOLLOW;
        let fd = retry_on_intr(|| rustix::fs::openat(&self.fd, name, flags, Mode::empty()));
        let fd = fd.map_err(|e| Error::io("open", &path, &e.into()))?;
        Ok(OutDir { fd: Arc::new(fd), path })
    }

    /// Its name when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if its name still leads to it.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn is_at_its_path(&self) -> Result<bool> {
        let place = if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path };
        let failed = |e: Errno| Error::io("look for", &self.path, &e.into());
        let named = match rustix::fs::stat(place) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            other => other.map_err(failed)?,
        };
        let held = rustix::fs::fstat(&self.fd).map_err(failed)?;
        Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
    }

    /// Keeps other processes that ask for the directory away until it is closed; false if one has
    /// it. Where the file system cannot lock directories, nothing is done.
    pub fn lock(&self) -> bool {
        let asked = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let locked = retry_on_intr(|| rustix::fs::flock(&self.fd, asked));
        !matches!(locked, Err(Errno::WOULDBLOCK))
    }

    /// Opens a regular file inside for reading and writing, at its beginning; it is made if absent.
    /// A link is not followed.
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let fd = retry_on_intr(|| rustix::fs::openat(&self.fd, name, flags, mode));
        let file = File::from(fd.map_err(|e| Error::io("open", &path, &e.into()))?);
        let metadata = file.metadata().map_err(|e| Error::io("open", &path, &e))?;
        match metadata.is_file() {
            true => Ok(file),
            false => Err(Error::user(format!("{} is not a regular file", path.display()))),
        }
    }

    /// Makes a new file inside, called `shown` in messages; `None` if something has its name.
    pub(super) fn new_file(&self, name: &str, shown: &str) -> Result<Option<File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        match retry_on_intr(|| rustix::fs::openat(&self.fd, name, flags, mode)) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::EXIST) => Ok(None),
            Err(e) => Err(Error::io("create", &self.path.join(shown), &e.into())),
        }
    }

    /// Size of what has this name inside; `None` if nothing has.
    pub fn size_of(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.stat(name)?.map(|stat| stat.st_size as u64))
    }

    /// The status of a name inside, links not followed.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("look for", &self.path.join(name), &e.into())),
        }
    }

    /// The names inside, in order. One that is not UTF-8 is none of ours and left out.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |e: Errno| Error::io("read", &self.path, &e.into());
        let mut names = vec![];
        for entry in retry_on_intr(|| Dir::read_from(&self.fd)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_str().ok();
            names.extend(name.filter(|n| !matches!(*n, "." | "..")).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file, or a directory with all in it, if it is there. Links are not followed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let failed = |e: Errno| Error::io("remove", &self.path.join(name), &e.into());
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(failed(e)),
        }
        let inside = self.open_inside(name, name)?;
        inside.names()?.iter().try_for_each(|n| inside.remove(n))?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR).map_err(failed)
    }

    /// Removes what processes that were killed left in the making.
    pub fn remove_leftovers(&self) -> Result<()> {
        let names = self.names()?;
        names.iter().filter(|n| n.starts_with(HIDDEN)).try_for_each(|n| self.remove(n))
    }

    /// Makes names that came and went here last.
    pub fn sync(&self) -> Result<()> {
        let synced = retry_on_intr(|| rustix::fs::fsync(&self.fd));
        synced.map_err(|e| Error::io("sync", &self.path, &e.into()))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

#[cfg(test)]
#[path = "out_dir_tests.rs"]
mod tests;
