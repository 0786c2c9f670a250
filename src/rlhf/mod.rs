//! The algorithms: supervised finetuning, reward model, PPO. Knows losses, not files or terminals.
//!
//! A custom loop is as short as DeepSpeed-Chat's: build the engines, then for each batch of prompts
//! `generate_experience` and `train_rlhf`.
//!
//! The three steps on tiny random models. With files, `Model::load` takes the place of
//! `Model::random` and [`data`](crate::data) makes the examples.
//!
//! ```
//! use duplex::{arch::Config, base::DType, device::Device, engine::Engine};
//! use duplex::{rlhf::*, rollout::Sampling};
//! use duplex::data::{PairExample, SftExample};
//! use duplex::model::{Head, LoadOptions, Model};
//! use duplex::tape::{Keep, Workspace};
//! use duplex::train::{AdamWConfig, AdamWState, Schedule, ScheduleKind};
//! # fn main() -> duplex::base::Result<()> {
//! let shape = serde_json::json!({"model_type": "gpt2", "vocab_size": 50, "n_embd": 16,
//!     "n_layer": 2, "n_head": 2, "n_positions": 64});
//! let config = Config::from_map(shape.as_object().unwrap().clone());
//! let random = |head, train| {
//!     let options = LoadOptions { train, seed: 1, ..LoadOptions::frozen(head, DType::F32) };
//!     Model::random(&config, &options)
//! };
//! let adamw = AdamWConfig { learning_rate: 1e-2, lora_learning_rate: 1e-2, beta1: 0.9,
//!     beta2: 0.95, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0, state: AdamWState::Full,
//!     offload: false };
//! let schedule = Schedule { kind: ScheduleKind::Cosine, warmup: 0, total: 20 };
//! let step = StepConfig { schedule, micro_batch_tokens: 512, seed: 1 };
//! let mut ws = Workspace::new(Device::Cpu, 1 << 30)?;
//!
//! // Step 1: after 5 comes 6, after 6 comes 7.
//! let engine = Engine::trained(random(Head::Lm, true)?, adamw.clone(), Keep::All)?;
//! let mut sft = SftTrainer::new(engine, SftConfig { step: step.clone(), loss_on_prompt: false });
//! let example = SftExample::new(vec![9, 5, 6, 7], 2);
//! let before = sft.evaluate(&mut ws, &[&example])?;
//! for _ in 0..20 { sft.train(&mut ws, &[&example])?; }
//! assert!(sft.evaluate(&mut ws, &[&example])? < before);
//!
//! // Step 2: an answer of 6 is better than one of 8.
//! let engine = Engine::trained(random(Head::Score, true)?, adamw.clone(), Keep::All)?;
//! let mut reward = RewardTrainer::new(engine, RewardConfig { step, loss: RewardLoss::End });
//! let (chosen, rejected) = (vec![9, 5, 6], vec![9, 5, 8]);
//! let pair = PairExample { prompt_len: 2, chosen, rejected, ..PairExample::default() };
//! for _ in 0..20 { reward.train(&mut ws, &[&pair])?; }
//! assert_eq!(reward.evaluate(&mut ws, &[&pair])?.accuracy, 1.0);
//!
//! // Step 3: the frozen copies are the reference and the reward.
//! let (reference, critic) = (random(Head::Lm, false)?, random(Head::Score, true)?);
//! reference.store.copy_from(&sft.engine.model.store)?;
//! critic.store.copy_from(&reward.engine.model.store)?;
//! let engines = PpoEngines {
//!     actor: sft.engine,
//!     reference: Some(Engine::frozen(reference)),
//!     critic: Engine::trained(critic, adamw, Keep::All)?,
//!     reward: RewardSource::Model(Box::new(reward.engine)),
//! };
//! let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(8, vec![0]) };
//! let config = PpoConfig { sampling, kl_coef: 0.1, kl_control: KlControl::Fixed,
//!     clip_reward_value: 5.0, reward_scaling: false, missing_eos_penalty: 0.0, gamma: 1.0,
//!     lam: 0.95, whiten_advantages: true, cliprange: 0.2, cliprange_value: 0.2, entropy_coef: 0.0,
//!     unsup_coef: 0.0, ppo_epochs: 1, minibatch: 8, micro_batch_tokens: 512,
//!     actor_schedule: schedule, critic_schedule: schedule };
//! let mut ppo = PpoTrainer::new(engines, config)?;
//! for _ in 0..3 {
//!     let experience = ppo.generate_experience(&mut ws, &[&[9, 5], &[5], &[9, 5]])?;
//!     let stats = ppo.train_rlhf(&mut ws, &experience, &[])?;
//!     assert_eq!(stats.first_ratio_deviation, 0.0);
//! }
//! # Ok(())
//! # }
//! ```

