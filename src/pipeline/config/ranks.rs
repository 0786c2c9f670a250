//! The configuration of a run's ranks.

use crate::base::{Error, Result};
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

/// The ZeRO stage: which state of a model the ranks shard. In text `auto` or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ZeroStage {
    /// As little as memory allows.
    Auto,
    /// This stage.
    At(Zero),
}

impl TryFrom<String> for ZeroStage {
    type Error = Error;

    fn try_from(text: String) -> Result<ZeroStage> {
        if text == "auto" { Ok(ZeroStage::Auto) } else { text.parse().map(ZeroStage::At) }
    }
}

impl From<ZeroStage> for String {
    fn from(stage: ZeroStage) -> String {
        match stage {
            ZeroStage::Auto => "auto".into(),
            ZeroStage::At(stage) => stage.to_string(),
        }
    }
}

impl ZeroStage {
    /// The stage, if one is given.
    pub fn stage(self) -> Option<Zero> {
        match self {
            ZeroStage::Auto => None,
            ZeroStage::At(stage) => Some(stage),
        }
    }
}
