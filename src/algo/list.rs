//! The list of algorithms, in the order in which a run takes them. A line here makes one known.

use super::algorithm::Algorithm;
use super::dpo::DPO;
use super::metric::Better;
use super::ppo::PPO;
use super::reward::REWARD;
use super::rloo::RLOO;
use super::sft::SFT;
use crate::base::{Error, Result};
use crate::config::Sections;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All of them.
pub static ALGORITHMS: &[&Algorithm] = &[&SFT, &REWARD, &DPO, &PPO, &RLOO];

/// The stages of the demonstration, and of a run that names none: DeepSpeed-Chat's steps 1 to 3.
pub static DEEPSPEED_CHAT: [&Algorithm; 3] = [&SFT, &REWARD, &PPO];

/// The algorithm called `name`.
pub fn named(name: &str) -> Option<&'static Algorithm> {
    ALGORITHMS.iter().copied().find(|a| a.name == name)
}

/// The name of the algorithm that a word means: its name, or the number of DeepSpeed-Chat's step.
pub fn meant(word: &str) -> Option<&'static str> {
    let number = word.parse().ok().and_then(|n: usize| n.checked_sub(1));
    let step = number.and_then(|i| DEEPSPEED_CHAT.get(i).copied());
    step.or_else(|| named(word)).map(|a| a.name)
}

/// The names of all.
pub fn names() -> Vec<&'static str> {
    ALGORITHMS.iter().map(|a| a.name).collect()
}

/// The place of an algorithm in the list.
pub fn place(name: &str) -> Option<usize> {
    ALGORITHMS.iter().position(|a| a.name == name)
}

/// The sections of all with their defaults.
pub fn sections() -> Sections {
    let defaults = |a: &&Algorithm| (a.name.to_string(), a.section.defaults().unwrap_or_default());
    Sections::new(ALGORITHMS.iter().map(defaults))
}

/// True if a lower value of the metric `name` makes a better checkpoint.
///
/// # Errors
/// There is no such metric, or it has no better and worse.
pub fn lower_is_better(name: &str) -> Result<bool> {
    if let Some(better) = ALGORITHMS.iter().find_map(|a| a.metric(name)?.better) {
        return Ok(better == Better::Lower);
    }
    let mut known: Vec<&str> = vec![];
    for metric in ALGORITHMS.iter().flat_map(|a| a.metrics()).filter(|m| m.better.is_some()) {
        if !known.contains(&metric.name) {
            known.push(metric.name);
        }
    }
    let known = known.join(", ");
    Err(Error::user(format!("\"keep_best\" {name:?} is no metric to go by; use one of {known}")))
}

impl Serialize for Algorithm {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static Algorithm {
    fn deserialize<D: Deserializer<'de>>(
        from: D,
    ) -> std::result::Result<&'static Algorithm, D::Error> {
        let name = String::deserialize(from)?;
        named(&name).ok_or_else(|| serde::de::Error::custom(format!("no algorithm {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_names() {
        let mut seen = BTreeSet::new();
        for a in ALGORITHMS {
            assert!(seen.insert(a.name) && named(a.name) == Some(a), "{}", a.name);
            assert!(a.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", a.name);
            let metrics: BTreeSet<_> = a.metrics().map(|m| m.name).collect();
            assert_eq!(metrics.len(), a.metrics().count(), "{}: a metric stands twice", a.name);
            for anomaly in a.anomalies {
                let known = |name| a.metric(name).is_some();
                assert!(known(anomaly.metric) && anomaly.per.is_none_or(known), "{}", anomaly.name);
            }
        }
        assert_eq!(meant("3"), Some("ppo"));
        assert_eq!(
            (meant("sft"), meant("0"), meant("4"), meant("x")),
            (Some("sft"), None, None, None)
        );
        assert!(lower_is_better("eval_loss").unwrap() && !lower_is_better("reward").unwrap());
        assert!(lower_is_better("grad_norm").is_err());
    }
}
