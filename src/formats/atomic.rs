//! Files that are whole or absent: written beside their place, synced, then renamed into it.

use super::direct_io::DirectWriter;
use crate::base::{Error, Result};
use std::fs::{self, File};
use std::path::Path;

/// Writes `path` so that after a crash at any moment it holds either its old content or all of the
/// new one, and after a return its content is on the disk.
///
/// `write` gets a buffered file ([`DirectWriter`]) and must give its own I/O errors a place with
/// [`Error::io`]. On any error the half-written file is removed and an old file stays as it was; a
/// full disk is a resource error.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut DirectWriter) -> Result<()>,
) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::user(format!("{} does not name a file", path.display())));
    };
    let hidden = format!(".{}.tmp-{}", name.to_string_lossy(), std::process::id());
    let temp = path.with_file_name(hidden);
    // Left by a killed process of the same number; never written through, it could be a link.
    let _ = fs::remove_file(&temp);
    let done = fill(&temp, path, write).and_then(|()| {
        fs::rename(&temp, path).map_err(|e| Error::io("rename a new file to", path, &e))
    });
    if let Err(e) = done {
        let _ = fs::remove_file(&temp);
        return Err(e);
    }
    sync_dir(parent(path))
}

fn fill(
    temp: &Path,
    path: &Path,
    write: impl FnOnce(&mut DirectWriter) -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::io("write", path, &e);
    let mut out = DirectWriter::new(File::create_new(temp).map_err(failed)?);
    write(&mut out)?;
    out.finish().map_err(failed)
}

/// Makes renames and removals in `dir` last.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, &e))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let all = fs::read_dir(dir).unwrap();
        all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for text in ["a longer text", "short"] {
            write_atomic(&path, |w| {
                w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, &e))
            })
            .unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "old").unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(b"half").unwrap();
            // The kernel's own answer of a full disk.
            let mut full = File::options().write(true).open("/dev/full").unwrap();
            full.write_all(b"the other half").map_err(|e| Error::io("write", &path, &e))
        })
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Resource, "{error}");
        assert!(error.to_string().contains("a.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn does_not_write_through_a_planted_link() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let temp = dir.path().join(format!(".out.tmp-{}", std::process::id()));
        std::os::unix::fs::symlink(&victim, &temp).unwrap();
        write_atomic(&dir.path().join("out"), |_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_missing_directory_is_the_users_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_atomic(&dir.path().join("no/a.json"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), Kind::User);
        assert!(error.to_string().contains("no/a.json"), "{error}");
        assert!(write_atomic(Path::new("/"), |_| Ok(())).is_err());
    }
}
