//! The one softmax row routine: rollout (`sample`) and training (`logprob`) both take
//! log-probabilities from here, so they are equal bit for bit.
//!
//! A row is walked in sixteen running f32 sums that are added to f64 totals after every block: an
//! order fixed by the vocabulary alone.

use super::simd::{Kernel, LANES, Simd, dispatch, level};
use super::{vec, vec_math};
use crate::base::Elem;
use crate::device::cuda::constants::softmax::LOWEST_EXPONENT;
use std::marker::PhantomData;

/// Elements after which the running sums are added to the f64 totals.
const BLOCK: usize = 1024;
/// Below this an exponential counts as 0: it would leave the normal f32 range.
const LOWEST: f32 = LOWEST_EXPONENT;

/// Statistics of softmax(logits / T) of one row, everything in natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Largest logit over T.
    pub max: f32,
    /// Logarithm of the sum of exp(logit / T - max).
    pub log_sum: f32,
    /// Entropy of the distribution.
    pub entropy: f32,
}

/// 1 / T. Greedy decoding (T = 0) reports log-probabilities at T = 1.
pub fn inverse(temperature: f32) -> f32 {
    if temperature == 0.0 { 1.0 } else { 1.0 / temperature }
}

impl Row {
    /// Log-sum-exp of logits / T.
    pub fn lse(&self) -> f32 {
        self.max + self.log_sum
    }

    /// Log-probability of a token from its logit.
    pub fn logp(&self, logit: f32, inv_t: f32) -> f32 {
        (logit * inv_t - self.max) - self.log_sum
    }
}

/// Statistics of a row of logits at temperature 1 / `inv_t`. A NaN or +inf logit, or a row of -inf
/// only, makes `log_sum` NaN.
pub fn row(logits: &[f32], inv_t: f32) -> Row {
    let max = max(logits) * inv_t;
    let (sum, dot) = dispatch(level(), Sums { logits, inv_t, max });
    // H = log sum e^d - (sum e^d d) / sum e^d, with d = z / T - max.
    let log_sum = sum.ln();
    Row { max, log_sum: log_sum as f32, entropy: (log_sum - dot / sum) as f32 }
}

/// `out[i] = exp(logits[i] / T - shift)`: weights, with the largest as shift.
pub fn exps(logits: &[f32], inv_t: f32, shift: f32, out: &mut [f32]) {
    dispatch(level(), Exps { logits, inv_t, shift, out });
}

/// `z = cap * tanh(z / cap)` of each logit (Gemma 2): the one routine for sampling and scoring, so
/// that both see the same bits. NaN stays NaN. With a cap of 0 logits stay as they are.
pub fn softcap(logits: &mut [f32], cap: f32) {
    if cap != 0.0 {
        dispatch(level(), Softcap { logits, cap });
    }
}

/// The largest value; NaN are passed over.
pub fn max(x: &[f32]) -> f32 {
    vec::max(x)
}

/// Turns a row of logits z into the gradient of `g_logp * logp[target] + g_entropy * entropy`:
/// g_logp (onehot - p) / T - g_entropy p (log p + H) / T, and where z = cap tanh(l / cap) that of
/// l, which is 1 - (z / cap)^2 times as large.
#[derive(Clone, Copy, Debug)]
pub struct Slope {
    /// 1 / T.
    pub inv_t: f32,
    /// The cap that the logits went through, 0 = none.
    pub softcap: f32,
    /// Log-sum-exp of the row.
    pub lse: f32,
    /// Entropy of the row.
    pub entropy: f32,
    /// The token whose log-probability was taken.
    pub target: usize,
    /// Gradient of that log-probability.
    pub g_logp: f32,
    /// Gradient of the entropy.
    pub g_entropy: f32,
}

impl Slope {
    /// Works in place on the row's logits: their gradients, rounded to `E`, lie at its front.
    pub fn apply<E: Elem>(self, logits: &mut [f32]) {
        assert!(self.target < logits.len() && size_of::<E>() <= size_of::<f32>());
        dispatch(level(), SlopeRow::<E>(self, logits, PhantomData));
    }
}

/// Sums of e^d and e^d d over a row.
struct Sums<'a> {
    logits: &'a [f32],
    inv_t: f32,
    max: f32,
}

impl Kernel for Sums<'_> {
    type Out = (f64, f64);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f64) {
        let (inv_t, max) = (s.splat(self.inv_t), s.splat(self.max));
        let (mut sum, mut dot) = (0f64, 0f64);
        for block in self.logits.chunks(BLOCK) {
            let (mut sums, mut dots) = (s.splat(0.0), s.splat(0.0));
            for z in block.chunks(LANES) {
                let (e, d) = exp(s, s.sub(s.mul(take(s, z), inv_t), max));
                sums = s.add(sums, e);
                dots = s.fma(e, d, dots);
            }
            for l in s.lanes(sums) {
                sum += f64::from(l);
            }
            for l in s.lanes(dots) {
                dot += f64::from(l);
            }
        }
        (sum, dot)
    }
}

