//! Dropout (Srivastava et al. 2014) without a stored mask: whether an element is kept follows from
//! (seed, site, element index), so backward computes the same mask again.

use super::shared::{SharedMut, row_chunks};
use crate::base::{Elem, Philox};
use crate::device::cpu::parallel_for;
use std::ops::Range;

/// The numbers, as dropout draws by them, of the elements of a matrix: row `t`, column `j` is
/// number `first + t * stride + j`.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// The number of the first element.
    pub first: usize,
    /// Columns of the matrix.
    pub width: usize,
    /// Columns of the whole one, of which the matrix may be a part.
    pub stride: usize,
}

impl Numbers {
    /// The elements `range` as runs within a row: the number of the first, and the elements counted
    /// from `range.start`.
    fn runs(self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut k = range.start;
        std::iter::from_fn(move || {
            let (row, column) = (k.checked_div(self.width)?, k % self.width);
            let end = (k - column + self.width).min(range.end);
            let run = k - range.start..end - range.start;
            k = end;
            (!run.is_empty()).then_some((self.first + row * self.stride + column, run))
        })
    }
}

/// One dropout in the model.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability of dropping an element, in [0, 1).
    pub p: f32,
    /// Changes with every step.
    pub seed: u64,
    /// Number of the place in the model.
    pub site: u64,
}

impl Dropout {
    /// 1 / (1 - p) where element `index` is kept, 0 where it is dropped. Four neighbours share one
    /// block of random words.
    pub fn factor(&self, index: u64) -> f32 {
        self.factors(index / 4)[(index % 4) as usize]
    }

    /// Words are compared in units of 2^-24, in which p is exact or rounds: below this one drops.
    pub fn limit(&self) -> u32 {
        (self.p * 16_777_216.0) as u32
    }

    /// The factor of elements that are kept, 1 / (1 - p).
    pub fn kept(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }

    /// The factors of the elements `4 * group..4 * group + 4`.
    fn factors(&self, group: u64) -> [f32; 4] {
        let counter =
            [group as u32, (group >> 32) as u32, self.site as u32, (self.site >> 32) as u32];
        let (limit, kept) = (self.limit(), self.kept());
        Philox::new(self.seed).block(counter).map(|w| if w >> 8 < limit { 0.0 } else { kept })
    }

    /// Calls `f(k, factor)` for the elements `range` of a matrix, k counted from `range.start`, in
    /// order.
    fn each(&self, numbers: Numbers, range: Range<usize>, mut f: impl FnMut(usize, f32)) {
        let mut group = u64::MAX;
        let mut factors = [0.0; 4];
        for (first, run) in numbers.runs(range) {
            for (number, k) in (first as u64..).zip(run) {
                if number / 4 != group {
                    group = number / 4;
                    factors = self.factors(group);
                }
                f(k, factors[(number % 4) as usize]);
            }
        }
    }

    /// `out` = `x`, a matrix of those `numbers`, each element times its factor.
    pub fn forward<E: Elem>(&self, x: &[E], numbers: Numbers, out: &mut [f32]) {
        let shared = SharedMut::new(out);
        // Random numbers are dear: small inputs are worth sharing too.
        let chunks = row_chunks(x.len(), 16);
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let out = unsafe { shared.slice(range.start, range.len()) };
            let x = &x[range.clone()];
            self.each(numbers, range, |k, f| out[k] = x[k].to_f32() * f);
        });
    }

    /// Sets `dx` to, or adds to it, `dy`, a matrix of those `numbers`, each element times its
    /// factor.
    pub fn backward<E: Elem>(&self, dy: &[f32], numbers: Numbers, dx: &mut [E], acc: bool) {
        let shared = SharedMut::new(dx);
        let chunks = row_chunks(dy.len(), 16);
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let dx = unsafe { shared.slice(range.start, range.len()) };
            let dy = &dy[range.clone()];
            self.each(numbers, range, |k, f| {
                let old = if acc { dx[k].to_f32() } else { 0.0 };
                dx[k] = E::from_f32(old + dy[k] * f);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_dropped_elements_is_p_and_depends_on_seed_and_site() {
        let n = 100_000;
        let x = vec![1f32; n];
        let run = |p, seed, site| {
            let mut y = vec![0f32; n];
            let numbers = Numbers { first: 3, width: n, stride: n };
            Dropout { p, seed, site }.forward(&x, numbers, &mut y);
            y
        };
        for p in [0.1f32, 0.5, 0.9] {
            let y = run(p, 7, 1);
            let dropped = y.iter().filter(|v| **v == 0.0).count() as f64 / n as f64;
            assert!((dropped - f64::from(p)).abs() < 0.008, "{p}: {dropped}");
            assert!(y.iter().all(|v| *v == 0.0 || *v == 1.0 / (1.0 - p)));
            let d = Dropout { p, seed: 7, site: 1 };
            assert!((0..99).all(|i| y[i] == d.factor(i as u64 + 3)));
            for other in [run(p, 8, 1), run(p, 7, 2), run(p, 7, 1 << 32)] {
                let same = y.iter().zip(&other).filter(|(a, b)| a == b).count() as f64 / n as f64;
                let chance = f64::from(p * p + (1.0 - p) * (1.0 - p));
                assert!((same - chance).abs() < 0.01, "{p}: {same}, expected {chance}");
            }
        }
    }

    /// On sizes that are worth sharing, and on those that are not.
    #[test]
    fn part_of_the_columns_is_dropped_as_in_the_whole_matrix() {
        let d = Dropout { p: 0.4, seed: 9, site: 5 };
        for [rows, total, start, width] in
            [[700, 30, 11, 13], [3, 7, 0, 1], [5, 4, 2, 2], [0, 3, 1, 2]]
        {
            let first = 6;
            let (mut whole, mut part) = (vec![0f32; rows * total], vec![0f32; rows * width]);
            let numbers = Numbers { first, width: total, stride: total };
            d.forward(&vec![1f32; rows * total], numbers, &mut whole);
            let numbers = Numbers { first: first + start, width, stride: total };
            d.forward(&vec![1f32; rows * width], numbers, &mut part);
            let mut back = vec![1f32; rows * width];
            d.backward(&vec![2f32; rows * width], numbers, &mut back, true);
            for (k, (forth, back)) in part.iter().zip(back).enumerate() {
                let of_whole = whole[k / width * total + start + k % width];
                assert_eq!((*forth, back), (of_whole, 1.0 + 2.0 * of_whole), "element {k}");
            }
        }
    }
}
