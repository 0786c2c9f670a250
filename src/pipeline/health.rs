//! The health of a step, from the numbers of its iterations: optimizer steps that were skipped, and
//! signs that training goes wrong. It looks and tells; it changes nothing, and stops a run only
//! where every step is skipped. What it remembers is saved, so that a run that goes on tells what
//! the uninterrupted one would have.

use crate::base::{Error, Result};
use crate::formats::{Draft, Snapshot};
use crate::report::significant;
use std::collections::BTreeMap;

/// Iterations in a row in which steps were skipped, before a run stops.
const MAX_SKIPPED: usize = 10;
/// First values of a step, kept to compare later ones with.
const START: usize = 8;
/// Values kept after those.
const KEPT: usize = 64;
/// Values whose mean stands for "now": one experience alone says little.
const BLOCK: usize = 8;
/// Iterations without a sign, after which its next appearance is told of as a new one.
const QUIET: usize = 16;

/// A sign of trouble in the values of one metric.
struct Sign {
    step: &'static str,
    name: &'static str,
    metric: &'static str,
    /// True if the values so far show the sign. They are those of the start, then the newest,
    /// oldest first.
    shows: fn(&[f64]) -> bool,
    remedy: &'static str,
}

const SPIKE: &str =
    "lower the learning rate or lengthen the warm-up, and look at the rows of these batches";

static SIGNS: &[Sign] = &[
    Sign { step: "sft", name: "loss spike", metric: "loss", shows: spikes, remedy: SPIKE },
    Sign { step: "reward", name: "loss spike", metric: "loss", shows: spikes, remedy: SPIKE },
    Sign {
        step: "ppo",
        name: "KL blow-up",
        metric: "kl_per_token",
        shows: blows_up,
        remedy: "raise --kl-coef, use --kl-controller adaptive, or lower --actor-learning-rate",
    },
    Sign {
        step: "ppo",
        name: "reward collapse",
        metric: "reward",
        shows: falls,
        remedy: "lower --actor-learning-rate or --ppo-epochs and go on from a checkpoint before it with --resume",
    },
    Sign {
        step: "ppo",
        name: "length collapse",
        metric: "answer_tokens",
        shows: shrinks,
        remedy: "look whether the reward prefers short answers; raise --min-answer-seq-len or --kl-coef",
    },
    Sign {
        step: "ppo",
        name: "entropy collapse",
        metric: "entropy",
        shows: freezes,
        remedy: "raise --entropy-coef or --kl-coef, or lower --actor-learning-rate",
    },
    Sign {
        step: "ppo",
        name: "dead critic",
        metric: "explained_variance",
        shows: explains_nothing,
        remedy: "raise --critic-learning-rate, or start the critic from the reward model",
    },
];

/// The loss is far above what it was. Six deviations and half as much again: a hard batch is
/// neither, and the median of three passes over a single one. Half of what it was at the start:
/// where nearly all is learned, what is left comes in single hard rows (the reward models of the
/// demo's longest runs would be told of otherwise).
fn spikes(values: &[f64]) -> bool {
    const BEFORE: usize = 16;
    if values.len() < START + BEFORE + 3 {
        return false;
    }
    let (before, now) = values.split_at(values.len() - 3);
    let before = &before[before.len() - BEFORE..];
    let (level, now) = (median(before), median(now));
    now > level + 6.0 * noise(before) && now > 1.5 * level && now > 0.5 * mean(&values[..START])
}

/// The policy has left the reference. At 1 nat a token each token is e times as likely as under the
/// reference; what published runs end with is a tenth of that and less.
fn blows_up(values: &[f64]) -> bool {
    values.len() >= 4 && mean(&values[values.len() - 4..]) > 1.0
}

/// The reward is far below its best. Means of eight differ by up to two deviations when nothing
/// happens, the best of many taken; it is four here, and a tenth of the best where there is no
/// noise.
fn falls(values: &[f64]) -> bool {
    let Some((best, now)) = best_and_now(values) else { return false };
    now < best - 4.0 * noise(&values[START..]) && now < best - 0.1 * best.abs()
}

/// Answers are a quarter as long as they were at their longest. Short ones have no way to go.
fn shrinks(values: &[f64]) -> bool {
    best_and_now(values).is_some_and(|(best, now)| best >= 8.0 && now < 0.25 * best)
}

/// The entropy is below a tenth of that at the start: samples are nearly always the same. Runs that
/// go well lose up to about half.
fn freezes(values: &[f64]) -> bool {
    if values.len() < START + BLOCK {
        return false;
    }
    let start = mean(&values[..START]);
    start > 0.0 && mean(&values[values.len() - BLOCK..]) < 0.1 * start
}

/// Long after the start, the values explain nothing of the returns: a constant would do as well.
fn explains_nothing(values: &[f64]) -> bool {
    values.len() >= START + KEPT && mean(&values[values.len() - KEPT / 2..]) < 0.02
}

