//! Learning from completions that the policy samples: sample, score, estimate advantages, then some
//! epochs over minibatches. What differs between algorithms is a value: their [`Method`].

mod metrics;
mod sampling;
mod section;
mod update;

pub(crate) use metrics::{COMPARED, SAMPLED, VALUED};
pub use section::{CriticSection, OnlineSection, RewardScaling};
pub use update::OnlineStats;

use super::advantage::Advantage;
use super::policy_loss::PolicyLoss;
use super::reference::Reference;
use super::reward_source::RewardSource;
use super::stats::RunningStats;
use crate::base::{Error, Result};
use crate::engine::Engine;
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::rollout::Sampling;
use crate::train::Schedule;

/// Largest coefficient of the KL penalty, given or reached by adapting it.
pub(super) const MOST_KL_COEF: f64 = 100.0;

/// The price of leaving the reference, in the reward of every token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Coefficient of the log-ratio to the reference, at the start.
    pub coef: f32,
    /// How it moves; None: not at all.
    pub adaptive: Option<Adaptive>,
}

/// A coefficient that moves towards a target KL (Ziegler et al. 2019, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// Wanted KL of a completion, in nats.
    pub target: f32,
    /// Completions over which the coefficient adapts; an iteration counts as at most so many.
    pub horizon: f32,
}

/// The difference between algorithms that sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Method {
    /// Completions of each prompt.
    pub num_generations: usize,
    /// The penalty for leaving the reference; None: nothing compares with one.
    pub kl: Option<KlPenalty>,
    /// How rewards become advantages.
    pub advantage: Advantage,
    /// Advantages are whitened over the experience.
    pub whiten_advantages: bool,
    /// The loss of the policy.
    pub policy_loss: PolicyLoss,
    /// Passes over each experience.
    pub epochs: usize,
}

/// Settings of an algorithm that samples.
#[derive(Clone, Debug)]
pub struct OnlineConfig {
    /// The algorithm.
    pub method: Method,
    /// Sampling of completions; its seed is the run's.
    pub sampling: Sampling,
    /// Scores are clipped to this magnitude, after scaling.
    pub clip_reward_value: f32,
    /// How scores are scaled.
    pub reward_scaling: RewardScaling,
    /// Taken off the score of a completion without an end token.
    pub missing_eos_penalty: f32,
    /// Value clip of the critic; 0 = off.
    pub cliprange_value: f32,
    /// Weight of the entropy bonus.
    pub entropy_coef: f32,
    /// Weight of the mixture (ptx) loss, where there is text for it.
    pub unsup_coef: f32,
    /// Sequences of one optimizer step.
    pub minibatch: usize,
    /// Upper bound of packed tokens in a micro-batch.
    pub micro_batch_tokens: usize,
    /// Actor's learning rate over the run's optimizer steps.
    pub actor_schedule: Schedule,
    /// Critic's learning rate over the run's optimizer steps.
    pub critic_schedule: Schedule,
}

/// The models of an algorithm that samples, and its reward.
pub struct OnlineModels {
    /// The policy.
    pub actor: Engine,
    /// The frozen start of the policy.
    pub reference: Reference,
    /// The value function, where the advantage takes one.
    pub critic: Option<Engine>,
    /// The reward.
    pub reward: Box<dyn RewardSource>,
}

