//! A run without weights: the trainers of the three steps on a fake device, with ranks
//! that are, as the first of them. What they take and say is counted where a real run takes and
//! says it, so nothing is told that the code does not do.

use super::machine::Machine;
use super::models;
use crate::arch::{Arch, Config};
use crate::base::{Error, Result};
use crate::comm::{CallKind, Comm, Count, Kinds};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions, LoraConfig, Model};
use crate::pipeline::config::RunConfig;
use crate::pipeline::ranks;
use crate::pool::{Partition, Zero};
use crate::tape::Workspace;
use crate::train::AdamWConfig;
use serde::Serialize;

/// Bytes of one rank, by what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Bytes {
    pub(super) weights: usize,
    pub(super) gradients: usize,
    pub(super) optimizer: usize,
    pub(super) kv_cache: usize,
    pub(super) activations: usize,
    /// Bytes of other buffers at the peak: weights gathered to generate, decoding state, a moving
    /// average.
    pub(super) buffers: usize,
}

impl Bytes {
    /// All of them.
    pub(super) fn peak(&self) -> usize {
        let Bytes { weights, gradients, optimizer, kv_cache, activations, buffers } = *self;
        weights + gradients + optimizer + kv_cache + activations + buffers
    }
}

/// The groups in which ranks communicate.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    /// All of them.
    world: Comm,
    /// Those whose parts make up a block of the actor.
    slice: Comm,
    /// Those that generate together.
    tensor: Comm,
}

/// The communication in each of the groups, counted by kind of call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Traffic {
    /// Among all ranks, or those of a slice.
    pub(super) wide: Kinds,
    /// Among those that generate together.
    pub(super) tensor: Kinds,
}

/// Each kind's counts in `a` with those in `b`.
fn paired(a: &Kinds, b: &Kinds, with: fn(&Count, &Count) -> Count) -> Kinds {
    std::array::from_fn(|kind| with(&a[kind], &b[kind]))
}

impl Traffic {
    fn since(&self, before: &Traffic) -> Traffic {
        let since = |now, before| paired(now, before, Count::since);
        Traffic {
            wide: since(&self.wide, &before.wide),
            tensor: since(&self.tensor, &before.tensor),
        }
    }

    /// Returns the count of one kind of call, summed over all groups.
    pub(super) fn of(&self, kind: CallKind) -> Count {
        self.wide[kind as usize].and(&self.tensor[kind as usize])
    }
}

/// A part of a step.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) bytes: Bytes,
    /// Floating-point operations of this rank, what is computed again included.
    pub(super) flops: u64,
    pub(super) traffic: Traffic,
    /// Parameters that the rank updates at its end.
    pub(super) updated: usize,
    pub(super) decode: Option<Decode>,
}

/// The sizes that decide the time of decoding, beside its operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decode {
    /// Tokens of an answer after the first, which comes with the prompt.
    pub(super) steps: usize,
    /// Bytes of weights that a step reads.
    pub(super) weights: usize,
    /// Bytes of the cache that it reads, on average.
    pub(super) cache: usize,
    pub(super) layers: usize,
    /// Operations of the prompts.
    pub(super) prompt_flops: u64,
}

/// Where the counts stood.
pub(super) struct Mark {
    flops: u64,
    traffic: Traffic,
}

/// A run of a configuration on a machine, both fake.
pub(super) struct Dry<'c> {
    pub(super) cfg: &'c RunConfig,
    pub(super) machine: Machine,
    pub(super) ws: Workspace,
    groups: Groups,
}

