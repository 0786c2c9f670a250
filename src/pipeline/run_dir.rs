//! The run directory: one process at a time, one run, its resolved config and where results go. It
//! is held open: what the run writes goes into this very directory, even if it is moved.

use super::lock::{LOCK, Lock};
use crate::algo::{ALGORITHMS, Algorithm};
use crate::base::{Error, Kind, Result, entries, is_dir, is_there};
use crate::formats::{OutDir, is_hidden};
use rustix::fs::Access;
use std::path::{Path, PathBuf};

/// Where checkpoints go.
const CHECKPOINTS: &str = "checkpoints";
/// The resolved config.
const CONFIG: &str = "config.toml";
/// The log of the run.
pub(super) const METRICS: &str = "metrics.jsonl";

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
    /// The first rank holds it.
    held: Option<(OutDir, Lock)>,
}

impl RunDir {
    /// The directory as it lies there, perhaps not yet. With `overwrite`, a run may replace what
    /// it holds.
    pub(super) fn at(path: &Path, overwrite: bool) -> RunDir {
        let has = |name: &str| path.join(name).symlink_metadata().is_ok();
        // A lock that somebody has removed leaves a run.
        let is_run = has(LOCK) || has(CONFIG) && has(CHECKPOINTS);
        let (path, traces) = (path.to_path_buf(), Traces::default());
        RunDir { path, overwrite, is_run, traces, held: None }
    }

    /// Opens or creates the directory and locks it. Refused, without `overwrite`: a directory that
    /// holds something else.
    pub(super) fn open(self) -> Result<RunDir> {
        let mut dir = RunDir::at(&self.path, self.overwrite);
        dir.check_free()?;
        dir.traces = Traces::before(&dir.path)?;
        let opened =
            OutDir::create(&dir.path).and_then(|out| Lock::take(&out).map(|lock| (out, lock)));
        let (out, lock) = match opened {
            Ok(held) => held,
            Err(e) => {
                dir.traces.remove(None);
                return Err(e);
            }
        };
        tidy(&out)?;
        dir.held = Some((out, lock));
        Ok(dir)
    }

    /// Refuses a path that is no directory, and without `overwrite` a directory that holds
    /// something else.
    pub(super) fn check_free(&self) -> Result<()> {
        let path = &self.path;
        if is_there(path)? && !is_dir(path)? {
            let what = if path.is_file() { "a file" } else { "no directory" };
            return Err(Error::user(format!("--output-dir {}: is {what}", path.display())));
        }
        let foreign = is_dir(path)? && !self.is_run && !entries(path)?.iter().all(|p| is_left(p));
        if foreign && !self.overwrite {
            return Err(Error::user(format!(
                "--output-dir {}: holds files that are not of a run; choose another directory or \
                 give --overwrite",
                path.display()
            )));
        }
        check_writable(path)
    }

    /// New content of the opened directory, to be removed by a start that fails.
    pub(super) fn traces(&self) -> (Traces, Option<OutDir>) {
        (self.traces.clone(), self.held.as_ref().map(|held| held.0.clone()))
    }

    /// The directory as another rank sees it than the one that has opened it.
    pub(super) fn beside(self) -> Result<RunDir> {
        if is_there(&self.path.join(LOCK))? {
            return Ok(RunDir::at(&self.path, self.overwrite));
        }
        Err(Error::user(format!(
            "--output-dir {}: not the directory that rank 0 has opened; it must be on a file \
             system that all ranks share",
            self.path.display()
        )))
    }

    /// The directory to write into. The first rank has it.
    pub(super) fn out(&self) -> Result<&OutDir> {
        let held = self.held.as_ref().map(|held| &held.0);
        held.ok_or_else(|| Error::internal("a rank that writes nothing would write"))
    }

    /// Refuses to go on where the directory has been moved, removed or replaced: what lies at its
    /// path is not this run's.
    pub(super) fn check_still_there(&self) -> Result<()> {
        let Some((out, _)) = &self.held else { return Ok(()) };
        if out.is_at_its_path()? {
            return Ok(());
        }
        Err(Error::resource(format!(
            "{} is not this run's directory any more: it was moved, removed or replaced; the run \
             resumes by the same command with the --output-dir where it is now",
            self.path.display()
        )))
    }

