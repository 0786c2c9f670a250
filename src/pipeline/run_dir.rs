//! The run directory: one process at a time, one run, its resolved config and where results go.

use crate::algo::{ALGORITHMS, Algorithm};
use crate::base::{Error, Result, machine_name};
use crate::formats::{remove_leftovers, write_atomic};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const LOCK: &str = "duplex.lock";

/// A run directory held by this process.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    /// True if a run may replace what is there.
    overwrite: bool,
    /// True if the directory already belonged to a run.
    is_run: bool,
    /// Files and directories that opening it made.
    traces: Traces,
    // Held for its lock, which the kernel drops when the process ends, however it ends. The first
    // rank has it.
    _lock: Option<File>,
}

impl RunDir {
    /// The directory as it lies there, perhaps not yet. With `overwrite`, a run may replace what
    /// it holds.
    pub(super) fn at(path: &Path, overwrite: bool) -> RunDir {
        let (path, is_run) = (path.to_path_buf(), path.join(LOCK).exists());
        RunDir { path, overwrite, is_run, traces: Traces::default(), _lock: None }
    }

    /// Opens or creates the directory and locks it. Refused, without `overwrite`: a directory that
    /// holds something else.
    pub(super) fn open(self) -> Result<RunDir> {
        let mut dir = RunDir::at(&self.path, self.overwrite);
        dir.check_free()?;
        dir.traces = Traces::before(&dir.path);
        let opened = std::fs::create_dir_all(&dir.path)
            .map_err(|e| Error::io("create", &dir.path, &e))
            .and_then(|()| lock(&dir.path));
        match opened {
            Ok(lock) => dir._lock = Some(lock),
            Err(e) => {
                dir.traces.remove();
                return Err(e);
            }
        }
        remove_leftovers(&dir.checkpoints())?;
        Ok(dir)
    }

    /// Refuses a path that is a file, and without `overwrite` a directory that holds something
    /// else.
    pub(super) fn check_free(&self) -> Result<()> {
        let path = &self.path;
        if path.is_file() {
            return Err(Error::user(format!("--output-dir {}: is a file", path.display())));
        }
        let foreign = path.is_dir()
            && !self.is_run
            && std::fs::read_dir(path).map_err(|e| Error::io("read", path, &e))?.next().is_some();
        if foreign && !self.overwrite {
            return Err(Error::user(format!(
                "--output-dir {}: holds files that are not of a run; choose another directory or \
                 give --overwrite",
                path.display()
            )));
        }
        Ok(())
    }

    /// New content of the opened directory, to be removed by a start that fails.
    pub(super) fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// The directory as another rank sees it than the one that has opened it.
    pub(super) fn beside(self) -> Result<RunDir> {
        if self.path.join(LOCK).is_file() {
            return Ok(RunDir::at(&self.path, self.overwrite));
        }
        Err(Error::user(format!(
            "--output-dir {}: not the directory that rank 0 has opened; it must be on a file \
             system that all ranks share",
            self.path.display()
        )))
    }

    /// Takes the directory for a run of `stages` that begins anew. Refused, without `overwrite`:
    /// one that holds results of them already.
    pub(super) fn claim(&self, stages: &[&Algorithm]) -> Result<()> {
        let old = stages.iter().map(|stage| self.stage(stage)).find(|dir| dir.exists());
        if let Some(old) = old.filter(|_| !self.overwrite) {
            return Err(Error::user(format!(
                "{} exists already; give --overwrite to replace it, another --output-dir, or \
                 --extend with more epochs or steps to train it further",
                old.display()
            )));
        }
        // Of a run that left no result, or is replaced with all of them.
        let left = |a: &&Algorithm| !stages.contains(a) && self.stage(a).exists();
        match self.is_run && !ALGORITHMS.iter().any(left) {
            true => self.remove_reports(),
            false => Ok(()),
        }
    }

