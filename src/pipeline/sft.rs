//! Step 1: a language model learns answers.

use super::card::Card;
use super::config::RunConfig;
use super::offline::{self, Step};
use super::run::Run;
use super::stage::Stage;
use super::{datasets, settings, start};
use crate::base::Result;
use crate::data::SftExample;
use crate::model::Head;
use crate::rlhf::{SftConfig, SftTrainer};

/// Runs step 1. Returns it with its number of iterations.
pub(super) fn run(run: &mut Run<'_>) -> Result<(Stage, u64)> {
    let (model, dir) = (start::sft(run.cfg)?, run.dir.sft());
    offline::run(run, step(run.cfg), &model, &dir)
}

/// The step as it is configured.
pub(super) fn step(cfg: &RunConfig) -> Step<'_, SftTrainer> {
    let loss_on_prompt = cfg.sft.loss_on_prompt;
    Step {
        name: "sft",
        title: "Supervised finetuning",
        role: "actor",
        head: Head::Lm,
        lora: settings::actor_lora(cfg),
        adamw: settings::sft_adamw(cfg),
        section: &cfg.sft.optimizer,
        examples: datasets::sft,
        // Half of a sequence is the prompt.
        longest: |tokens| SftExample::new(vec![0; tokens], (tokens / 2).max(1)),
        sequences: 1,
        trainer: Box::new(move |engine, step| {
            SftTrainer::new(engine, SftConfig { step, loss_on_prompt })
        }),
        card: Card::sft,
    }
}
