//! `duplex plan`: what a run would take of each rank, before there is a machine for it: memory by
//! phase, the largest micro-batch, bytes given to other ranks, and about how long. It takes the
//! flags of `duplex train`.

mod dry;
mod machine;
mod models;
mod published;
mod steps;
mod text;
mod time;

use super::bench::resident_bytes;
use super::config::{PlanConfig, RunConfig};
use super::settings::Online;
use crate::algo::Algorithm;
use crate::base::{Kind, Result};
use crate::data::Tokenizer;
use crate::model::{base_dir, resolve_model};
use dry::Dry;
use machine::Machine;
use steps::Step;

/// More sequences of a micro-batch are of no use.
const MOST_ROWS: usize = 1024;

/// Bytes for an element of a parameter that is read or written: its value, that in the order of the
/// file, and what is in the file.
const IN_FILES: usize = 12;

/// A step with what is said of it.
struct Planned {
    step: Step,
    /// Sequences of full length in the largest micro-batch that fits; 0: none does.
    largest: usize,
    /// Seconds of each phase, where there is an estimate.
    seconds: Vec<Option<f64>>,
}

/// All that is told.
struct Plan<'c> {
    cfg: &'c RunConfig,
    machine: Machine,
    steps: Vec<Planned>,
    /// Bytes of this program itself, for ranks on this machine.
    program: usize,
    /// Bytes that each of them takes to read and write whole parameters.
    files: usize,
}

/// Plans the run and returns what there is to tell; writes it as JSON too where that is asked for.
pub fn plan(cfg: &RunConfig, plan: &PlanConfig) -> Result<String> {
    if plan.published {
        return published::tables();
    }
    let machine = match &plan.gpus {
        Some(gpus) => Machine::parse(gpus, cfg.num_gpus)?,
        None => Machine::here(cfg.num_gpus),
    };
    // A run holds its tokenizer.
    let tokenizer = cfg.actor_model.as_ref().and_then(|name| {
        let dir = base_dir(&resolve_model(name).ok()?).ok()?;
        Tokenizer::load(&dir).ok()
    });
    let program = if machine.card.is_none() { resident_bytes().unwrap_or(0) } else { 0 };
    let mut dry = Dry::new(cfg, machine)?;
    let mut steps = vec![];
    for &of in &cfg.stages {
        let step = steps::step(&mut dry, of)?;
        let seconds = |phase: &dry::Phase| time::seconds(phase, &machine, cfg.offload);
        steps.push(Planned {
            seconds: step.phases.iter().map(seconds).collect(),
            largest: largest(cfg, machine, of)?,
            step,
        });
    }
    drop(tokenizer);
    let files = IN_FILES * steps.iter().map(|p| p.step.largest).max().unwrap_or(0);
    let done = Plan { cfg, machine, steps, program: program as usize, files };
    if let Some(path) = &plan.json {
        super::output::write(path, &format!("{:#}\n", text::json(&done)))?;
    }
    Ok(text::table(&done))
}

/// The most sequences of a micro-batch with which a stage has enough memory.
fn largest(cfg: &RunConfig, machine: Machine, of: &'static Algorithm) -> Result<usize> {
    let fits = |rows: usize| fits(&with_rows(cfg, of, rows, machine.ranks)?, machine, of);
    most(MOST_ROWS, fits)
}

/// The configuration with micro-batches of `rows` sequences, and steps of a stage that have one for
/// each rank.
fn with_rows(cfg: &RunConfig, of: &Algorithm, rows: usize, ranks: usize) -> Result<RunConfig> {
    let mut cfg = cfg.clone();
    let longest = cfg.max_seq_len.max(cfg.max_prompt_seq_len + cfg.max_answer_seq_len);
    cfg.micro_batch_tokens = rows * longest;
    let all = rows * ranks;
    if let Some(from) = of.online() {
        let keys = Online::of(&cfg, of, from)?;
        let mut p = keys.keys;
        let prompts = all.div_ceil(keys.method.num_generations);
        p.per_device_generation_batch_size = prompts.max(p.prompts_per_iteration());
        p.generation_batches = 1;
        p.per_device_training_batch_size = all.max(p.completions_per_step());
        p.gradient_accumulation_steps = 1;
        cfg.sections.put(of.name, &p)?;
    } else {
        let mut s = cfg.optimizer(of)?;
        s.per_device_train_batch_size = all.max(s.rows_per_step());
        s.gradient_accumulation_steps = 1;
        cfg.sections.put(of.name, &s)?;
    }
    Ok(cfg)
}

/// True if a stage fits in the machine's memory with no micro-batch halved. Errors other than
/// a lack of memory are returned.
fn fits(cfg: &RunConfig, machine: Machine, of: &'static Algorithm) -> Result<bool> {
    let kind = machine.kind();
    kind.set_limit(machine.memory() as usize);
    let mut dry = Dry::new(cfg, machine)?;
    let done = steps::step(&mut dry, of);
    kind.set_limit(usize::MAX);
    match done {
        Ok(_) => Ok(dry.ws.take_notice().is_none()),
        Err(e) if e.kind() == Kind::Memory => Ok(false),
        Err(e) => Err(e),
    }
}

/// The largest number up to `limit` of which `fits` says so, where all below it do; 0 if not even
/// 1.
fn most(limit: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, 1);
    while high <= limit && fits(high)? {
        (low, high) = (high, 2 * high);
    }
    let mut high = high.min(limit + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_fits_is_found() {
        for limit in [1, 2, 7, 64, 1000] {
            for room in 0..=limit + 1 {
                assert_eq!(
                    most(limit, |n| Ok(n <= room)).unwrap(),
                    room.min(limit),
                    "{limit} {room}"
                );
            }
        }
    }
}