struct Exps<'a> {
    logits: &'a [f32],
    inv_t: f32,
    shift: f32,
    out: &'a mut [f32],
}

impl Kernel for Exps<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (inv_t, shift) = (s.splat(self.inv_t), s.splat(self.shift));
        for (out, z) in self.out.chunks_mut(LANES).zip(self.logits.chunks(LANES)) {
            s.put(out, exp(s, s.sub(s.mul(take(s, z), inv_t), shift)).0);
        }
    }
}

struct Softcap<'a> {
    logits: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cap = s.splat(self.cap);
        for z in self.logits.chunks_mut(LANES) {
            let t = vec_math::tanh(s, s.div(s.take(z), cap));
            s.put(z, s.mul(cap, t));
        }
    }
}

struct SlopeRow<'a, E>(Slope, &'a mut [f32], PhantomData<E>);

impl<E: Elem> Kernel for SlopeRow<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let SlopeRow(r, row, _) = self;
        let (inv_t, lse, entropy) = (s.splat(r.inv_t), s.splat(r.lse), s.splat(r.entropy));
        let (by_p, by_plogp) = (s.splat(-r.g_logp * r.inv_t), s.splat(-r.g_entropy * r.inv_t));
        let (one, cap) = (s.splat(1.0), s.splat(r.softcap));
        for at in (0..row.len()).step_by(LANES) {
            let n = (row.len() - at).min(LANES);
            let z = take(s, &row[at..at + n]);
            let (p, logp) = exp(s, s.sub(s.mul(z, inv_t), lse));
            let mut slope = s.mul(p, s.fma(by_plogp, s.add(logp, entropy), by_p));
            if (at..at + n).contains(&r.target) {
                let mut drawn = [0.0; LANES];
                drawn[r.target - at] = r.g_logp * r.inv_t;
                slope = s.add(slope, s.take(&drawn));
            }
            if r.softcap != 0.0 {
                let t = s.div(z, cap);
                slope = s.mul(slope, s.sub(one, s.mul(t, t)));
            }
            // An element of E is no larger than the logit it comes from, so what is written was
            // read.
            let slopes = bytemuck::cast_slice_mut::<f32, E>(row);
            s.put(&mut slopes[at..at + n], slope);
        }
    }
}

/// Up to 16 logits; lanes past the end weigh nothing.
#[inline(always)]
fn take<S: Simd>(s: S, z: &[f32]) -> S::V {
    if z.len() >= LANES {
        return s.take(z);
    }
    let mut padded = [f32::NEG_INFINITY; LANES];
    padded[..z.len()].copy_from_slice(z);
    s.take(&padded)
}

/// e^x and x itself, bounded below so that their product is finite; NaN stays NaN.
#[inline(always)]
fn exp<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let lowest = s.splat(LOWEST);
    // The constant goes first: then a NaN passes.
    let d = s.max(lowest, x);
    (s.select_lt(x, lowest, s.splat(0.0), vec_math::exp(s, d)), d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn rows_match_f64_at_any_size_and_offset() {
        let mut rng = Rng::new(32, 0);
        for v in [1, 15, 97, 1024, 1025, 50_257] {
            for offset in [0.0, 300.0, -300.0] {
                let z: Vec<f32> = (0..v).map(|_| 4.0 * rng.normal() + offset).collect();
                let t = 0.7f32;
                let inv_t = inverse(t);
                let scaled: Vec<f64> = z.iter().map(|z| f64::from(z * inv_t)).collect();
                let top = scaled.iter().copied().fold(f64::MIN, f64::max);
                let lse = top + scaled.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
                let entropy: f64 = scaled.iter().map(|z| (z - lse).exp() * (lse - z)).sum();
                let row = row(&z, inv_t);
                let logp = row.logp(z[v / 2], inv_t);
                assert!(
                    (f64::from(logp) - (scaled[v / 2] - lse)).abs()
                        < 2e-6 * (1.0 + lse - scaled[v / 2])
                );
                assert!((f64::from(row.lse()) - lse).abs() < 1e-6 * (1.0 + lse.abs()));
                assert!((f64::from(row.entropy) - entropy).abs() < 2e-6 * (1.0 + entropy));
            }
        }
    }

    #[test]
    fn broken_logits_are_seen_and_minus_infinity_is_not_broken() {
        let inf = f32::INFINITY;
        for bad in [vec![0.0, f32::NAN, 1.0], vec![0.0, inf], vec![-inf, -inf]] {
            assert!(row(&bad, 1.0).log_sum.is_nan(), "{bad:?}");
        }
        let halves = row(&[-inf, 2.0, -inf, 2.0], 1.0);
        assert!((halves.entropy - 2f32.ln()).abs() < 1e-6);
        assert_eq!(halves.logp(-inf, 1.0), -inf);
    }
}