mod offline;
mod ppo;
mod reward;
mod rows;
mod rule;
mod sft;
mod stats;

pub use offline::{Iteration, Metrics, Offline};
pub use ppo::{
    Decode, Experience, KlControl, PpoConfig, PpoEngines, PpoStats, PpoTrainer, Retokenise,
    RewardSource, Rollout,
};
pub use reward::{RewardConfig, RewardLoss, RewardTrainer};
pub use rule::{RewardRule, built_in_rule, built_in_rules};
pub use sft::{SftConfig, SftTrainer};
pub use stats::RunningStats;

use crate::base::Result;
use crate::comm::Comm;
use crate::engine::{Engine, LossFn};
use crate::tape::Workspace;
use crate::train::{Schedule, StepStats};
use rows::Rows;

/// Settings shared by the supervised trainers.
#[derive(Clone, Debug)]
pub struct StepConfig {
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Upper bound of packed tokens in a micro-batch; memory may bound them further.
    pub micro_batch_tokens: usize,
    /// Seed of LoRA dropout.
    pub seed: u64,
}

/// Accumulates `rows` under `loss` and steps; on an error before the step everything is as it was.
/// Returns the sums of the losses, the tokens and the step.
fn optimize(
    engine: &mut Engine,
    ws: &mut Workspace,
    name: &str,
    rows: &Rows<'_>,
    config: &StepConfig,
    step: u64,
    loss: &LossFn<'_>,
) -> Result<(Vec<Vec<f32>>, usize, StepStats)> {
    let (mut sums, mut tokens) = (vec![], 0);
    let dropout = Some(config.seed ^ (step << 20));
    let accumulated = rows.each(ws, &mut |ws, batch| {
        add(&mut sums, engine.accumulate(ws, name, batch, dropout, loss)?);
        tokens += batch.tokens();
        Ok(())
    });
    if accumulated.is_err() {
        engine.model.store.reset_grads();
    }
    accumulated?;
    let sums = over_ranks(engine.comm(), sums)?;
    let tokens = engine.comm().concat(&[tokens as u64])?.iter().sum::<u64>() as usize;
    // The first term is the loss.
    let sum = sums.first().map_or(0.0, |terms: &Vec<f32>| terms[0]);
    let stats = engine.step(ws, config.schedule.factor(step), sum)?;
    Ok((sums, tokens, stats))
}

/// Adds up what each rank has summed over its rows; one that had none has nothing.
fn over_ranks(comm: &Comm, sums: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
    if comm.size() == 1 {
        return Ok(sums);
    }
    let lengths: Vec<u32> = sums.iter().map(|terms| terms.len() as u32).collect();
    let ranks = comm.concat(&[u32::from(!sums.is_empty())])?.iter().sum::<u32>() as usize;
    let (lengths, values) = (comm.concat(&lengths)?, comm.concat(&sums.concat())?);
    let mut all = vec![];
    for values in values.chunks(values.len().div_ceil(ranks.max(1)).max(1)) {
        let mut rest = values;
        let terms = lengths[..lengths.len() / ranks].iter().map(|n| {
            let (terms, others) = rest.split_at(*n as usize);
            rest = others;
            terms.to_vec()
        });
        add(&mut all, terms.collect());
    }
    Ok(all)
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
