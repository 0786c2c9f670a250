//! The health of a stage, from the numbers of its iterations: optimizer steps that were skipped,
//! and anomalies of training. It looks and tells; it changes nothing, and stops a run only
//! where every step is skipped. What it remembers is saved, so that a run that goes on tells what
//! the uninterrupted one would have.

use crate::algo::{Algorithm, Anomaly, BLOCK, KEPT, START, mean};
use crate::base::{Error, Result};
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::report::significant;
use std::collections::BTreeMap;

/// Iterations in a row in which steps were skipped, before a run stops.
const MAX_SKIPPED: usize = 10;
/// Iterations without an anomaly, after which its next appearance is told of as a new one.
const QUIET: usize = 16;

/// The history kept for an anomaly.
#[derive(Clone, Debug, Default, PartialEq)]
struct Past {
    /// The first [`START`] values and the newest [`KEPT`].
    values: Vec<f64>,
    /// Iterations since the anomaly last showed; None if it was not reported, or for [`QUIET`]
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

    /// True if the anomaly shows now and is to be reported as new.
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
    /// By the name of the anomaly.
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
                "{step}: steps were skipped in {MAX_SKIPPED} iterations in a row, now because \
                 {first}; lower the learning rate or look for bad data, weights or rewards; no \
                 skipped step has changed a weight, and the checkpoints are as they were"
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

    /// Takes in the metrics of an iteration; returns a warning for each anomaly that has appeared.
    pub(super) fn observe(&mut self, of: &Algorithm, values: &[(&str, f64)]) -> Vec<String> {
        let find = |name: &str| values.iter().find(|v| v.0 == name).map(|v| v.1);
        let value = |anomaly: &Anomaly| match anomaly.per {
            Some(per) => Some(find(anomaly.metric)? / find(per)?.max(1.0)),
            None => find(anomaly.metric),
        };
        let mut warnings = vec![];
        for anomaly in of.anomalies {
            let Some(value) = value(anomaly).filter(|v| v.is_finite()) else { continue };
            let past = self.past.entry(anomaly.name).or_default();
            past.push(value);
            if past.is_news(anomaly.shows) {
                warnings.push(warning(of, anomaly, &past.values));
            }
        }
        warnings
    }

    /// Adds all of it to `out`.
    pub(super) fn save(&self, out: &mut SnapshotBuilder) {
        out.set("skipped", self.in_a_row);
        out.set("skipped_in_all", self.skipped);
        for (name, past) in &self.past {
            let values: Vec<String> = past.values.iter().map(f64::to_string).collect();
            out.set(&format!("health.{name}.values"), values.join(" "));
            past.away.iter().for_each(|n| out.set(&format!("health.{name}.away"), n));
        }
    }

    /// Reads back what [`Health::save`] put there.
    pub(super) fn restore(of: &Algorithm, from: &Snapshot) -> Result<Health> {
        let mut health = Health {
            skipped: from.find("skipped_in_all")?.unwrap_or(0),
            in_a_row: from.find("skipped")?.unwrap_or(0),
            past: BTreeMap::new(),
        };
        for anomaly in of.anomalies {
            let name = anomaly.name;
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

fn warning(of: &Algorithm, anomaly: &Anomaly, values: &[f64]) -> String {
    let last = &values[values.len().saturating_sub(BLOCK)..];
    let last: Vec<String> = last.iter().map(|v| significant(*v, 3)).collect();
    let start = significant(mean(&values[..START.min(values.len())]), 3);
    let per = anomaly.per.map_or(String::new(), |per| format!(" / {per}"));
    format!(
        "{}: {}: {}{per} was {start} at the start and is {} now; {}",
        of.name,
        anomaly.name,
        anomaly.metric,
        last.join(", "),
        anomaly.remedy
    )
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
