//! Files and directories that are whole or absent: made under a hidden name beside their place,
//! synced, then brought into it by one call of the system. After a crash at any moment the place
//! holds the old one or the new one, and at most a hidden one is left over, which the next start of
//! a run removes.

use super::direct_io::DirectWriter;
use super::out_dir::{HIDDEN, OutDir};
use crate::base::{Error, Result};
use rustix::fs::{RenameFlags, renameat, renameat_with};
use rustix::io::Errno;

impl OutDir {
    /// Writes the file of this name. After a return its content is on the disk. On any error an old
    /// file stays as it was, and nothing else is left.
    pub fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut DirectWriter) -> Result<()>,
    ) -> Result<()> {
        let (temp, path) = (hidden(name), self.path().join(name));
        // Left by a killed process of the same number; never written through, it could be a link.
        self.remove(&temp)?;
        let Some(file) = self.new_file(&temp, name)? else {
            return Err(Error::resource(format!("{}: written by two at once", path.display())));
        };
        let mut out = DirectWriter::new(file, &path);
        let done = write(&mut out).and_then(|()| out.finish()).and_then(|()| {
            renameat(self.fd(), &temp, self.fd(), name)
                .map_err(|e| Error::io("rename a new file to", &path, &e.into()))
        });
        if let Err(e) = done {
            // The error that counts is the first one.
            let _ = self.remove(&temp);
            return Err(e);
        }
        self.sync()
    }

    /// Writes `bytes` as the file of this name.
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(name, |out| out.put(bytes))
    }

    /// Fills a new directory and puts it in the place of this name. On an error an old one stays.
    pub fn replace(&self, name: &str, fill: impl FnOnce(&OutDir) -> Result<()>) -> Result<()> {
        let temp = hidden(name);
        self.remove(&temp)?;
        let placed = self
            .sub_for(&temp, name)
            .and_then(|new| fill(&new).and_then(|()| sync_dirs(&new)))
            .and_then(|()| self.put_in_place(&temp, name))
            // What is told of it afterwards must not outlive it.
            .and_then(|()| self.sync().inspect_err(|_| self.take_back(&temp, name)));
        // The older one, if there was one; after an error, the new one. The error that counts is
        // the first one, and what stays hidden is removed by the next start.
        let _ = self.remove(&temp);
        placed
    }

    /// Undoes what put the directory `temp` in the place of `name`, as far as the system lets it.
    fn take_back(&self, temp: &str, name: &str) {
        let fd = self.fd();
        let _ = match self.stat(temp) {
            Ok(Some(_)) => renameat_with(fd, temp, fd, name, RenameFlags::EXCHANGE),
            _ => renameat(fd, name, fd, temp),
        };
    }

    /// Removes what has this name, if it is there; no reader sees half of it.
    pub fn take_away(&self, name: &str) -> Result<()> {
        let temp = hidden(name);
        self.remove(&temp)?;
        match renameat(self.fd(), name, self.fd(), &temp) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::io("remove", &self.path().join(name), &e.into())),
        }
        self.sync()?;
        self.remove(&temp)
    }

    /// Gives the directory `temp` the name `name`. The older one has the name `temp` then.
    fn put_in_place(&self, temp: &str, name: &str) -> Result<()> {
        let (fd, path) = (self.fd(), self.path().join(name));
        let failed = |e: Errno| Error::io("rename a directory to", &path, &e.into());
        if self.stat(name)?.is_none() {
            return renameat(fd, temp, fd, name).map_err(failed);
        }
        match renameat_with(fd, temp, fd, name, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            other => return other.map_err(failed),
        }
        // A file system that cannot exchange two names. Where a crash comes between the two calls,
        // `bring_back` finds the older one.
        let old = aside(name);
        self.remove(&old)?;
        renameat(fd, name, fd, &old).map_err(failed)?;
        let placed = renameat(fd, temp, fd, name).map_err(failed);
        if placed.is_err() {
            let _ = renameat(fd, &old, fd, name);
        }
        placed?;
        self.remove(&old)
    }

    /// Gives names back to those that a crash has left aside, or removes them where a new one has
    /// come in their place.
    pub fn bring_back(&self) -> Result<()> {
        for old in self.names()? {
            let Some(name) = old.strip_prefix(ASIDE) else { continue };
            match self.stat(name)? {
                Some(_) => self.remove(&old)?,
                None => renameat(self.fd(), &old, self.fd(), name)
                    .map_err(|e| Error::io("bring back", &self.path().join(name), &e.into()))?,
            }
        }
        Ok(())
    }
}

/// Beginning of the names that older directories have for a moment where names cannot be exchanged.
const ASIDE: &str = ".old-";

/// True for the names that something has while it is made, removed or set aside.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN) || name.starts_with(ASIDE)
}

fn aside(name: &str) -> String {
    format!("{ASIDE}{name}")
}

/// The name in the making. Two processes that write one file do not meet in it.
fn hidden(name: &str) -> String {
    format!("{HIDDEN}{}-{name}", std::process::id())
}

/// Puts the names in a tree of directories on the disk. Its files are there already.
fn sync_dirs(dir: &OutDir) -> Result<()> {
    for name in dir.names()? {
        let stat = dir.stat(&name)?;
        let is_dir = |s: rustix::fs::Stat| {
            rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
        };
        if stat.is_some_and(is_dir)
            && let Some(inside) = dir.find(&name)?
        {
            sync_dirs(&inside)?;
        }
    }
    dir.sync()
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
