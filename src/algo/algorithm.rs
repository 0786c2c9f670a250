//! An algorithm: all that the rest of the program knows of one. Commands, flags, configuration,
//! directories, checkpoints, resume, verify, health, report, plan and `docs/algorithms.md` follow
//! from these values; none of them names an algorithm.

use super::anomaly::Anomaly;
use super::metric::{Metric, Metrics};
use super::objective::Objective;
use super::online::Method;
use crate::base::Result;
use crate::config::{SectionOf, Sections};
use crate::data::{PairExample, SftExample, Use};
use crate::model::Head;
use std::fmt;

/// An algorithm, one stage of a run.
pub struct Algorithm {
    /// Its name: of the command, of the section with its keys, of its directory and checkpoints.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The paper that it comes from.
    pub source: &'static str,
    /// The tag of its models on the hub.
    pub tag: &'static str,
    /// The head of the model that it trains: a language model, or one that scores.
    pub head: Head,
    /// The model that it starts from.
    pub start: Start,
    /// Its keys.
    pub section: SectionOf,
    /// Values of its keys for the demonstration, whose model is small and starts from nothing: TOML
    /// without the section's name.
    pub demo: &'static str,
    /// Its metrics, in groups: those that it shares with others, and its own.
    pub metrics: &'static [&'static [Metric]],
    /// Anomalies to warn of.
    pub anomalies: &'static [Anomaly],
    /// The rows that it learns from, and how.
    pub learns: Learns,
}

/// The model that an algorithm starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The one that the user names: a pretrained one.
    Pretrained,
    /// The latest policy: that of the last stage before it that trains one.
    Policy,
}

/// The rows that an algorithm learns from, and how.
pub enum Learns {
    /// From texts with answers.
    Texts(FromRows<SftExample>, fn(&Sections, &str) -> Result<Texts>),
    /// From pairs of a preferred and a rejected answer.
    Pairs(FromRows<PairExample>),
    /// From completions that it samples itself, by [`OnlineTrainer`](super::OnlineTrainer).
    Prompts(FromPrompts),
}

/// Learning from completions that the policy samples.
pub struct FromPrompts {
    /// True if it trains a critic, whose keys [`CriticSection`](super::CriticSection) are then
    /// among its own.
    pub critic: bool,
    /// The difference from other algorithms that sample, by the sections of a configuration and the
    /// algorithm's name.
    pub method: fn(&Sections, &str) -> Result<Method>,
}

/// Learning from rows alone.
pub struct FromRows<R> {
    /// The loss.
    pub objective: ObjectiveOf<R>,
}

/// A loss, from the sections of a configuration and the algorithm's name.
pub type ObjectiveOf<R> = fn(&Sections, &str) -> Result<Box<dyn Objective<R>>>;

/// How texts become rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// Every turn of the assistant is learnt, not only the last one.
    pub all_turns: bool,
    /// The prompt is learnt too.
    pub prompts: bool,
}

impl fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Learns {
    /// The use that it makes of the data.
    pub fn rows(&self) -> Use {
        match self {
            Learns::Texts(..) => Use::Texts,
            Learns::Pairs(_) => Use::Pairs,
            Learns::Prompts(_) => Use::Prompts,
        }
    }
}

impl Algorithm {
    /// How it learns from completions that it samples, where it does.
    pub fn online(&self) -> Option<&FromPrompts> {
        match &self.learns {
            Learns::Prompts(from) => Some(from),
            Learns::Texts(..) | Learns::Pairs(_) => None,
        }
    }

    /// True if it samples completions.
    pub fn samples(&self) -> bool {
        self.online().is_some()
    }

    /// True if it trains a critic.
    pub fn has_critic(&self) -> bool {
        self.online().is_some_and(|from| from.critic)
    }

    /// The directories of its models within its own, the one that is talked to first; none where
    /// its own is that of its only model.
    pub fn models(&self) -> &'static [&'static str] {
        match self.online() {
            None => &[],
            Some(FromPrompts { critic: false, .. }) => &["actor", "actor_ema"],
            Some(FromPrompts { critic: true, .. }) => &["actor", "critic", "actor_ema"],
        }
    }

    /// Its metrics.
    pub fn metrics(&self) -> impl Iterator<Item = &'static Metric> {
        self.metrics.iter().copied().flatten()
    }

    /// The metric called `name`.
    pub fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics().find(|m| m.name == name)
    }

    /// The metric that sums an evaluation up.
    pub fn headline(&self) -> Option<&'static str> {
        self.metrics().find(|m| m.headline).map(|m| m.name)
    }

    /// The value that sums up `values`.
    pub fn headline_of(&self, values: &Metrics) -> Option<f64> {
        let name = self.headline()?;
        values.iter().find(|m| m.0 == name).map(|m| m.1)
    }
}

impl PartialEq for Algorithm {
    fn eq(&self, other: &Algorithm) -> bool {
        self.name == other.name
    }
}
