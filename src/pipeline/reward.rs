//! Step 2: a reward model learns from pairs.

use super::card::Card;
use super::config::RunConfig;
use super::offline::{self, Step};
use super::run::Run;
use super::stage::Stage;
use super::{datasets, settings, start};
use crate::base::Result;
use crate::data::PairExample;
use crate::model::Head;
use crate::rlhf::{RewardConfig, RewardTrainer};

/// Runs step 2. Returns it with its number of iterations.
pub(super) fn run(run: &mut Run<'_>) -> Result<(Stage, u64)> {
    let (model, dir) = (start::reward(run.cfg)?, run.dir.reward());
    offline::run(run, step(run.cfg), &model, &dir)
}

/// The step as it is configured.
pub(super) fn step(cfg: &RunConfig) -> Step<'_, RewardTrainer> {
    let loss = settings::reward_loss(cfg);
    Step {
        name: "reward",
        title: "Reward model",
        role: "reward",
        head: Head::Score,
        lora: settings::critic_lora(cfg),
        adamw: settings::reward_adamw(cfg),
        section: &cfg.reward.optimizer,
        examples: datasets::pairs,
        longest: |tokens| {
            let (chosen, rejected) = (vec![0; tokens], vec![1; tokens]);
            let prompt_len = (tokens / 2).max(1);
            PairExample { prompt_len, chosen, rejected, ..PairExample::default() }
        },
        sequences: 2,
        trainer: Box::new(move |engine, step| {
            RewardTrainer::new(engine, RewardConfig { step, loss })
        }),
        card: Card::reward,
    }
}
