//! Making experience: answers, their log-probs under the reference, values, scores, and from these
//! the rewards and advantages (Schulman et al. 2015) of every answer token.

use super::{KlControl, PpoTrainer, RewardSource};
use crate::algo::rows::{Rows, share};
use crate::base::{Error, Result};
use crate::engine::Engine;
use crate::op::gae::{Gae, gae};
use crate::rollout::{Answer, Sampling};
use crate::tape::{Shaped, Workspace};
use crate::train::Batch;
use std::time::Instant;

/// One answered prompt with all that training needs. Vectors have one entry per answer token.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// Prompt and answer.
    pub ids: Vec<i32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Log-probs recorded while sampling.
    pub logprobs: Vec<f32>,
    /// Log-probs under the reference.
    pub ref_logprobs: Vec<f32>,
    /// Values of the states before each token.
    pub values: Vec<f32>,
    /// GAE advantages.
    pub advantages: Vec<f32>,
    /// Advantage + value.
    pub returns: Vec<f32>,
    /// Score of the answer as the reward gave it.
    pub score: f32,
    /// The answer ended with an end token.
    pub finished: bool,
}

impl Rollout {
    /// Log-ratio to the reference summed over the answer: a sample of the KL divergence.
    pub fn kl(&self) -> f32 {
        self.logprobs.iter().zip(&self.ref_logprobs).map(|(a, b)| a - b).sum()
    }

    /// True if the answer is empty: it has no token, or an end token alone.
    pub fn is_empty(&self) -> bool {
        self.logprobs.len() <= usize::from(self.finished)
    }

    /// Positions whose next token is an answer token.
    pub(super) fn states(&self) -> std::ops::Range<usize> {
        self.prompt_len - 1..self.ids.len() - 1
    }
}

/// A batch of rollouts, ready to train on.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    /// The rollouts.
    pub rollouts: Vec<Rollout>,
    /// Iteration they were made in.
    pub iteration: u64,
}

/// Draws for evaluation are numbered from here, those for training from 0.
const EVALUATION: u64 = 1 << 31;

impl PpoTrainer {
    /// Answers `prompts` and scores the answers: one generation and three scoring passes. The
    /// actor's own log-probs are those of sampling, which training reproduces bit for bit.
    pub fn generate_experience(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
    ) -> Result<Experience> {
        if prompts.is_empty() {
            return Err(Error::user("PPO has no prompts to answer; give at least one"));
        }
        let mut rollouts = self.rollouts(ws, prompts, self.answers)?;
        self.answers = (self.answers + prompts.len() as u64) % EVALUATION;
        self.engines.actor.train();
        self.estimate_advantages(ws, &mut rollouts)?;
        self.iteration += 1;
        Ok(Experience { rollouts, iteration: self.iteration - 1 })
    }

    /// Answers and scores `prompts` for evaluation: always the same draws, and nothing of the
    /// trainer changes.
    pub fn answer(&mut self, ws: &mut Workspace, prompts: &[&[i32]]) -> Result<Vec<Rollout>> {
        self.rollouts(ws, prompts, EVALUATION)
    }

    fn rollouts(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
        first: u64,
    ) -> Result<Vec<Rollout>> {
        let sequences: Vec<u64> = (0..prompts.len() as u64).map(|i| first + i).collect();
        let sampling = self.config.sampling.clone();
        let clock = Instant::now();
        let answers = self.answers_of_all(ws, prompts, &sequences, &sampling)?;
        self.generate_seconds = clock.elapsed().as_secs_f64();
        let mut rollouts: Vec<Rollout> = prompts
            .iter()
            .zip(answers)
            .map(|(prompt, a)| Rollout {
                ids: [prompt, a.tokens.as_slice()].concat(),
                prompt_len: prompt.len(),
                logprobs: a.logprobs,
                finished: a.finished,
                ..Rollout::default()
            })
            .collect();
        let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
        self.score_tokens(ws, &mut rollouts, temperature)?;
        self.score_answers(ws, &mut rollouts)?;
        Ok(rollouts)
    }

    /// Answers to all prompts, each of which one rank has answered.
    fn answers_of_all(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
        sequences: &[u64],
        sampling: &Sampling,
    ) -> Result<Vec<Answer>> {
        let [dropped] = self.engines.actor.comm().any([ws.is_asked()])?;
        if dropped {
            return Err(ws.drop_work());
        }
        let comm = self.engines.actor.generators().clone();
        let own = share(&prompts.iter().map(|p| p.len()).collect::<Vec<_>>(), &comm);
        let (prompts, sequences) = (&prompts[own.clone()], &sequences[own]);
        let answers =
            self.engines.actor.generate(ws, prompts, sequences, sampling, &mut |_, _| {})?;
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
        let (max_tokens, comm) = (self.config.micro_batch_tokens, self.engines.actor.comm());
        // One model at a time: memory may not suffice for the second where it did for the first.
        let (model, adapters) = match &self.engines.reference {
            Some(reference) => (reference, true),
            None => (&self.engines.actor, false),
        };
        let of_model =
            |engine: &Engine| Rows::new(lengths.clone(), max_tokens, &engine.model.store, pack);
        of_model(model).each(ws, &mut |ws, batch| {
            references.extend(model.logprobs(ws, batch, temperature, adapters)?);
            Ok(())
        })?;
        let critic = &self.engines.critic;
        of_model(critic).each(ws, &mut |ws, batch| {
            values.extend(critic.scores(ws, batch)?);
            Ok(())
        })?;
        let (references, values) = (comm.concat(&references)?, comm.concat(&values)?);
        let mut at = 0;
        for r in rollouts.iter_mut() {
            let range = at..at + r.logprobs.len();
            r.ref_logprobs = references[range.clone()].to_vec();
            r.values = values[range.clone()].to_vec();
            at = range.end;
        }
        Ok(())
    }

