//! From the run configuration to the settings of models, optimizers and algorithms.

use super::config::RunConfig;
use crate::algo::{
    Algorithm, CriticSection, FromPrompts, Method, OnlineConfig, OnlineSection, OptimizerSection,
    StepConfig, UpdateSection,
};
use crate::base::Result;
use crate::model::{Head, LoadOptions, LoraConfig, SaveAs};
use crate::rollout::Sampling;
use crate::train::AdamWConfig;

/// Packed tokens of a micro-batch that keep the matrix kernels busy.
pub(super) const MICRO_BATCH_TOKENS: usize = 2048;

fn lora(cfg: &RunConfig, rank: usize) -> Option<LoraConfig> {
    let l = &cfg.lora;
    (rank > 0).then(|| LoraConfig {
        rank,
        alpha: l.lora_alpha as f32,
        dropout: l.lora_dropout as f32,
        modules: l.lora_module_name.iter().map(|name| module(name)).collect(),
        ..LoraConfig::default()
    })
}

/// The name of a module, or all linear layers where DeepSpeed-Chat's part of a path means the
/// blocks: `decoder.layers.`, `layers.`, `transformer.h.`
fn module(name: &str) -> String {
    let path = name.strip_suffix('.').unwrap_or(name);
    let last = path.rsplit('.').next().unwrap_or(path);
    let blocks = ["layers", "h", "blocks", "block"].contains(&last);
    if blocks { "all".into() } else { path.to_string() }
}

/// Adapters of a model with this head: of a policy, or of reward model and critic.
pub(super) fn lora_of(cfg: &RunConfig, head: Head) -> Option<LoraConfig> {
    lora(cfg, rank_of(cfg, head))
}

/// Their rank; 0 where there are none.
pub(super) fn rank_of(cfg: &RunConfig, head: Head) -> usize {
    match head {
        Head::Lm => cfg.lora.actor_lora_dim,
        Head::Score => cfg.lora.critic_lora_dim,
    }
}

/// Options for checking that models load, without reading their weights.
pub(super) struct Unloaded {
    /// For a policy that is to be trained.
    pub(super) policy: LoadOptions,
    /// For a reward model or critic that is to be trained.
    pub(super) score: LoadOptions,
    /// For a reward model that is not.
    pub(super) reward: LoadOptions,
}

impl Unloaded {
    pub(super) fn of(cfg: &RunConfig) -> Unloaded {
        let dtype = cfg.dtype.dtype();
        let trained = |head| LoadOptions {
            train: true,
            lora: lora_of(cfg, head),
            ..LoadOptions::frozen(head, dtype)
        };
        Unloaded {
            policy: trained(Head::Lm),
            score: trained(Head::Score),
            reward: LoadOptions::frozen(Head::Score, dtype),
        }
    }

    /// For a model with this head that is to be trained.
    pub(super) fn trained(&self, head: Head) -> &LoadOptions {
        match head {
            Head::Lm => &self.policy,
            Head::Score => &self.score,
        }
    }
}

/// Their peak learning rate.
fn lora_rate(cfg: &RunConfig, head: Head) -> f32 {
    let rate = match head {
        Head::Lm => cfg.lora.actor_lora_learning_rate,
        Head::Score => cfg.lora.critic_lora_learning_rate,
    };
    rate as f32
}

/// The optimizer of a stage that learns from rows.
pub(super) fn adamw(cfg: &RunConfig, s: &OptimizerSection, head: Head) -> AdamWConfig {
    optimizer(cfg, &s.update, [s.learning_rate, s.weight_decay], head)
}

/// The optimizer of the actor of a stage that samples.
pub(super) fn actor_adamw(cfg: &RunConfig, s: &OnlineSection) -> AdamWConfig {
    optimizer(cfg, &s.update, [s.actor_learning_rate, s.actor_weight_decay], Head::Lm)
}

