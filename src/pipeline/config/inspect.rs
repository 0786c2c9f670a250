//! The configuration of `duplex inspect`.

use super::{INSPECTION, Precision, check};
use crate::base::Result;
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A look at a model: `duplex inspect`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InspectConfig {
    /// Model folder.
    pub path: PathBuf,
    /// Dtype of weights and activations in memory.
    pub dtype: Precision,
}

impl Default for InspectConfig {
    fn default() -> InspectConfig {
        InspectConfig { path: PathBuf::new(), dtype: Precision::Bf16 }
    }
}

impl InspectConfig {
    /// Puts `settings` over the defaults and checks the whole.
    pub fn resolve(settings: &[Setting]) -> Result<InspectConfig> {
        let config: InspectConfig = merge(INSPECTION, settings)?;
        check::model_given(&config.path, "inspect")?;
        Ok(config)
    }
}
