//! Learning from experience: the optimizer steps of actor and critic.

use super::OnlineTrainer;
use crate::algo::advantage::whiten;
use crate::algo::experience::{Experience, Rollout};
use crate::algo::micro_batches::MicroBatches;
use crate::algo::sft::{Text, cross_entropy, text_batch};
use crate::base::{Error, Result, Rng};
use crate::comm::Comm;
use crate::engine::{Engine, LossOutput};
use crate::op::ppo_value::{PpoValue, ppo_value};
use crate::op::weighted_sum::{WeightedSum, weighted_sum};
use crate::tape::Workspace;
use crate::train::Batch;

/// Statistics of one training iteration. Means are over tokens of completions. Those of the policy
/// loss, its KL estimate and clipped share are over the units of the loss.
#[derive(Clone, Debug, Default)]
pub struct OnlineStats {
    /// Mean clipped policy loss.
    pub policy_loss: f32,
    /// Mean clipped value loss.
    pub value_loss: f32,
    /// Mean entropy of the policy, in nats.
    pub entropy: f32,
    /// Mean KL estimate (ratio - 1) - log ratio between rollout policy and current.
    pub approx_kl: f32,
    /// Share of units at which the policy loss was clipped.
    pub clip_fraction: f32,
    /// Largest |ratio - 1| in the first minibatch: 0 when rollout and training agree bit for bit.
    pub first_ratio_deviation: f32,
    /// approx_kl of the first minibatch.
    pub first_approx_kl: f32,
    /// Mixture loss per token over the minibatches that had text, if any.
    pub ptx_loss: Option<f32>,
    /// Actor's gradient norm, last step.
    pub actor_grad_norm: f32,
    /// Critic's gradient norm, last step.
    pub critic_grad_norm: f32,
    /// Share of the returns' variance that the values explain.
    pub explained_variance: f32,
    /// Why steps were skipped, for each that was: loss or gradients were not finite, or no answer
    /// of a minibatch has a token.
    pub skipped: Vec<String>,
}

