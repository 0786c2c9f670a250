//! Arenas and plans of programs. A program is a function of a tape and its inputs; it is run once
//! on a planning tape, without memory, with the largest inputs it will meet, and from then on in
//! the planned arena. All programs of all models share one arena: phases never overlap, so its size
//! is the maximum over programs, not their sum.

use super::{Planned, ProgressMarker, Tape};
use crate::base::{Error, Kind, Result};
use crate::device::{Buffer, Device, Region};
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

/// The bytes that activations live in.
#[derive(Debug)]
pub struct Arena {
    buffer: Buffer,
    progress: Arc<ProgressMarker>,
}

impl Arena {
    /// The whole arena.
    pub fn region(&self) -> Region<'_> {
        self.buffer.region()
    }

    /// Where the program is that runs in it.
    pub(super) fn progress(&self) -> &ProgressMarker {
        &self.progress
    }

    /// The device it lives on.
    pub fn device(&self) -> Device {
        self.buffer.device()
    }
}

/// Inputs of a program, of which a largest case can be made from sizes alone.
pub trait Shaped {
    /// The sizes that decide every shape in the program.
    fn dims(&self) -> Vec<usize>;
    /// Inputs of exactly these sizes, with content that is never read.
    fn largest(dims: &[usize]) -> Self;
}

/// A program without inputs.
impl Shaped for () {
    fn dims(&self) -> Vec<usize> {
        vec![]
    }
    fn largest(_: &[usize]) {}
}

/// One arena and the plans of the programs that run in it.
#[derive(Debug)]
pub struct Workspace {
    arena: Arena,
    plans: HashMap<String, (Vec<usize>, Planned)>,
    limit: usize,
    /// The message to be reported, and true once one has been given.
    note: Option<String>,
    notified: bool,
    /// Returns true if work under way is to be dropped, where it may be dropped.
    cancel: Option<fn() -> bool>,
    dropped: Cell<bool>,
    flops: Cell<u64>,
    misfits: usize,
}

