//! The events of a run, and their form in JSON. Plain data: nothing here writes anything.

use super::declared::Declared;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Something worth telling about a run.
///
/// A step is named by a short key without spaces ("sft", "reward", "ppo"). Iterations count from 1
/// within a step and are the number done so far; a resumed run may repeat some, the later value
/// counts.
///
/// Metric names are free; [`Event::StepStart`] declares how they are shown. `eval_x` is `x` over
/// rows held out; in the summary of [`Event::StepEnd`], `x_before`/`x_after` (or
/// `x_first`/`x_last`) are one number before and after the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The program started, or was started again to resume.
    RunStart {
        /// The user's name for the run.
        name: String,
        /// Where its files are.
        run_dir: PathBuf,
        /// Facts in the order of showing: model, parameters, device, dtype, seed, ...
        summary: Vec<(String, String)>,
    },
    /// A step of the run begins or is resumed.
    StepStart {
        /// The step's key.
        step: String,
        /// The step's name for people.
        title: String,
        /// Iterations in all.
        total: u64,
        /// The unit of iterations, in the plural, such as "batches".
        unit: String,
        /// Its metrics, in the order of showing.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        metrics: Vec<Declared>,
    },
    /// Numbers of one iteration. They need not be finite.
    Metrics {
        /// The step's key.
        step: String,
        /// Iterations done, from 1.
        iteration: u64,
        /// Name and value.
        #[serde(with = "pairs")]
        values: Vec<(String, f64)>,
    },
    /// An answer of the model.
    Sample(Sample),
    /// A line for the log.
    Note {
        /// One line.
        text: String,
    },
    /// A line the user should not miss.
    Warning {
        /// One line.
        text: String,
    },
    /// A step is done.
    StepEnd {
        /// The step's key.
        step: String,
        /// Time spent on it.
        seconds: f64,
        /// Its results: name and value.
        #[serde(with = "pairs")]
        summary: Vec<(String, f64)>,
    },
    /// All steps are done.
    RunEnd {
        /// Time spent on the whole run.
        seconds: f64,
    },
}

/// An answer of the model, with what it answered before the step if that is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The step's key.
    pub step: String,
    /// Iterations done when it was taken.
    pub iteration: u64,
    /// The prompt.
    pub prompt: String,
    /// The model's answer.
    pub answer: String,
    /// The model's answer before the step.
    pub baseline: Option<String>,
    /// The answer's score.
    pub score: Option<f64>,
    /// The score of the answer before the step.
    pub baseline_score: Option<f64>,
}

impl Event {
    /// [`Event::Metrics`] from borrowed names.
    pub fn metrics(step: &str, iteration: u64, values: &[(&str, f64)]) -> Event {
        Event::Metrics { step: step.to_owned(), iteration, values: owned(values) }
    }

    /// [`Event::StepEnd`] from borrowed names.
    pub fn step_end(step: &str, seconds: f64, summary: &[(&str, f64)]) -> Event {
        Event::StepEnd { step: step.to_owned(), seconds, summary: owned(summary) }
    }

    /// A line for the log.
    pub fn note(text: impl Into<String>) -> Event {
        Event::Note { text: text.into() }
    }

    /// A line the user should not miss.
    pub fn warning(text: impl Into<String>) -> Event {
        Event::Warning { text: text.into() }
    }
}

fn owned(values: &[(&str, f64)]) -> Vec<(String, f64)> {
    values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

/// Named numbers as one JSON object. JSON has no NaN: values that are not finite are written as
/// null and read as NaN.
mod pairs {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    pub(super) fn serialize<S: Serializer>(
        pairs: &[(String, f64)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(pairs.iter().map(|(name, value)| (name, value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(String, f64)>, D::Error> {
        let map = Map::<String, Value>::deserialize(from)?;
        Ok(map.into_iter().map(|(name, v)| (name, v.as_f64().unwrap_or(f64::NAN))).collect())
    }
}
