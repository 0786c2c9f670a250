//! The configuration of a run's ranks.

use crate::pool::Zero;
use serde::{Deserialize, Serialize};

/// Where a run's ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deployment {
    /// One rank.
    SingleGpu,
    /// The devices of one machine.
    SingleNode,
    /// Several machines.
    MultiNode,
}

/// The ZeRO stage: which state of a model the ranks shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZeroStage {
    /// As little as memory allows.
    #[serde(rename = "auto")]
    Auto,
    /// Nothing.
    #[serde(rename = "0")]
    Nothing,
    /// Optimizer state.
    #[serde(rename = "1")]
    Optimizer,
    /// Gradients too.
    #[serde(rename = "2")]
    Gradients,
    /// Weights too.
    #[serde(rename = "3")]
    Weights,
}

impl ZeroStage {
    /// The stage, if one is given.
    pub fn stage(self) -> Option<Zero> {
        match self {
            ZeroStage::Auto => None,
            ZeroStage::Nothing => Some(Zero::Nothing),
            ZeroStage::Optimizer => Some(Zero::Optimizer),
            ZeroStage::Gradients => Some(Zero::Gradients),
            ZeroStage::Weights => Some(Zero::Weights),
        }
    }
}
