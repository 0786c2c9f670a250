//! PPO on language models (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).
//!
//! Actor, critic, frozen reference and frozen reward. An answer's tokens are the actions; the state
//! before token `t` is the prompt and the tokens before it. Per-token reward is
//! `-kl_coef (logp - ref_logp)`, plus the clipped score at the last token.

use crate::base::{Error, Result, Rng};
use crate::data::micro_batches;
use crate::engine::{Engine, Terms};
use crate::op::gae::{Gae, gae};
use crate::op::ppo_policy::{PpoPolicy, ppo_policy};
use crate::op::ppo_value::{PpoValue, ppo_value};
use crate::op::weighted_sum::{WeightedSum, weighted_sum};
use crate::op::whiten::{Whiten, whiten};
use crate::rlhf::sft::nll;
use crate::rlhf::{RewardRule, RunningStats};
use crate::rollout::Sampling;
use crate::tape::{Shaped, Workspace};
use crate::train::{Batch, Schedule};
use std::sync::Arc;

/// How the KL coefficient moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KlControl {
    /// It does not.
    Fixed,
    /// Towards a target KL per answer (Ziegler et al. 2019, section 2.2).
    Adaptive {
        /// Wanted KL of an answer, in nats.
        target: f32,
        /// Answers over which the coefficient adapts.
        horizon: f32,
    },
}

/// Settings of PPO.
#[derive(Clone, Debug)]
pub struct PpoConfig {
    /// Drawing of answers; its seed is the run's.
    pub sampling: Sampling,
    /// KL coefficient at the start.
    pub kl_coef: f32,
    /// How it moves.
    pub kl_control: KlControl,
    /// Scores are clipped to this magnitude, after scaling.
    pub clip_reward_value: f32,
    /// Scores are divided by their running standard deviation.
    pub reward_scaling: bool,
    /// Taken off the score of an answer without an end token.
    pub missing_eos_penalty: f32,
    /// Discount.
    pub gamma: f32,
    /// GAE lambda.
    pub lam: f32,
    /// Advantages are whitened over the experience.
    pub whiten_advantages: bool,
    /// Policy ratio clip.
    pub cliprange: f32,
    /// Value clip; 0 = off.
    pub cliprange_value: f32,
    /// Weight of the entropy bonus.
    pub entropy_coef: f32,
    /// Weight of the mixture (ptx) loss, where there is text for it.
    pub unsup_coef: f32,
    /// Passes over each experience.
    pub ppo_epochs: usize,
    /// Sequences of one optimizer step.
    pub minibatch: usize,
    /// Upper bound of packed tokens in a micro-batch.
    pub micro_batch_tokens: usize,
    /// Actor's learning rate over the run's optimizer steps.
    pub actor_schedule: Schedule,
    /// Critic's learning rate over the run's optimizer steps.
    pub critic_schedule: Schedule,
}

/// Token ids to text.
pub type Decode = Box<dyn Fn(&[i32]) -> Result<String> + Send + Sync>;

/// Where scores come from.
pub enum RewardSource {
    /// A frozen reward model that reads the same tokens.
    Model(Box<Engine>),
    /// A rule on text, with a decoder of answer tokens.
    Rule(Arc<dyn RewardRule>, Decode),
}

