//! Saving of checkpoints while training goes on: when it is time, one writer at a time, and which
//! of the checkpoints are kept. What is in them the steps know, how they are written
//! `formats::snapshot` does.

use super::doctor::free_memory;
use super::run_dir::not_in_the_command;
use crate::algo::lower_is_better;
use crate::base::{Error, Result};
use crate::comm::Comm;
use crate::config::key::Every;
use crate::device::{Buffer, Device};
use crate::formats::{
    Copied, Found, Label, OutDir, SnapshotBuilder, Whole, list_snapshots, read_as_written,
    snapshots_in, write_snapshot,
};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Instant;

/// Saves the checkpoints of one run.
pub(super) struct Saver {
    /// Where they are.
    root: PathBuf,
    /// The same, held open to write into: the first rank has it.
    out: Option<OutDir>,
    /// The stages of the run, in order.
    steps: Vec<&'static str>,
    every: Every,
    /// How many of the newest are kept.
    keep: usize,
    best: Option<Best>,
    /// When the last one was taken.
    last: Instant,
    writing: Option<JoinHandle<(Buffer, Result<Pruned>)>>,
    /// Why older checkpoints could not be removed, until it is told.
    kept: Option<String>,
    /// The memory of the copy, while it is not being written: kept, for new memory is slow at
    /// first.
    memory: Option<Buffer>,
    /// Size of that memory, wherever it is.
    held: usize,
    /// True if the lack of memory for a copy was reported.
    told: bool,
    /// Free memory that is believed in at most; for tests.
    most: u64,
    /// The ranks of the run: the first writes, all read.
    comm: Comm,
}

/// Older checkpoints are removed, or stay, which costs room and nothing else.
type Pruned = std::result::Result<(), String>;

/// The metric whose best checkpoint is kept.
#[derive(Clone, Debug)]
pub(super) struct Best {
    pub(super) metric: String,
    /// True if a lower value is better.
    pub(super) lower: bool,
    /// Step, iteration and value of the best so far, for each step that has one.
    pub(super) found: Vec<(String, u64, f64)>,
}

impl Best {
    /// The best of a run that has no checkpoint yet.
    pub(super) fn of(metric: &str) -> Result<Best> {
        Ok(Best { metric: metric.to_string(), lower: lower_is_better(metric)?, found: vec![] })
    }

    /// Takes in the metrics of an iteration; true if it is the step's best so far.
    fn improves(&mut self, step: &str, iteration: u64, values: &[(&str, f64)]) -> bool {
        let value = values.iter().find(|v| v.0 == self.metric).map(|v| v.1);
        let Some(value) = value.filter(|v| v.is_finite()) else { return false };
        let old = self.found.iter().position(|f| f.0 == step);
        let better = |old: f64| if self.lower { value < old } else { value > old };
        match old {
            Some(i) if !better(self.found[i].2) => return false,
            Some(i) => self.found[i] = (step.to_string(), iteration, value),
            None => self.found.push((step.to_string(), iteration, value)),
        }
        true
    }

    fn names(&self, found: &Found) -> bool {
        self.found.iter().any(|f| f.0 == found.step && Some(f.1) == found.iteration)
    }

