//! Arenas and plans of programs. A program is a function of a tape and its inputs; it is run once on
//! a planning tape, without memory, with the largest inputs it will meet, and from then on in the planned arena.
//! All programs of all models share one arena: phases never overlap, so its size is the maximum
//! over programs, not their sum.

use super::{Position, Tape};
use crate::base::{Error, Result};
use crate::device::{Buffer, Device, Region};
use crate::pool::ArenaPlan;
use std::collections::HashMap;
use std::sync::Arc;

/// The bytes that activations live in.
#[derive(Debug)]
pub struct Arena {
    buffer: Buffer,
    position: Arc<Position>,
}

impl Arena {
    /// The whole arena.
    pub fn region(&self) -> Region {
        self.buffer.region()
    }

    /// Where the program is that runs in it.
    pub(super) fn position(&self) -> &Position {
        &self.position
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
    plans: HashMap<String, (Vec<usize>, ArenaPlan)>,
    limit: usize,
}

impl Workspace {
    /// An empty workspace on `device` that may grow to `limit` bytes.
    pub fn new(device: Device, limit: usize) -> Result<Workspace> {
        let arena = Arena { buffer: Buffer::zeroed(device, 0)?, position: Arc::default() };
        Ok(Workspace { arena, plans: HashMap::new(), limit })
    }

    /// Size of the arena: the peak of activations over all programs.
    pub fn bytes(&self) -> usize {
        self.arena.buffer.bytes()
    }

    /// Where the program is that runs, for another thread to ask.
    pub fn position(&self) -> Arc<Position> {
        self.arena.position.clone()
    }

    /// Bytes planned for each program, by name.
    pub fn programs(&self) -> Vec<(String, usize)> {
        let mut all: Vec<_> = self.plans.iter().map(|(k, (_, p))| (k.clone(), p.total)).collect();
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
        if let Some((old, plan)) = self.plans.get(key) {
            if old.iter().zip(dims).all(|(a, b)| a >= b) {
                return self.grow(plan.total);
            }
            caps.iter_mut().zip(old).for_each(|(c, o)| *c = (*c).max(*o));
        }
        let device = self.arena.device();
        let mut tape = Tape::planning(device);
        program(&mut tape, &I::largest(&caps))?;
        let plan = tape.into_plan();
        if plan.total > self.limit {
            return Err(Error::resource(format!(
                "{key} needs {} MiB of activations for sizes {caps:?}, the limit is {} MiB; use a smaller micro-batch, shorter sequences or --gradient-checkpointing",
                plan.total >> 20,
                self.limit >> 20
            )));
        }
        let total = plan.total;
        self.plans.insert(key.to_string(), (caps, plan));
        self.grow(total)
    }

    fn grow(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.bytes() {
            // Nothing lives in the arena between programs, so the old one can go first.
            self.arena.buffer = Buffer::zeroed(self.arena.device(), 0)?;
            self.arena.buffer = Buffer::zeroed(self.arena.device(), bytes)?;
        }
        Ok(())
    }

    /// Runs `program` on `inputs`, planning first where the known plan is too small.
    pub fn run<'a, I: Shaped, T>(
        &'a mut self,
        key: &str,
        inputs: &I,
        mut program: impl FnMut(&mut Tape<'a>, &I) -> Result<T>,
    ) -> Result<T> {
        self.reserve(key, &inputs.dims(), &mut program)?;
        self.arena.position.enter(key);
        program(&mut self.tape(key)?, inputs)
    }

    /// A tape that runs as planned under `key`.
    pub(super) fn tape(&self, key: &str) -> Result<Tape<'_>> {
        match self.plans.get(key) {
            Some((_, plan)) if plan.total <= self.bytes() => Ok(Tape::running(&self.arena, plan)),
            Some(_) => Err(Error::internal(format!("{key} has no arena"))),
            None => Err(Error::internal(format!("{key} was not planned"))),
        }
    }
}
