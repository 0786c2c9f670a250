//! Where scores come from: a reward model, or a rule on text.

use super::experience::Rollout;
use super::micro_batches::{MicroBatches, share};
use super::rule::{Answered, RewardRule};
use crate::base::{Error, Result};
use crate::comm::Comm;
use crate::data::PromptExample;
use crate::engine::Engine;
use crate::tape::Workspace;
use crate::train::Batch;
use std::sync::Arc;

/// Scores completions.
pub trait RewardSource {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// The scores of `batch`, one for each completion and in its order; None for one that it does
    /// not judge. Every rank asks for the same completions at the same time, and all get the same
    /// scores.
    fn score(&self, on: &mut Scoring<'_>, batch: &[Completion<'_>]) -> Result<Vec<Option<f32>>>;

    /// The model that scores, where one does.
    fn engine(&self) -> Option<&Engine> {
        None
    }
}

/// A completion to be scored.
#[derive(Clone, Copy)]
pub struct Completion<'r> {
    /// Its prompt, with all columns of the row that it comes from.
    pub prompt: &'r PromptExample,
    /// The completion; values and advantages are not there yet.
    pub rollout: &'r Rollout,
}

/// The means of scoring.
pub struct Scoring<'s> {
    /// The workspace of the run.
    pub ws: &'s mut Workspace,
    /// The ranks that score together.
    pub comm: &'s Comm,
    /// Upper bound of packed tokens in a micro-batch.
    pub micro_batch_tokens: usize,
}

/// The ids under which a reward model knows a completion with its prompt: by its own tokenizer or
/// chat template, with the end token where the completion was finished.
pub type Retokenise = Box<dyn Fn(&Completion<'_>) -> Result<Vec<i32>> + Send + Sync>;

/// A frozen reward model: the score at the last token.
pub struct ModelReward {
    /// The model.
    pub engine: Engine,
    /// How it knows a completion; None: by the very tokens of the rollout.
    pub retokenise: Option<Retokenise>,
}

impl RewardSource for ModelReward {
    fn name(&self) -> &str {
        "model"
    }

    fn score(&self, on: &mut Scoring<'_>, batch: &[Completion<'_>]) -> Result<Vec<Option<f32>>> {
        let read: Option<Vec<Vec<i32>>> = match &self.retokenise {
            Some(read) => Some(batch.iter().map(read).collect::<Result<_>>()?),
            None => None,
        };
        let ids: Vec<&[i32]> = match &read {
            Some(read) => read.iter().map(Vec::as_slice).collect(),
            None => batch.iter().map(|c| c.rollout.ids.as_slice()).collect(),
        };
        let pack = |rows: &[usize]| {
            let row = |&i: &usize| (ids[i], ids[i].len() - 1..ids[i].len());
            Batch::new(&rows.iter().map(row).collect::<Vec<_>>())
        };
        let (lengths, store) = (ids.iter().map(|r| r.len()).collect(), &self.engine.model.store);
        let mut scores = vec![];
        MicroBatches::new(lengths, on.micro_batch_tokens, store, pack).each(
            on.ws,
            &mut |ws, batch| {
                scores.extend(self.engine.scores(ws, batch)?);
                Ok(())
            },
        )?;
        Ok(on.comm.concat(&scores)?.into_iter().map(Some).collect())
    }

    fn engine(&self) -> Option<&Engine> {
        Some(&self.engine)
    }
}

/// Refuses scores that are not one for each of `batch`.
pub(super) fn check_count(
    name: &str,
    scores: &[Option<f32>],
    batch: &[Completion<'_>],
) -> Result<()> {
    if scores.len() == batch.len() {
        return Ok(());
    }
    let (scores, completions) = (scores.len(), batch.len());
    Err(Error::user(format!(
        "the reward {name} gave {scores} scores for {completions} completions"
    )))
}

/// Token ids to text.
pub type Decode = Box<dyn Fn(&[i32]) -> Result<String> + Send + Sync>;

/// A rule on text.
pub struct RuleReward {
    /// The rule.
    pub rule: Arc<dyn RewardRule>,
    /// The tokens of prompt and completion as text.
    pub decode: Decode,
}

impl RewardSource for RuleReward {
    fn name(&self) -> &str {
        self.rule.name()
    }

    // Each completion is scored once: a rule may be slow, or never say the same twice.
    fn score(&self, on: &mut Scoring<'_>, batch: &[Completion<'_>]) -> Result<Vec<Option<f32>>> {
        let own = &batch[share(&vec![1; batch.len()], on.comm)];
        let mut texts = vec![];
        for c in own {
            let (prompt, answer) = c.rollout.ids.split_at(c.rollout.prompt_len);
            texts.push([(self.decode)(prompt)?, (self.decode)(answer)?]);
        }
        let answers = own.iter().zip(&texts).map(|(c, [prompt, answer])| Answered {
            prompt,
            answer,
            columns: &c.prompt.columns,
        });
        let answers: Vec<Answered<'_>> = answers.collect();
        let scores = self.rule.score(&answers)?;
        // On each rank, or two that are wrong would make a sum that is right.
        check_count(self.name(), &scores, own)?;
        let coded: Vec<[f32; 2]> =
            scores.iter().map(|s| [s.unwrap_or(0.0), f32::from(u8::from(s.is_some()))]).collect();
        let all = on.comm.concat(&coded)?;
        Ok(all.into_iter().map(|[score, judged]| (judged > 0.0).then_some(score)).collect())
    }
}
