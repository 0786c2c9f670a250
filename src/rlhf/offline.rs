//! Algorithms that learn from rows alone, as a driver sees them.

use crate::base::Result;
use crate::engine::Engine;
use crate::formats::{Draft, Snapshot};
use crate::tape::Workspace;

/// Metrics by name.
pub type Metrics = Vec<(&'static str, f64)>;

/// The outcome of one optimizer step.
#[derive(Clone, Debug)]
pub struct Iteration {
    /// Its metrics, "loss" among them.
    pub metrics: Metrics,
    /// The reason for a step that was skipped: loss or gradients were not finite.
    pub skipped: Option<String>,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// An algorithm that learns from rows alone.
pub trait Offline {
    /// A row.
    type Example;
    /// The metric of an evaluation that sums a run up, before and after.
    const HEADLINE: &'static str;

    /// One optimizer step over `rows`.
    fn iterate(&mut self, ws: &mut Workspace, rows: &[&Self::Example]) -> Result<Iteration>;

    /// Metrics of rows that are not learned.
    fn judge(&self, ws: &mut Workspace, rows: &[&Self::Example]) -> Result<Metrics>;

    /// The model being trained.
    fn engine(&self) -> &Engine;

    /// Adds all that training has changed to `out`.
    fn save<'a>(&'a self, out: &mut Draft<'a>) -> Result<()>;

    /// Resumes from a snapshot of a trainer with the same model and settings.
    fn restore(&mut self, from: &Snapshot) -> Result<()>;
}