/// The four models of PPO. Without `reference` it is the actor with adapters off.
pub struct PpoEngines {
    /// The policy.
    pub actor: Engine,
    /// The frozen start of the policy.
    pub reference: Option<Engine>,
    /// The value function.
    pub critic: Engine,
    /// The reward.
    pub reward: RewardSource,
}

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

    /// Positions whose next token is an answer token.
    fn states(&self) -> std::ops::Range<usize> {
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

/// What an iteration of training reports. Means are over answer tokens unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct PpoStats {
    /// Mean clipped policy loss.
    pub policy_loss: f32,
    /// Mean clipped value loss.
    pub value_loss: f32,
    /// Mean entropy of the policy, in nats.
    pub entropy: f32,
    /// Mean KL estimate (ratio - 1) - log ratio between rollout policy and current.
    pub approx_kl: f32,
    /// Share of tokens at which the policy loss was clipped.
    pub clip_fraction: f32,
    /// Largest |ratio - 1| in the first minibatch: 0 when rollout and training agree bit for bit.
    pub first_ratio_deviation: f32,
    /// approx_kl of the first minibatch.
    pub first_approx_kl: f32,
    /// Mixture loss per token, where there is one.
    pub unsup_loss: Option<f32>,
    /// Actor's gradient norm, last step.
    pub actor_grad_norm: f32,
    /// Critic's gradient norm, last step.
    pub critic_grad_norm: f32,
    /// Share of the returns' variance that the values explain.
    pub explained_variance: f32,
    /// Steps skipped because gradients were not finite.
    pub skipped: usize,
}

/// Runs PPO. See [`PpoTrainer::generate_experience`] and [`PpoTrainer::train_rlhf`].
pub struct PpoTrainer {
    /// The models.
    pub engines: PpoEngines,
    /// The settings.
    pub config: PpoConfig,
    /// Current KL coefficient.
    pub kl_coef: f32,
    /// Running statistics of scores.
    pub reward_stats: RunningStats,
    iteration: u64,
    updates: u64,
}

impl PpoTrainer {
    /// A trainer at iteration 0.
    pub fn new(engines: PpoEngines, config: PpoConfig) -> Result<PpoTrainer> {
        if engines.reference.is_none() && engines.actor.model.lora.is_none() {
            return Err(Error::internal("without adapters the actor needs a reference model"));
        }
        let kl_coef = config.kl_coef;
        let reward_stats = RunningStats::default();
        Ok(PpoTrainer { engines, config, kl_coef, reward_stats, iteration: 0, updates: 0 })
    }

    /// Answers `prompts` and scores the answers: one generation and three scoring passes. The actor's
    /// own log-probs are those of sampling, which training reproduces bit for bit.
    pub fn generate_experience(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
    ) -> Result<Experience> {
        let mut rollouts = self.rollouts(ws, prompts, self.iteration << 20)?;
        self.engines.actor.train();
        self.estimate_advantages(ws, &mut rollouts)?;
        self.iteration += 1;
        Ok(Experience { rollouts, iteration: self.iteration - 1 })
    }

    /// Answers and scores `prompts` for evaluation: always the same draws, and nothing of the
    /// trainer changes.
    pub fn answer(&mut self, ws: &mut Workspace, prompts: &[&[i32]]) -> Result<Vec<Rollout>> {
        self.rollouts(ws, prompts, 1 << 30)
    }

    fn rollouts(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
        first: u64,
    ) -> Result<Vec<Rollout>> {
        let sequences: Vec<u64> = (0..prompts.len() as u64).map(|i| first + i).collect();
        let sampling = self.config.sampling.clone();
        let answers =
            self.engines.actor.generate(ws, prompts, &sequences, &sampling, &mut |_, _| {})?;
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

    /// Reference log-probs and critic values of every answer token.
    fn score_tokens(
        &self,
        ws: &mut Workspace,
        rollouts: &mut [Rollout],
        temperature: f32,
    ) -> Result<()> {
        for group in self.groups(rollouts) {
            let rows: Vec<_> =
                group.iter().map(|&i| (rollouts[i].ids.as_slice(), rollouts[i].states())).collect();
            let batch = Batch::new(&rows);
            let reference = match &self.engines.reference {
                Some(model) => model.logprobs(ws, &batch, temperature, true)?,
                None => self.engines.actor.logprobs(ws, &batch, temperature, false)?,
            };
            let values = self.engines.critic.scores(ws, &batch)?;
            let mut at = 0;
            for &i in &group {
                let n = rollouts[i].logprobs.len();
                rollouts[i].ref_logprobs = reference[at..at + n].to_vec();
                rollouts[i].values = values[at..at + n].to_vec();
                at += n;
            }
        }
        Ok(())
    }

    /// The score of every answer.
    fn score_answers(&self, ws: &mut Workspace, rollouts: &mut [Rollout]) -> Result<()> {
        match &self.engines.reward {
            RewardSource::Model(model) => {
                for group in self.groups(rollouts) {
                    let rows: Vec<_> = group
                        .iter()
                        .map(|&i| {
                            (
                                rollouts[i].ids.as_slice(),
                                rollouts[i].ids.len() - 1..rollouts[i].ids.len(),
                            )
                        })
                        .collect();
                    let scores = model.scores(ws, &Batch::new(&rows))?;
                    group.iter().zip(scores).for_each(|(&i, s)| rollouts[i].score = s);
                }
            }
            RewardSource::Rule(rule, decode) => {
                for r in rollouts.iter_mut() {
                    let (prompt, answer) = r.ids.split_at(r.prompt_len);
                    r.score = rule.score(&decode(prompt)?, &decode(answer)?)?;
                }
            }
        }
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
            self.kl_coef *= 1.0 + error * n / horizon;
        }
        Ok(())
    }

