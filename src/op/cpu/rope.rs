//! Turning the heads of one token by its angles, for rotary positions. The operator is
//! `op/rope.rs`.

use crate::base::Elem;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};

/// One token: `out = x`, or `out += x`, with the heads turned.
pub struct Turn<'a, E> {
    /// Heads of `d` elements; of those in the first `turned` elements, pairs are turned.
    pub x: &'a [E],
    /// Elements of the heads that are turned.
    pub turned: usize,
    /// Elements of a head.
    pub d: usize,
    /// Pairs are (2i, 2i + 1) instead of (i, i + n).
    pub interleaved: bool,
    /// One for each of the n pairs of a head.
    pub cosines: &'a [f32],
    /// As many.
    pub sines: &'a [f32],
    /// True if `out` is added to.
    pub acc: bool,
    /// As long as `x`.
    pub out: &'a mut [E],
}

/// Runs it.
pub fn turn<E: Elem>(turn: Turn<'_, E>) {
    assert!(turn.x.len() == turn.out.len() && turn.cosines.len() == turn.sines.len());
    assert!(2 * turn.cosines.len() <= turn.d && turn.turned <= turn.x.len());
    dispatch(level(), turn);
}

impl<E: Elem> Kernel for Turn<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Turn { x, turned, d, interleaved, cosines, sines, acc, out } = self;
        let half = cosines.len();
        for start in (0..turned).step_by(d.max(1)) {
            let (x, out) = (&x[start..start + d], &mut out[start..start + d]);
            if interleaved {
                for i in 0..half {
                    let (a, b) = (x[2 * i].to_f32(), x[2 * i + 1].to_f32());
                    let (cos, sin) = (cosines[i], sines[i]);
                    let turned = [a * cos - b * sin, b * cos + a * sin];
                    for (o, v) in out[2 * i..2 * i + 2].iter_mut().zip(turned) {
                        *o = E::from_f32(if acc { o.to_f32() + v } else { v });
                    }
                }
            } else {
                for i in (0..half).step_by(LANES) {
                    let end = (i + LANES).min(half);
                    let (a, b) = (s.take(&x[i..end]), s.take(&x[half + i..half + end]));
                    let (cos, sin) = (s.take(&cosines[i..end]), s.take(&sines[i..end]));
                    let first = s.sub(s.mul(a, cos), s.mul(b, sin));
                    let second = s.add(s.mul(b, cos), s.mul(a, sin));
                    put(s, &mut out[i..end], first, acc);
                    put(s, &mut out[half + i..half + end], second, acc);
                }
            }
            copy(s, &x[2 * half..], &mut out[2 * half..], acc);
        }
        copy(s, &x[turned..], &mut out[turned..], acc);
    }
}

/// Sets, or adds, what is as it was.
#[inline(always)]
fn copy<S: Simd, E: Elem>(s: S, x: &[E], out: &mut [E], acc: bool) {
    for i in (0..x.len()).step_by(LANES) {
        let end = (i + LANES).min(x.len());
        put(s, &mut out[i..end], s.take(&x[i..end]), acc);
    }
}

/// Sets, or adds, at most a vector.
#[inline(always)]
fn put<S: Simd, E: Elem>(s: S, out: &mut [E], v: S::V, acc: bool) {
    let v = if acc { s.add(s.take(out), v) } else { v };
    s.put(out, v);
}