impl OnlineTrainer {
    /// All epochs over one experience. `unsupervised` rows are blocks of plain text for the
    /// mixture loss, shared out over the minibatches.
    pub fn train_rlhf(
        &mut self,
        ws: &mut Workspace,
        experience: &Experience,
        unsupervised: &[&[i32]],
    ) -> Result<OnlineStats> {
        let mut rollouts = experience.rollouts.clone();
        if self.config.method.whiten_advantages && rollouts.iter().any(|r| !r.advantages.is_empty())
        {
            whiten(ws, &mut rollouts, self.config.method.policy_loss)?;
        }
        let mut total = OnlineStats {
            explained_variance: explained_variance(&rollouts),
            ..OnlineStats::default()
        };
        if rollouts.is_empty() {
            total.skipped.push("the reward judged no completion of the iteration".into());
        }
        let (mut minibatches, mut with_text) = (0, 0);
        for epoch in 0..self.config.method.epochs {
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
                with_text += usize::from(stats.ptx_loss.is_some());
                total.absorb(stats);
            }
        }
        total.divide(minibatches, with_text);
        Ok(total)
    }

    /// One optimizer step of the actor, then one of the critic: their gradients never exist
    /// together.
    fn update(
        &mut self,
        ws: &mut Workspace,
        rollouts: &[&Rollout],
        text: &[&[i32]],
    ) -> Result<OnlineStats> {
        let tokens: usize = rollouts.iter().map(|r| r.logprobs.len()).sum();
        let mut stats = OnlineStats::default();
        if tokens == 0 {
            // Nothing was done, so there is nothing to learn; not from what was done before either.
            stats.skipped.push("no answer of the minibatch has a token".into());
            return Ok(stats);
        }
        let scale = 1.0 / tokens as f32;
        let scales = [scale, self.config.method.policy_loss.scale(rollouts)];
        let loss = self.config.method.policy_loss;
        let pack = |picked: &[&Rollout], batch: &mut Batch| {
            batch.columns = vec![column(picked, |r| &r.logprobs), loss.advantages(picked)];
        };
        let rows = self.rows(&self.models.actor, rollouts, &pack);
        rows.each(ws, &mut |ws, batch| self.accumulate_actor(ws, batch, scales, &mut stats))?;
        stats.over_ranks(self.models.actor.comm())?;
        if !text.is_empty() && self.config.unsup_coef > 0.0 {
            stats.ptx_loss = Some(self.accumulate_text(ws, text)?);
        }
        let factor = self.config.actor_schedule.factor(self.updates);
        let loss = stats.policy_loss + stats.entropy + stats.ptx_loss.unwrap_or(0.0);
        let step = self.models.actor.step(ws, factor, loss);
        let step = step.map_err(|e| e.diverged_in("actor"))?;
        stats.actor_grad_norm = step.grad_norm;
        stats.skipped.extend(step.skipped.map(|why| format!("actor: {why}")));
        self.update_critic(ws, rollouts, scale, &mut stats)?;
        self.updates += 1;
        Ok(stats)
    }

    /// One optimizer step of the critic, where there is one.
    fn update_critic(
        &mut self,
        ws: &mut Workspace,
        rollouts: &[&Rollout],
        scale: f32,
        stats: &mut OnlineStats,
    ) -> Result<()> {
        let Some(critic) = &self.models.critic else { return Ok(()) };
        let pack = |picked: &[&Rollout], batch: &mut Batch| {
            batch.columns = vec![column(picked, |r| &r.values), column(picked, |r| &r.returns)];
        };
        let rows = self.rows(critic, rollouts, &pack);
        rows.each(ws, &mut |ws, batch| self.accumulate_critic(critic, ws, batch, (scale, stats)))?;
        critic.comm().sum(std::slice::from_mut(&mut stats.value_loss))?;
        let factor = self.config.critic_schedule.factor(self.updates);
        let Some(critic) = &mut self.models.critic else { return Ok(()) };
        let step = critic.step(ws, factor, stats.value_loss);
        let step = step.map_err(|e| e.diverged_in("critic"))?;
        stats.critic_grad_norm = step.grad_norm;
        stats.skipped.extend(step.skipped.map(|why| format!("critic: {why}")));
        Ok(())
    }

    /// Rows for `engine`, whose columns `columns` makes.
    fn rows<'r>(
        &self,
        engine: &Engine,
        rollouts: &'r [&'r Rollout],
        columns: &'r dyn Fn(&[&Rollout], &mut Batch),
    ) -> MicroBatches<'r> {
        let pack = |rows: &[usize]| {
            let picked: Vec<&Rollout> = rows.iter().map(|&i| rollouts[i]).collect();
            let rows: Vec<_> = picked.iter().map(|r| (r.ids.as_slice(), r.states())).collect();
            let mut batch = Batch::new(&rows);
            columns(&picked, &mut batch);
            batch
        };
        let lengths = rollouts.iter().map(|r| r.ids.len()).collect();
        MicroBatches::new(lengths, self.config.micro_batch_tokens, &engine.model.store, pack)
    }

    /// Gradients of the policy. LoRA dropout stays off: under it the policy would not be the one
    /// that sampled, and the first ratio not 1. `scales` make means of sums over tokens, and over
    /// the units of the policy loss.
    fn accumulate_actor(
        &self,
        ws: &mut Workspace,
        batch: &Batch,
        [scale, scale_of_loss]: [f32; 2],
        stats: &mut OnlineStats,
    ) -> Result<()> {
        let (policy_loss, bonus) = (self.config.method.policy_loss, self.config.entropy_coef);
        let sampling = &self.config.sampling;
        let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
        let out = self.models.actor.accumulate(
            ws,
            "ppo actor",
            batch,
            None,
            &|tape, model, batch, hidden, select| {
                let targets = tape.input_i32(&batch.targets)?;
                let (logp, entropy) = model.logprobs(tape, hidden, select, targets, temperature)?;
                let old = tape.input_f32(&batch.columns[0])?;
                let advantages = tape.input_f32(&batch.columns[1])?;
                let mask = tape.input_f32(&vec![1.0; batch.select.len()])?;
                let ins = [logp, old, advantages];
                let (loss, parts) = policy_loss.loss(tape, batch, ins, scale_of_loss)?;
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
                Ok(LossOutput { losses, stats: vec![parts, mean] })
            },
        )?;
        let [.., parts, entropy] = &out[..] else { return Err(Error::internal("ppo actor terms")) };
        stats.policy_loss += out[0][0];
        stats.clip_fraction += parts[1] * scale_of_loss;
        stats.approx_kl += parts[2] * scale_of_loss;
        stats.first_ratio_deviation = stats.first_ratio_deviation.max(parts[4]);
        stats.entropy += entropy[0];
        Ok(())
    }

    fn accumulate_critic(
        &self,
        critic: &Engine,
        ws: &mut Workspace,
        batch: &Batch,
        (scale, stats): (f32, &mut OnlineStats),
    ) -> Result<()> {
        let clip = self.config.cliprange_value;
        let out = critic.accumulate(
            ws,
            "ppo critic",
            batch,
            None,
            &|tape, model, batch, hidden, select| {
                let values = model.scores(tape, hidden, select)?;
                let old = tape.input_f32(&batch.columns[0])?;
                let returns = tape.input_f32(&batch.columns[1])?;
                let mask = tape.input_f32(&vec![1.0; batch.select.len()])?;
                let (loss, parts) =
                    ppo_value(tape, PpoValue { clip, scale }, values, old, returns, mask)?;
                Ok(LossOutput { losses: vec![loss], stats: vec![parts] })
            },
        )?;
        stats.value_loss += out[0][0];
        Ok(())
    }

    /// Mixture loss; returns its mean per token before the coefficient.
    fn accumulate_text(&self, ws: &mut Workspace, text: &[&[i32]]) -> Result<f32> {
        let predicted: usize = text.iter().map(|t| t.len() - 1).sum();
        let coef = self.config.unsup_coef;
        let loss = cross_entropy(-coef / predicted.max(1) as f32);
        let texts: Vec<Text> =
            text.iter().map(|t| (*t, (0..t.len() - 1).map(|p| (p, 1.0)).collect())).collect();
        let lengths = text.iter().map(|t| t.len()).collect();
        let pack =
            |rows: &[usize]| text_batch(&rows.iter().map(|&i| &texts[i]).collect::<Vec<_>>());
        let mut sum = 0.0;
        let (comm, store) = (self.models.actor.comm(), &self.models.actor.model.store);
        let rows = MicroBatches::new(lengths, self.config.micro_batch_tokens, store, pack);
        rows.each(ws, &mut |ws, batch| {
            sum += self.models.actor.accumulate(ws, "ppo text", batch, None, &loss)?[0][0];
            Ok(())
        })?;
        comm.sum(std::slice::from_mut(&mut sum))?;
        Ok(sum / coef)
    }
}