    /// All PPO epochs over one experience. `unsupervised` rows are blocks of plain text for the
    /// mixture loss, shared out over the minibatches.
    pub fn train_rlhf(
        &mut self,
        ws: &mut Workspace,
        experience: &Experience,
        unsupervised: &[&[i32]],
    ) -> Result<PpoStats> {
        let mut rollouts = experience.rollouts.clone();
        if self.config.whiten_advantages {
            self.whiten(ws, &mut rollouts)?;
        }
        let mut total =
            PpoStats { explained_variance: explained_variance(&rollouts), ..PpoStats::default() };
        let mut minibatches = 0;
        for epoch in 0..self.config.ppo_epochs {
            let mut order: Vec<usize> = (0..rollouts.len()).collect();
            let stream = (experience.iteration << 8) + epoch as u64;
            Rng::new(self.config.sampling.seed ^ 0x5050_4f00, stream).shuffle(&mut order);
            let count = order.len().div_ceil(self.config.minibatch);
            for (k, minibatch) in order.chunks(self.config.minibatch).enumerate() {
                let share = k * unsupervised.len() / count..(k + 1) * unsupervised.len() / count;
                let picked: Vec<&Rollout> = minibatch.iter().map(|&i| &rollouts[i]).collect();
                let stats = self.update(ws, &picked, &unsupervised[share])?;
                if minibatches == 0 {
                    total.first_ratio_deviation = stats.first_ratio_deviation;
                    total.first_approx_kl = stats.approx_kl;
                }
                minibatches += 1;
                total.absorb(&stats);
            }
        }
        total.divide(minibatches);
        Ok(total)
    }

    fn whiten(&self, ws: &mut Workspace, rollouts: &mut [Rollout]) -> Result<()> {
        let advantages: Vec<f32> = rollouts.iter().flat_map(|r| r.advantages.clone()).collect();
        let (ones, n) = (vec![1.0; advantages.len()], advantages.len());
        let scan = Scan { rewards: advantages, values: ones, cu_seqlens: vec![0, n as i32] };
        let white = ws.run("whiten", &scan, |tape, scan: &Scan| {
            let x = tape.input_f32(&scan.rewards)?;
            let mask = tape.input_f32(&scan.values)?;
            let y = whiten(tape, Whiten { shift_mean: true }, x, mask)?;
            tape.read_f32(y)
        })?;
        let mut at = 0;
        for r in rollouts {
            let n = r.advantages.len();
            r.advantages.copy_from_slice(&white[at..at + n]);
            at += n;
        }
        Ok(())
    }

