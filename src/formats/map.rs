//! A weight file mapped into memory, with the mistakes common to all weight files caught early.

use crate::base::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps `path` for reading. Refuses directories, empty files and Git LFS pointers.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let shown = path.display();
    let file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
    let meta = file.metadata().map_err(|e| Error::io("read", path, &e))?;
    if !meta.is_file() {
        return Err(Error::user(format!("{shown} is not a regular file")));
    }
    if meta.len() == 0 {
        return Err(Error::user(format!("{shown} is empty; download or save it again")));
    }
    // SAFETY: the map is read-only and private to us. Should another process cut the file while it
    // is mapped, the kernel ends this process; weight files are replaced by rename, never edited in
    // place, so a mapped file keeps its bytes.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, &e))?;
    if map.starts_with(b"version https://git-lfs") {
        return Err(Error::user(format!(
            "{shown} is a Git LFS pointer, not the weights; run `git lfs pull` in its directory"
        )));
    }
    Ok(map)
}
