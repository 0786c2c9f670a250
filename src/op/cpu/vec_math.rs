//! exp, tanh, erf and the logistic function on vectors, by range reduction and polynomials. The
//! coefficients interpolate at Chebyshev points, rounded to f32. Lanes never mix, so an element's
//! result does not depend on its place.

use super::simd::Simd;

/// Horner's rule, `c[0]` the highest coefficient.
#[inline(always)]
fn poly<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut sum = s.splat(c[0]);
    for &c in &c[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// e^x to about one unit in the last place; 0 far below, infinity far above, NaN for NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Beyond these bounds the result is 0 or infinity anyway. The constant goes first: then a NaN
    // passes.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    // e^x = 2^n e^r with |r| <= ln(2) / 2; ln 2 in two parts, the first with few bits, so that its
    // product with n is exact even without a fused multiply-add.
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let p = poly(
        s,
        r,
        [1.989_108e-4, 1.393_373_1e-3, 8.333_310_5e-3, 4.166_646_3e-2, 0.166_666_67, 0.5],
    );
    let e = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    // 2^n in two steps: it may be out of range where the result is not.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(e, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// tanh x.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let a = s.copysign(x, one);
    let u = s.mul(x, x);
    let p = poly(
        s,
        u,
        [2.214_902_8e-3, -8.272_457e-3, 2.174_618_7e-2, -5.395_635e-2, 0.133_332_91, -0.333_333_34],
    );
    let near = s.fma(s.mul(u, x), p, x);
    let e = exp(s, s.add(a, a));
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.select_lt(a, s.splat(0.65), near, s.copysign(far, x))
}

/// The error function.
#[inline(always)]
pub(super) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let a = s.copysign(x, one);
    let u = s.mul(x, x);
    let p = poly(
        s,
        u,
        [
            -9.667_045e-6,
            1.126_595_9e-4,
            -8.484_08e-4,
            5.221_031_6e-3,
            -2.686_543e-2,
            0.112_837_82,
            -0.376_126_38,
            std::f32::consts::FRAC_2_SQRT_PI,
        ],
    );
    let near = s.mul(x, p);
    // erfc x = e^(-x^2) g(t), t = 1 / (1 + x / 2).
    let t = s.div(one, s.fma(a, s.splat(0.5), one));
    let g = poly(
        s,
        t,
        [
            -5.363_042_7e-2,
            -5.706_52e-2,
            0.403_495_04,
            0.101_495_415,
            0.330_757_1,
            0.273_634_34,
            6.051_184e-4,
        ],
    );
    let far = s.sub(one, s.mul(exp(s, s.sub(s.splat(0.0), u)), g));
    s.select_lt(a, one, near, s.copysign(far, x))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}
