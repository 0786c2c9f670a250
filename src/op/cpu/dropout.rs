//! Dropout (Srivastava et al. 2014) without a stored mask: whether an element is kept follows from
//! (seed, site, element index), so backward computes the same mask again.

use super::shared::{SharedMut, row_chunks};
use crate::base::{Elem, Philox};
use crate::device::cpu::parallel_for;

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

    /// Calls `f(k, factor)` for elements `first + k`, k in `0..n`, in order.
    fn each(&self, first: u64, n: usize, mut f: impl FnMut(usize, f32)) {
        let mut group = u64::MAX;
        let mut factors = [0.0; 4];
        for k in 0..n {
            let index = first + k as u64;
            if index / 4 != group {
                group = index / 4;
                factors = self.factors(group);
            }
            f(k, factors[(index % 4) as usize]);
        }
    }

    /// `out[k]` = `x[k]` times the factor of element `first + k`.
    pub fn forward<E: Elem>(&self, x: &[E], first: usize, out: &mut [f32]) {
        let shared = SharedMut::new(out);
        // Random numbers are dear: small inputs are worth sharing too.
        let chunks = row_chunks(x.len(), 16);
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let out = unsafe { shared.slice(range.start, range.len()) };
            let x = &x[range.clone()];
            self.each((first + range.start) as u64, x.len(), |k, f| out[k] = x[k].to_f32() * f);
        });
    }

    /// Sets (or adds) `dx[k]` = `dy[k]` times the factor of element `first + k`.
    pub fn backward<E: Elem>(&self, dy: &[f32], first: usize, dx: &mut [E], acc: bool) {
        let shared = SharedMut::new(dx);
        let chunks = row_chunks(dy.len(), 16);
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let dx = unsafe { shared.slice(range.start, range.len()) };
            let dy = &dy[range.clone()];
            self.each((first + range.start) as u64, dy.len(), |k, f| {
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
            Dropout { p, seed, site }.forward(&x, 3, &mut y);
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
}