impl OnlineModels {
    /// All of them, the actor first.
    pub fn engines(&self) -> Vec<&Engine> {
        let reference = self.reference.engine();
        [Some(&self.actor), reference, self.critic.as_ref(), self.reward.engine()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Those that are trained, the actor first.
    pub fn trained(&self) -> Vec<&Engine> {
        std::iter::once(&self.actor).chain(&self.critic).collect()
    }
}

/// Trains a policy on completions that it samples. See [`OnlineTrainer::generate_experience`] and
/// [`OnlineTrainer::train_rlhf`].
pub struct OnlineTrainer {
    /// The models.
    pub models: OnlineModels,
    /// The settings.
    pub config: OnlineConfig,
    /// Current KL coefficient; 0 where there is no penalty.
    pub kl_coef: f32,
    /// Running statistics of scores.
    pub reward_stats: RunningStats,
    /// Seconds that sampling the last completions took, the first part of making experience.
    pub generate_seconds: f64,
    iteration: u64,
    /// Completions sampled for training so far; each has a number of its own for its draws.
    answers: u64,
    updates: u64,
}

impl OnlineTrainer {
    /// A trainer at iteration 0. Actor and critic, trained in turn, share the memory of gradients.
    ///
    /// # Errors
    /// A setting has no meaning, or a model that it needs is missing.
    pub fn new(mut models: OnlineModels, config: OnlineConfig) -> Result<OnlineTrainer> {
        check(&models, &config)?;
        if let Some(critic) = &mut models.critic {
            let (actor, critic) = (&mut models.actor.model.store, &mut critic.model.store);
            if (actor.device(), actor.grad_dtype()) == (critic.device(), critic.grad_dtype()) {
                actor.share_grads(critic)?;
            }
        }
        let kl_coef = config.method.kl.map_or(0.0, |kl| kl.coef);
        let reward_stats = RunningStats::default();
        let (iteration, answers, updates) = (0, 0, 0);
        Ok(OnlineTrainer {
            models,
            config,
            kl_coef,
            reward_stats,
            generate_seconds: 0.0,
            iteration,
            answers,
            updates,
        })
    }

    /// Adds all that training has changed to `out`. To be asked between iterations, when all
    /// experience made has been trained on. Random numbers have no state but the counters.
    pub fn save<'a>(&'a self, out: &mut SnapshotBuilder<'a>) -> Result<()> {
        out.set("iteration", self.iteration);
        out.set("answers", self.answers);
        out.set("updates", self.updates);
        out.set("kl_coef", self.kl_coef);
        for (name, part) in REWARD_STATS.iter().zip(self.reward_stats.parts()) {
            out.set(name, part);
        }
        self.check()?;
        self.models.actor.save("actor", out)?;
        self.models.critic.iter().try_for_each(|critic| critic.save("critic", out))
    }

    /// An error if an optimizer step has made a number that is not finite; see [`Engine::check`].
    fn check(&self) -> Result<()> {
        self.models.actor.check().map_err(|e| e.diverged_in("actor"))?;
        let mut critic = self.models.critic.iter();
        critic.try_for_each(Engine::check).map_err(|e| e.diverged_in("critic"))
    }

    /// Resumes from a snapshot of a trainer with the same models and settings.
    pub fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.iteration = from.get("iteration")?;
        self.answers = from.get("answers")?;
        self.updates = from.get("updates")?;
        self.kl_coef = from.get("kl_coef")?;
        let [count, mean, m2] = REWARD_STATS.map(|name| from.get(name));
        self.reward_stats = RunningStats::from_parts([count?, mean?, m2?]);
        self.models.actor.restore("actor", from)?;
        self.models.critic.iter_mut().try_for_each(|critic| critic.restore("critic", from))
    }
}

/// Names in a snapshot of [`RunningStats::parts`].
const REWARD_STATS: [&str; 3] = ["rewards.count", "rewards.mean", "rewards.m2"];

fn check(models: &OnlineModels, config: &OnlineConfig) -> Result<()> {
    let method = &config.method;
    for (name, value) in [
        ("max_new_tokens", config.sampling.max_new_tokens),
        ("epochs", method.epochs),
        ("minibatch", config.minibatch),
    ] {
        if value == 0 {
            return Err(Error::user(format!("sampling with {name} 0; use 1 or more")));
        }
    }
    let least = method.advantage.least_generations();
    if method.num_generations < least {
        return Err(Error::user(format!(
            "num_generations {} is too few for the advantage; use {least} or more",
            method.num_generations
        )));
    }
    if method.advantage.asks_critic() != models.critic.is_some() {
        return Err(Error::internal("the advantage and the critic do not go together"));
    }
    let has_adapters = models.actor.model.lora.is_some();
    match &models.reference {
        Reference::Adapters if !has_adapters => {
            return Err(Error::internal("without adapters the actor needs a reference model"));
        }
        Reference::None if method.kl.is_some() => {
            return Err(Error::internal("a KL penalty needs a reference"));
        }
        _ => {}
    }
    if let Some(Adaptive { target, horizon }) = method.kl.and_then(|kl| kl.adaptive)
        && !(target > 0.0 && horizon > 0.0)
    {
        return Err(Error::user(format!(
            "adaptive KL control with target {target} and horizon {horizon}; both must be above 0"
        )));
    }
    Ok(())
}
