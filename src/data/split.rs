//! The division of rows by proportions.

use super::mt19937::permutation;
use super::types::Row;

/// Divides `0..n` by proportions: a permutation by `seed`, cut at rounded boundaries. As in
/// DeepSpeed-Chat the rounding error falls to the first part; where that would make a boundary
/// negative it is 0.
pub fn split_indices(n: usize, proportions: &[f64], seed: u32) -> Vec<Vec<usize>> {
    let sum: f64 = proportions.iter().sum();
    let mut bounds = vec![0i64];
    for p in proportions {
        let size = (p / sum * n as f64).round_ties_even() as i64;
        bounds.push(bounds[bounds.len() - 1] + size);
    }
    let surplus = bounds[proportions.len()] - n as i64;
    bounds[1..].iter_mut().for_each(|b| *b = (*b - surplus).max(0));
    let order = permutation(seed, n);
    bounds.windows(2).map(|b| order[b[0] as usize..b[1] as usize].to_vec()).collect()
}

/// Divides rows by [`split_indices`], each part in the order of the permutation.
pub(super) fn cut(rows: Vec<Row>, proportions: &[f64], seed: u32) -> Vec<Vec<Row>> {
    let parts = split_indices(rows.len(), proportions, seed);
    let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    let take = |part: Vec<usize>| part.into_iter().filter_map(|i| rows[i].take()).collect();
    parts.into_iter().map(take).collect()
}
