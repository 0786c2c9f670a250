//! A loss over rows as a value: the difference between algorithms that learn from rows alone.

use super::metric::Metrics;
use crate::engine::LossFn;
use crate::train::Batch;

/// A loss over rows of type `R`. It is a sum over rows divided by their weight, so that the split
/// into micro-batches and among ranks does not matter.
pub trait Objective<R> {
    /// Its name, which tells programs apart.
    fn name(&self) -> &'static str;

    /// Tokens of a row, of all its sequences.
    fn tokens(&self, row: &R) -> usize;

    /// The weight of rows, by which their sum is divided; 0 where there is nothing to learn.
    fn weight(&self, rows: &[&R]) -> f32;

    /// True if it compares with the log-probs of a frozen reference.
    fn asks_reference(&self) -> bool {
        false
    }

    /// Rows as a batch, with the columns that the loss takes. `reference` holds, for each row, the
    /// log-probs under the reference of all that the batch selects of it; it is empty where none is
    /// asked, and zeros while these are made.
    fn batch(&self, rows: &[&R], reference: &[&[f32]]) -> Batch;

    /// Terms that add up to the loss.
    fn losses(&self) -> usize {
        1
    }

    /// The loss of a batch out of rows of weight `weight`: the sum over all batches is that of the
    /// rows.
    fn loss(&self, weight: f32) -> Box<LossFn<'static>>;

    /// Metrics beside the loss, from the sums of all terms over `rows` rows.
    fn metrics(&self, sums: &[Vec<f32>], rows: usize) -> Metrics;
}