    /// The score at the last token of every row.
    fn end_scores(&self, ws: &mut Workspace, model: &Engine, ids: &[&[i32]]) -> Result<Vec<f32>> {
        let lengths: Vec<usize> = ids.iter().map(|r| r.len()).collect();
        let mut scores = vec![];
        let pack = |rows: &[usize]| {
            let row = |&i: &usize| (ids[i], ids[i].len() - 1..ids[i].len());
            Batch::new(&rows.iter().map(row).collect::<Vec<_>>())
        };
        let (max_tokens, comm) = (self.config.micro_batch_tokens, self.engines.actor.comm());
        Rows::new(lengths, max_tokens, &model.model.store, pack).each(ws, &mut |ws, batch| {
            scores.extend(model.scores(ws, batch)?);
            Ok(())
        })?;
        comm.concat(&scores)
    }

    /// The score of every answer.
    fn score_answers(&self, ws: &mut Workspace, rollouts: &mut [Rollout]) -> Result<()> {
        let scores: Vec<f32> = match &self.engines.reward {
            RewardSource::Model(model) => {
                let ids: Vec<&[i32]> = rollouts.iter().map(|r| r.ids.as_slice()).collect();
                self.end_scores(ws, model, &ids)?
            }
            RewardSource::Foreign(model, retokenise) => {
                let ids: Vec<Vec<i32>> = rollouts.iter().map(retokenise).collect::<Result<_>>()?;
                let ids: Vec<&[i32]> = ids.iter().map(Vec::as_slice).collect();
                self.end_scores(ws, model, &ids)?
            }
            RewardSource::Rule(rule, decode) => {
                let score = |r: &Rollout| {
                    let (prompt, answer) = r.ids.split_at(r.prompt_len);
                    rule.score(&decode(prompt)?, &decode(answer)?)
                };
                // Each answer is scored once: a rule may be slow, or never say the same twice.
                let comm = self.engines.actor.comm();
                let own = share(&vec![1; rollouts.len()], comm);
                let scores = rollouts[own].iter().map(score).collect::<Result<Vec<f32>>>()?;
                comm.concat(&scores)?
            }
        };
        rollouts.iter_mut().zip(scores).for_each(|(r, s)| r.score = s);
        match rollouts.iter().position(|r| !r.score.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Error::user(format!(
                "the reward of prompt {i} of iteration {} is {}; check the reward model or rule",
                self.iteration, rollouts[i].score
            ))),
        }
    }

    /// Token rewards from scores and KL, then GAE.
    fn estimate_advantages(&mut self, ws: &mut Workspace, rollouts: &mut [Rollout]) -> Result<()> {
        let c = &self.config;
        let scores: Vec<f32> = rollouts.iter().map(|r| r.score).collect();
        self.reward_stats.update(&scores);
        let scale = if c.reward_scaling { 1.0 / self.reward_stats.std() } else { 1.0 };
        let mut scan = Scan { rewards: vec![], values: vec![], cu_seqlens: vec![0] };
        for r in rollouts.iter() {
            let kl = r.logprobs.iter().zip(&r.ref_logprobs).map(|(a, b)| -self.kl_coef * (a - b));
            scan.rewards.extend(kl);
            let missing = if r.finished { 0.0 } else { c.missing_eos_penalty };
            let score =
                (r.score * scale).clamp(-c.clip_reward_value, c.clip_reward_value) - missing;
            *scan.rewards.last_mut().expect("an answer has a token") += score;
            scan.values.extend(&r.values);
            scan.cu_seqlens.push(scan.rewards.len() as i32);
        }
        let op = Gae { gamma: c.gamma, lambda: c.lam };
        let (advantages, returns) = ws.run("gae", &scan, |tape, scan: &Scan| {
            let rewards = tape.input_f32(&scan.rewards)?;
            let values = tape.input_f32(&scan.values)?;
            let cu_seqlens = tape.input_i32(&scan.cu_seqlens)?;
            let (advantages, returns) = gae(tape, op, rewards, values, cu_seqlens)?;
            Ok((tape.read_f32(advantages)?, tape.read_f32(returns)?))
        })?;
        for (r, w) in rollouts.iter_mut().zip(scan.cu_seqlens.windows(2)) {
            let range = w[0] as usize..w[1] as usize;
            r.advantages = advantages[range.clone()].to_vec();
            r.returns = returns[range].to_vec();
        }
        if let KlControl::Adaptive { target, horizon } = c.kl_control {
            let n = rollouts.len() as f32;
            let kl = rollouts.iter().map(Rollout::kl).sum::<f32>() / n;
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            // Of log-probs that are no numbers nothing may stay: the steps on them are skipped.
            if error.is_finite() {
                self.kl_coef *= 1.0 + error * n / horizon;
            }
        }
        Ok(())
    }
}

/// Inputs of the scans: two columns over packed sequences.
pub(super) struct Scan {
    pub(super) rewards: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) cu_seqlens: Vec<i32>,
}

impl Shaped for Scan {
    fn dims(&self) -> Vec<usize> {
        vec![self.rewards.len(), self.cu_seqlens.len() - 1]
    }

    fn largest(dims: &[usize]) -> Scan {
        let zeros = vec![0.0; dims[0]];
        Scan { rewards: zeros.clone(), values: zeros, cu_seqlens: vec![0; dims[1] + 1] }
    }
}
