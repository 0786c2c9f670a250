//! Metrics of learning from sampled completions: their names, and how they are computed.

use super::{OnlineStats, OnlineTrainer};
use crate::algo::experience::{Experience, Rollout};
use crate::algo::metric::{Metric, Metrics};

/// Metrics of every algorithm that samples.
pub(crate) static SAMPLED: &[Metric] = &[
    Metric::new("reward").rises().shown(),
    Metric::new("unjudged_rate").percent(),
    Metric::new("score").shown().headline(),
    Metric::new("eval_score").rises().shown(),
    Metric::new("entropy"),
    Metric::new("policy_loss"),
    Metric::new("approx_kl").labelled("Approximate KL"),
    Metric::new("clip_ratio").percent(),
    Metric::new("first_ratio_deviation"),
    Metric::new("completions/mean_length").labelled("Mean length of completions"),
    Metric::new("eos_rate").percent().labelled("EOS rate"),
    Metric::new("empty_rate").percent(),
    Metric::new("actor_grad_norm").labelled("Actor gradient norm"),
    Metric::new("generate_seconds"),
    Metric::new("seconds"),
    Metric::new("ptx_loss").labelled("Mixture loss"),
];

/// Metrics of those that compare with a reference.
pub(crate) static COMPARED: &[Metric] = &[
    Metric::new("kl").falls().shown().price().labelled("KL divergence"),
    Metric::new("eval_kl").falls().shown(),
    Metric::new("kl_coef").labelled("KL coefficient"),
];

/// Metrics of those that train a critic.
pub(crate) static VALUED: &[Metric] = &[
    Metric::new("value_loss").falls(),
    Metric::new("explained_variance"),
    Metric::new("critic_grad_norm").labelled("Critic gradient norm"),
];

impl OnlineTrainer {
    /// The metrics of an iteration, but for those of time and of evaluations.
    pub fn metrics(&self, experience: &Experience, stats: &OnlineStats) -> Metrics {
        let n = experience.rollouts.len() as f64;
        let mean = |f: &dyn Fn(&Rollout) -> f64| experience.rollouts.iter().map(f).sum::<f64>() / n;
        let asked = experience.rollouts.len() + experience.unjudged;
        let mut all = vec![("unjudged_rate", experience.unjudged as f64 / asked.max(1) as f64)];
        if self.config.method.kl.is_some() {
            all.push(("kl_coef", f64::from(self.kl_coef)));
        }
        if experience.rollouts.is_empty() {
            // Nothing was learned, so there is nothing more to tell.
            return all;
        }
        all.extend([
            ("reward", mean(&|r| f64::from(r.score))),
            ("entropy", f64::from(stats.entropy)),
            ("policy_loss", f64::from(stats.policy_loss)),
            ("approx_kl", f64::from(stats.approx_kl)),
            ("clip_ratio", f64::from(stats.clip_fraction)),
            ("first_ratio_deviation", f64::from(stats.first_ratio_deviation)),
            ("completions/mean_length", mean(&|r| r.logprobs.len() as f64)),
            ("eos_rate", mean(&|r| f64::from(u8::from(r.finished)))),
            ("empty_rate", mean(&|r| f64::from(u8::from(r.is_empty())))),
            ("actor_grad_norm", f64::from(stats.actor_grad_norm)),
        ]);
        all.extend(stats.ptx_loss.map(|loss| ("ptx_loss", f64::from(loss))));
        if self.config.method.kl.is_some() {
            all.push(("kl", mean(&|r| f64::from(r.kl()))));
        }
        if self.models.critic.is_some() {
            all.push(("value_loss", f64::from(stats.value_loss)));
            all.push(("explained_variance", f64::from(stats.explained_variance)));
            all.push(("critic_grad_norm", f64::from(stats.critic_grad_norm)));
        }
        all
    }
}