/// The highest mean of so many values in a row before the newest, and theirs.
fn best_and_now(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < START + 2 * BLOCK {
        return None;
    }
    let (before, now) = values.split_at(values.len() - BLOCK);
    let best = before.windows(BLOCK).map(mean).fold(f64::MIN, f64::max);
    Some((best, mean(now)))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The standard deviation around a slow change: from the differences of neighbours, each of which
/// has twice the variance.
fn noise(values: &[f64]) -> f64 {
    let squares: f64 = values.windows(2).map(|w| (w[1] - w[0]).powi(2)).sum();
    (squares / (2 * (values.len() - 1)) as f64).sqrt()
}

/// The history kept for a sign.
#[derive(Clone, Debug, Default, PartialEq)]
struct Past {
    /// The first [`START`] values and the newest [`KEPT`].
    values: Vec<f64>,
    /// Iterations since the sign last showed; None if it was not reported, or for [`QUIET`]
    /// iterations did not show.
    away: Option<usize>,
}

impl Past {
    fn push(&mut self, value: f64) {
        if self.values.len() == START + KEPT {
            self.values.remove(START);
        }
        self.values.push(value);
    }

    /// True if the sign shows now and is to be reported as new.
    fn is_news(&mut self, shows: fn(&[f64]) -> bool) -> bool {
        if shows(&self.values) {
            return self.away.replace(0).is_none();
        }
        self.away = self.away.map(|n| n + 1).filter(|n| *n < QUIET);
        false
    }
}

/// The health of the step under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    /// Optimizer steps skipped in this step of the run.
    skipped: usize,
    /// Iterations in a row in which steps were skipped.
    in_a_row: usize,
    /// By the name of the sign.
    past: BTreeMap<&'static str, Past>,
}

impl Health {
    /// Takes in why optimizer steps of an iteration were skipped; returns a warning if there were
    /// any.
    ///
    /// # Errors
    /// It was so in too many iterations in a row.
    pub(super) fn count(&mut self, step: &str, skipped: &[String]) -> Result<Option<String>> {
        let Some(first) = skipped.first() else {
            self.in_a_row = 0;
            return Ok(None);
        };
        self.skipped += skipped.len();
        self.in_a_row += 1;
        if self.in_a_row >= MAX_SKIPPED {
            return Err(Error::user(format!(
                "{step}: steps were skipped in {MAX_SKIPPED} iterations in a row, now because {first}; lower the \
                 learning rate or look for bad data or weights; no skipped step has changed a weight, and the \
                 checkpoints are as they were"
            )));
        }
        let more = match skipped.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        Ok(Some(format!("{step}: optimizer step skipped: {first}{more}")))
    }

    /// The number of steps skipped as a metric, once there is one.
    pub(super) fn skipped_steps(&self) -> Option<(&'static str, f64)> {
        (self.skipped > 0).then_some(("skipped_steps", self.skipped as f64))
    }

    /// Takes in the metrics of an iteration; returns a warning for each sign that has appeared.
    pub(super) fn observe(&mut self, step: &str, values: &[(&str, f64)]) -> Vec<String> {
        let find = |name: &str| values.iter().find(|v| v.0 == name).map(|v| v.1);
        let value = |name: &str| match name {
            "kl_per_token" => Some(find("kl")? / find("answer_tokens")?.max(1.0)),
            _ => find(name),
        };
        let mut warnings = vec![];
        for sign in SIGNS.iter().filter(|s| s.step == step) {
            let Some(value) = value(sign.metric).filter(|v| v.is_finite()) else { continue };
            let past = self.past.entry(sign.name).or_default();
            past.push(value);
            if past.is_news(sign.shows) {
                warnings.push(warning(sign, &past.values));
            }
        }
        warnings
    }

    /// Adds all of it to `out`.
    pub(super) fn save(&self, out: &mut Draft) {
        out.set("skipped", self.in_a_row);
        out.set("skipped_in_all", self.skipped);
        for (name, past) in &self.past {
            let values: Vec<String> = past.values.iter().map(f64::to_string).collect();
            out.set(&format!("health.{name}.values"), values.join(" "));
            past.away.iter().for_each(|n| out.set(&format!("health.{name}.away"), n));
        }
    }

    /// Reads back what [`Health::save`] put there for `step`.
    pub(super) fn restore(step: &str, from: &Snapshot) -> Result<Health> {
        let mut health = Health {
            skipped: from.find("skipped_in_all")?.unwrap_or(0),
            in_a_row: from.find("skipped")?.unwrap_or(0),
            past: BTreeMap::new(),
        };
        for sign in SIGNS.iter().filter(|s| s.step == step) {
            let name = sign.name;
            let text: Option<String> = from.find(&format!("health.{name}.values"))?;
            let Some(text) = text else { continue };
            let mut values: Vec<f64> = text.split(' ').filter_map(|v| v.parse().ok()).collect();
            values.truncate(START + KEPT);
            let away = from.find(&format!("health.{name}.away"))?;
            health.past.insert(name, Past { values, away });
        }
        Ok(health)
    }
}

fn warning(sign: &Sign, values: &[f64]) -> String {
    let last = &values[values.len().saturating_sub(BLOCK)..];
    let last: Vec<String> = last.iter().map(|v| significant(*v, 3)).collect();
    let start = significant(mean(&values[..START.min(values.len())]), 3);
    format!(
        "{}: {}: {} was {start} at the start and is {} now; {}",
        sign.step,
        sign.name,
        sign.metric,
        last.join(", "),
        sign.remedy
    )
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