    /// Takes the directory for a run of `stages` that begins anew. Refused, without `overwrite`:
    /// one that holds results of them already.
    pub(super) fn claim(&self, stages: &[&Algorithm]) -> Result<()> {
        let out = self.out()?;
        for stage in stages.iter().filter(|_| !self.overwrite) {
            if out.size_of(stage.name)?.is_some() {
                return Err(Error::user(format!(
                    "{} exists already; give --overwrite to replace it, another --output-dir, or \
                     --extend with more epochs or steps to train it further",
                    self.stage(stage).display()
                )));
            }
        }
        // Of a run that left no result, or is replaced with all of them.
        let others = ALGORITHMS.iter().filter(|a| !stages.contains(a));
        for other in others {
            if out.size_of(other.name)?.is_some() {
                return Ok(());
            }
        }
        match self.is_run {
            true => REPORTS.iter().try_for_each(|name| out.remove(name)),
            false => Ok(()),
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the resolved config.
    pub(super) fn write_config(&self, toml: &str) -> Result<()> {
        self.out()?.write_bytes(CONFIG, toml.as_bytes())
    }

    /// Where checkpoints go.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The same to write into, for the first rank.
    pub(super) fn checkpoints_out(&self) -> Result<Option<OutDir>> {
        self.held.as_ref().map(|(out, _)| out.sub(CHECKPOINTS)).transpose()
    }

    /// Size of the log so far in bytes; 0 if there is none.
    pub(super) fn log_bytes(&self) -> Result<u64> {
        let size = self.held.as_ref().map_or(Ok(None), |(out, _)| out.size_of(METRICS))?;
        Ok(size.unwrap_or(0))
    }

    /// Where the results of a stage go.
    pub(super) fn stage(&self, of: &Algorithm) -> PathBuf {
        self.path.join(of.name)
    }

    /// The model of a stage that others start from and that one talks to.
    pub(super) fn model(&self, of: &Algorithm) -> PathBuf {
        models(&self.path, of).swap_remove(0)
    }

    /// The place of a model of a stage: of one of several, by its name.
    pub(super) fn place<'d>(&'d self, of: &Algorithm, model: Option<&'static str>) -> Place<'d> {
        Place { dir: self, stage: of.name, model }
    }
}

/// Where a stage keeps a model.
#[derive(Clone, Copy)]
pub(super) struct Place<'d> {
    dir: &'d RunDir,
    stage: &'static str,
    model: Option<&'static str>,
}

impl Place<'_> {
    /// Its path.
    pub(super) fn path(&self) -> PathBuf {
        let stage = self.dir.path.join(self.stage);
        self.model.map_or(stage.clone(), |model| stage.join(model))
    }

    /// Fills the model's directory anew, in place of an older one.
    pub(super) fn replace(&self, fill: impl FnOnce(&OutDir) -> Result<()>) -> Result<()> {
        let out = self.dir.out()?;
        let done = match self.model {
            None => out.replace(self.stage, fill),
            Some(model) => out.sub(self.stage).and_then(|stage| stage.replace(model, fill)),
        };
        done.map_err(not_in_the_command)
    }

    /// Removes it, if it is there.
    pub(super) fn clear(&self) -> Result<()> {
        let out = self.dir.out()?;
        match self.model {
            None => out.take_away(self.stage),
            Some(model) => out.find(self.stage)?.map_or(Ok(()), |stage| stage.take_away(model)),
        }
    }
}

/// The run directory was fit for the run when it began; that it is not any more is no mistake in
/// the command.
pub(super) fn not_in_the_command(e: Error) -> Error {
    match e.kind() {
        Kind::User => Error::resource(format!("{e}; the checkpoints before are as they were")),
        _ => e,
    }
}

/// True for what a start that failed can leave where it cannot remove all it has made.
fn is_left(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    REPORTS.contains(&name) || [CHECKPOINTS, CONFIG].contains(&name) || is_hidden(name)
}

