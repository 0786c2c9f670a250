//! From the run configuration to the settings of models, optimizers and algorithms.

use super::config::{Checkpointing, RunConfig};
use crate::algo::{
    KlControl, KlController, OptimizerSection, PpoConfig, PpoSection, RewardScaling, StepConfig,
    UpdateSection,
};
use crate::base::Result;
use crate::model::{Head, LoadOptions, LoraConfig, SaveAs};
use crate::rollout::Sampling;
use crate::tape::Keep;
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
pub(super) fn actor_adamw(cfg: &RunConfig, p: &PpoSection) -> AdamWConfig {
    optimizer(cfg, &p.update, [p.actor_learning_rate, p.actor_weight_decay], Head::Lm)
}

/// That of its critic.
pub(super) fn critic_adamw(cfg: &RunConfig, p: &PpoSection) -> AdamWConfig {
    optimizer(cfg, &p.update, [p.critic_learning_rate, p.critic_weight_decay], Head::Score)
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
        state: cfg.optimizer_state.adamw(),
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

pub(super) fn keep(checkpointing: Checkpointing) -> Keep {
    match checkpointing {
        Checkpointing::None => Keep::All,
        Checkpointing::Cheap => Keep::Cheap,
        Checkpointing::Full => Keep::Input,
    }
}

/// Packed tokens of a micro-batch: as given, or chosen.
fn micro_batch_tokens(cfg: &RunConfig) -> usize {
    if cfg.micro_batch_tokens > 0 { cfg.micro_batch_tokens } else { MICRO_BATCH_TOKENS }
}

pub(super) fn save_as(cfg: &RunConfig) -> Result<SaveAs> {
    Ok(SaveAs { max_shard_bytes: cfg.max_shard_bytes()? as usize, ..SaveAs::default() })
}

/// A stage that samples, over `updates` optimizer steps.
pub(super) fn online(cfg: &RunConfig, p: &PpoSection, eos: Vec<i32>, updates: u64) -> PpoConfig {
    let kl_control = match p.kl_controller {
        KlController::Fixed => KlControl::Fixed,
        KlController::Adaptive => {
            KlControl::Adaptive { target: p.kl_target as f32, horizon: p.kl_horizon as f32 }
        }
    };
    let schedule = p.update.schedule(updates);
    PpoConfig {
        sampling: Sampling {
            temperature: p.temperature as f32,
            top_k: p.top_k,
            top_p: p.top_p as f32,
            min_new_tokens: p.min_answer_seq_len,
            max_new_tokens: cfg.max_answer_seq_len,
            eos,
            seed: cfg.seed,
        },
        kl_coef: p.kl_coef as f32,
        kl_control,
        clip_reward_value: p.clip_reward_value as f32,
        reward_scaling: p.reward_scaling == RewardScaling::Running,
        missing_eos_penalty: p.missing_eos_penalty as f32,
        gamma: p.gamma as f32,
        lam: p.lam as f32,
        whiten_advantages: p.whiten_advantages,
        cliprange: p.cliprange as f32,
        cliprange_value: p.cliprange_value as f32,
        entropy_coef: p.entropy_coef as f32,
        unsup_coef: p.unsup_coef as f32,
        ppo_epochs: p.ppo_epochs,
        minibatch: p.answers_per_step(),
        micro_batch_tokens: micro_batch_tokens(cfg),
        actor_schedule: schedule,
        critic_schedule: schedule,
    }
}
