//! PPO on language models (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022).
//!
//! Actor, critic, frozen reference and a reward. A completion's tokens are the actions. The state
//! before token `t` is the prompt and the tokens before it. The reward of a token is
//! `-kl_coef (logp - ref_logp)`, plus the clipped score at the last token.

use super::advantage::Advantage;
use super::algorithm::{Algorithm, FromPrompts, Learns, Start};
use super::anomaly::{
    self, Anomaly, ENTROPY_COLLAPSE, KL_BLOW_UP, LENGTH_COLLAPSE, REWARD_COLLAPSE,
};
use super::online::{
    Adaptive, COMPARED, CriticSection, KlPenalty, MOST_KL_COEF, Method, OnlineSection, SAMPLED,
    VALUED,
};
use super::policy_loss::PolicyLoss;
use crate::base::{Error, Result};
use crate::config::{Kind, SectionOf, Sections, section};
use crate::model::Head;
use serde::{Deserialize, Serialize};

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
    metrics: &[SAMPLED, COMPARED, VALUED],
    anomalies: &[KL_BLOW_UP, REWARD_COLLAPSE, LENGTH_COLLAPSE, ENTROPY_COLLAPSE, DEAD_CRITIC],
    learns: Learns::Prompts(FromPrompts { critic: true, method }),
};

/// The critic explains nothing of the returns.
const DEAD_CRITIC: Anomaly = Anomaly {
    name: "dead critic",
    metric: "explained_variance",
    per: None,
    shows: anomaly::explains_nothing,
    remedy: "raise --critic-learning-rate, or start the critic from the reward model",
};

/// How the KL coefficient moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlController {
    /// Not at all.
    Fixed,
    /// Towards a target (Ziegler et al. 2019).
    Adaptive,
}

section! {
    /// Keys of PPO.
    pub struct PpoSection [
        online: OnlineSection = OnlineSection::default(),
        critic: CriticSection = CriticSection::default()
    ] {
        ppo_epochs: usize = 1, Kind::int(1, 1000),
            "passes over each gathered experience";
        kl_coef: f64 = 0.1, Kind::between(0.0, MOST_KL_COEF),
            "weight of the KL penalty against the reference";
        kl_controller: KlController = KlController::Fixed, Kind::Choice(&["fixed", "adaptive"]),
            "keep kl_coef, or steer it towards kl_target";
        kl_target: f64 = 6.0, Kind::above_zero(1e4),
            "target KL per response of the adaptive controller, in nats";
        kl_horizon: f64 = 10_000.0, Kind::between(1.0, 1e9),
            "episodes over which the adaptive controller acts, at least 1";
        cliprange: f64 = 0.2, Kind::above_zero(10.0),
            "clip range of the probability ratio";
        gamma: f64 = 1.0, Kind::above_zero(1.0),
            "discount";
        lam: f64 = 0.95, Kind::between(0.0, 1.0),
            "lambda of generalised advantage estimation";
        whiten_advantages: bool = true, Kind::Bool,
            "whiten the advantages of an experience to mean 0 and variance 1";
    }
}

fn method(sections: &Sections, name: &str) -> Result<Method> {
    let s: PpoSection = sections.get(name)?;
    let adaptive = match s.kl_controller {
        KlController::Fixed => None,
        KlController::Adaptive if s.kl_coef as f32 == 0.0 => {
            return Err(Error::user(format!(
                "\"{name}.kl_coef\" must be above 0 for \"{name}.kl_controller\" adaptive"
            )));
        }
        KlController::Adaptive => {
            Some(Adaptive { target: s.kl_target as f32, horizon: s.kl_horizon as f32 })
        }
    };
    Ok(Method {
        num_generations: 1,
        kl: Some(KlPenalty { coef: s.kl_coef as f32, adaptive }),
        advantage: Advantage::Gae { gamma: s.gamma as f32, lambda: s.lam as f32 },
        whiten_advantages: s.whiten_advantages,
        policy_loss: PolicyLoss::Token { clip: s.cliprange as f32 },
        epochs: s.ppo_epochs,
    })
}