/// Refuses a directory that cannot be written to, or made where it is to be.
fn check_writable(path: &Path) -> Result<()> {
    let place = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let asked = rustix::fs::access(place.unwrap_or(Path::new(".")), Access::WRITE_OK);
    asked.map_err(|e| {
        let path = path.display();
        Error::user(format!("--output-dir {path}: cannot be written to: {e}; choose another"))
    })
}

/// Removes what a process that was killed left in the making, and brings back what it left aside.
fn tidy(out: &OutDir) -> Result<()> {
    let several = ALGORITHMS.iter().filter(|a| !a.models().is_empty()).map(|a| a.name);
    let inside: Vec<OutDir> = [CHECKPOINTS]
        .into_iter()
        .chain(several)
        .filter_map(|name| out.find(name).transpose())
        .collect::<Result<_>>()?;
    for dir in inside.iter().chain([out]) {
        dir.bring_back()?;
        dir.remove_leftovers()?;
    }
    Ok(())
}

/// Where the run in `root` keeps the models of a stage, the one that one talks to first.
pub(super) fn models(root: &Path, of: &Algorithm) -> Vec<PathBuf> {
    let stage = root.join(of.name);
    match of.models() {
        [] => vec![stage],
        names => names.iter().map(|name| stage.join(name)).collect(),
    }
}

/// The files of a run's reports.
const REPORTS: [&str; 3] = [METRICS, "report.html", "tensorboard"];

/// Files that a run makes in its directory before its first iteration is done, among them the
/// demonstration's model and data. The lock comes last.
const MADE: [&str; 8] =
    [CHECKPOINTS, REPORTS[0], REPORTS[1], REPORTS[2], CONFIG, "base", "data", LOCK];

/// Files and directories that did not exist before a run directory was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces {
    names: Vec<&'static str>,
    /// The directory and those above it, innermost first.
    dirs: Vec<PathBuf>,
}

impl Traces {
    fn before(dir: &Path) -> Result<Traces> {
        let mut traces = Traces::default();
        for name in MADE {
            if !is_there(&dir.join(name))? {
                traces.names.push(name);
            }
        }
        let above = dir.ancestors().filter(|d| !d.as_os_str().is_empty());
        traces.dirs = above.take_while(|d| !d.exists()).map(Path::to_path_buf).collect();
        Ok(traces)
    }

    /// Removes what came since in the directory held open. What cannot be removed, or holds
    /// something else, stays.
    pub(super) fn remove(&self, out: Option<&OutDir>) {
        for (out, name) in out.iter().flat_map(|out| self.names.iter().map(move |n| (out, n))) {
            let _ = out.remove(name);
        }
        self.dirs.iter().take_while(|dir| std::fs::remove_dir(dir).is_ok()).for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algo::DEEPSPEED_CHAT;

    /// Removes the traces of a directory that stays open.
    fn remove(dir: &RunDir) {
        let (traces, out) = dir.traces();
        traces.remove(out.as_ref());
    }

    #[test]
    fn a_start_that_fails_leaves_what_was_there() {
        let tmp = tempfile::tempdir().unwrap();
        let inner = tmp.path().join("a/b/c");
        let dir = RunDir::at(&inner, false).open().unwrap();
        dir.write_config("x = 1").unwrap();
        let (traces, out) = dir.traces();
        drop(dir);
        traces.remove(out.as_ref());
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        // Directories and files from before stay, and so does what others put there.
        std::fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        let dir = RunDir::at(&inner, false).open().unwrap();
        std::fs::write(inner.join("thesis.txt"), "x").unwrap();
        remove(&dir);
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 1);
        let old = RunDir::at(&tmp.path().join("old"), false).open().unwrap();
        old.write_config("x = 1").unwrap();
        drop(old);
        let old = RunDir::at(&tmp.path().join("old"), false).open().unwrap();
        let metrics = old.path().join(METRICS);
        std::fs::write(&metrics, "x").unwrap();
        remove(&old);
        assert!(old.path().join("config.toml").exists() && old.path().join(LOCK).exists());
        assert!(!metrics.exists());
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
