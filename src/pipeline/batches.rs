//! The batches in which training takes its rows. Those of an epoch are made when it begins, so that
//! any number of steps takes no more memory than an epoch.

use crate::data::{epoch_order, epoch_rows};

/// Places in the training rows of one batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BatchRows {
    pub(super) rows: Vec<usize>,
    /// True if this batch ends an epoch.
    pub(super) ends_epoch: bool,
}

/// The batches of a stage, in order. The last one of an epoch may be short.
pub(super) struct Batches {
    sets: Vec<(usize, f64)>,
    /// Rows of a batch.
    size: usize,
    seed: u64,
    total: u64,
    per_epoch: u64,
    /// An epoch with the order of its rows.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Batches {
    /// The batches of `epochs` epochs, or `max_steps` of them where that is not 0, over sets laid
    /// end to end, each given as (rows, weight). None where the sets are empty.
    pub(super) fn new(
        sets: &[(usize, f64)],
        size: usize,
        epochs: usize,
        max_steps: usize,
        seed: u64,
    ) -> Batches {
        let per_epoch = epoch_rows(sets).div_ceil(size as u64);
        let total = match (per_epoch, max_steps) {
            (0, _) => 0,
            (_, 0) => per_epoch.saturating_mul(epochs as u64),
            _ => max_steps as u64,
        };
        Batches { sets: sets.to_vec(), size, seed, total, per_epoch, epoch: None }
    }

    /// How many there are.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Batch `i`, below [`Batches::total`].
    pub(super) fn get(&mut self, i: u64) -> BatchRows {
        let (epoch, at) = (i / self.per_epoch, i % self.per_epoch);
        let order = match self.epoch.take() {
            Some((same, order)) if same == epoch => order,
            _ => epoch_order(&self.sets, self.seed, epoch),
        };
        let rows = order.chunks(self.size).nth(at as usize).unwrap_or_default().to_vec();
        self.epoch = Some((epoch, order));
        BatchRows { rows, ends_epoch: at + 1 == self.per_epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(epochs: usize, max_steps: usize) -> Vec<BatchRows> {
        let mut batches = Batches::new(&[(10, 1.0)], 4, epochs, max_steps, 3);
        (0..batches.total()).map(|i| batches.get(i)).collect()
    }

    #[test]
    fn batches_cover_each_epoch_once_in_a_fresh_order() {
        let batches = all(2, 0);
        let sizes: Vec<usize> = batches.iter().map(|b| b.rows.len()).collect();
        assert_eq!(sizes, [4, 4, 2, 4, 4, 2]);
        let ends: Vec<bool> = batches.iter().map(|b| b.ends_epoch).collect();
        assert_eq!(ends, [false, false, true, false, false, true]);
        let epoch = |i: usize| -> Vec<usize> {
            batches[3 * i..3 * i + 3].iter().flat_map(|b| b.rows.clone()).collect()
        };
        let (a, b) = (epoch(0), epoch(1));
        assert_ne!(a, b);
        let sorted = |mut v: Vec<usize>| {
            v.sort_unstable();
            v
        };
        assert_eq!(sorted(a), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(b), (0..10).collect::<Vec<_>>());
        assert_eq!(all(1, 7).len(), 7);
        assert_eq!(all(2, 0), batches);
        assert_eq!(Batches::new(&[(0, 1.0)], 4, 2, 5, 3).total(), 0);
    }

    #[test]
    fn a_batch_is_the_same_wherever_a_run_begins_and_however_long_it_is() {
        let batches = all(4, 0);
        let mut long = Batches::new(&[(10, 1.0)], 4, 1, usize::MAX, 3);
        assert_eq!(long.total(), usize::MAX as u64);
        for i in [10, 3, 4, 11, 0] {
            assert_eq!(long.get(i as u64), batches[i]);
        }
        assert_eq!(long.get(u64::MAX - 1).rows.len(), 2);
        // Sets by their weights: 8 of 4 rows, 1 of 3.
        let mut weighted = Batches::new(&[(4, 2.0), (0, 1.0), (3, 0.1)], 4, 2, 0, 3);
        let sizes: Vec<usize> = (0..weighted.total()).map(|i| weighted.get(i).rows.len()).collect();
        assert_eq!(sizes, [4, 4, 1, 4, 4, 1]);
    }
}
