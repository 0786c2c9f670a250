//! The ranks of a run: what each shares of the models, and what they must have alike.

use super::config::{RUN, RunConfig, ZeroStage};
use crate::algo::Algorithm;
use crate::arch::Arch;
use crate::base::{Error, Result, machine_name};
use crate::comm::Comm;
use crate::config::flat;
use crate::device::Device;
use crate::model::Head;
use crate::pool::{Partition, Zero};
use crate::train::AdamWState;
use std::collections::BTreeMap;

/// The ranks, as a run begins with them.
#[derive(Clone, Debug)]
pub struct Ranks {
    /// This rank's handle.
    pub comm: Comm,
    /// How many are on this machine.
    pub local: usize,
    /// The card of this rank, where each has one; else all compute where the configuration says.
    pub card: Option<Device>,
}

impl Ranks {
    /// A run of one rank.
    pub fn alone() -> Ranks {
        Ranks { comm: Comm::alone(), local: 1, card: None }
    }

    /// Ranks that are processes, of which those whose machine has the same name are on one.
    pub fn on_this_machine(comm: Comm, card: Option<Device>) -> Result<Ranks> {
        let hash = blake3::hash(machine_name().as_bytes());
        let all = comm.concat(hash.as_bytes())?;
        let local = all.chunks(hash.as_bytes().len()).filter(|h| h == hash.as_bytes()).count();
        Ok(Ranks { comm, local, card })
    }
}

/// Returns the settings, by name, that must be the same on all ranks of a run.
pub fn alike(cfg: &RunConfig) -> Result<BTreeMap<String, String>> {
    flat(&RUN, cfg)
}

/// Refuses ranks that were not started alike: with other settings, or as another version.
pub(super) fn same_settings(comm: &Comm, keys: &BTreeMap<String, String>) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    let mut own = keys.clone();
    own.insert("version of duplex".into(), env!("CARGO_PKG_VERSION").into());
    let text = |of: &BTreeMap<String, String>| {
        of.iter().map(|(key, value)| format!("{key}\t{value}\n")).collect::<String>()
    };
    let mine = text(&own);
    let lengths = comm.concat(&[mine.len() as u64])?;
    let all = comm.concat(mine.as_bytes())?;
    let mut at = 0;
    let texts: Vec<String> = lengths
        .iter()
        .map(|n| {
            at += *n as usize;
            String::from_utf8_lossy(&all[at - *n as usize..at]).into_owned()
        })
        .collect();
    let Some(rank) = texts.iter().position(|t| *t != texts[0]) else { return Ok(()) };
    let differs = texts[0].lines().zip(texts[rank].lines()).find(|(a, b)| a != b);
    let key = differs.and_then(|(a, _)| a.split('\t').next()).unwrap_or("a setting");
    Err(Error::user(format!(
        "rank {rank} was started with another {key:?} than rank 0; start all ranks alike"
    )))
}

/// Refuses ranks that found different things: `what` names them, `found` is this rank's.
pub(super) fn same(comm: &Comm, what: &str, found: &[u8]) -> Result<()> {
    let hash = blake3::hash(found);
    let all = comm.concat(hash.as_bytes())?;
    let other = all.chunks(hash.as_bytes().len()).position(|h| h != &all[..h.len()]);
    match other {
        None => Ok(()),
        Some(rank) => Err(Error::user(format!(
            "rank {rank} sees other {what} than rank 0; all ranks must read the same files"
        ))),
    }
}

/// Bytes a parameter of training takes on one of `ranks` ranks at `stage`: weight, gradient,
/// optimizer state.
fn bytes_per_parameter(cfg: &RunConfig, stage: Zero, ranks: usize, trained: bool) -> f64 {
    let dtype = cfg.dtype.dtype();
    let [grad, kept] = match trained {
        false => [0.0; 2],
        true => cfg.optimizer_state.bytes_per_parameter(dtype),
    };
    let weight = dtype.size() as f64;
    let part = |from: Zero| if stage >= from { 1.0 / ranks as f64 } else { 1.0 };
    weight * part(Zero::Weights) + grad * part(Zero::Gradients) + kept * part(Zero::Optimizer)
}

/// The stage that the configuration names for a model with `head`.
pub(super) fn asked_stage(cfg: &RunConfig, head: Head) -> Option<Zero> {
    let own = match head {
        Head::Lm => ZeroStage::Auto,
        Head::Score => cfg.critic_zero_stage,
    };
    own.stage().or(cfg.zero_stage.stage())
}

/// The lowest stage at which the models of a step, of this size, take no more than half of a rank's
/// `memory`, in bytes.
pub(super) fn fitting_stage(
    cfg: &RunConfig,
    arch: &Arch,
    trained: bool,
    ranks: usize,
    memory: f64,
) -> Zero {
    // PPO has two models that are trained, and two that are not; without a critic one less.
    let critic_free = |a: &&Algorithm| a.samples() && !a.has_critic();
    let stages = &cfg.stages;
    let less = stages.iter().any(critic_free) && !stages.iter().any(|a| a.has_critic());
    let models = match (trained, less) {
        (true, true) => 3.0,
        (true, false) => 4.0,
        (false, _) => 2.0,
    };
    let needed =
        |stage| models * arch.parameters() * bytes_per_parameter(cfg, stage, ranks, trained);
    let found = Zero::ALL.into_iter().find(|stage| needed(*stage) <= memory / 2.0);
    found.unwrap_or(Zero::Weights)
}

/// Blocks of a model that generates: as asked, else those ranks work together that are `local` to a
/// machine.
pub(super) fn blocks(cfg: &RunConfig, stage: Zero, ranks: usize, local: usize) -> usize {
    match cfg.inference_tp_size {
        0 if stage < Zero::Weights => 1,
        // Neighbours have a scale in common, which must not be cut apart.
        0 if cfg.optimizer_state == AdamWState::Compact => 1,
        0 if ranks.is_multiple_of(local) => local,
        0 => 1,
        given => given,
    }
}

/// Refuses a number of ranks that generate together where it does not fit the run.
pub(super) fn check_blocks(cfg: &RunConfig, ranks: usize) -> Result<()> {
    match (cfg.inference_tp_size, ranks) {
        (0 | 1, _) | (_, 1) => Ok(()),
        // Where the stage is chosen by size, the size decides.
        (given, _) => {
            Partition::check(ranks, asked_stage(cfg, Head::Lm).unwrap_or(Zero::Weights), given)
        }
    }
}
