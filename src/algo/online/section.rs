//! Keys of algorithms that learn from answers they sample.

use crate::algo::optimizer::{ANY_COUNT, BATCH, DECAY, RATE, SOME_COUNT, UpdateSection};
use crate::config::{Kind, section};
use crate::rollout::LEAST_TEMPERATURE;
use serde::{Deserialize, Serialize};

/// How scores are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScaling {
    /// Not at all.
    None,
    /// By their running standard deviation.
    Running,
}

section! {
    /// Keys of every algorithm that samples. An iteration samples for
    /// `per_device_generation_batch_size * generation_batches * gradient_accumulation_steps`
    /// prompts.
    pub struct OnlineSection [
        update: UpdateSection = UpdateSection { num_warmup_steps: 10, ..UpdateSection::default() }
    ] {
        per_device_generation_batch_size: usize = 16, BATCH, "prompts per rollout";
        generation_batches: usize = 1, BATCH,
            "rollouts gathered before each update";
        per_device_training_batch_size: usize = 16, BATCH,
            "sequences per optimizer step";
        gradient_accumulation_steps: usize = 1, BATCH,
            "multiply rollouts per iteration and sequences per optimizer step by this";
        num_train_epochs: usize = 1, Kind::int(1, 1000),
            "passes over the prompts";
        max_steps: usize = 0, ANY_COUNT,
            "stop after this many iterations (gather, then update); 0 = by epochs";
        actor_learning_rate: f64 = 9.65e-6, RATE,
            "peak learning rate of the actor";
        actor_weight_decay: f64 = 0.0, DECAY,
            "decoupled weight decay of the actor";
        reward_rule: Option<String> = None, Kind::Text,
            "built-in rule that scores in place of a reward model: brevity, no_repetition, \
             full_sentences, or contains_answer, which looks for the column answer of the row";
        clip_reward_value: f64 = 5.0, Kind::above_zero(1e6),
            "clamp scores to plus or minus this";
        reward_scaling: RewardScaling = RewardScaling::None, Kind::Choice(&["none", "running"]),
            "divide scores by their running standard deviation";
        missing_eos_penalty: f64 = 0.0, Kind::between(0.0, 1000.0),
            "subtract this from the score of a response cut at the length limit";
        entropy_coef: f64 = 0.0, Kind::between(0.0, 10.0),
            "weight of the entropy bonus";
        unsupervised_data_path: Vec<String> = vec![], Kind::List(&Kind::Text),
            "plain-text data mixed into the actor's loss",
            or(&[(0, "unsupervised-dataset-name")]), data();
        unsup_coef: f64 = 27.8, Kind::between(0.0, 1000.0),
            "weight of the loss on unsupervised_data_path";
        enable_ema: bool = false, Kind::Bool,
            "also keep and save a moving average of the actor";
        ema_decay: f64 = 0.992, Kind::below(1.0),
            "decay of that average per optimizer step";
        temperature: f64 = 1.0, Kind::between(LEAST_TEMPERATURE, 10.0),
            "softmax temperature of rollouts, at least 0.01";
        top_k: usize = 0, Kind::int(0, 1 << 24),
            "sample from the k most likely tokens (0 disables)";
        top_p: f64 = 1.0, Kind::above_zero(1.0),
            "sample from the smallest set of tokens with this total probability (1 disables)";
        min_answer_seq_len: usize = 0, Kind::int(0, 1 << 20),
            "shortest response, in tokens";
        eval_interval: usize = 0, ANY_COUNT,
            "evaluate every N iterations; 0 = before the first and after the last",
            harmless();
        eval_prompts: usize = 64, SOME_COUNT,
            "most prompts in one evaluation", harmless();
    }
}

section! {
    /// Keys of a critic.
    pub struct CriticSection {
        critic_learning_rate: f64 = 5e-6, RATE,
            "peak learning rate of the critic";
        critic_weight_decay: f64 = 0.0, DECAY,
            "decoupled weight decay of the critic";
        cliprange_value: f64 = 0.2, Kind::above_zero(1e6),
            "clip range of the value update";
        critic_model: Option<String> = None, Kind::Text,
            "model the critic starts from [default: the reward model]";
    }
}

impl OnlineSection {
    /// Prompts of one iteration.
    pub fn prompts_per_iteration(&self) -> usize {
        let rounds = self.generation_batches * self.gradient_accumulation_steps;
        self.per_device_generation_batch_size * rounds
    }

    /// Completions that an optimizer step takes.
    pub fn completions_per_step(&self) -> usize {
        self.per_device_training_batch_size * self.gradient_accumulation_steps
    }
}
