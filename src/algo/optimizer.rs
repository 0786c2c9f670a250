//! Keys that algorithms share: those of every optimizer, and batches and evaluation of those that
//! learn from rows.

use crate::config::{Kind, section};
use crate::train::{Schedule, ScheduleKind};

/// Most steps, examples or sequences anyone can mean.
const COUNT: i64 = 1_000_000_000;

/// Smallest epsilon of Adam: below the root of the smallest 32-bit float above 0, so that a
/// gradient whose square is lost makes no large step.
const LEAST_EPS: f64 = 1e-20;

pub(crate) const RATE: Kind = Kind::above_zero(0.1);
pub(crate) const DECAY: Kind = Kind::between(0.0, 1.0);
pub(crate) const BATCH: Kind = Kind::int(1, 1 << 16);
pub(crate) const ANY_COUNT: Kind = Kind::int(0, COUNT);
pub(crate) const SOME_COUNT: Kind = Kind::int(1, COUNT);
const SCHEDULES: Kind = Kind::Choice(&["linear", "cosine", "constant", "constant_with_warmup"]);

section! {
    /// The course of the learning rate, clipping and Adam, of every algorithm.
    pub struct UpdateSection {
        lr_scheduler_type: ScheduleKind = ScheduleKind::Cosine, SCHEDULES,
            "learning rate after warm-up";
        num_warmup_steps: usize = 0, ANY_COUNT,
            "optimizer steps of linear warm-up";
        max_grad_norm: f64 = 1.0, Kind::above_zero(1e6),
            "clip gradients to this global norm";
        adam_beta1: f64 = 0.9, Kind::below(1.0),
            "decay of Adam's first moment";
        adam_beta2: f64 = 0.95, Kind::below(1.0),
            "decay of Adam's second moment";
        adam_eps: f64 = 1e-8, Kind::between(LEAST_EPS, 0.1),
            "added to Adam's denominator, at least 1e-20";
    }
}

section! {
    /// Optimizer, batches and evaluation of an algorithm that learns from rows alone. An optimizer
    /// step takes `per_device_train_batch_size * gradient_accumulation_steps` rows.
    pub struct OptimizerSection [update: UpdateSection = UpdateSection::default()] {
        learning_rate: f64 = 1e-5, RATE,
            "peak learning rate";
        weight_decay: f64 = 0.0, DECAY,
            "decoupled weight decay of matrices";
        num_train_epochs: usize = 1, Kind::int(1, 1000),
            "passes over the data";
        max_steps: usize = 0, ANY_COUNT,
            "stop after this many optimizer steps; 0 = by epochs";
        per_device_train_batch_size: usize = 16, BATCH,
            "rows (sequences or pairs) per accumulation round";
        gradient_accumulation_steps: usize = 1, BATCH,
            "accumulation rounds per optimizer step";
        eval_interval: usize = 0, ANY_COUNT,
            "evaluate every N optimizer steps; 0 = before the first and after each epoch",
            harmless();
        eval_batches: usize = 100, SOME_COUNT,
            "most batches in one evaluation", or(&[(0, "eval-iters")]), harmless();
    }
}

impl UpdateSection {
    /// The learning rate over `total` optimizer steps.
    pub fn schedule(&self, total: u64) -> Schedule {
        let warmup = self.num_warmup_steps as u64;
        Schedule { kind: self.lr_scheduler_type, warmup, total }
    }
}

impl OptimizerSection {
    /// The defaults with another learning rate and weight decay.
    pub fn with(learning_rate: f64, weight_decay: f64) -> OptimizerSection {
        OptimizerSection { learning_rate, weight_decay, ..OptimizerSection::default() }
    }

    /// Rows per optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps
    }
}
