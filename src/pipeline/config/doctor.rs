//! The configuration of `duplex doctor`.

use super::{CHECKUP, DeviceChoice, RunConfig};
use crate::base::Result;
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A look at the machine: `duplex doctor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorConfig {
    /// Folder of the run to come, whose disk is measured.
    pub output_dir: PathBuf,
    /// Device the run is meant for.
    pub device: DeviceChoice,
    /// File for the findings.
    pub json: Option<PathBuf>,
}

impl Default for DoctorConfig {
    fn default() -> DoctorConfig {
        let run = RunConfig::default();
        DoctorConfig { output_dir: run.output_dir, device: run.device, json: None }
    }
}

impl DoctorConfig {
    /// Puts `settings` over the defaults.
    pub fn resolve(settings: &[Setting]) -> Result<DoctorConfig> {
        merge(CHECKUP, settings)
    }
}