/// The error of a program that memory does not suffice for.
fn short(key: &str, dims: &[usize], total: usize, why: &dyn Display) -> Error {
    let why = why.to_string();
    // Without the advice it ends with, which is for all kinds of memory.
    let why = why.split(';').next().unwrap_or_default();
    Error::memory(format!(
        "{key} needs {:.1} MiB of activations for sizes {dims:?}: {why}; use \
         --gradient-checkpointing full, shorter sequences (--max-seq-len, --max-prompt-seq-len, \
         --max-answer-seq-len), --dtype bf16, or more memory",
        mib(total)
    ))
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Workspace {
    /// An empty workspace on `device` that may grow to `limit` bytes.
    pub fn new(device: Device, limit: usize) -> Result<Workspace> {
        let arena = Arena { buffer: Buffer::zeroed(device, 0)?, progress: Arc::default() };
        let (plans, dropped, flops) = (HashMap::new(), Cell::default(), Cell::default());
        let (note, notified, cancel) = (None, false, None);
        Ok(Workspace { arena, plans, limit, note, notified, cancel, dropped, flops, misfits: 0 })
    }

    /// Size of the arena: the peak of activations over all programs.
    pub fn bytes(&self) -> usize {
        self.arena.buffer.bytes()
    }

    /// From here on long work asks `cancel` between its parts whether it is to be dropped; `None`:
    /// it is not.
    pub fn cancel_when(&mut self, cancel: Option<fn() -> bool>) {
        self.cancel = cancel;
    }

    /// Between the parts of long work that leaves everything as it was when it is dropped: an error
    /// of [`Kind::Stopped`] if it is.
    pub fn go_on(&self) -> Result<()> {
        if self.cancel_requested() { Err(self.drop_work()) } else { Ok(()) }
    }

    /// True if work under way is to be dropped.
    pub fn cancel_requested(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel())
    }

    /// The error of work that is dropped.
    pub fn drop_work(&self) -> Error {
        self.dropped.set(true);
        Error::stopped(
            "what was under way is dropped; the same command resumes from the last checkpoint",
        )
    }

    /// True if work has been dropped since the last call.
    pub fn take_dropped(&self) -> bool {
        self.dropped.take()
    }

    /// Where the program is that runs, for another thread to ask.
    pub fn progress(&self) -> Arc<ProgressMarker> {
        self.arena.progress.clone()
    }

    /// Bytes planned for each program, by name.
    pub fn programs(&self) -> Vec<(String, usize)> {
        let mut all: Vec<_> =
            self.plans.iter().map(|(k, (_, p))| (k.clone(), p.arena.total)).collect();
        all.sort();
        all
    }

    /// Plans `program` under `key` for inputs of up to `dims`, growing the arena if it must.
    pub fn reserve<'a, I: Shaped, T>(
        &mut self,
        key: &str,
        dims: &[usize],
        program: &mut dyn FnMut(&mut Tape<'a>, &I) -> Result<T>,
    ) -> Result<()> {
        let mut caps = dims.to_vec();
        let old = self.plans.get(key).map(|(old, plan)| (old.clone(), plan.arena.total));
        if let Some((old, _)) = &old {
            caps.iter_mut().zip(old).for_each(|(c, o)| *c = (*c).max(*o));
        }
        let done = match old {
            Some((old, total)) if old == caps => {
                self.grow(total).map_err(|e| short(key, &old, total, &e))
            }
            _ => self.plan(key, &caps, program),
        };
        match done {
            // The largest of each size may never come together.
            Err(e) if e.kind() == Kind::Memory && caps != dims => self.plan(key, dims, program),
            done => done,
        }
    }

    /// Plans `program` for exactly `dims`.
    fn plan<'a, I: Shaped, T>(
        &mut self,
        key: &str,
        dims: &[usize],
        program: &mut dyn FnMut(&mut Tape<'a>, &I) -> Result<T>,
    ) -> Result<()> {
        let mut tape = Tape::planning(self.arena.device());
        program(&mut tape, &I::largest(dims))?;
        self.adopt(key, dims, tape.into_plan())
    }

    /// Takes `plan` for inputs of `dims`, growing the arena if it must.
    fn adopt(&mut self, key: &str, dims: &[usize], plan: Planned) -> Result<()> {
        let total = plan.arena.total;
        if total > self.limit {
            let limit = format!("--memory-limit is {:.1} MiB", mib(self.limit));
            return Err(short(key, dims, total, &limit));
        }
        self.grow(total).map_err(|e| short(key, dims, total, &e))?;
        self.plans.insert(key.to_string(), (dims.to_vec(), plan));
        Ok(())
    }

    /// Plans `program` again, for `inputs` alone, if it does not run on them as planned for larger
    /// ones. That is never so where what operators plan grows with their sizes, but a run must not
    /// end on one that does not; [`Workspace::misfits`] counts them.
    fn fit<'a, I: Shaped, T>(
        &mut self,
        key: &str,
        inputs: &I,
        program: &mut dyn FnMut(&mut Tape<'a>, &I) -> Result<T>,
    ) -> Result<()> {
        let dims = inputs.dims();
        let Some((_, plan)) = self.plans.get(key).filter(|(known, _)| *known != dims) else {
            return Ok(());
        };
        let mut tape = Tape::planning(self.arena.device());
        program(&mut tape, inputs)?;
        if plan.holds(&tape.lives) {
            return Ok(());
        }
        self.misfits += 1;
        self.adopt(key, &dims, tape.into_plan())
    }

    /// How often a program did not run on smaller inputs as it was planned for larger ones. 0,
    /// unless an operator needs more of something for less.
    pub fn misfits(&self) -> usize {
        self.misfits
    }

    fn grow(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.bytes() {
            // Nothing lives in the arena between programs, so the old one can go first.
            self.arena.buffer = Buffer::zeroed(self.arena.device(), 0)?;
            self.arena.buffer = Buffer::zeroed(self.arena.device(), bytes)?;
        }
        Ok(())
    }

    /// Keeps a message about memory to be reported. Only the first counts, since later ones repeat
    /// it.
    pub fn notify(&mut self, what: impl FnOnce() -> String) {
        if !self.notified {
            (self.note, self.notified) = (Some(what()), true);
        }
    }

    /// The message to be reported, once.
    pub fn take_notice(&mut self) -> Option<String> {
        self.note.take()
    }

    /// Runs `program` on `inputs`, planning first where the known plan is too small.
    pub fn run<'a, I: Shaped, T>(
        &'a mut self,
        key: &str,
        inputs: &I,
        mut program: impl FnMut(&mut Tape<'a>, &I) -> Result<T>,
    ) -> Result<T> {
        self.reserve(key, &inputs.dims(), &mut program)?;
        self.fit(key, inputs, &mut program)?;
        self.arena.progress.enter(key);
        let this = &*self;
        let mut tape = this.tape(key)?;
        let done = program(&mut tape, inputs);
        this.count_flops(tape.flops());
        done
    }

    /// Counts operations that no program has run.
    pub fn count_flops(&self, flops: u64) {
        self.flops.set(self.flops.get() + flops);
    }

    /// Floating-point operations of all programs run so far, recorded ones apart; backward counts
    /// as twice forward.
    pub fn flops(&self) -> u64 {
        self.flops.get()
    }

    /// A tape that runs as planned under `key`.
    pub(super) fn tape(&self, key: &str) -> Result<Tape<'_>> {
        match self.plans.get(key) {
            Some((_, plan)) if plan.arena.total <= self.bytes() => {
                Ok(Tape::running(&self.arena, plan))
            }
            Some(_) => Err(Error::internal(format!("{key} has no arena"))),
            None => Err(Error::internal(format!("{key} was not planned"))),
        }
    }
}
