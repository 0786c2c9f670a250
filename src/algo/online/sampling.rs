//! Making experience: completions, their log-probs under the reference, values, scores, and from
//! these the reward and the advantage of every token.

use super::{Adaptive, MOST_KL_COEF, OnlineTrainer, RewardScaling};
use crate::algo::experience::{Experience, Rollout};
use crate::algo::micro_batches::{MicroBatches, share};
use crate::algo::reference::Reference;
use crate::algo::reward_source::{Completion, Scoring, check_count};
use crate::base::{Error, Result};
use crate::data::PromptExample;
use crate::engine::Engine;
use crate::rollout::{Answer, Sampling};
use crate::tape::Workspace;
use crate::train::Batch;
use std::time::Instant;

/// Draws for evaluation are numbered from here, those for training from 0.
const EVALUATION: u64 = 1 << 31;

impl OnlineTrainer {
    /// Samples `num_generations` completions of each prompt and scores them. The actor's own
    /// log-probs are those of sampling, which training reproduces bit for bit.
    pub fn generate_experience(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&PromptExample],
    ) -> Result<Experience> {
        if prompts.is_empty() {
            return Err(Error::user("no prompts to answer; give at least one"));
        }
        let number = self.config.method.num_generations;
        let (mut rollouts, unjudged, tokens) = self.rollouts(ws, prompts, number, self.answers)?;
        self.answers = (self.answers + (prompts.len() * number) as u64) % EVALUATION;
        self.models.actor.train();
        self.reward_tokens(&mut rollouts);
        if !rollouts.is_empty() {
            self.config.method.advantage.estimate(ws, &mut rollouts)?;
            self.adapt_kl(&rollouts);
        }
        self.iteration += 1;
        Ok(Experience { rollouts, unjudged, tokens, iteration: self.iteration - 1 })
    }

    /// Answers and scores `prompts` for evaluation, once each: always the same samples, and nothing
    /// of the trainer changes. Leaves out the answers that the reward does not judge.
    pub fn answer(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&PromptExample],
    ) -> Result<Vec<Rollout>> {
        Ok(self.rollouts(ws, prompts, 1, EVALUATION)?.0)
    }

    /// Returns also the number of completions that the reward did not judge, and the tokens of all.
    fn rollouts(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&PromptExample],
        number: usize,
        first: u64,
    ) -> Result<(Vec<Rollout>, usize, usize)> {
        self.check()?;
        let of: Vec<usize> = (0..prompts.len()).flat_map(|i| vec![i; number]).collect();
        let asked: Vec<&[i32]> = of.iter().map(|&i| prompts[i].ids.as_slice()).collect();
        let sequences: Vec<u64> = (0..asked.len() as u64).map(|i| first + i).collect();
        let sampling = self.config.sampling.clone();
        let clock = Instant::now();
        let answers = self.answers_of_all(ws, &asked, &sequences, &sampling)?;
        self.generate_seconds = clock.elapsed().as_secs_f64();
        let mut rollouts: Vec<Rollout> = of
            .iter()
            .zip(answers)
            .map(|(&prompt, a)| Rollout {
                prompt,
                ids: [prompts[prompt].ids.as_slice(), &a.tokens].concat(),
                prompt_len: prompts[prompt].ids.len(),
                logprobs: a.logprobs,
                finished: a.finished,
                ..Rollout::default()
            })
            .collect();
        let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
        self.score_tokens(ws, &mut rollouts, temperature)?;
        let tokens = rollouts.iter().map(|r| r.ids.len()).sum();
        let unjudged = self.score_answers(ws, prompts, &mut rollouts)?;
        Ok((rollouts, unjudged, tokens))
    }

    /// Answers to all prompts, each of which one rank has answered.
    fn answers_of_all(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
        sequences: &[u64],
        sampling: &Sampling,
    ) -> Result<Vec<Answer>> {
        let [dropped] = self.models.actor.comm().any([ws.cancel_requested()])?;
        if dropped {
            return Err(ws.drop_work());
        }
        let comm = self.models.actor.generators().clone();
        let own = share(&prompts.iter().map(|p| p.len()).collect::<Vec<_>>(), &comm);
        let (prompts, sequences) = (&prompts[own.clone()], &sequences[own]);
        let answers =
            self.models.actor.generate(ws, prompts, sequences, sampling, &mut |_, _| {})?;
        if comm.size() == 1 {
            return Ok(answers);
        }
        let ends: Vec<[u32; 2]> =
            answers.iter().map(|a| [a.tokens.len() as u32, u32::from(a.finished)]).collect();
        let tokens: Vec<i32> = answers.iter().flat_map(|a| a.tokens.iter().copied()).collect();
        let logprobs: Vec<f32> = answers.iter().flat_map(|a| a.logprobs.iter().copied()).collect();
        let (ends, tokens) = (comm.concat(&ends)?, comm.concat(&tokens)?);
        let logprobs = comm.concat(&logprobs)?;
        let mut at = 0;
        let answer = |[n, finished]: [u32; 2]| {
            let range = at..at + n as usize;
            at = range.end;
            let (tokens, logprobs) = (tokens[range.clone()].to_vec(), logprobs[range].to_vec());
            Answer { tokens, logprobs, finished: finished > 0 }
        };
        Ok(ends.into_iter().map(answer).collect())
    }

    /// Reference log-probs and critic values of every answer token.
    fn score_tokens(
        &self,
        ws: &mut Workspace,
        rollouts: &mut [Rollout],
        temperature: f32,
    ) -> Result<()> {
        let lengths: Vec<usize> = rollouts.iter().map(|r| r.ids.len()).collect();
        let (mut references, mut values) = (vec![], vec![]);
        let all: &[Rollout] = rollouts;
        let pack = |rows: &[usize]| {
            let row = |&i: &usize| (all[i].ids.as_slice(), all[i].states());
            Batch::new(&rows.iter().map(row).collect::<Vec<_>>())
        };
        let (max_tokens, comm) = (self.config.micro_batch_tokens, self.models.actor.comm());
        // One model at a time: memory may not suffice for the second where it did for the first.
        let of_model = |engine: &Engine| {
            MicroBatches::new(lengths.clone(), max_tokens, &engine.model.store, pack)
        };
        if let Some((model, adapters)) = self.models.reference.of(&self.models.actor) {
            of_model(model).each(ws, &mut |ws, batch| {
                references.extend(model.logprobs(ws, batch, temperature, adapters)?);
                Ok(())
            })?;
        }
        if let Some(critic) = &self.models.critic {
            of_model(critic).each(ws, &mut |ws, batch| {
                values.extend(critic.scores(ws, batch)?);
                Ok(())
            })?;
        }
        let (references, values) = (comm.concat(&references)?, comm.concat(&values)?);
        let mut at = 0;
        for r in rollouts.iter_mut() {
            let range = at..at + r.logprobs.len();
            r.ref_logprobs = references.get(range.clone()).unwrap_or_default().to_vec();
            r.values = values.get(range.clone()).unwrap_or_default().to_vec();
            at = range.end;
        }
        Ok(())
    }

    /// Sets the score of every completion and drops those that the reward does not judge. Returns
    /// the number of these.
    fn score_answers(
        &self,
        ws: &mut Workspace,
        prompts: &[&PromptExample],
        rollouts: &mut Vec<Rollout>,
    ) -> Result<usize> {
        let (comm, micro_batch_tokens) = (self.models.actor.comm(), self.config.micro_batch_tokens);
        let completion = |r| -> Completion<'_> {
            let r: &Rollout = r;
            Completion { prompt: prompts[r.prompt], rollout: r }
        };
        let batch: Vec<Completion<'_>> = rollouts.iter().map(completion).collect();
        let reward = &self.models.reward;
        let scores = reward.score(&mut Scoring { ws, comm, micro_batch_tokens }, &batch)?;
        check_count(reward.name(), &scores, &batch)?;
        if let Some(i) = scores.iter().position(|s| s.is_some_and(|s| !s.is_finite())) {
            return Err(Error::user(format!(
                "the reward of prompt {} of iteration {} is {}; check the reward model or rule",
                rollouts[i].prompt,
                self.iteration,
                scores[i].unwrap_or_default()
            )));
        }
        let all = std::mem::take(rollouts);
        let judged = all.into_iter().zip(&scores).filter_map(|(r, score)| {
            let score = (*score)?;
            Some(Rollout { score, ..r })
        });
        rollouts.extend(judged);
        Ok(scores.len() - rollouts.len())
    }

    /// Rewards of all tokens, from scores and the KL to the reference.
    fn reward_tokens(&mut self, rollouts: &mut [Rollout]) {
        let c = &self.config;
        let scores: Vec<f32> = rollouts.iter().map(|r| r.score).collect();
        self.reward_stats.update(&scores);
        let scale = match c.reward_scaling {
            RewardScaling::None => 1.0,
            RewardScaling::Running => 1.0 / self.reward_stats.std(),
        };
        for r in rollouts {
            let penalty = |(a, b): (&f32, &f32)| -self.kl_coef * (a - b);
            r.rewards = match self.models.reference {
                Reference::None => vec![0.0; r.logprobs.len()],
                _ => r.logprobs.iter().zip(&r.ref_logprobs).map(penalty).collect(),
            };
            let missing = if r.finished { 0.0 } else { c.missing_eos_penalty };
            let score =
                (r.score * scale).clamp(-c.clip_reward_value, c.clip_reward_value) - missing;
            *r.rewards.last_mut().expect("an answer has a token") += score;
        }
    }

    /// Moves the KL coefficient towards its target, where it has one.
    fn adapt_kl(&mut self, rollouts: &[Rollout]) {
        let Some(Adaptive { target, horizon }) = self.config.method.kl.and_then(|kl| kl.adaptive)
        else {
            return;
        };
        let n = rollouts.len() as f32;
        let kl = rollouts.iter().map(Rollout::kl).sum::<f32>() / n;
        let error = (kl / target - 1.0).clamp(-0.2, 0.2);
        // Of log-probs that are no numbers nothing may stay: the steps on them are skipped. The
        // coefficient stays a usable number above 0, or it could not come back.
        if error.is_finite() {
            let moved = self.kl_coef * (1.0 + error * (n / horizon).min(1.0));
            self.kl_coef = moved.clamp(f32::MIN_POSITIVE, MOST_KL_COEF as f32);
        }
    }
}
