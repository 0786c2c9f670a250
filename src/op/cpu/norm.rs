//! Rows of LayerNorm and RMSNorm, and their gradients. The operators are `op/norm.rs` and
//! `op/qk_norm.rs`.

use crate::base::Elem;
use crate::op::attr::Norm;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};

/// Normalises one row; returns its mean and 1/std.
pub fn forward<E: Elem>(
    op: Norm,
    x: &[E],
    gamma: &[E],
    beta: Option<&[E]>,
    y: &mut [E],
) -> [f32; 2] {
    assert!(gamma.len() == x.len() && y.len() == x.len());
    dispatch(level(), Forward { op, x, gamma, beta, y })
}

/// Sets, or with `acc` adds to, the gradient `dx` of one row, given its mean and 1/std.
pub fn backward<E: Elem>(
    op: Norm,
    x: &[E],
    dy: &[E],
    gamma: &[E],
    stats: [f32; 2],
    dx: &mut [E],
    acc: bool,
) {
    assert!(gamma.len() == x.len() && dy.len() == x.len() && dx.len() == x.len());
    dispatch(level(), Backward { op, x, dy, gamma, stats, dx, acc });
}

/// Columns whose gradients of weights are summed together.
pub const COLUMNS: usize = 4 * LANES;

/// Gradients of gamma and beta in the columns `first..first + n`, at most [`COLUMNS`], summed over
/// the tokens in order: x and dy are rows of `d`, `stats` means and 1/std.
pub fn weights<E: Elem>(
    x: &[E],
    dy: &[E],
    stats: &[f32],
    d: usize,
    first: usize,
    n: usize,
) -> [[f32; COLUMNS]; 2] {
    dispatch(level(), Weights { x, dy, stats, d, first, n: n.min(COLUMNS) })
}

/// Gamma from stored weights.
#[inline(always)]
fn gamma_of<S: Simd, E: Elem>(s: S, op: Norm, gamma: &[E]) -> S::V {
    let gamma = s.take(gamma);
    if op.unit_offset { s.add(s.splat(1.0), gamma) } else { gamma }
}

struct Forward<'a, E> {
    op: Norm,
    x: &'a [E],
    gamma: &'a [E],
    beta: Option<&'a [E]>,
    y: &'a mut [E],
}

impl<E: Elem> Kernel for Forward<'_, E> {
    type Out = [f32; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; 2] {
        let Forward { op, x, gamma, beta, y } = self;
        let d = x.len() as f32;
        let mut mean = 0.0;
        if op.mean {
            let mut sums = s.splat(0.0);
            for x in x.chunks(LANES) {
                sums = s.add(sums, s.take(x));
            }
            mean = s.sum(sums) / d;
        }
        let center = s.splat(mean);
        let mut squares = s.splat(0.0);
        for x in x.chunks(LANES) {
            let mut v = s.sub(s.take(x), center);
            if x.len() < LANES {
                v = s.take(&s.lanes(v)[..x.len()]);
            }
            squares = s.fma(v, v, squares);
        }
        let rstd = 1.0 / (s.sum(squares) / d + op.eps).sqrt();
        let scale = s.splat(rstd);
        for (i, y) in y.chunks_mut(LANES).enumerate() {
            let i = i * LANES;
            let n = s.mul(s.sub(s.take(&x[i..]), center), scale);
            let mut v = s.mul(n, gamma_of(s, op, &gamma[i..]));
            if let Some(beta) = beta {
                v = s.add(v, s.take(&beta[i..]));
            }
            s.put(y, v);
        }
        [mean, rstd]
    }
}

struct Backward<'a, E> {
    op: Norm,
    x: &'a [E],
    dy: &'a [E],
    gamma: &'a [E],
    stats: [f32; 2],
    dx: &'a mut [E],
    acc: bool,
}

impl<E: Elem> Kernel for Backward<'_, E> {
    type Out = ();

    /// With n = (x - mean) rstd and g = dy gamma: dx = rstd (g - n mean(g n) [- mean(g)]).
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward { op, x, dy, gamma, stats: [mean, rstd], dx, acc } = self;
        let d = x.len() as f32;
        let (center, scale) = (s.splat(mean), s.splat(rstd));
        // Past the end of a row dy, and so g, is 0.
        let (mut sum_g, mut sum_gn) = (s.splat(0.0), s.splat(0.0));
        for i in (0..x.len()).step_by(LANES) {
            let g = s.mul(s.take(&dy[i..]), gamma_of(s, op, &gamma[i..]));
            let n = s.mul(s.sub(s.take(&x[i..]), center), scale);
            sum_g = s.add(sum_g, g);
            sum_gn = s.fma(g, n, sum_gn);
        }
        let mean_g = s.splat(if op.mean { s.sum(sum_g) / d } else { 0.0 });
        let mean_gn = s.splat(s.sum(sum_gn) / d);
        for (i, out) in dx.chunks_mut(LANES).enumerate() {
            let i = i * LANES;
            let g = s.mul(s.take(&dy[i..]), gamma_of(s, op, &gamma[i..]));
            let n = s.mul(s.sub(s.take(&x[i..]), center), scale);
            let mut v = s.mul(scale, s.sub(s.sub(g, mean_g), s.mul(n, mean_gn)));
            if acc {
                v = s.add(s.take(out), v);
            }
            s.put(out, v);
        }
    }
}

struct Weights<'a, E> {
    x: &'a [E],
    dy: &'a [E],
    stats: &'a [f32],
    d: usize,
    first: usize,
    n: usize,
}

impl<E: Elem> Kernel for Weights<'_, E> {
    type Out = [[f32; COLUMNS]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let Weights { x, dy, stats, d, first, n } = self;
        let mut sums = [[s.splat(0.0); COLUMNS / LANES]; 2];
        for (t, stats) in stats.chunks_exact(2).enumerate() {
            let (center, scale) = (s.splat(stats[0]), s.splat(stats[1]));
            let at = t * d + first;
            let (x, dy) = (&x[at..at + n], &dy[at..at + n]);
            for v in 0..n.div_ceil(LANES) {
                let dy = s.take(&dy[v * LANES..]);
                let n = s.mul(s.sub(s.take(&x[v * LANES..]), center), scale);
                sums[0][v] = s.fma(dy, n, sums[0][v]);
                sums[1][v] = s.add(sums[1][v], dy);
            }
        }
        let mut out = [[0.0; COLUMNS]; 2];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, v) in out.chunks_exact_mut(LANES).zip(sums) {
                s.put(out, v);
            }
        }
        out
    }
}
