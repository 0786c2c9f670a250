//! `duplex doctor`: what this machine has for a run, what a run would miss, and what to do about
//! it. Looks and measures; changes nothing but for a small file that it writes and removes again.

mod cpu;
mod disk;
mod finding;
mod gpu;
mod hub;
mod libraries;
mod limits;
mod memory;

pub use finding::{Finding, Findings, Mark};
pub(super) use memory::free as free_memory;

use super::config::DoctorConfig;
use crate::base::Result;
use std::path::Path;

/// Looks at everything, and writes the JSON file if one is asked for. What was found to be wrong is
/// in the findings, not in the error, which is of that file alone.
pub fn doctor(cfg: &DoctorConfig) -> Result<Findings> {
    let mut all = cpu::look();
    all.extend(memory::look(Path::new("/")));
    all.extend(gpu::look(cfg.device));
    all.extend(libraries::look());
    all.extend(disk::look(&cfg.output_dir));
    all.push(hub::look());
    all.extend(limits::look());
    let findings = Findings(all);
    if let Some(path) = &cfg.json {
        super::output::write(path, &format!("{:#}\n", findings.json()))?;
    }
    Ok(findings)
}
