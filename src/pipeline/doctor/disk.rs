//! The disk of the run directory: room, whether it can be written to, and how fast.

use super::finding::{Finding, size};
use crate::formats::{Abilities, OutDir};
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes written to see how fast that is.
const SAMPLE: usize = 16 << 20;
const BLOCK: usize = 1 << 20;
/// Less than this and the smallest model cannot be saved.
const LEAST: u64 = 64 << 20;
/// Less than this and a model of a few hundred million parameters may not fit with its checkpoints.
const LITTLE: u64 = 10 << 30;
/// Slower than this, in bytes a second, and saving a model is what takes the time.
const SLOW: f64 = 50e6;

/// Checks the disk of `dir`, which need not exist yet.
pub(super) fn look(dir: &Path) -> Vec<Finding> {
    let place = match existing(dir) {
        Ok(place) => place,
        Err(finding) => return vec![*finding],
    };
    let mut all = vec![];
    if let Some(space) = Space::of(&place) {
        all.push(room(dir, &space));
        if space.free < LEAST {
            return all;
        }
    }
    all.push(writing(dir, &place));
    if let Ok(able) = OutDir::open(&place).and_then(|place| place.abilities()) {
        all.push(file_system(able));
    }
    all
}

/// `dir`, or the nearest directory above it that is there, in which a run would create it.
fn existing(dir: &Path) -> Result<PathBuf, Box<Finding>> {
    let place = dir.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let place = place.unwrap_or(Path::new("."));
    if place.is_dir() {
        return Ok(place.to_path_buf());
    }
    let text = format!("{}: {} is no directory", dir.display(), place.display());
    Err(Box::new(Finding::problem("run directory", text, "choose another --output-dir")))
}

/// Bytes of a file system.
struct Space {
    free: u64,
    total: u64,
    /// Files that can still be made; 0 of 0 where the file system does not count them.
    files_free: u64,
    files_total: u64,
}

impl Space {
    fn of(dir: &Path) -> Option<Space> {
        let path = CString::new(dir.as_os_str().as_bytes()).ok()?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: the path ends in a nul and the pointer is to a local of the right type.
        let stat = unsafe {
            if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
                return None;
            }
            stat.assume_init()
        };
        let (unit, free, total) = (wide(stat.f_frsize), wide(stat.f_bavail), wide(stat.f_blocks));
        let (files_free, files_total) = (wide(stat.f_favail), wide(stat.f_files));
        let (free, total) = (free.saturating_mul(unit), total.saturating_mul(unit));
        // What has no size, as /proc, is no disk.
        (total > 0).then_some(Space { free, total, files_free, files_total })
    }
}

/// A number of the system's, whose width differs between systems.
fn wide(x: impl Into<u64>) -> u64 {
    x.into()
}

fn room(dir: &Path, space: &Space) -> Finding {
    const NAME: &str = "disk";
    let text = format!("{}: {} of {} free", dir.display(), size(space.free), size(space.total));
    let no_files = space.files_total > 0 && space.files_free < 64;
    let finding = if no_files {
        let text = format!("{text}, but room for {} files only", space.files_free);
        Finding::problem(NAME, text, "remove files, or choose another --output-dir")
    } else if space.free < LEAST {
        Finding::problem(NAME, text, "free some space, or choose another --output-dir")
    } else if space.free < LITTLE {
        Finding::note(NAME, text).advise(
            "a model is saved up to four times in a run, and checkpoints hold its optimizer state",
        )
    } else {
        Finding::ok(NAME, text)
    };
    finding.with("free", space.free).with("total", space.total)
}