impl OnlineStats {
    /// Makes what the actor's rows of this rank gave that of all ranks.
    fn over_ranks(&mut self, comm: &Comm) -> Result<()> {
        let mut sums = [self.policy_loss, self.clip_fraction, self.approx_kl, self.entropy];
        comm.sum(&mut sums)?;
        [self.policy_loss, self.clip_fraction, self.approx_kl, self.entropy] = sums;
        let deviations = comm.concat(&[self.first_ratio_deviation])?;
        self.first_ratio_deviation = deviations.into_iter().fold(0.0, f32::max);
        Ok(())
    }

    fn absorb(&mut self, s: OnlineStats) {
        self.policy_loss += s.policy_loss;
        self.value_loss += s.value_loss;
        self.entropy += s.entropy;
        self.approx_kl += s.approx_kl;
        self.clip_fraction += s.clip_fraction;
        self.skipped.extend(s.skipped);
        self.actor_grad_norm = s.actor_grad_norm;
        self.critic_grad_norm = s.critic_grad_norm;
        if let Some(loss) = s.ptx_loss {
            self.ptx_loss = Some(self.ptx_loss.unwrap_or(0.0) + loss);
        }
    }

    fn divide(&mut self, n: usize, with_text: usize) {
        let f = 1.0 / n.max(1) as f32;
        self.policy_loss *= f;
        self.value_loss *= f;
        self.entropy *= f;
        self.approx_kl *= f;
        self.clip_fraction *= f;
        self.ptx_loss = self.ptx_loss.map(|l| l / with_text as f32);
    }
}

fn column(rollouts: &[&Rollout], of: fn(&Rollout) -> &Vec<f32>) -> Vec<f32> {
    rollouts.iter().flat_map(|r| of(r).iter().copied()).collect()
}

/// 1 - Var(returns - values) / Var(returns), over tokens; 0 where all returns are the same, or
/// there are none.
fn explained_variance(rollouts: &[Rollout]) -> f32 {
    let variance = |xs: &[f64]| {
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64
    };
    let pairs = rollouts.iter().flat_map(|r| r.returns.iter().zip(&r.values));
    let (returns, errors): (Vec<f64>, Vec<f64>) =
        pairs.map(|(r, v)| (f64::from(*r), f64::from(*r) - f64::from(*v))).unzip();
    let total = variance(&returns);
    if total > 1e-12 { (1.0 - variance(&errors) / total) as f32 } else { 0.0 }
}
