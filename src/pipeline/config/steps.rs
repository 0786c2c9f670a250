//! The sections of a run's configuration: one per step, and LoRA for all of them. The table of keys
//! documents each field and its range.

use serde::{Deserialize, Serialize};

/// Learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Falls to 0 along a line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Stays.
    Constant,
    /// Stays; DeepSpeed-Chat's name for `constant` with warm-up steps.
    ConstantWithWarmup,
}

/// Which scores of a pair are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardLoss {
    /// Those at the ends of the answers.
    End,
    /// Those at every token from the first difference on.
    TokenWise,
}

/// How the KL coefficient moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlController {
    /// Not at all.
    Fixed,
    /// Towards a target (Ziegler et al. 2019).
    Adaptive,
}

/// How scores are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaling {
    /// Not at all.
    None,
    /// By their running standard deviation.
    Running,
}

/// Optimizer, batches and evaluation of steps 1 and 2. A step takes
/// `per_device_train_batch_size * gradient_accumulation_steps` rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSection {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Passes over the data.
    pub num_train_epochs: usize,
    /// Most optimizer steps; 0 = by epochs.
    pub max_steps: usize,
    /// Rows per accumulation round.
    pub per_device_train_batch_size: usize,
    /// Rounds per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Learning rate after warm-up.
    pub lr_scheduler_type: Scheduler,
    /// Optimizer steps of warm-up.
    pub num_warmup_steps: usize,
    /// Gradient norm after clipping.
    pub max_grad_norm: f64,
    /// Adam's beta 1.
    pub adam_beta1: f64,
    /// Adam's beta 2.
    pub adam_beta2: f64,
    /// Adam's epsilon.
    pub adam_eps: f64,
    /// Optimizer steps between evaluations; 0 = epochs only.
    pub eval_interval: usize,
    /// Most batches of one evaluation.
    pub eval_batches: usize,
}

impl OptimizerSection {
    fn with(learning_rate: f64, weight_decay: f64) -> OptimizerSection {
        OptimizerSection {
            learning_rate,
            weight_decay,
            num_train_epochs: 1,
            max_steps: 0,
            per_device_train_batch_size: 16,
            gradient_accumulation_steps: 1,
            lr_scheduler_type: Scheduler::Cosine,
            num_warmup_steps: 0,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_eps: 1e-8,
            eval_interval: 0,
            eval_batches: 100,
        }
    }

    /// Rows (sequences or pairs) per optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps
    }
}

/// Step 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftSection {
    /// Optimizer, batches, evaluation.
    #[serde(flatten)]
    pub optimizer: OptimizerSection,
    /// True if every turn of the assistant is learnt, not only the last one.
    pub assistant_only_loss: bool,
    /// True if the loss includes prompt tokens.
    pub loss_on_prompt: bool,
}

impl Default for SftSection {
    fn default() -> SftSection {
        SftSection {
            optimizer: OptimizerSection::with(1e-5, 0.0),
            assistant_only_loss: false,
            loss_on_prompt: false,
        }
    }
}

/// Step 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardSection {
    /// Optimizer, batches, evaluation.
    #[serde(flatten)]
    pub optimizer: OptimizerSection,
    /// Which scores are compared.
    pub loss: RewardLoss,
}

impl Default for RewardSection {
    fn default() -> RewardSection {
        RewardSection { optimizer: OptimizerSection::with(5e-5, 0.1), loss: RewardLoss::End }
    }
}

