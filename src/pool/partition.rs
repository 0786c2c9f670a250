//! The shards of a store that each rank keeps: the stages of ZeRO (Rajbhandari et al. 2020).

use crate::base::{Error, Result};
use crate::comm::Comm;
use std::fmt;
use std::str::FromStr;

/// The state that ranks shard instead of replicating it: everything up to the one named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zero {
    /// Stage 0: nothing; plain data parallelism.
    Nothing,
    /// Stage 1: optimizer state.
    Optimizer,
    /// Stage 2: gradients too.
    Gradients,
    /// Stage 3: weights too.
    Weights,
}

impl Zero {
    /// All stages, in order.
    pub const ALL: [Zero; 4] = [Zero::Nothing, Zero::Optimizer, Zero::Gradients, Zero::Weights];
}

impl fmt::Display for Zero {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

impl FromStr for Zero {
    type Err = Error;

    fn from_str(text: &str) -> Result<Zero> {
        let stage = Zero::ALL.into_iter().find(|z| z.to_string() == text);
        stage.ok_or_else(|| Error::user(format!("{text:?} is no ZeRO stage; use 0, 1, 2 or 3")))
    }
}

/// The ranks among which a store is shared out, and how.
#[derive(Clone, Debug)]
pub struct Partition {
    /// The ranks: part `r` is kept by rank `r`.
    pub comm: Comm,
    /// The state that the ranks shard.
    pub stage: Zero,
    /// Blocks that every segment is cut into: the ranks of tensor parallelism.
    pub blocks: usize,
    /// Those of the ranks whose parts make up a block, this rank's.
    pub slice: Comm,
    /// Those of the ranks that have the same part of each block: together they compute what one
    /// would with all blocks.
    pub tensor: Comm,
}

impl Partition {
    /// One rank that keeps all.
    pub fn alone() -> Partition {
        let [comm, slice, tensor] = [(); 3].map(|()| Comm::alone());
        Partition { comm, stage: Zero::Nothing, blocks: 1, slice, tensor }
    }

    /// The ranks of `comm`, of which `blocks` compute together where each computes with its block
    /// alone. All ranks call this at the same time.
    ///
    /// # Errors
    /// There are several blocks, and weights are not shared out, or the ranks cannot be shared out
    /// among blocks.
    pub fn new(comm: Comm, stage: Zero, blocks: usize) -> Result<Partition> {
        let ranks = comm.size();
        Partition::check(ranks, stage, blocks)?;
        let (slice, tensor) = match blocks {
            1 => (comm.clone(), Comm::alone()),
            _ if blocks == ranks => (Comm::alone(), comm.clone()),
            _ => {
                let parts = ranks / blocks;
                (comm.split(comm.rank() / parts)?, comm.split(comm.rank() % parts)?)
            }
        };
        Ok(Partition { comm, stage, blocks, slice, tensor })
    }

    /// Refuses what [`Partition::new`] refuses.
    pub fn check(ranks: usize, stage: Zero, blocks: usize) -> Result<()> {
        if blocks == 0 || !ranks.is_multiple_of(blocks) {
            return Err(Error::user(format!(
                "{ranks} ranks cannot be divided into {blocks} tensor-parallel shards; use a \
                 divisor of {ranks}"
            )));
        }
        if blocks > 1 && stage < Zero::Weights {
            return Err(Error::user(format!(
                "tensor parallelism needs sharded parameters, unlike ZeRO stage {stage}; use \
                 stage 3"
            )));
        }
        Ok(())
    }

    /// The parts of what `stage` shares out.
    pub(super) fn parts(&self, stage: Zero) -> usize {
        if self.stage >= stage { self.comm.size() } else { 1 }
    }

    /// Which of them is this rank's.
    pub(super) fn part(&self, stage: Zero) -> usize {
        if self.stage >= stage { self.comm.rank() } else { 0 }
    }
}