    /// One optimizer step of actor and critic.
    fn update(
        &mut self,
        ws: &mut Workspace,
        rollouts: &[&Rollout],
        text: &[&[i32]],
    ) -> Result<PpoStats> {
        let tokens: usize = rollouts.iter().map(|r| r.logprobs.len()).sum();
        let scale = 1.0 / tokens as f32;
        let mut stats = PpoStats::default();
        let batches = self.batches(rollouts);
        for (i, batch) in batches.iter().enumerate() {
            self.accumulate_actor(ws, batch, i as u64, scale, &mut stats)?;
            self.accumulate_critic(ws, batch, scale, &mut stats)?;
        }
        if !text.is_empty() && self.config.unsup_coef > 0.0 {
            stats.unsup_loss = Some(self.accumulate_text(ws, text)?);
        }
        let factor = self.config.actor_schedule.factor(self.updates);
        let step = self.engines.actor.step(ws, factor)?;
        (stats.actor_grad_norm, stats.skipped) = (step.grad_norm, usize::from(step.skipped));
        let factor = self.config.critic_schedule.factor(self.updates);
        let step = self.engines.critic.step(ws, factor)?;
        stats.critic_grad_norm = step.grad_norm;
        stats.skipped += usize::from(step.skipped);
        self.updates += 1;
        Ok(stats)
    }

    /// Micro-batches with columns old log-prob, advantage, old value, return.
    fn batches(&self, rollouts: &[&Rollout]) -> Vec<Batch> {
        let lengths: Vec<usize> = rollouts.iter().map(|r| r.ids.len()).collect();
        micro_batches(&lengths, self.config.micro_batch_tokens)
            .iter()
            .map(|group| {
                let picked: Vec<&Rollout> = group.iter().map(|&i| rollouts[i]).collect();
                let rows: Vec<_> = picked.iter().map(|r| (r.ids.as_slice(), r.states())).collect();
                let mut batch = Batch::new(&rows);
                let column = |f: fn(&Rollout) -> &Vec<f32>| -> Vec<f32> {
                    picked.iter().flat_map(|r| f(r).iter().copied()).collect()
                };
                batch.columns = vec![
                    column(|r| &r.logprobs),
                    column(|r| &r.advantages),
                    column(|r| &r.values),
                    column(|r| &r.returns),
                    vec![1.0; batch.select.len()],
                ];
                batch
            })
            .collect()
    }

    fn accumulate_actor(
        &self,
        ws: &mut Workspace,
        batch: &Batch,
        micro: u64,
        scale: f32,
        stats: &mut PpoStats,
    ) -> Result<()> {
        let (clip, bonus) = (self.config.cliprange, self.config.entropy_coef);
        let sampling = &self.config.sampling;
        let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
        let dropout = Some(sampling.seed ^ (self.updates << 20) ^ micro);
        let out = self.engines.actor.accumulate(
            ws,
            "ppo actor",
            batch,
            dropout,
            &|tape, model, batch, hidden, select| {
                let targets = tape.input_i32(&batch.targets)?;
                let (logp, entropy) = model.logprobs(tape, hidden, select, targets, temperature)?;
                let old = tape.input_f32(&batch.columns[0])?;
                let advantages = tape.input_f32(&batch.columns[1])?;
                let mask = tape.input_f32(&batch.columns[4])?;
                let op = PpoPolicy { clip, scale };
                let (loss, parts) = ppo_policy(tape, op, logp, old, advantages, mask)?;
                let mean = weighted_sum(tape, WeightedSum { scale }, entropy, mask)?;
                let mut losses = vec![loss];
                if bonus != 0.0 {
                    losses.push(weighted_sum(
                        tape,
                        WeightedSum { scale: -bonus * scale },
                        entropy,
                        mask,
                    )?);
                }
                Ok(Terms { losses, stats: vec![parts, mean] })
            },
        )?;
        let [.., parts, entropy] = &out[..] else { return Err(Error::internal("ppo actor terms")) };
        stats.policy_loss += out[0][0];
        stats.clip_fraction += parts[1] * scale;
        stats.approx_kl += parts[2] * scale;
        stats.first_ratio_deviation = stats.first_ratio_deviation.max(parts[4]);
        stats.entropy += entropy[0];
        Ok(())
    }