/// Writes to `place`, where a run in `dir` would.
fn writing(dir: &Path, place: &Path) -> Finding {
    const NAME: &str = "run directory";
    let shown = match dir == place {
        true => dir.display().to_string(),
        false => format!("{} (to be made in {})", dir.display(), place.display()),
    };
    let rate = match sample(place) {
        Ok(seconds) => SAMPLE as f64 / seconds.max(1e-9),
        Err(e) => {
            let text = format!("{shown}: cannot be written to: {e}");
            return Finding::problem(
                NAME,
                text,
                "make it writable, or choose another --output-dir",
            );
        }
    };
    let text = format!("{shown}: writes {:.0} MB/s, synced", rate / 1e6);
    let finding = match rate < SLOW {
        true => Finding::note(NAME, text).advise("saving will take long; a local disk is faster"),
        false => Finding::ok(NAME, text),
    };
    finding.with("write_bytes_per_s", rate)
}

/// Judges what the file system can do.
fn file_system(able: Abilities) -> Finding {
    const NAME: &str = "file system";
    let finding = if !able.locks {
        let text = "cannot lock files, so two runs could write to one directory";
        Finding::problem(NAME, text, "choose an --output-dir on another file system")
    } else if !able.exchanges {
        let text = "locks files, but does not exchange names in one call";
        Finding::note(NAME, text).advise(
            "a crash while a model is replaced can leave its older one under a hidden name, until \
             the next start of the run brings it back",
        )
    } else if !able.writes_directly {
        let text = "locks files and exchanges names, but does not write past the system's memory";
        Finding::note(NAME, text)
            .advise("checkpoints take more of the processor; a local disk takes less")
    } else {
        let text = "locks files, exchanges names, writes past the system's memory";
        Finding::ok(NAME, text)
    };
    finding
        .with("locks", able.locks)
        .with("exchanges", able.exchanges)
        .with("writes_directly", able.writes_directly)
}

/// Seconds of writing and syncing a file in `dir`, which is removed again.
fn sample(dir: &Path) -> std::io::Result<f64> {
    /// Removes the file, also after an error.
    struct Removed(PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    let path = dir.join(format!(".duplex-doctor-{}", std::process::id()));
    // Never through a file or link that is there already.
    let mut file = File::create_new(&path)?;
    let _removed = Removed(path);
    // Not zeros, which some file systems do not store.
    let block: Vec<u8> =
        (0..BLOCK as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect();
    let clock = Instant::now();
    for _ in 0..SAMPLE / BLOCK {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(clock.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let tmp = tempfile::tempdir().unwrap();
        for dir in [tmp.path().to_path_buf(), tmp.path().join("a/b")] {
            let all = look(&dir);
            assert!(all.iter().all(|f| f.mark != Mark::Problem), "{all:?}");
            let rate = all[1].values["write_bytes_per_s"].as_f64().unwrap();
            assert!(rate > 1e3, "{rate}");
            assert!(all[0].values["free"].as_u64() <= all[0].values["total"].as_u64());
        }
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_a_problem() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for dir in [file.clone(), file.join("run"), PathBuf::from("/proc/duplex")] {
            let all = look(&dir);
            let last = all.last().unwrap();
            assert!(
                last.mark == Mark::Problem && last.advice.is_some(),
                "{}: {all:?}",
                dir.display()
            );
        }
    }

    #[test]
    fn what_a_file_system_cannot_do_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let able = OutDir::open(tmp.path()).unwrap().abilities().unwrap();
        assert!(able.locks);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        let mark = |locks, exchanges, writes_directly| {
            file_system(Abilities { locks, exchanges, writes_directly }).mark
        };
        assert_eq!(mark(true, true, true), Mark::Ok);
        assert_eq!(mark(true, false, true), Mark::Note);
        assert_eq!(mark(true, true, false), Mark::Note);
        assert_eq!(mark(false, true, true), Mark::Problem);
    }

    #[test]
    fn little_room_is_told() {
        let with = |free, files_free| {
            let space = Space { free, total: 1 << 40, files_free, files_total: 1 << 20 };
            room(Path::new("run"), &space).mark
        };
        assert_eq!(with(1 << 39, 1 << 19), Mark::Ok);
        assert_eq!(with(1 << 32, 1 << 19), Mark::Note);
        assert_eq!(with(1 << 20, 1 << 19), Mark::Problem);
        assert_eq!(with(1 << 39, 3), Mark::Problem);
    }
}
