//! AdamW over flat parameters, one pass: gradient, moments and weights are read and written once.
//! The operator is `op/adamw.rs`.

use crate::base::Elem;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, is_f32, level};

/// The scalars of a step, rounded to f32 once.
#[derive(Clone, Copy, Debug)]
pub struct Scalars {
    /// Factor of the gradient.
    pub clip: f32,
    /// 1 - lr * weight decay.
    pub keep: f32,
    /// 1 - beta1.
    pub one_minus_beta1: f32,
    /// beta2.
    pub beta2: f32,
    /// 1 - beta2.
    pub one_minus_beta2: f32,
    /// lr / (1 - beta1^t).
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub v_factor: f32,
    /// Added to the denominator.
    pub eps: f32,
}

/// Updates weights `w` and moments `m`, `v`, all of one length; with a `master` that is what is
/// updated, and `w` is it rounded. Returns true if a moment, or as stored a weight that was finite,
/// is not finite any more.
pub fn update<E: Elem>(
    scalars: Scalars,
    grad: &[f32],
    w: &mut [E],
    master: Option<&mut [f32]>,
    m: &mut [f32],
    v: &mut [f32],
) -> bool {
    let n = grad.len();
    assert!(w.len() == n && m.len() == n && v.len() == n);
    assert!(master.as_ref().is_none_or(|p| p.len() == n));
    dispatch(level(), Update { scalars, grad, w, master, m, v })
}

struct Update<'a, E> {
    scalars: Scalars,
    grad: &'a [f32],
    w: &'a mut [E],
    master: Option<&'a mut [f32]>,
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl<E: Elem> Kernel for Update<'_, E> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Update { scalars: c, grad, w, mut master, m, v } = self;
        let (clip, keep, step_size) = (s.splat(c.clip), s.splat(c.keep), s.splat(c.step_size));
        let (one_minus_beta1, beta2) = (s.splat(c.one_minus_beta1), s.splat(c.beta2));
        let (one_minus_beta2, eps) = (s.splat(c.one_minus_beta2), s.splat(c.eps));
        let v_factor = s.splat(c.v_factor);
        let (zero, infinity) = (s.splat(0.0), s.splat(f32::INFINITY));
        // 0, and from the first number on that is not finite NaN: x - x is one or the other.
        let mut broken = zero;
        for i in (0..grad.len()).step_by(LANES) {
            let end = (i + LANES).min(grad.len());
            let g = s.mul(s.take(&grad[i..end]), clip);
            let mut m1 = s.take(&m[i..end]);
            m1 = s.add(m1, s.mul(one_minus_beta1, s.sub(g, m1)));
            s.put(&mut m[i..end], m1);
            let v1 = s.add(s.mul(beta2, s.take(&v[i..end])), s.mul(s.mul(one_minus_beta2, g), g));
            s.put(&mut v[i..end], v1);
            let denominator = s.add(s.mul(s.sqrt(v1), v_factor), eps);
            let old = match &master {
                Some(master) => s.take(&master[i..end]),
                None => s.take(&w[i..end]),
            };
            let new = s.sub(s.mul(old, keep), s.mul(step_size, s.div(m1, denominator)));
            if let Some(master) = &mut master {
                s.put(&mut master[i..end], new);
            }
            s.put(&mut w[i..end], new);
            let kept = if is_f32::<E>() { new } else { s.take(&w[i..end]) };
            let moments = s.add(s.sub(m1, m1), s.sub(v1, v1));
            let magnitude = s.copysign(old, zero);
            let weights = s.select_lt(magnitude, infinity, s.sub(kept, kept), zero);
            broken = s.add(broken, s.add(moments, weights));
        }
        let mut lanes = [0.0; LANES];
        s.put(&mut lanes, broken);
        lanes.iter().any(|x| x.is_nan())
    }
}