    fn accumulate_critic(
        &self,
        ws: &mut Workspace,
        batch: &Batch,
        scale: f32,
        stats: &mut PpoStats,
    ) -> Result<()> {
        let clip = self.config.cliprange_value;
        let out = self.engines.critic.accumulate(
            ws,
            "ppo critic",
            batch,
            None,
            &|tape, model, batch, hidden, select| {
                let values = model.scores(tape, hidden, select)?;
                let old = tape.input_f32(&batch.columns[2])?;
                let returns = tape.input_f32(&batch.columns[3])?;
                let mask = tape.input_f32(&batch.columns[4])?;
                let (loss, parts) =
                    ppo_value(tape, PpoValue { clip, scale }, values, old, returns, mask)?;
                Ok(Terms { losses: vec![loss], stats: vec![parts] })
            },
        )?;
        stats.value_loss += out[0][0];
        Ok(())
    }

    /// Mixture loss; returns its mean per token before the coefficient.
    fn accumulate_text(&self, ws: &mut Workspace, text: &[&[i32]]) -> Result<f32> {
        let predicted: usize = text.iter().map(|t| t.len() - 1).sum();
        let coef = self.config.unsup_coef;
        let loss = nll(-coef / predicted.max(1) as f32);
        let lengths: Vec<usize> = text.iter().map(|t| t.len()).collect();
        let mut sum = 0.0;
        for group in micro_batches(&lengths, self.config.micro_batch_tokens) {
            let rows: Vec<_> = group.iter().map(|&i| (text[i], 0..text[i].len() - 1)).collect();
            let mut batch = Batch::new(&rows);
            batch.columns = vec![vec![1.0; batch.select.len()]];
            sum += self.engines.actor.accumulate(ws, "ppo text", &batch, None, &loss)?[0][0];
        }
        Ok(sum / coef)
    }

    fn groups(&self, rollouts: &[Rollout]) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = rollouts.iter().map(|r| r.ids.len()).collect();
        micro_batches(&lengths, self.config.micro_batch_tokens)
    }
}

impl PpoStats {
    fn absorb(&mut self, s: &PpoStats) {
        self.policy_loss += s.policy_loss;
        self.value_loss += s.value_loss;
        self.entropy += s.entropy;
        self.approx_kl += s.approx_kl;
        self.clip_fraction += s.clip_fraction;
        self.skipped += s.skipped;
        self.actor_grad_norm = s.actor_grad_norm;
        self.critic_grad_norm = s.critic_grad_norm;
        if let Some(loss) = s.unsup_loss {
            self.unsup_loss = Some(self.unsup_loss.unwrap_or(0.0) + loss);
        }
    }

    fn divide(&mut self, n: usize) {
        let f = 1.0 / n.max(1) as f32;
        self.policy_loss *= f;
        self.value_loss *= f;
        self.entropy *= f;
        self.approx_kl *= f;
        self.clip_fraction *= f;
        self.unsup_loss = self.unsup_loss.map(|l| l * f);
    }
}

/// 1 - Var(returns - values) / Var(returns), over answer tokens.
fn explained_variance(rollouts: &[Rollout]) -> f32 {
    let variance = |xs: &[f64]| {
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64
    };
    let pairs = rollouts.iter().flat_map(|r| r.returns.iter().zip(&r.values));
    let (returns, errors): (Vec<f64>, Vec<f64>) =
        pairs.map(|(r, v)| (f64::from(*r), f64::from(*r) - f64::from(*v))).unzip();
    (1.0 - variance(&errors) / variance(&returns).max(1e-12)) as f32
}

/// Inputs of the scans: two columns over packed sequences.
struct Scan {
    rewards: Vec<f32>,
    values: Vec<f32>,
    cu_seqlens: Vec<i32>,
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
