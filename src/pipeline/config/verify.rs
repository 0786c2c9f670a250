//! The configuration of `duplex verify`.

use super::{VERIFICATION, check};
use crate::base::Result;
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A check of saved files: `duplex verify`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyConfig {
    /// Checkpoint, run or model folder.
    pub path: PathBuf,
}

impl VerifyConfig {
    /// Puts `settings` over the defaults and checks the whole.
    pub fn resolve(settings: &[Setting]) -> Result<VerifyConfig> {
        let config: VerifyConfig = merge(VERIFICATION, settings)?;
        check::folder_given(&config.path, "verify")?;
        Ok(config)
    }
}
