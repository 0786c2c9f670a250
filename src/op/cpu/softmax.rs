//! The one softmax row routine: rollout (`sample`) and training (`logprob`) both take
//! log-probabilities from here, so they are equal bit for bit.
//!
//! A row is walked in 16 interleaved f32 lanes that are added to f64 totals after every block, an
//! order fixed by the vocabulary alone. The exponential is plain IEEE multiplication and addition
//! without fused steps, so the bits do not depend on how wide the compiler vectorises it.

/// Lanes of the inner loops.
const LANES: usize = 16;
/// Elements after which the lanes are added to the f64 totals.
const BLOCK: usize = 1024;
/// Below this the exponential is taken as 0; the result would leave the normal f32 range.
const LOWEST: f32 = -87.0;

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
    let (mut sum, mut dot) = (0f64, 0f64);
    for block in logits.chunks(BLOCK) {
        let (mut sums, mut dots) = ([0f32; LANES], [0f32; LANES]);
        let (body, tail) = block.as_chunks::<LANES>();
        for c in body {
            for l in 0..LANES {
                let (e, d) = exp(c[l] * inv_t - max);
                sums[l] += e;
                dots[l] += e * d;
            }
        }
        for (l, z) in tail.iter().enumerate() {
            let (e, d) = exp(z * inv_t - max);
            sums[l] += e;
            dots[l] += e * d;
        }
        sum += sums.iter().map(|v| f64::from(*v)).sum::<f64>();
        dot += dots.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    // H = log sum e^d - (sum e^d d) / sum e^d, with d = z / T - max.
    let log_sum = sum.ln();
    Row { max, log_sum: log_sum as f32, entropy: (log_sum - dot / sum) as f32 }
}

/// `out[i]` = exp(logits[i] / T - shift): weights with the largest as shift, probabilities with the
/// log-sum-exp.
pub fn exps(logits: &[f32], inv_t: f32, shift: f32, out: &mut [f32]) {
    for (o, z) in out.iter_mut().zip(logits) {
        *o = exp(z * inv_t - shift).0;
    }
}

/// The largest value; NaN are passed over.
pub fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    for c in body {
        for l in 0..LANES {
            lanes[l] = larger(lanes[l], c[l]);
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// e^x for x <= about 80, within 2 units in the last place, and x itself bounded below so that
/// their product is finite. 0 below `LOWEST`; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> (f32, f32) {
    // Adding this number leaves the nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so n * LN2_HI is exact.
    const LN2_HI: f32 = 355.0 / 512.0;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Written so that NaN passes.
    let d = if x < LOWEST { LOWEST } else { x };
    let n = d * std::f32::consts::LOG2_E + MAGIC;
    let scale = f32::from_bits((n.to_bits() << 23).wrapping_add(127 << 23));
    let n = n - MAGIC;
    let r = (d - n * LN2_HI) - n * LN2_LO;
    // Taylor to degree 7: the next term is below 6e-9 for |r| <= ln(2) / 2.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    (if x < LOWEST { 0.0 } else { p * scale }, d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut rng = Rng::new(31, 0);
        for i in 0..200_000 {
            let x = if i % 4 == 0 { -rng.uniform() } else { 10.0 - 97.0 * rng.uniform() };
            let want = f64::from(x).exp();
            let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
            assert!((f64::from(exp(x).0) - want).abs() <= 2.0 * ulp, "{x}");
        }
        assert_eq!(exp(0.0).0, 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), (0.0, LOWEST));
        assert!(exp(f32::NAN).0.is_nan());
    }

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
                assert!((f64::from(logp) - (scaled[v / 2] - lse)).abs() < 2e-6 * (1.0 + lse - scaled[v / 2]));
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
