//! The state of the run so far, gathered from its events in bounded memory. The page is drawn from
//! it.

use super::declared::Names;
use super::series::Series;
use super::{Event, Sample};
use std::collections::VecDeque;

/// Samples kept of one step, all of its latest iteration.
const MOST_SAMPLES: usize = 24;
/// Lines of the log kept.
const MOST_LINES: usize = 200;

#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) dir: String,
    pub(super) summary: Vec<(String, String)>,
    /// Wall time of the first event.
    pub(super) started: Option<f64>,
    /// Wall time of the newest event.
    pub(super) updated: f64,
    /// Seconds the run took, once it is done.
    pub(super) seconds: Option<f64>,
    pub(super) steps: Vec<Step>,
    pub(super) log: VecDeque<Line>,
}

#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) key: String,
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) total: u64,
    pub(super) iteration: u64,
    /// Seconds the step took, once it is done.
    pub(super) seconds: Option<f64>,
    pub(super) results: Vec<(String, f64)>,
    /// How its metrics are shown.
    pub(super) names: Names,
    pub(super) metrics: Vec<(String, Series)>,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) time: f64,
    pub(super) warning: bool,
    pub(super) text: String,
}

impl Run {
    /// Takes in one event that happened at `time`.
    pub(super) fn absorb(&mut self, time: f64, event: &Event) {
        self.started.get_or_insert(time);
        self.updated = time;
        match event {
            Event::RunStart { name, run_dir, summary } => {
                self.name = name.clone();
                self.dir = run_dir.display().to_string();
                self.summary = summary.clone();
                self.seconds = None;
            }
            Event::StepStart { step, title, total, unit, metrics } => {
                let s = self.step(step);
                s.names = Names(metrics.clone());
                (s.title, s.unit, s.total) = (title.clone(), unit.clone(), *total);
                s.seconds = None;
                s.results.clear();
            }
            Event::Metrics { step, iteration, values } => {
                let s = self.step(step);
                s.iteration = *iteration;
                for (name, value) in values {
                    match s.metrics.iter_mut().find(|m| m.0 == *name) {
                        Some((_, series)) => series.push(*iteration, *value),
                        None => s.metrics.push((name.clone(), Series::new(*iteration, *value))),
                    }
                }
            }
            Event::Sample(sample) => {
                let samples = &mut self.step(&sample.step).samples;
                if samples.first().is_some_and(|old| old.iteration != sample.iteration) {
                    samples.clear();
                }
                // A resumed run may repeat its samples.
                samples.retain(|old| old.prompt != sample.prompt);
                if samples.len() < MOST_SAMPLES {
                    samples.push(sample.clone());
                }
            }
            Event::Note { text } => self.line(time, false, text),
            Event::Warning { text } => self.line(time, true, text),
            Event::StepEnd { step, seconds, summary } => {
                let s = self.step(step);
                (s.seconds, s.results) = (Some(*seconds), summary.clone());
            }
            Event::RunEnd { seconds } => self.seconds = Some(*seconds),
        }
    }

    /// The step `key`, made if it is new.
    fn step(&mut self, key: &str) -> &mut Step {
        let at = self.steps.iter().position(|s| s.key == key).unwrap_or_else(|| {
            let (key, title) = (key.to_owned(), key.to_owned());
            self.steps.push(Step { key, title, ..Step::default() });
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }

    fn line(&mut self, time: f64, warning: bool, text: &str) {
        if self.log.len() == MOST_LINES {
            self.log.pop_front();
        }
        self.log.push_back(Line { time, warning, text: text.to_owned() });
    }
}

impl Step {
    /// The series of the metric `name`.
    pub(super) fn metric(&self, name: &str) -> Option<&Series> {
        self.metrics.iter().find(|m| m.0 == name).map(|m| &m.1)
    }

    /// The result `name` of the finished step.
    pub(super) fn result(&self, name: &str) -> Option<f64> {
        self.results.iter().find(|r| r.0 == name).map(|r| r.1)
    }
}