    /// The best so far in one line.
    pub(super) fn written(&self) -> String {
        let one =
            |(step, iteration, value): &(String, u64, f64)| format!("{step} {iteration} {value}");
        self.found.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Reads back what was [`Best::written`] for the same metric.
    pub(super) fn read(&mut self, text: &str) {
        let one = |part: &str| {
            let mut words = part.split(' ');
            let step = words.next()?.to_string();
            Some((step, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        self.found = text.split(',').filter_map(one).collect();
    }
}

impl Saver {
    pub(super) fn new(
        (root, out): (PathBuf, Option<OutDir>),
        steps: Vec<&'static str>,
        every: Every,
        keep: usize,
        best: Option<Best>,
        comm: Comm,
    ) -> Saver {
        let (last, writing, memory, kept) = (Instant::now(), None, None, None);
        let (held, told) = (0, false);
        let most = u64::MAX;
        Saver {
            root,
            out,
            steps,
            every,
            keep,
            best,
            last,
            writing,
            kept,
            memory,
            held,
            told,
            most,
            comm,
        }
    }

    /// The checkpoints of the run's stages, oldest first.
    pub(super) fn found(&self) -> Result<Vec<Found>> {
        in_order(&self.root, &self.steps)
    }

    /// The best so far.
    pub(super) fn best(&mut self) -> Option<&mut Best> {
        self.best.as_mut()
    }

    /// True if a checkpoint is due after this iteration, with these metrics.
    pub(super) fn is_due(&mut self, step: &str, iteration: u64, values: &[(&str, f64)]) -> bool {
        let best = self.best.as_mut().is_some_and(|b| b.improves(step, iteration, values));
        best || match self.every {
            Every::Iterations(n) => iteration.is_multiple_of(n),
            Every::Time(pause) => self.last.elapsed() >= pause,
        }
    }

    /// Hears of an error of the writer, if it has ended with one.
    pub(super) fn check(&mut self) -> Result<()> {
        match &self.writing {
            Some(writing) if writing.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits until nothing is being written.
    pub(super) fn wait(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let Ok((memory, done)) = writing.join() else {
            return Err(Error::internal("the writer of checkpoints panicked"));
        };
        self.memory = Some(memory);
        self.kept = done?.err().or(self.kept.take());
        Ok(())
    }

    /// Why older checkpoints could not be removed, where that is to be told.
    pub(super) fn take_notice(&mut self) -> Option<String> {
        self.kept.take()
    }

    /// Bytes of memory held for copies of the state.
    pub(super) fn bytes(&self) -> usize {
        self.held
    }

    /// Memory for a copy of `bytes` bytes; `None` where there is no room for it.
    fn room(&mut self, bytes: usize) -> Option<Buffer> {
        let old = self.memory.take();
        let memory = old.filter(|m| m.bytes() >= bytes).or_else(|| {
            // The system promises more than it has, and ends who takes it at its word.
            let fits = free_memory().is_none_or(|free| bytes as u64 <= free.min(self.most) / 8 * 7);
            fits.then(|| Buffer::zeroed(Device::Cpu, bytes).ok()).flatten()
        });
        self.held = memory.as_ref().map_or(0, Buffer::bytes);
        memory
    }

    /// Has a copy of `builder` written while training goes on. There is one copy at most: a disk
    /// that cannot follow slows the run down. Where there is no memory for a copy it is written
    /// before this returns; what is to be said of that is returned, once.
    pub(super) fn write(
        &mut self,
        label: Label,
        builder: SnapshotBuilder<'_>,
    ) -> Result<Option<String>> {
        self.last = Instant::now();
        if self.comm.rank() > 0 {
            let [copied] = self.comm.any([false])?;
            return if copied { builder.read_all() } else { read_as_written(&builder) }
                .map(|()| None);
        }
        self.wait()?;
        let bytes = builder.bytes()?;
        let room = self.room(bytes);
        self.comm.any([room.is_some()])?;
        match room {
            Some(memory) => self.spawn(label, builder.copied(memory)?).map(|()| None),
            None => {
                self.kept = self.writer(label)(&builder)?.err();
                let first = !std::mem::replace(&mut self.told, true);
                Ok(first.then(|| {
                    format!(
                        "no memory for a copy of the state, {} MiB: training waits while a \
                         checkpoint is written",
                        bytes.div_ceil(1 << 20)
                    )
                }))
            }
        }
    }

    /// Writes one checkpoint and removes those that are too many.
    fn writer(&self, label: Label) -> impl FnOnce(&dyn Whole) -> Result<Pruned> + use<> {
        let (out, steps, keep) = (self.out.clone(), self.steps.clone(), self.keep);
        let best = self.best.clone();
        move |state| {
            let none = || Error::internal("a rank that writes nothing would write");
            let root = out.as_ref().ok_or_else(none)?;
            write_snapshot(root, &label, state).map_err(not_in_the_command)?;
            let pruned = prune(root, &steps, keep, best.as_ref());
            Ok(pruned.map_err(|e| format!("older checkpoints stay: {e}")))
        }
    }

    fn spawn(&mut self, label: Label, copy: Copied) -> Result<()> {
        let writer = self.writer(label);
        let write = move || {
            stand_back();
            let done = writer(&copy);
            (copy.into_memory(), done)
        };
        let thread = std::thread::Builder::new().name("checkpoint".into());
        let started = thread.spawn(write);
        self.writing =
            Some(started.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?);
        Ok(())
    }
}

impl Drop for Saver {
    /// A run that ends by an error elsewhere still has its last checkpoint written.
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// Lets the calling thread run where others leave the processor idle, or little more.
fn stand_back() {
    #[cfg(target_os = "linux")]
    // SAFETY: on Linux a thread has a priority of its own, and 0 is the calling one.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// Checkpoints of these steps, oldest first.
pub(super) fn in_order(root: &Path, steps: &[&str]) -> Result<Vec<Found>> {
    Ok(sorted(list_snapshots(root)?, steps))
}

/// Those of these steps, oldest first.
pub(super) fn sorted(mut all: Vec<Found>, steps: &[&str]) -> Vec<Found> {
    let place = |found: &Found| {
        let step = steps.iter().position(|s| *s == found.step)?;
        Some((step, found.iteration.unwrap_or(u64::MAX)))
    };
    all.retain(|found| place(found).is_some());
    all.sort_by_key(place);
    all
}

/// Removes all but the newest `keep`, the best, and the marks of finished steps, which are small.
fn prune(root: &OutDir, steps: &[&str], keep: usize, best: Option<&Best>) -> Result<()> {
    let all = sorted(snapshots_in(root)?, steps);
    let newest = all.last().cloned();
    let (begun, mut old): (Vec<Found>, Vec<Found>) =
        all.into_iter().filter(|f| f.iteration.is_some()).partition(|f| f.iteration == Some(0));
    old.truncate(old.len().saturating_sub(keep));
    old.retain(|found| !best.is_some_and(|b| b.names(found)));
    // The mark of the beginning, once there is more.
    old.extend(begun.into_iter().filter(|f| Some(f) != newest.as_ref()));
    old.iter().try_for_each(|found| root.take_away(found.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn saver(root: &Path, keep: usize, best: Option<Best>) -> Saver {
        Saver::new(
            (root.to_owned(), Some(OutDir::create(root).unwrap())),
            vec!["sft", "ppo"],
            Every::Iterations(3),
            keep,
            best,
            Comm::alone(),
        )
    }

    fn label(step: &str, iteration: u64, finished: bool) -> Label {
        Label { step: step.into(), iteration, finished, ..Label::default() }
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(root)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_the_best_and_the_marks_are_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let found = vec![("sft".to_string(), 2, 0.5)];
        let best = Best { metric: "eval_loss".into(), lower: true, found };
        let mut saver = saver(tmp.path(), 2, Some(best));
        let mut save =
            |label| assert_eq!(saver.write(label, SnapshotBuilder::default()).unwrap(), None);
        (1..=4).for_each(|i| save(label("sft", i, false)));
        save(label("sft", 4, true));
        // Of another run.
        std::fs::create_dir(tmp.path().join("reward-00000009")).unwrap();
        (8..=10).for_each(|i| save(label("ppo", i, false)));
        saver.wait().unwrap();
        assert_eq!(
            names(tmp.path()),
            ["ppo-00000009", "ppo-00000010", "reward-00000009", "sft-00000002", "sft-finished"]
        );
    }

    #[test]
    fn the_best_is_by_step_and_direction() {
        let mut best = Best { metric: "loss".into(), lower: true, found: vec![] };
        let mut given = |step, i, loss| best.improves(step, i, &[("kl", 0.0), ("loss", loss)]);
        assert!(given("sft", 1, 2.0) && !given("sft", 2, 2.0) && given("sft", 3, 1.5));
        assert!(!given("sft", 4, f64::NAN) && given("ppo", 5, 7.25));
        let mut again = Best { found: vec![], ..best.clone() };
        again.read(&best.written());
        assert_eq!(again.found, [("sft".into(), 3, 1.5), ("ppo".into(), 5, 7.25)]);
        again.lower = false;
        assert!(!again.improves("sft", 9, &[("loss", 1.25)]));
        assert!(again.improves("sft", 9, &[("loss", 1.75)]));
    }

    /// A builder of a tensor of `n` bytes.
    fn builder(n: usize) -> SnapshotBuilder<'static> {
        let mut builder = SnapshotBuilder::default();
        builder.tensor("a".into(), crate::base::DType::U8, &[n], |to| {
            to.fill(7);
            Ok(())
        });
        builder
    }

    #[test]
    fn the_memory_of_a_copy_is_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let mut saver = saver(tmp.path(), 9, None);
        for (i, n, held) in [(1, 9000, 9000), (2, 5000, 9000), (3, 9001, 9001)] {
            assert_eq!(saver.write(label("sft", i, false), builder(n)).unwrap(), None);
            assert_eq!(saver.bytes(), held);
            saver.wait().unwrap();
            assert_eq!(saver.memory.as_ref().map(Buffer::bytes), Some(held));
        }
    }

    #[test]
    fn without_memory_for_a_copy_it_is_written_at_once() {
        let tmp = tempfile::tempdir().unwrap();
        let mut saver = saver(tmp.path(), 2, None);
        saver.most = 8000;
        for i in 1..=3 {
            let told = saver.write(label("sft", i, false), builder(1 << 20)).unwrap();
            assert_eq!(told.is_some_and(|t| t.contains("1 MiB: training waits")), i == 1);
            assert!(saver.writing.is_none() && saver.bytes() == 0);
        }
        assert_eq!(names(tmp.path()), ["sft-00000002", "sft-00000003"]);
        let again = crate::formats::Snapshot::open(&tmp.path().join("sft-00000003")).unwrap();
        let bytes = again.tensor("a", crate::base::DType::U8, &[1 << 20]).unwrap();
        assert!(bytes.iter().all(|b| *b == 7));
    }

    /// The older checkpoint stays, be a copy written or the state itself, though one is kept.
    #[test]
    fn a_checkpoint_that_is_not_finite_takes_no_place() {
        let state = |x: f32| {
            let mut builder = SnapshotBuilder::default();
            builder.tensor("a".into(), crate::base::DType::F32, &[1], move |to| {
                to.copy_from_slice(&x.to_le_bytes());
                Ok(())
            });
            builder
        };
        for most in [u64::MAX, 0] {
            let tmp = tempfile::tempdir().unwrap();
            let mut saver = saver(tmp.path(), 1, None);
            saver.most = most;
            saver.write(label("sft", 1, false), state(1.5)).unwrap();
            let broken = saver.write(label("sft", 2, false), state(f32::NAN));
            let e = broken.and_then(|_| saver.wait()).unwrap_err();
            assert_eq!((e.kind(), e.exit_code()), (Kind::Diverged, 2), "{e}");
            assert!(e.to_string().contains("1 of 1 values of \"a\" are not finite"), "{e}");
            assert_eq!(names(tmp.path()), ["sft-00000001"]);
        }
    }

    #[test]
    fn an_error_of_the_writer_is_a_missing_resource() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("gone");
        let mut saver = saver(&root, 1, None);
        std::fs::remove_dir(&root).unwrap();
        saver.write(label("sft", 1, false), SnapshotBuilder::default()).unwrap();
        let e = saver.wait().unwrap_err();
        assert_eq!(e.exit_code(), 3, "{e}");
        assert!(saver.is_due("sft", 3, &[]) && !saver.is_due("sft", 4, &[]));
    }
}
