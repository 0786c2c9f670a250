//! A file that is written steadily: whole pieces go to the disk as they come, so that a large file
//! neither fills the system's memory nor keeps the disk busy in one go at the end, when others need
//! them. Where the file system can, they go there past the system's memory: a checkpoint of
//! gigabytes takes a quarter of the processor's time, which training wants.

use crate::base::{Error, Result};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes of a piece. The last one is shorter.
const PIECE: usize = 4 << 20;
/// Pieces that wait in the system's memory at most, where they go through it.
const WAITING: usize = 8;

/// A block of the disk: places, lengths and memory are multiples of it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Block([u8; 4096]);

/// A file under construction.
pub struct DirectWriter {
    file: File,
    /// The place that the file is for, for messages.
    path: PathBuf,
    piece: Vec<Block>,
    /// Bytes in the piece.
    used: usize,
    /// Pieces written through the system's memory since they were last sent to the disk.
    waiting: usize,
    way: Way,
}

/// The way that pieces take.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// There was no whole piece yet.
    Open,
    /// Past the system's memory.
    Direct,
    /// Through it.
    Buffered,
}

impl DirectWriter {
    /// Writes to `file`, which is empty and meant for `path`.
    pub(super) fn new(file: File, path: &Path) -> DirectWriter {
        let (path, piece) = (path.to_owned(), vec![]);
        DirectWriter { file, path, piece, used: 0, waiting: 0, way: Way::Open }
    }

    /// Writes `bytes`. Errors name the place.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Writes what is left; all of it is on the disk then.
    pub(super) fn finish(mut self) -> Result<()> {
        let done = self.flush().and_then(|()| self.file.sync_all());
        done.map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Writes a whole piece.
    fn write_piece(&mut self) -> io::Result<()> {
        if self.way == Way::Open {
            self.way = if set_direct(&self.file, true) { Way::Direct } else { Way::Buffered };
        }
        self.write_used()?;
        self.waiting += 1;
        if self.way == Way::Buffered && self.waiting >= WAITING {
            self.waiting = 0;
            self.file.sync_data()?;
            drop_cache(&self.file);
        }
        Ok(())
    }

    /// Writes what is in the piece.
    fn write_used(&mut self) -> io::Result<()> {
        let DirectWriter { file, piece, used, way, .. } = self;
        let mut rest = &bytemuck::cast_slice::<Block, u8>(piece)[..*used];
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A disk of larger blocks, or one that took part of a block.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput && *way == Way::Direct => {
                    *way = through_memory(file);
                }
                Err(e) => return Err(e),
            }
        }
        *used = 0;
        Ok(())
    }
}

/// From here on pieces go through the system's memory.
fn through_memory(file: &File) -> Way {
    set_direct(file, false);
    Way::Buffered
}

impl Write for DirectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let blocks = PIECE / size_of::<Block>();
        // Small files need no piece.
        let needed = (self.used + bytes.len()).div_ceil(size_of::<Block>()).min(blocks);
        if self.piece.len() < needed {
            self.piece.resize(needed, Block([0; 4096]));
        }
        let n = bytes.len().min(PIECE - self.used);
        let piece = bytemuck::cast_slice_mut::<Block, u8>(&mut self.piece);
        piece[self.used..][..n].copy_from_slice(&bytes[..n]);
        self.used += n;
        if self.used == PIECE {
            self.write_piece()?;
        }
        Ok(n)
    }

    /// Writes what there is of a piece; what comes after it goes through the system's memory.
    fn flush(&mut self) -> io::Result<()> {
        self.way = through_memory(&self.file);
        self.write_used()
    }
}

/// Has writes go past the system's memory, or through it again; false where the file system cannot.
#[cfg(target_os = "linux")]
pub(super) fn set_direct(file: &File, direct: bool) -> bool {
    use std::os::fd::AsRawFd;
    let flag = if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: sets status flags of an open file, of which all others are unset: it was opened to be
    // written.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flag) == 0 }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set_direct(_: &File, _: bool) -> bool {
    false
}

/// Tells the system that what is written of a file will not be read soon.
#[cfg(target_os = "linux")]
fn drop_cache(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: advice on an open file; where it is not taken nothing changes.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn drop_cache(_: &File) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    /// Writes `bytes` in runs of random lengths and reads them back.
    fn written(bytes: &[u8], way: Way, flush_at: usize, rng: &mut Rng) -> Vec<u8> {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("file");
        let file = File::create_new(&path).unwrap();
        let mut out = DirectWriter { way, ..DirectWriter::new(file, &path) };
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = (1 + rng.below(3 << 20) as usize).min(rest.len());
            out.write_all(&rest[..n]).unwrap();
            rest = &rest[n..];
            if bytes.len() - rest.len() > flush_at {
                out.flush().unwrap();
            }
        }
        out.finish().unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn everything_arrives_in_order_whichever_way_it_goes() {
        let mut rng = Rng::new(7, 0);
        for len in [0, 1, 4095, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5000] {
            let bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
            for way in [Way::Open, Way::Buffered] {
                for flush_at in [usize::MAX, 0, PIECE] {
                    let back = written(&bytes, way, flush_at, &mut rng);
                    assert!(back == bytes, "{len} bytes");
                }
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told_at_the_piece_that_does_not_fit() {
        // The kernel's own answer of a full disk.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut out = DirectWriter::new(full, Path::new("/dev/full"));
        let e = out.write_all(&vec![7; 2 * PIECE]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    }
}
