//! Answers to held-out prompts, scored: by the rule kept for evaluation where the run has one, else
//! by the reward that is trained on.

use super::run::Run;
use crate::algo::{Answered, OnlineTrainer};
use crate::base::Result;
use crate::data::{PromptExample, Tokenizer};
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::report::Event;

/// Answers shown at the end, beside those of before.
pub(super) const SHOWN: usize = 8;

/// One scored answer.
#[derive(Clone, Debug)]
pub(super) struct ScoredAnswer {
    /// The place of the prompt among those held out.
    pub(super) at: usize,
    pub(super) prompt: String,
    pub(super) answer: String,
    pub(super) score: f64,
}

/// Scored answers and their mean score and KL to the reference.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluation {
    pub(super) answers: Vec<ScoredAnswer>,
    score: Option<f64>,
    /// None where nothing is compared with a reference.
    kl: Option<f64>,
}

impl Evaluation {
    /// Mean score and KL under the given names; nothing if there were no prompts, and no KL without
    /// a reference.
    pub(super) fn numbers(
        &self,
        score: &'static str,
        kl: &'static str,
    ) -> Vec<(&'static str, f64)> {
        let Some(mean) = self.score else { return vec![] };
        std::iter::once((score, mean)).chain(self.kl.map(|mean| (kl, mean))).collect()
    }

    /// Adds to `out` under `at` what is told of it at the end.
    pub(super) fn save(&self, at: &str, out: &mut SnapshotBuilder<'_>) {
        self.score.iter().for_each(|score| out.set(&format!("{at}.score"), score));
        self.kl.iter().for_each(|kl| out.set(&format!("{at}.kl"), kl));
        for (i, a) in self.answers.iter().take(SHOWN).enumerate() {
            out.set(&format!("{at}.{i}.at"), a.at);
            out.set(&format!("{at}.{i}.prompt"), &a.prompt);
            out.set(&format!("{at}.{i}.answer"), &a.answer);
            out.set(&format!("{at}.{i}.score"), a.score);
        }
    }

    /// Reads back what [`Evaluation::save`] put there.
    pub(super) fn restore(at: &str, from: &Snapshot) -> Result<Evaluation> {
        let mut answers = vec![];
        while let Some(prompt) = from.find(&format!("{at}.{}.prompt", answers.len()))? {
            let i = answers.len();
            let answer = from.get(&format!("{at}.{i}.answer"))?;
            let score = from.get(&format!("{at}.{i}.score"))?;
            // Older snapshots hold all answers in order.
            let place = from.find(&format!("{at}.{i}.at"))?.unwrap_or(i);
            answers.push(ScoredAnswer { at: place, prompt, answer, score });
        }
        let (score, kl) = (from.find(&format!("{at}.score"))?, from.find(&format!("{at}.kl"))?);
        Ok(Evaluation { answers, score, kl })
    }
}

/// Answers `prompts` with the current actor, sampling as in training with draws of its own.
pub(super) fn evaluate(
    run: &mut Run<'_>,
    trainer: &mut OnlineTrainer,
    tokenizer: &Tokenizer,
    prompts: &[&PromptExample],
) -> Result<Evaluation> {
    if prompts.is_empty() {
        return Ok(Evaluation::default());
    }
    let rollouts = trainer.answer(&mut run.ws, prompts)?;
    let mut answers = vec![];
    for r in &rollouts {
        let (prompt, answer) = r.ids.split_at(r.prompt_len);
        let (prompt, answer) = (tokenizer.decode(prompt, true)?, tokenizer.decode(answer, true)?);
        answers.push(ScoredAnswer { at: r.prompt, prompt, answer, score: f64::from(r.score) });
    }
    if let Some(evaluate) = run.rule {
        let told = answers.iter().zip(&rollouts).map(|(a, r)| Answered {
            prompt: &a.prompt,
            answer: &a.answer,
            columns: &prompts[r.prompt].columns,
        });
        let scores = evaluate.score(&told.collect::<Vec<_>>())?;
        let scored = answers.into_iter().zip(scores).filter_map(|(a, score)| {
            let score = f64::from(score?);
            Some(ScoredAnswer { score, ..a })
        });
        answers = scored.collect();
    }
    let n = answers.len() as f64;
    let score = (!answers.is_empty()).then(|| answers.iter().map(|a| a.score).sum::<f64>() / n);
    let kl = trainer.config.method.kl.map(|_| {
        rollouts.iter().map(|r| f64::from(r.kl())).sum::<f64>() / rollouts.len().max(1) as f64
    });
    let unjudged = prompts.len() - answers.len();
    if unjudged > 0 {
        let of = prompts.len();
        run.reporter.emit(Event::note(format!(
            "evaluation: the reward did not judge {unjudged} of {of} answers, which are left out"
        )));
    }
    Ok(Evaluation { answers, score, kl })
}
