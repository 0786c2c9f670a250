//! The algorithms, each in one file: its keys, metrics, loss. Knows losses, not files or terminals.
//! [`ALGORITHMS`] is the list from which commands, keys, directories and docs follow.
//!
//! A custom loop is as short as DeepSpeed-Chat's: build the engines, then for each batch of prompts
//! `generate_experience` and `train_rlhf`.
//!
//! The three steps on tiny random models. With files, `Model::load` takes the place of
//! `Model::random` and [`data`](crate::data) makes the examples.
//!
//! ```
//! use duplex::{arch::Config, base::DType, device::Device, engine::Engine};
//! use duplex::{algo::*, rollout::Sampling};
//! use duplex::data::{PairExample, PromptExample, SftExample};
//! use duplex::model::{Head, LoadOptions, Model};
//! use duplex::tape::{ActivationCheckpointing, Workspace};
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
//! let model = random(Head::Lm, true)?;
//! let engine = Engine::trained(model, adamw.clone(), ActivationCheckpointing::None)?;
//! let loss = Box::new(Sft { loss_on_prompt: false });
//! let mut sft = OfflineTrainer::new(engine, Reference::None, loss, step.clone())?;
//! let example = SftExample::new(vec![9, 5, 6, 7], 2);
//! let before = sft.evaluate(&mut ws, &[&example])?.loss;
//! for _ in 0..20 { sft.train(&mut ws, &[&example])?; }
//! assert!(sft.evaluate(&mut ws, &[&example])?.loss < before);
//!
//! // Step 2: an answer of 6 is better than one of 8.
//! let model = random(Head::Score, true)?;
//! let engine = Engine::trained(model, adamw.clone(), ActivationCheckpointing::None)?;
//! let loss = Box::new(RewardModel { loss: RewardLoss::End });
//! let mut reward = OfflineTrainer::new(engine, Reference::None, loss, step)?;
//! let (chosen, rejected) = (vec![9, 5, 6], vec![9, 5, 8]);
//! let pair = PairExample { prompt_len: 2, chosen, rejected, ..PairExample::default() };
//! for _ in 0..20 { reward.train(&mut ws, &[&pair])?; }
//! assert_eq!(reward.evaluate(&mut ws, &[&pair])?.get("accuracy"), 1.0);
//!
//! // Step 3: the frozen copies are the reference and the reward.
//! let (reference, critic) = (random(Head::Lm, false)?, random(Head::Score, true)?);
//! reference.store.copy_from(&sft.engine.model.store)?;
//! critic.store.copy_from(&reward.engine.model.store)?;
//! let models = OnlineModels {
//!     actor: sft.engine,
//!     reference: Reference::model(Engine::frozen(reference)),
//!     critic: Some(Engine::trained(critic, adamw, ActivationCheckpointing::None)?),
//!     reward: Box::new(ModelReward { engine: reward.engine, retokenise: None }),
//! };
//! let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(8, vec![0]) };
//! let method = Method { num_generations: 1, kl: Some(KlPenalty { coef: 0.1, adaptive: None }),
//!     advantage: Advantage::Gae { gamma: 1.0, lambda: 0.95 }, whiten_advantages: true,
//!     policy_loss: PolicyLoss::Token { clip: 0.2 }, epochs: 1 };
//! let config = OnlineConfig { method, sampling, clip_reward_value: 5.0,
//!     reward_scaling: RewardScaling::None, missing_eos_penalty: 0.0, cliprange_value: 0.2,
//!     entropy_coef: 0.0, unsup_coef: 0.0, minibatch: 8, micro_batch_tokens: 512,
//!     actor_schedule: schedule, critic_schedule: schedule };
//! let mut ppo = OnlineTrainer::new(models, config)?;
//! let prompts = [vec![9, 5], vec![5], vec![9, 5]].map(PromptExample::new);
//! for _ in 0..3 {
//!     let experience = ppo.generate_experience(&mut ws, &prompts.each_ref())?;
//!     let stats = ppo.train_rlhf(&mut ws, &experience, &[])?;
//!     assert_eq!(stats.first_ratio_deviation, 0.0);
//! }
//! # Ok(())
//! # }
//! ```

mod advantage;
mod algorithm;
mod anomaly;
mod dpo;
mod experience;
mod list;
mod metric;
mod micro_batches;
mod objective;
mod offline;
mod online;
mod optimizer;
mod policy_loss;
mod ppo;
mod reference;
mod reward;
mod reward_source;
mod rloo;
mod rule;
mod sft;
mod stats;
mod sums;

pub use advantage::Advantage;
pub use algorithm::{Algorithm, FromPrompts, FromRows, Learns, ObjectiveOf, Start, Texts};
pub use anomaly::Anomaly;
pub(crate) use anomaly::{BLOCK, KEPT, START, mean};
pub use dpo::{Dpo, DpoSection};
pub use experience::{Experience, Rollout};
pub use list::{ALGORITHMS, DEEPSPEED_CHAT, lower_is_better, meant, named, names, place, sections};
pub use metric::{Better, Metric, Metrics, OF_ALL};
pub use objective::Objective;
pub use offline::{OfflineTrainer, Outcome, StepConfig};
pub use online::{
    Adaptive, CriticSection, KlPenalty, Method, OnlineConfig, OnlineModels, OnlineSection,
    OnlineStats, OnlineTrainer, RewardScaling,
};
pub use optimizer::{OptimizerSection, UpdateSection};
pub use policy_loss::PolicyLoss;
pub use ppo::{KlController, PpoSection};
pub use reference::Reference;
pub use reward::{RewardLoss, RewardModel, RewardSection};
pub use reward_source::{
    Completion, Decode, ModelReward, Retokenise, RewardSource, RuleReward, Scoring,
};
pub use rloo::RlooSection;
pub use rule::{Answered, RewardRule, built_in_rule, built_in_rules};
pub use sft::{Sft, SftSection};
pub use stats::RunningStats;