    /// Removes what an earlier run reported.
    fn remove_reports(&self) -> Result<()> {
        for name in ["metrics.jsonl", "report.html", "tensorboard"] {
            let path = self.path.join(name);
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false if path.exists() => std::fs::remove_file(&path),
                false => Ok(()),
            };
            removed.map_err(|e| Error::io("remove", &path, &e))?;
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the resolved config.
    pub(super) fn write_config(&self, toml: &str) -> Result<()> {
        let path = self.path.join("config.toml");
        write_atomic(&path, |out| {
            out.write_all(toml.as_bytes()).map_err(|e| Error::io("write", &path, &e))
        })
    }

    /// Where checkpoints go.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The log of the run.
    pub(super) fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Where the results of a stage go.
    pub(super) fn stage(&self, of: &Algorithm) -> PathBuf {
        self.path.join(of.name)
    }

    /// The model of a stage that others start from and that one talks to.
    pub(super) fn model(&self, of: &Algorithm) -> PathBuf {
        models(&self.path, of).swap_remove(0)
    }
}

/// Where the run in `root` keeps the models of a stage, the one that one talks to first.
pub(super) fn models(root: &Path, of: &Algorithm) -> Vec<PathBuf> {
    let stage = root.join(of.name);
    match of.models() {
        [] => vec![stage],
        names => names.iter().map(|name| stage.join(name)).collect(),
    }
}

/// Files that a run makes in its directory before its first iteration is done, among them the
/// demonstration's model and data. The lock comes last.
const MADE: [&str; 8] = [
    "checkpoints",
    "metrics.jsonl",
    "report.html",
    "tensorboard",
    "config.toml",
    "base",
    "data",
    LOCK,
];

/// Files and directories that did not exist before a run directory was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces {
    files: Vec<PathBuf>,
    /// The directory and those above it, innermost first.
    dirs: Vec<PathBuf>,
}

impl Traces {
    fn before(dir: &Path) -> Traces {
        let above = dir.ancestors().filter(|d| !d.as_os_str().is_empty());
        Traces {
            files: MADE.iter().map(|name| dir.join(name)).filter(|p| !p.exists()).collect(),
            dirs: above.take_while(|d| !d.exists()).map(Path::to_path_buf).collect(),
        }
    }

    /// Removes what came since. What cannot be removed, or holds something else, stays.
    pub(super) fn remove(&self) {
        for path in &self.files {
            let _ = match path.is_dir() {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
        }
        self.dirs.iter().take_while(|dir| std::fs::remove_dir(dir).is_ok()).for_each(drop);
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("write", &path, &e))?;
    // SAFETY: flock on an open descriptor has no memory effects.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let mut owner = String::new();
        let _ = file.read_to_string(&mut owner);
        return Err(Error::user(format!(
            "--output-dir {}: in use by {}; wait for it or choose another directory",
            dir.display(),
            if owner.trim().is_empty() { "another process" } else { owner.trim() }
        )));
    }
    let note = format!("process {} on {}\n", std::process::id(), machine_name());
    let write =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes()));
    write.map_err(|e| Error::io("write", &path, &e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algo::DEEPSPEED_CHAT;

    #[test]
    fn a_start_that_fails_leaves_what_was_there() {
        let tmp = tempfile::tempdir().unwrap();
        let inner = tmp.path().join("a/b/c");
        let dir = RunDir::at(&inner, false).open().unwrap();
        dir.write_config("x = 1").unwrap();
        let traces = dir.traces();
        drop(dir);
        traces.remove();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        // Directories and files from before stay, and so does what others put there.
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        let dir = RunDir::at(&inner, false).open().unwrap();
        std::fs::write(inner.join("thesis.txt"), "x").unwrap();
        dir.traces().remove();
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
        let old = RunDir::at(&tmp.path().join("old"), false).open().unwrap();
        old.write_config("x = 1").unwrap();
        drop(old);
        let old = RunDir::at(&tmp.path().join("old"), false).open().unwrap();
        std::fs::write(old.metrics(), "x").unwrap();
        old.traces().remove();
        assert!(old.path().join("config.toml").exists() && old.path().join(LOCK).exists());
        assert!(!old.metrics().exists());
    }

    #[test]
    fn one_process_at_a_time_and_no_foreign_files() {
        let tmp = tempfile::tempdir().unwrap();
        let run = RunDir::at(&tmp.path().join("run"), false).open().unwrap();
        let again = RunDir::at(run.path(), false).open().unwrap_err();
        assert!(again.to_string().contains(&format!("process {}", std::process::id())), "{again}");
        let path = run.path().to_path_buf();
        drop(run);
        std::fs::create_dir(path.join("sft")).unwrap();
        let run = RunDir::at(&path, false).open().unwrap();
        let [sft, reward, ppo] = DEEPSPEED_CHAT;
        let e = run.claim(&[sft]).unwrap_err();
        assert!(e.to_string().contains("sft exists already; give --overwrite"), "{e}");
        std::fs::write(path.join("metrics.jsonl"), "x").unwrap();
        run.claim(&[reward, ppo]).unwrap();
        assert!(path.join("metrics.jsonl").exists());
        drop(run);
        let run = RunDir::at(&path, true).open().unwrap();
        run.claim(&[sft, reward, ppo]).unwrap();
        assert!(!path.join("metrics.jsonl").exists());
        std::fs::write(tmp.path().join("thesis.txt"), "x").unwrap();
        let e = RunDir::at(tmp.path(), false).open().unwrap_err();
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().contains("not of a run"));
    }
}