impl<'c> Dry<'c> {
    pub(super) fn new(cfg: &'c RunConfig, machine: Machine) -> Result<Dry<'c>> {
        let ws = Workspace::new(machine.device(), cfg.memory_limit_bytes())?;
        let [world, slice, tensor] = [machine.ranks, 1, 1].map(Comm::fake);
        let groups = Groups { world, slice, tensor };
        Ok(Dry { cfg, machine, ws, groups })
    }

    pub(super) fn ranks(&self) -> usize {
        self.machine.ranks
    }

    fn partition(
        &mut self,
        arch: &Arch,
        head: Head,
        trained: bool,
        generates: bool,
    ) -> Result<Partition> {
        let n = self.ranks();
        if n == 1 {
            return Ok(Partition::alone());
        }
        let stage = ranks::asked_stage(self.cfg, head).unwrap_or_else(|| {
            ranks::fitting_stage(self.cfg, arch, trained, n, self.machine.memory())
        });
        let comm = self.groups.world.clone();
        if !generates {
            return Partition::new(comm, stage, 1);
        }
        let blocks = ranks::blocks(self.cfg, stage, n, self.machine.local);
        if blocks > 1 && (stage < Zero::Weights || !n.is_multiple_of(blocks)) {
            // Says why not.
            return Partition::new(comm, stage, blocks);
        }
        (self.groups.slice, self.groups.tensor) = (Comm::fake(n / blocks), Comm::fake(blocks));
        let (slice, tensor) = (self.groups.slice.clone(), self.groups.tensor.clone());
        Ok(Partition { comm, stage, blocks, slice, tensor })
    }

    /// The model that is called so, with memory that is fake and no weights.
    fn model(
        &mut self,
        config: &Config,
        head: Head,
        lora: Option<LoraConfig>,
        [trained, generates]: [bool; 2],
    ) -> Result<Model> {
        let partition = self.partition(&config.arch()?, head, trained, generates)?;
        let grads = self.cfg.optimizer_state.grads();
        let options = LoadOptions::frozen(head, self.cfg.dtype.dtype()).on(self.machine.device());
        let grads = if trained { grads } else { options.grads };
        let offload = self.cfg.offload && !trained;
        let options = LoadOptions { train: trained, grads, lora, partition, offload, ..options };
        Model::empty(config, &options)
    }

    /// An engine for a model that is trained.
    pub(super) fn trained(
        &mut self,
        config: &Config,
        head: Head,
        lora: Option<LoraConfig>,
        adamw: AdamWConfig,
        generates: bool,
    ) -> Result<Engine> {
        let checkpointing = self.cfg.gradient_checkpointing;
        Engine::trained(self.model(config, head, lora, [true, generates])?, adamw, checkpointing)
    }

    /// An engine for a model that is only asked.
    pub(super) fn frozen(&mut self, config: &Config, head: Head) -> Result<Engine> {
        Ok(Engine::frozen(self.model(config, head, None, [false, false])?))
    }

    fn traffic(&self) -> Traffic {
        let Groups { world, slice, tensor } = &self.groups;
        let wide = paired(&world.counts(), &slice.counts(), Count::and);
        Traffic { wide, tensor: tensor.counts() }
    }

    /// Begins a phase.
    pub(super) fn mark(&self) -> Mark {
        self.machine.kind().take_peak();
        Mark { flops: self.ws.flops(), traffic: self.traffic() }
    }

    /// Ends it; `engines` are those that are there.
    pub(super) fn since(&self, mark: &Mark, name: &'static str, engines: &[&Engine]) -> Phase {
        let peak = self.machine.kind().take_peak();
        let mut sums = [0; 4];
        for engine in engines {
            sums.iter_mut().zip(engine.memory()).for_each(|(sum, bytes)| *sum += bytes);
        }
        let [weights, gradients, optimizer, kv_cache] = sums;
        let offloaded = self.cfg.offload && self.machine.card.is_some();
        let optimizer = if offloaded { 0 } else { optimizer };
        let known = weights + gradients + optimizer + kv_cache + self.ws.bytes();
        Phase {
            name,
            bytes: Bytes {
                weights,
                gradients,
                optimizer,
                kv_cache,
                activations: self.ws.bytes(),
                buffers: peak.saturating_sub(known),
            },
            flops: self.ws.flops() - mark.flops,
            traffic: self.traffic().since(&mark.traffic),
            updated: 0,
            decode: None,
        }
    }
}

impl Phase {
    /// The phase without what `part` of it takes.
    pub(super) fn without(self, part: &Phase, name: &'static str) -> Phase {
        let traffic = self.traffic.since(&part.traffic);
        Phase { name, flops: self.flops.saturating_sub(part.flops), traffic, ..self }
    }
}

/// Parameters of trained models whose state this rank keeps.
pub(super) fn updated(engines: &[&Engine]) -> usize {
    let buckets = engines.iter().flat_map(|e| e.model.store.buckets());
    buckets.filter(|f| f.trained).map(|f| f.own.len()).sum()
}

/// The model that a flag names, or an error that says which flag to give.
pub(super) fn named(given: Option<&String>) -> Result<Config> {
    let missing = || Error::user("no model to plan for; name one with --actor-model");
    models::config(given.ok_or_else(missing)?)
}
