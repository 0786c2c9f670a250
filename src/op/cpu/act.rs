//! Activation functions and their derivatives on vectors, for whole rows. The operator is in
//! `op/act.rs`.

use crate::base::Elem;
use crate::op::attr::Kind;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};
use crate::op::cpu::vec_math;

/// `y = act(x)`, or with `gated` rows of gate|up of twice `y`'s width, `y = act(gate) * up`.
pub fn forward<E: Elem>(kind: Kind, gated: bool, width: usize, x: &[E], y: &mut [E]) {
    let wide = if gated { 2 * width } else { width };
    assert_eq!(x.len() / wide, y.len() / width);
    dispatch(level(), Forward { kind, gated, width, x, y });
}

/// The gradient of `forward`: sets `dx`, or adds to it.
pub fn backward<E: Elem>(
    kind: Kind,
    gated: bool,
    width: usize,
    x: &[E],
    dy: &[E],
    dx: &mut [E],
    acc: bool,
) {
    assert_eq!(x.len(), dx.len());
    dispatch(level(), Backward { kind, gated, width, x, dy, dx, acc });
}

/// `y = act(y)`.
pub fn in_place<E: Elem>(kind: Kind, y: &mut [E]) {
    dispatch(level(), InPlace { kind, y });
}

struct InPlace<'a, E> {
    kind: Kind,
    y: &'a mut [E],
}

impl<E: Elem> Kernel for InPlace<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for y in self.y.chunks_mut(LANES) {
            let v = value_and_slope(s, self.kind, s.take(y)).0;
            s.put(y, v);
        }
    }
}

struct Forward<'a, E> {
    kind: Kind,
    gated: bool,
    width: usize,
    x: &'a [E],
    y: &'a mut [E],
}

impl<E: Elem> Kernel for Forward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let wide = if self.gated { 2 * self.width } else { self.width };
        for (x, y) in self.x.chunks_exact(wide).zip(self.y.chunks_exact_mut(self.width)) {
            let (gate, up) = x.split_at(self.width);
            for (i, y) in y.chunks_mut(LANES).enumerate() {
                let i = i * LANES;
                let v = value_and_slope(s, self.kind, s.take(&gate[i..])).0;
                s.put(y, if self.gated { s.mul(v, s.take(&up[i..])) } else { v });
            }
        }
    }
}

struct Backward<'a, E> {
    kind: Kind,
    gated: bool,
    width: usize,
    x: &'a [E],
    dy: &'a [E],
    dx: &'a mut [E],
    acc: bool,
}

impl<E: Elem> Kernel for Backward<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let wide = if self.gated { 2 * self.width } else { self.width };
        let rows = self.x.chunks_exact(wide).zip(self.dx.chunks_exact_mut(wide));
        for ((x, dx), dy) in rows.zip(self.dy.chunks_exact(self.width)) {
            let (gate, up) = x.split_at(self.width);
            let (dgate, dup) = dx.split_at_mut(self.width);
            for (i, dy) in dy.chunks(LANES).enumerate() {
                let i = i * LANES;
                let (v, slope) = value_and_slope(s, self.kind, s.take(&gate[i..]));
                let mut g = s.take(dy);
                if self.gated {
                    put(s, &mut dup[i..], s.mul(g, v), self.acc);
                    g = s.mul(g, s.take(&up[i..]));
                }
                put(s, &mut dgate[i..], s.mul(g, slope), self.acc);
            }
        }
    }
}

#[inline(always)]
fn put<S: Simd, E: Elem>(s: S, out: &mut [E], v: S::V, acc: bool) {
    let v = if acc { s.add(s.take(out), v) } else { v };
    s.put(out, v);
}

/// act(x) and its derivative.
#[inline(always)]
fn value_and_slope<S: Simd>(s: S, kind: Kind, x: S::V) -> (S::V, S::V) {
    let (zero, half, one) = (s.splat(0.0), s.splat(0.5), s.splat(1.0));
    match kind {
        // In this order of arguments a NaN passes.
        Kind::Relu => (s.max(zero, x), s.select_lt(zero, x, one, zero)),
        Kind::GeluTanh => {
            // u = c (x + 0.044715 x^3) with c = sqrt(2 / pi).
            let (c, cube) = (s.splat(0.797_884_6), s.splat(0.044_715));
            let xx = s.mul(x, x);
            let t = vec_math::tanh(s, s.mul(c, s.fma(s.mul(cube, xx), x, x)));
            let cdf = s.fma(half, t, half);
            let du = s.mul(c, s.fma(s.splat(3.0 * 0.044_715), xx, one));
            let dcdf = s.mul(half, s.mul(s.sub(one, s.mul(t, t)), du));
            (s.mul(x, cdf), s.fma(x, dcdf, cdf))
        }
        Kind::GeluErf => {
            let z = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
            let cdf = s.fma(half, vec_math::erf(s, z), half);
            // The normal density: exp(-x^2 / 2) / sqrt(2 pi).
            let density = vec_math::exp(s, s.sub(zero, s.mul(z, z)));
            (s.mul(x, cdf), s.fma(x, s.mul(density, s.splat(0.398_942_3)), cdf))
        }
        Kind::Silu => {
            let p = vec_math::sigmoid(s, x);
            (s.mul(x, p), s.mul(p, s.fma(x, s.sub(one, p), one)))
        }
    }
}
