//! Changes of some models to attention scores between the product and the softmax: a soft cap, then
//! ALiBi's bias, then a window. They work row by row, from positions alone, so a row's bits depend
//! on nothing around it. Models that have none of these do not call this. It does not apply the
//! causal mask, which all models have.

use crate::op::attr::Attention;
use crate::op::cpu::simd::{LANES, Simd};
use crate::op::cpu::vec_math;

/// The scores of one query against one block of keys; methods take them from the block's first key
/// on, a multiple of 16 of them.
pub(super) struct Row<'a> {
    /// The attributes.
    pub(super) op: &'a Attention,
    /// Query head.
    pub(super) head: usize,
    /// Positions from the first key of the block to the query.
    pub(super) distance: usize,
}

impl Row<'_> {
    /// `p = cap tanh(p / cap)`, if there is a cap.
    #[inline(always)]
    pub(super) fn cap<S: Simd>(&self, s: S, p: &mut [f32]) {
        let cap = self.op.softcap;
        if cap == 0.0 {
            return;
        }
        for p in p.chunks_exact_mut(LANES) {
            let t = vec_math::tanh(s, s.div(s.take(p), s.splat(cap)));
            s.put(p, s.mul(t, s.splat(cap)));
        }
    }

    /// From the gradient of capped scores to that of the scores: `ds *= 1 - (capped / cap)^2`.
    #[inline(always)]
    pub(super) fn cap_gradient<S: Simd>(&self, s: S, capped: &[f32], ds: &mut [f32]) {
        let cap = self.op.softcap;
        if cap == 0.0 {
            return;
        }
        for (c, ds) in capped.chunks_exact(LANES).zip(ds.chunks_exact_mut(LANES)) {
            let t = s.div(s.take(c), s.splat(cap));
            let slope = s.sub(s.splat(1.0), s.mul(t, t));
            s.put(ds, s.mul(s.take(ds), slope));
        }
    }

    /// `p_j -= slope (distance - j)`, if there are slopes.
    #[inline(always)]
    pub(super) fn bias<S: Simd>(&self, s: S, p: &mut [f32]) {
        let Some(slopes) = &self.op.alibi else { return };
        let slope = s.splat(slopes[self.head]);
        let lanes: [f32; LANES] = std::array::from_fn(|l| l as f32);
        let mut key = s.sub(s.take(&lanes[..]), s.splat(self.distance as f32));
        for p in p.chunks_exact_mut(LANES) {
            s.put(p, s.fma(slope, key, s.take(p)));
            key = s.add(key, s.splat(LANES as f32));
        }
    }

    /// Keys of the block before the query's window.
    #[inline(always)]
    pub(super) fn hidden(&self) -> usize {
        (self.distance + 1).saturating_sub(self.op.reach())
    }
}
