//! The clipped policy loss (Schulman et al. 2017, equation 7), over tokens or whole completions.

use super::experience::Rollout;
use super::micro_batches::ends_of_selected;
use crate::base::Result;
use crate::op::ppo_policy::{PpoPolicy, ppo_policy};
use crate::op::sequence_sum::{SequenceSum, sequence_sum};
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::train::Batch;

/// The unit that has a ratio of probabilities, new to old, which is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyLoss {
    /// A token. The loss is the mean over all tokens of the optimizer step.
    Token {
        /// Ratios are clipped to 1 - clip .. 1 + clip.
        clip: f32,
    },
    /// A completion, whose ratio is the product of its tokens'. The loss is the mean over the
    /// completions of the optimizer step.
    Sequence {
        /// Ratios are clipped to 1 - clip .. 1 + clip.
        clip: f32,
    },
}

impl PolicyLoss {
    /// The units of a completion of so many tokens.
    pub(super) fn units(&self, tokens: usize) -> usize {
        match self {
            PolicyLoss::Token { .. } => tokens,
            PolicyLoss::Sequence { .. } => 1,
        }
    }

    /// The factor of the sum over units that makes it a mean over those of `rollouts`.
    pub(super) fn scale(&self, rollouts: &[&Rollout]) -> f32 {
        let units: usize = rollouts.iter().map(|r| self.units(r.logprobs.len())).sum();
        1.0 / units as f32
    }

    /// The advantages of the units, from those of the tokens.
    pub(super) fn advantages(&self, rollouts: &[&Rollout]) -> Vec<f32> {
        match self {
            PolicyLoss::Token { .. } => {
                rollouts.iter().flat_map(|r| r.advantages.iter().copied()).collect()
            }
            PolicyLoss::Sequence { .. } => {
                rollouts.iter().map(|r| r.advantages.first().copied().unwrap_or(0.0)).collect()
            }
        }
    }

    /// The loss f32 `[1]` and the statistics f32 `[6]` of [`ppo_policy`], from log-probs f32
    /// `[tokens]`, new and old, and advantages f32 `[units]`.
    pub(super) fn loss(
        &self,
        tape: &mut Tape<'_>,
        batch: &Batch,
        [new, old, advantages]: [Tensor; 3],
        scale: f32,
    ) -> Result<(Tensor, Tensor)> {
        let units = advantages.desc.shape.numel();
        let ones = tape.input_f32(&vec![1.0; units])?;
        match *self {
            PolicyLoss::Token { clip } => {
                ppo_policy(tape, PpoPolicy { clip, scale }, new, old, advantages, ones)
            }
            PolicyLoss::Sequence { clip } => {
                let ends = tape.input_i32(&ends_of_selected(batch))?;
                let sum = SequenceSum { scale: 1.0 };
                let log_ratios = sequence_sum(tape, sum, new, ends, old)?;
                let zeros = tape.input_f32(&vec![0.0; units])?;
                let op = PpoPolicy { clip, scale };
                ppo_policy(tape, op, log_ratios, zeros, advantages, ones)
            }
        }
    }
}
