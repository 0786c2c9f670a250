//! Settings of a plan that are not those of the run.

use super::table::PLANNING;
use crate::base::Result;
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The settings of `duplex plan` beside those of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanConfig {
    /// Number and kind of GPUs; None: this machine's CPU.
    pub gpus: Option<String>,
    /// True if only the published tables are printed.
    pub published: bool,
    /// File for the plan.
    pub json: Option<PathBuf>,
}

impl PlanConfig {
    /// Puts `settings` over the defaults.
    pub fn resolve(settings: &[Setting]) -> Result<PlanConfig> {
        merge(PLANNING, settings)
    }
}
