//! From the run configuration to the settings of models, optimizers and algorithms.

use super::config::{
    self, Checkpointing, KlController, OptimizerSection, RewardScaling, RunConfig, Scheduler,
};
use crate::base::Result;
use crate::model::{LoraConfig, SaveAs};
use crate::rlhf::{KlControl, PpoConfig, RewardLoss, StepConfig};
use crate::rollout::Sampling;
use crate::tape::Keep;
use crate::train::{AdamWConfig, Schedule, ScheduleKind};

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

/// Adapters of the actor, in steps 1 and 3.
pub(super) fn actor_lora(cfg: &RunConfig) -> Option<LoraConfig> {
    lora(cfg, cfg.lora.actor_lora_dim)
}

/// Adapters of reward model and critic.
pub(super) fn critic_lora(cfg: &RunConfig) -> Option<LoraConfig> {
    lora(cfg, cfg.lora.critic_lora_dim)
}

fn adamw(cfg: &RunConfig, s: &OptimizerSection, lora_learning_rate: f64) -> AdamWConfig {
    AdamWConfig {
        learning_rate: s.learning_rate as f32,
        lora_learning_rate: lora_learning_rate as f32,
        beta1: s.adam_beta1 as f32,
        beta2: s.adam_beta2 as f32,
        eps: s.adam_eps as f32,
        weight_decay: s.weight_decay as f32,
        max_grad_norm: s.max_grad_norm as f32,
        state: cfg.optimizer_state.adamw(),
        offload: cfg.offload,
    }
}

pub(super) fn sft_adamw(cfg: &RunConfig) -> AdamWConfig {
    adamw(cfg, &cfg.sft.optimizer, cfg.lora.actor_lora_learning_rate)
}

pub(super) fn reward_adamw(cfg: &RunConfig) -> AdamWConfig {
    adamw(cfg, &cfg.reward.optimizer, cfg.lora.critic_lora_learning_rate)
}

pub(super) fn actor_adamw(cfg: &RunConfig) -> AdamWConfig {
    let p = &cfg.ppo;
    AdamWConfig {
        learning_rate: p.actor_learning_rate as f32,
        lora_learning_rate: cfg.lora.actor_lora_learning_rate as f32,
        beta1: p.adam_beta1 as f32,
        beta2: p.adam_beta2 as f32,
        eps: p.adam_eps as f32,
        weight_decay: p.actor_weight_decay as f32,
        max_grad_norm: p.max_grad_norm as f32,
        state: cfg.optimizer_state.adamw(),
        offload: cfg.offload,
    }
}

pub(super) fn critic_adamw(cfg: &RunConfig) -> AdamWConfig {
    let p = &cfg.ppo;
    AdamWConfig {
        learning_rate: p.critic_learning_rate as f32,
        lora_learning_rate: cfg.lora.critic_lora_learning_rate as f32,
        weight_decay: p.critic_weight_decay as f32,
        ..actor_adamw(cfg)
    }
}

/// Returns the settings of step 1 or 2, over `total` optimizer steps.
pub(super) fn step(cfg: &RunConfig, s: &OptimizerSection, total: u64) -> StepConfig {
    StepConfig {
        schedule: schedule(s.lr_scheduler_type, s.num_warmup_steps, total),
        micro_batch_tokens: micro_batch_tokens(cfg),
        seed: cfg.seed,
    }
}

fn schedule(kind: Scheduler, warmup: usize, total: u64) -> Schedule {
    let kind = match kind {
        Scheduler::Linear => ScheduleKind::Linear,
        Scheduler::Cosine => ScheduleKind::Cosine,
        Scheduler::Constant | Scheduler::ConstantWithWarmup => ScheduleKind::Constant,
    };
    Schedule { kind, warmup: warmup as u64, total }
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

pub(super) fn reward_loss(cfg: &RunConfig) -> RewardLoss {
    match cfg.reward.loss {
        config::RewardLoss::End => RewardLoss::End,
        config::RewardLoss::TokenWise => RewardLoss::TokenWise,
    }
}

pub(super) fn save_as(cfg: &RunConfig) -> Result<SaveAs> {
    Ok(SaveAs { max_shard_bytes: cfg.max_shard_bytes()? as usize, ..SaveAs::default() })
}

/// PPO over `updates` optimizer steps.
pub(super) fn ppo(cfg: &RunConfig, eos: Vec<i32>, updates: u64) -> PpoConfig {
    let p = &cfg.ppo;
    let kl_control = match p.kl_controller {
        KlController::Fixed => KlControl::Fixed,
        KlController::Adaptive => {
            KlControl::Adaptive { target: p.kl_target as f32, horizon: p.kl_horizon as f32 }
        }
    };
    let schedule = schedule(p.lr_scheduler_type, p.num_warmup_steps, updates);
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

/// Most bytes of activations.
pub(super) fn memory_limit(cfg: &RunConfig) -> usize {
    match cfg.memory_limit {
        0 => usize::MAX,
        mib => mib << 20,
    }
}