/// Step 3. An iteration gathers `per_device_generation_batch_size * generation_batches` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PpoSection {
    /// Prompts per rollout.
    pub per_device_generation_batch_size: usize,
    /// Rollouts per iteration.
    pub generation_batches: usize,
    /// Sequences per optimizer step.
    pub per_device_training_batch_size: usize,
    /// Rounds per optimizer step: an iteration gathers, and a step takes, so many times as many.
    pub gradient_accumulation_steps: usize,
    /// Passes over each experience.
    pub ppo_epochs: usize,
    /// Passes over the prompts.
    pub num_train_epochs: usize,
    /// Most iterations; 0 = by epochs.
    pub max_steps: usize,
    /// Actor's peak learning rate.
    pub actor_learning_rate: f64,
    /// Critic's peak learning rate.
    pub critic_learning_rate: f64,
    /// Actor's weight decay.
    pub actor_weight_decay: f64,
    /// Critic's weight decay.
    pub critic_weight_decay: f64,
    /// Learning rates after warm-up.
    pub lr_scheduler_type: Scheduler,
    /// Optimizer steps of warm-up.
    pub num_warmup_steps: usize,
    /// Gradient norm after clipping.
    pub max_grad_norm: f64,
    /// Adam's beta 1.
    pub adam_beta1: f64,
    /// Adam's beta 2.
    pub adam_beta2: f64,
    /// Adam's epsilon.
    pub adam_eps: f64,
    /// Weight of the KL penalty.
    pub kl_coef: f64,
    /// How that weight moves.
    pub kl_controller: KlController,
    /// KL per answer aimed at, nats.
    pub kl_target: f64,
    /// Episodes over which the controller acts.
    pub kl_horizon: f64,
    /// Scores are clamped to plus or minus this.
    pub clip_reward_value: f64,
    /// How scores are scaled.
    pub reward_scaling: RewardScaling,
    /// Clip range of the ratio.
    pub cliprange: f64,
    /// Clip range of the value update.
    pub cliprange_value: f64,
    /// Discount.
    pub gamma: f64,
    /// GAE's lambda.
    pub lam: f64,
    /// True if advantages are whitened.
    pub whiten_advantages: bool,
    /// Weight of the entropy bonus.
    pub entropy_coef: f64,
    /// PATH or PATH:WEIGHT each; empty = off.
    pub unsupervised_data_path: Vec<String>,
    /// Weight of the loss on that data.
    pub unsup_coef: f64,
    /// Taken off the score of a cut answer.
    pub missing_eos_penalty: f64,
    /// True if an exponential moving average of the actor is kept.
    pub enable_ema: bool,
    /// Its decay per optimizer step.
    pub ema_decay: f64,
    /// Softmax temperature of rollouts.
    pub temperature: f64,
    /// Draw from the k likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Draw from the smallest set of this probability; 1 = all.
    pub top_p: f64,
    /// Shortest answer, tokens.
    pub min_answer_seq_len: usize,
    /// Built-in rule that scores instead of a model.
    pub reward_rule: Option<String>,
    /// Model the critic starts from; None = the reward model.
    pub critic_model: Option<String>,
    /// Iterations between evaluations; 0 = first and last only.
    pub eval_interval: usize,
    /// Most prompts of one evaluation.
    pub eval_prompts: usize,
}

impl Default for PpoSection {
    fn default() -> PpoSection {
        PpoSection {
            per_device_generation_batch_size: 16,
            generation_batches: 1,
            per_device_training_batch_size: 16,
            gradient_accumulation_steps: 1,
            ppo_epochs: 1,
            num_train_epochs: 1,
            max_steps: 0,
            actor_learning_rate: 9.65e-6,
            critic_learning_rate: 5e-6,
            actor_weight_decay: 0.0,
            critic_weight_decay: 0.0,
            lr_scheduler_type: Scheduler::Cosine,
            num_warmup_steps: 10,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.95,
            adam_eps: 1e-8,
            kl_coef: 0.1,
            kl_controller: KlController::Fixed,
            kl_target: 6.0,
            kl_horizon: 10_000.0,
            clip_reward_value: 5.0,
            reward_scaling: RewardScaling::None,
            cliprange: 0.2,
            cliprange_value: 0.2,
            gamma: 1.0,
            lam: 0.95,
            whiten_advantages: true,
            entropy_coef: 0.0,
            unsupervised_data_path: vec![],
            unsup_coef: 27.8,
            missing_eos_penalty: 0.0,
            enable_ema: false,
            ema_decay: 0.992,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_answer_seq_len: 0,
            reward_rule: None,
            critic_model: None,
            eval_interval: 0,
            eval_prompts: 64,
        }
    }
}

impl PpoSection {
    /// Answers gathered in one iteration.
    pub fn answers_per_iteration(&self) -> usize {
        let rounds = self.generation_batches * self.gradient_accumulation_steps;
        self.per_device_generation_batch_size * rounds
    }

    /// Answers that an optimizer step takes.
    pub fn answers_per_step(&self) -> usize {
        self.per_device_training_batch_size * self.gradient_accumulation_steps
    }
}

/// Adapters. A dim of 0 means full finetuning of that model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSection {
    /// Rank in the actor.
    pub actor_lora_dim: usize,
    /// Rank in reward model and critic.
    pub critic_lora_dim: usize,
    /// The update is scaled by alpha / rank.
    pub lora_alpha: f64,
    /// Dropout on the input.
    pub lora_dropout: f64,
    /// Module names, or "all".
    pub lora_module_name: Vec<String>,
    /// Peak learning rate of the actor's adapters.
    pub actor_lora_learning_rate: f64,
    /// Peak learning rate of reward model's and critic's adapters.
    pub critic_lora_learning_rate: f64,
}

impl Default for LoraSection {
    fn default() -> LoraSection {
        LoraSection {
            actor_lora_dim: 0,
            critic_lora_dim: 0,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            lora_module_name: vec!["all".into()],
            actor_lora_learning_rate: 5e-4,
            critic_lora_learning_rate: 5e-4,
        }
    }
}
