//! Answers to held-out prompts, scored: by the rule kept for evaluation where the run has one, else
//! by the reward that PPO trains on.

use super::Run;
use crate::base::Result;
use crate::data::Tokenizer;
use crate::rlhf::PpoTrainer;

/// One judged answer.
#[derive(Clone, Debug)]
pub(super) struct JudgedAnswer {
    pub(super) prompt: String,
    pub(super) answer: String,
    pub(super) score: f64,
}

/// Judged answers and their mean score and KL to the reference.
#[derive(Clone, Debug, Default)]
pub(super) struct Judged {
    pub(super) answers: Vec<JudgedAnswer>,
    score: Option<f64>,
    kl: f64,
}

impl Judged {
    /// Mean score and KL under the given names; nothing if there were no prompts.
    pub(super) fn numbers(
        &self,
        score: &'static str,
        kl: &'static str,
    ) -> Vec<(&'static str, f64)> {
        self.score.map_or(vec![], |s| vec![(score, s), (kl, self.kl)])
    }
}

/// Answers `prompts` with the current actor, sampling as in training with draws of its own.
pub(super) fn judge(
    run: &mut Run<'_>,
    trainer: &mut PpoTrainer,
    tokenizer: &Tokenizer,
    prompts: &[&[i32]],
) -> Result<Judged> {
    if prompts.is_empty() {
        return Ok(Judged::default());
    }
    let rollouts = trainer.answer(&mut run.ws, prompts)?;
    let mut answers = vec![];
    for r in &rollouts {
        let (prompt, answer) = r.ids.split_at(r.prompt_len);
        let (prompt, answer) = (tokenizer.decode(prompt, true)?, tokenizer.decode(answer, true)?);
        let score = match run.judge {
            Some(judge) => f64::from(judge.score(&prompt, &answer)?),
            None => f64::from(r.score),
        };
        answers.push(JudgedAnswer { prompt, answer, score });
    }
    let n = rollouts.len() as f64;
    let score = Some(answers.iter().map(|a| a.score).sum::<f64>() / n);
    let kl = rollouts.iter().map(|r| f64::from(r.kl())).sum::<f64>() / n;
    Ok(Judged { answers, score, kl })
}
