//! Loops over slices that operators are made of: dot products, sums, conversions, exp and its kin.
//! Each has one fixed order of additions, so a result depends on the slice alone: not on its
//! address, nor on threads. Whole operators live elsewhere.

use super::simd::{Kernel, LANES, Simd, dispatch, level};
use super::vec_math;
use crate::base::Elem;

struct Dot<'a, E, F>(&'a [E], &'a [F]);

impl<E: Elem, F: Elem> Kernel for Dot<'_, E, F> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sum = s.splat(0.0);
        for (a, b) in self.0.chunks(LANES).zip(self.1.chunks(LANES)) {
            sum = s.fma(s.take(a), s.take(b), sum);
        }
        s.sum(sum)
    }
}

/// The dot product of `a` and `b`, of equal length; bit for bit an element of
/// [`gemm_nt`](super::gemm::gemm_nt).
pub fn dot<E: Elem, F: Elem>(a: &[E], b: &[F]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot of different lengths");
    dispatch(level(), Dot(a, b))
}

struct Axpy<'a, E>(&'a mut [f32], f32, &'a [E]);

impl<E: Elem> Kernel for Axpy<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let a = s.splat(self.1);
        for (y, x) in self.0.chunks_mut(LANES).zip(self.2.chunks(LANES)) {
            let sum = s.fma(a, s.take(x), s.take(y));
            s.put(y, sum);
        }
    }
}

/// `y += a * x`, of equal length; one fused multiply-add an element.
pub fn axpy<E: Elem>(y: &mut [f32], a: f32, x: &[E]) {
    assert_eq!(y.len(), x.len(), "axpy of different lengths");
    dispatch(level(), Axpy(y, a, x));
}

struct Sum<'a, E>(&'a [E]);

impl<E: Elem> Kernel for Sum<'_, E> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sum = s.splat(0.0);
        for x in self.0.chunks(LANES) {
            sum = s.add(sum, s.take(x));
        }
        s.sum(sum)
    }
}

/// The sum of `x`: sixteen running sums, then the fixed tree.
pub fn sum<E: Elem>(x: &[E]) -> f32 {
    dispatch(level(), Sum(x))
}

/// The sum of squares of `x`: `dot(x, x)`.
pub fn sum_sq<E: Elem>(x: &[E]) -> f32 {
    dispatch(level(), Dot(x, x))
}

struct Max<'a, E>(&'a [E]);

impl<E: Elem> Kernel for Max<'_, E> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut max = s.splat(f32::NEG_INFINITY);
        let whole = self.0.chunks_exact(LANES);
        let tail = whole.remainder();
        for x in whole {
            max = s.max(s.take(x), max);
        }
        let max = s.lanes(max).into_iter().fold(f32::NEG_INFINITY, f32::max);
        tail.iter().fold(max, |m, x| m.max(x.to_f32()))
    }
}

/// The largest of `x`, skipping NaNs; minus infinity when there is none.
pub fn max<E: Elem>(x: &[E]) -> f32 {
    dispatch(level(), Max(x))
}

struct Convert<'a, D, E>(&'a mut [D], &'a [E]);

impl<D: Elem, E: Elem> Kernel for Convert<'_, D, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        convert(s, self.0, self.1);
    }
}

/// `dst = src` through f32, as far as the shorter goes.
#[inline(always)]
pub(super) fn convert<S: Simd, D: Elem, E: Elem>(s: S, dst: &mut [D], src: &[E]) {
    for (d, x) in dst.chunks_mut(LANES).zip(src.chunks(LANES)) {
        s.put(d, s.take(x));
    }
}

/// `dst = src`, of equal length, exactly.
pub fn widen<E: Elem>(dst: &mut [f32], src: &[E]) {
    assert_eq!(dst.len(), src.len(), "widen of different lengths");
    dispatch(level(), Convert(dst, src));
}

/// `dst = src`, of equal length, each rounded to nearest, ties to even.
pub fn narrow<E: Elem>(dst: &mut [E], src: &[f32]) {
    assert_eq!(dst.len(), src.len(), "narrow of different lengths");
    dispatch(level(), Convert(dst, src));
}

struct AddTo<'a, D>(&'a mut [D], &'a [f32]);

impl<D: Elem> Kernel for AddTo<'_, D> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (d, x) in self.0.chunks_mut(LANES).zip(self.1.chunks(LANES)) {
            let sum = s.add(s.take(d), s.take(x));
            s.put(d, sum);
        }
    }
}

/// `dst += src`, of equal length, each sum rounded to nearest, ties to even.
pub fn add_to<D: Elem>(dst: &mut [D], src: &[f32]) {
    assert_eq!(dst.len(), src.len(), "add_to of different lengths");
    dispatch(level(), AddTo(dst, src));
}

/// A function of one element.
#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    Tanh,
    Erf,
    Sigmoid,
}

struct Map<'a>(Function, &'a mut [f32]);

impl Kernel for Map<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.1.chunks_mut(LANES) {
            let v = s.take(x);
            let v = match self.0 {
                Function::Exp => vec_math::exp(s, v),
                Function::Tanh => vec_math::tanh(s, v),
                Function::Erf => vec_math::erf(s, v),
                Function::Sigmoid => vec_math::sigmoid(s, v),
            };
            s.put(x, v);
        }
    }
}

fn scalar(f: Function, x: f32) -> f32 {
    let mut x = [x];
    dispatch(level(), Map(f, &mut x));
    x[0]
}

/// e^x in place, to about one unit in the last place; minus infinity gives 0, too large a number
/// infinity, NaN NaN.
pub fn exp(x: &mut [f32]) {
    dispatch(level(), Map(Function::Exp, x));
}

/// e^x, bit for bit as in [`exp`].
pub fn exp_scalar(x: f32) -> f32 {
    scalar(Function::Exp, x)
}

/// tanh in place, within 2e-7.
pub fn tanh(x: &mut [f32]) {
    dispatch(level(), Map(Function::Tanh, x));
}

/// tanh, bit for bit as in [`tanh`].
pub fn tanh_scalar(x: f32) -> f32 {
    scalar(Function::Tanh, x)
}

/// The error function in place, within 2e-7.
pub fn erf(x: &mut [f32]) {
    dispatch(level(), Map(Function::Erf, x));
}

/// The error function, bit for bit as in [`erf`].
pub fn erf_scalar(x: f32) -> f32 {
    scalar(Function::Erf, x)
}

/// The logistic function 1 / (1 + e^-x) in place.
pub fn sigmoid(x: &mut [f32]) {
    dispatch(level(), Map(Function::Sigmoid, x));
}

/// The logistic function, bit for bit as in [`sigmoid`].
pub fn sigmoid_scalar(x: f32) -> f32 {
    scalar(Function::Sigmoid, x)
}

#[cfg(test)]
#[path = "vec_tests.rs"]
mod tests;