/// That of its critic.
pub(super) fn critic_adamw(cfg: &RunConfig, s: &OnlineSection, c: &CriticSection) -> AdamWConfig {
    optimizer(cfg, &s.update, [c.critic_learning_rate, c.critic_weight_decay], Head::Score)
}

/// The optimizer of a model with this head, by its peak learning rate and weight decay.
fn optimizer(
    cfg: &RunConfig,
    update: &UpdateSection,
    [learning_rate, weight_decay]: [f64; 2],
    head: Head,
) -> AdamWConfig {
    AdamWConfig {
        learning_rate: learning_rate as f32,
        lora_learning_rate: lora_rate(cfg, head),
        beta1: update.adam_beta1 as f32,
        beta2: update.adam_beta2 as f32,
        eps: update.adam_eps as f32,
        weight_decay: weight_decay as f32,
        max_grad_norm: update.max_grad_norm as f32,
        state: cfg.optimizer_state,
        offload: cfg.offload,
    }
}

/// Returns the settings of a stage that learns from rows, over `total` optimizer steps.
pub(super) fn step(cfg: &RunConfig, s: &OptimizerSection, total: u64) -> StepConfig {
    StepConfig {
        schedule: s.update.schedule(total),
        micro_batch_tokens: micro_batch_tokens(cfg),
        seed: cfg.seed,
    }
}

/// Packed tokens of a micro-batch: as given, or chosen.
fn micro_batch_tokens(cfg: &RunConfig) -> usize {
    if cfg.micro_batch_tokens > 0 { cfg.micro_batch_tokens } else { MICRO_BATCH_TOKENS }
}

pub(super) fn save_as(cfg: &RunConfig) -> Result<SaveAs> {
    Ok(SaveAs { max_shard_bytes: cfg.max_shard_bytes()? as usize, ..SaveAs::default() })
}

/// The keys of a stage that samples.
pub(super) struct Online {
    /// Those that all have.
    pub(super) keys: OnlineSection,
    /// Those of its critic, where it has one.
    pub(super) critic: Option<CriticSection>,
    /// The difference from others.
    pub(super) method: Method,
}

impl Online {
    /// The keys of `of`, which learns as `from` says.
    pub(super) fn of(cfg: &RunConfig, of: &Algorithm, from: &FromPrompts) -> Result<Online> {
        let method = (from.method)(&cfg.sections, of.name)?;
        Ok(Online { keys: cfg.online(of)?, critic: cfg.critic(of)?, method })
    }

    /// Completions of one iteration.
    pub(super) fn completions(&self) -> usize {
        self.keys.prompts_per_iteration() * self.method.num_generations
    }

    /// Optimizer steps of one iteration.
    pub(super) fn updates(&self) -> usize {
        let passes = self.completions().div_ceil(self.keys.completions_per_step());
        self.method.epochs.saturating_mul(passes)
    }

    /// The settings of the trainer, over `iterations` iterations.
    pub(super) fn config(&self, cfg: &RunConfig, eos: Vec<i32>, iterations: u64) -> OnlineConfig {
        let s = &self.keys;
        let schedule = s.update.schedule(iterations.saturating_mul(self.updates() as u64));
        OnlineConfig {
            method: self.method,
            sampling: Sampling {
                temperature: s.temperature as f32,
                top_k: s.top_k,
                top_p: s.top_p as f32,
                min_new_tokens: s.min_answer_seq_len,
                max_new_tokens: cfg.max_answer_seq_len,
                eos,
                seed: cfg.seed,
            },
            clip_reward_value: s.clip_reward_value as f32,
            reward_scaling: s.reward_scaling,
            missing_eos_penalty: s.missing_eos_penalty as f32,
            cliprange_value: self.critic.as_ref().map_or(0.0, |c| c.cliprange_value as f32),
            entropy_coef: s.entropy_coef as f32,
            unsup_coef: s.unsup_coef as f32,
            minibatch: s.completions_per_step(),
            micro_batch_tokens: micro_batch_tokens(cfg),
            actor_schedule: schedule,
            critic_schedule: schedule,
        }
    }
}
