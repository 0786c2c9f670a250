//! The algorithms: supervised finetuning, reward model, PPO. Knows losses, not files or terminals.
//!
//! A custom loop is as short as DeepSpeed-Chat's: build the engines, then for each batch of prompts
//! `generate_experience` and `train_rlhf`.

mod ppo;
mod reward;
mod rule;
mod sft;
mod stats;

pub use ppo::{
    Decode, Experience, KlControl, PpoConfig, PpoEngines, PpoStats, PpoTrainer, RewardSource,
    Rollout,
};
pub use reward::{RewardConfig, RewardLoss, RewardTrainer};
pub use rule::{RewardRule, built_in_rule, built_in_rules};
pub use sft::{SftConfig, SftTrainer};
pub use stats::RunningStats;

use crate::base::Result;
use crate::engine::{Engine, LossFn};
use crate::tape::Workspace;
use crate::train::{Batch, Schedule, StepStats};

/// Settings shared by the supervised trainers.
#[derive(Clone, Debug)]
pub struct StepConfig {
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Upper bound of packed tokens in a micro-batch.
    pub micro_batch_tokens: usize,
    /// Seed of LoRA dropout.
    pub seed: u64,
}

/// Accumulates `batches` under `loss` and steps. Returns the sums of the losses and the step.
fn optimize(
    engine: &mut Engine,
    ws: &mut Workspace,
    name: &str,
    batches: &[Batch],
    config: &StepConfig,
    step: u64,
    loss: &LossFn<'_>,
) -> Result<(Vec<Vec<f32>>, StepStats)> {
    let mut sums: Vec<Vec<f32>> = vec![];
    for (i, batch) in batches.iter().enumerate() {
        let dropout = Some(config.seed ^ (step << 20) ^ i as u64);
        add(&mut sums, engine.accumulate(ws, name, batch, dropout, loss)?);
    }
    let stats = engine.step(ws, config.schedule.factor(step))?;
    Ok((sums, stats))
}

/// Adds `terms` to `sums`, element by element.
fn add(sums: &mut Vec<Vec<f32>>, terms: Vec<Vec<f32>>) {
    if sums.is_empty() {
        *sums = terms;
        return;
    }
    for (s, t) in sums.iter_mut().zip(terms) {
        s.iter_mut().zip(t).for_each(|(a, b)| *a += b);
    }
}
