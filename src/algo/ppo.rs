//! PPO on language models (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).
//!
//! Actor, critic, frozen reference and frozen reward. An answer's tokens are the actions; the state
//! before token `t` is the prompt and the tokens before it. Per-token reward is
//! `-kl_coef (logp - ref_logp)`, plus the clipped score at the last token.

mod experience;
mod keys;
mod update;

pub use experience::{Experience, Rollout};
pub use keys::{KlController, PpoSection, RewardScaling};
pub use update::PpoStats;

use super::algorithm::{Algorithm, Learns, Start};
use super::metric::Metric;
use super::rule::RewardRule;
use super::sign::{self, Sign};
use super::stats::RunningStats;
use crate::base::{Error, Result};
use crate::config::SectionOf;
use crate::engine::Engine;
use crate::formats::{Draft, Snapshot};
use crate::model::Head;
use crate::rollout::Sampling;
use crate::train::Schedule;
use std::sync::Arc;

/// Proximal Policy Optimization.
pub(super) static PPO: Algorithm = Algorithm {
    name: "ppo",
    title: "PPO",
    about: "PPO: sample answers and learn from a reward model or rule",
    source: "Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022",
    tag: "ppo",
    head: Head::Lm,
    start: Start::Policy,
    section: SectionOf::new::<PpoSection>(),
    demo: "actor_learning_rate = 3e-4\n\
           critic_learning_rate = 1e-3\n\
           per_device_generation_batch_size = 64\n\
           per_device_training_batch_size = 32\n\
           ppo_epochs = 2\n\
           max_steps = 100\n\
           kl_coef = 0.2\n\
           clip_reward_value = 20\n\
           missing_eos_penalty = 2\n\
           eval_prompts = 200",
    metrics: &[
        Metric::new("reward").rises().shown(),
        Metric::new("score").shown().headline(),
        Metric::new("eval_score").rises().shown(),
        Metric::new("kl").falls().shown().price().labelled("KL divergence"),
        Metric::new("eval_kl").falls().shown(),
        Metric::new("entropy"),
        Metric::new("policy_loss"),
        Metric::new("value_loss").falls(),
        Metric::new("approx_kl").labelled("Approximate KL"),
        Metric::new("clip_rate").percent(),
        Metric::new("first_ratio_deviation"),
        Metric::new("answer_tokens"),
        Metric::new("eos_rate").percent().labelled("EOS rate"),
        Metric::new("empty_rate").percent(),
        Metric::new("explained_variance"),
        Metric::new("actor_grad_norm").labelled("Actor gradient norm"),
        Metric::new("critic_grad_norm").labelled("Critic gradient norm"),
        Metric::new("kl_coef").labelled("KL coefficient"),
        Metric::new("generate_seconds"),
        Metric::new("seconds"),
        Metric::new("unsup_loss").labelled("Mixture loss"),
    ],
    signs: SIGNS,
    learns: Learns::Prompts,
};

const SIGNS: &[Sign] = &[
    Sign {
        name: "KL blow-up",
        metric: "kl",
        per: Some("answer_tokens"),
        shows: sign::blows_up,
        remedy: "raise --kl-coef, use --kl-controller adaptive, or lower --actor-learning-rate",
    },
    Sign {
        name: "reward collapse",
        metric: "reward",
        per: None,
        shows: sign::falls,
        remedy: "lower --actor-learning-rate or --ppo-epochs and go on from a checkpoint before it with --resume",
    },
    Sign {
        name: "length collapse",
        metric: "answer_tokens",
        per: None,
        shows: sign::shrinks,
        remedy: "look whether the reward prefers short answers; raise --min-answer-seq-len or --kl-coef",
    },
    Sign {
        name: "entropy collapse",
        metric: "entropy",
        per: None,
        shows: sign::freezes,
        remedy: "raise --entropy-coef or --kl-coef, or lower --actor-learning-rate",
    },
    Sign {
        name: "dead critic",
        metric: "explained_variance",
        per: None,
        shows: sign::explains_nothing,
        remedy: "raise --critic-learning-rate, or start the critic from the reward model",
    },
];

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

/// The ids under which a reward model knows a rollout: by its own tokenizer or chat template, with
/// the end token where the answer was finished.
pub type Retokenise = Box<dyn Fn(&Rollout) -> Result<Vec<i32>> + Send + Sync>;

/// Where scores come from.
pub enum RewardSource {
    /// A frozen reward model that reads the very tokens of the rollout.
    Model(Box<Engine>),
    /// A frozen reward model that knows a rollout by other ids.
    Foreign(Box<Engine>, Retokenise),
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
    /// Seconds that drawing the last answers took, the first part of making experience.
    pub generate_seconds: f64,
    iteration: u64,
    /// Answers drawn for training so far; each has a number of its own for its draws.
    answers: u64,
    updates: u64,
}

impl PpoTrainer {
    /// A trainer at iteration 0. Actor and critic, trained in turn, share the memory of gradients.
    pub fn new(mut engines: PpoEngines, config: PpoConfig) -> Result<PpoTrainer> {
        for (name, value) in [
            ("max_new_tokens", config.sampling.max_new_tokens),
            ("ppo_epochs", config.ppo_epochs),
            ("minibatch", config.minibatch),
        ] {
            if value == 0 {
                return Err(Error::user(format!("PPO with {name} 0; use 1 or more")));
            }
        }
        if engines.reference.is_none() && engines.actor.model.lora.is_none() {
            return Err(Error::internal("without adapters the actor needs a reference model"));
        }
        if let KlControl::Adaptive { target, horizon } = config.kl_control
            && !(target > 0.0 && horizon > 0.0)
        {
            return Err(Error::user(format!(
                "adaptive KL control with target {target} and horizon {horizon}; both must be above 0"
            )));
        }
        let (actor, critic) = (&mut engines.actor.model.store, &mut engines.critic.model.store);
        if (actor.device(), actor.grad_dtype()) == (critic.device(), critic.grad_dtype()) {
            actor.share_grads(critic)?;
        }
        let kl_coef = config.kl_coef;
        let reward_stats = RunningStats::default();
        let (iteration, answers, updates) = (0, 0, 0);
        Ok(PpoTrainer {
            engines,
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
    pub fn save<'a>(&'a self, out: &mut Draft<'a>) -> Result<()> {
        out.set("iteration", self.iteration);
        out.set("answers", self.answers);
        out.set("updates", self.updates);
        out.set("kl_coef", self.kl_coef);
        for (name, part) in REWARD_STATS.iter().zip(self.reward_stats.parts()) {
            out.set(name, part);
        }
        self.engines.actor.save("actor", out)?;
        self.engines.critic.save("critic", out)
    }

    /// Goes on from a snapshot of a trainer with the same models and settings.
    pub fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.iteration = from.get("iteration")?;
        self.answers = from.get("answers")?;
        self.updates = from.get("updates")?;
        self.kl_coef = from.get("kl_coef")?;
        let [count, mean, m2] = REWARD_STATS.map(|name| from.get(name));
        self.reward_stats = RunningStats::from_parts([count?, mean?, m2?]);
        self.engines.actor.restore("actor", from)?;
        self.engines.critic.restore("critic", from)
    }
}

/// Names in a snapshot of [`RunningStats::parts`].
const REWARD_STATS: [&str; 3] = ["rewards.count", "rewards.mean", "rewards.m2"];
