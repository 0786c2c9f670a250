//! REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024): several
//! completions of a prompt, each compared with the others. There is no critic, the whole completion
//! is one action, and the penalty for leaving the reference is part of its reward. The defaults of
//! its own keys are those of TRL.

use super::advantage::Advantage;
use super::algorithm::{Algorithm, FromPrompts, Learns, Start};
use super::anomaly::{ENTROPY_COLLAPSE, KL_BLOW_UP, LENGTH_COLLAPSE, REWARD_COLLAPSE};
use super::online::{COMPARED, KlPenalty, MOST_KL_COEF, Method, OnlineSection, SAMPLED};
use super::policy_loss::PolicyLoss;
use crate::base::Result;
use crate::config::{Kind, SectionOf, Sections, section};
use crate::model::Head;

/// REINFORCE Leave-One-Out.
pub(super) static RLOO: Algorithm = Algorithm {
    name: "rloo",
    title: "RLOO",
    about: "RLOO: sample several answers to a prompt and learn from the better ones",
    source: "Ahmadian et al. 2024, equation 4",
    tag: "rloo",
    head: Head::Lm,
    start: Start::Policy,
    section: SectionOf::new::<RlooSection>(),
    demo: "actor_learning_rate = 3e-4\n\
           num_generations = 4\n\
           per_device_generation_batch_size = 16\n\
           per_device_training_batch_size = 32\n\
           num_iterations = 2\n\
           max_steps = 100\n\
           beta = 0.2\n\
           clip_reward_value = 20\n\
           missing_eos_penalty = 2\n\
           eval_prompts = 200",
    metrics: &[SAMPLED, COMPARED],
    anomalies: &[KL_BLOW_UP, REWARD_COLLAPSE, LENGTH_COLLAPSE, ENTROPY_COLLAPSE],
    learns: Learns::Prompts(FromPrompts { critic: false, method }),
};

section! {
    /// Keys of REINFORCE Leave-One-Out.
    pub struct RlooSection [online: OnlineSection = OnlineSection::default()] {
        num_generations: usize = 2, Kind::int(2, 1 << 10),
            "completions to sample for each prompt";
        num_iterations: usize = 1, Kind::int(1, 1000),
            "passes over each gathered experience";
        beta: f64 = 0.05, Kind::between(0.0, MOST_KL_COEF),
            "weight of the KL penalty against the reference; 0 = no reference";
        epsilon: f64 = 0.2, Kind::above_zero(10.0),
            "clip range of the probability ratio of a completion";
        normalize_advantages: bool = false, Kind::Bool,
            "whiten the advantages of an experience to mean 0 and variance 1";
    }
}

fn method(sections: &Sections, name: &str) -> Result<Method> {
    let s: RlooSection = sections.get(name)?;
    Ok(Method {
        num_generations: s.num_generations,
        kl: (s.beta > 0.0).then_some(KlPenalty { coef: s.beta as f32, adaptive: None }),
        advantage: Advantage::LeaveOneOut,
        whiten_advantages: s.normalize_advantages,
        policy_loss: PolicyLoss::Sequence { clip: s.epsilon as f32 },
        epochs: s.num_iterations,
    })
}
