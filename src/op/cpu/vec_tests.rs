//! Against f64, at every level; bits must not depend on the place in the slice.

use super::*;
use crate::base::{Rng, bf16};
use crate::op::cpu::simd::Level;

const LEVELS: [Level; 4] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

fn random<E: Elem>(rng: &mut Rng, n: usize) -> Vec<E> {
    (0..n).map(|_| E::from_f32(rng.normal())).collect()
}

fn map(level: Level, f: Function, x: &[f32]) -> Vec<f32> {
    let mut y = x.to_vec();
    dispatch(level, Map(f, &mut y));
    y
}

/// The error function by its series, or its continued fraction far out.
fn erf64(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut f = a;
        for n in (1..200).rev() {
            f = a + f64::from(n) / 2.0 / f;
        }
        1.0 - (-a * a).exp() / (f * std::f64::consts::PI.sqrt())
    };
    y.copysign(x)
}

/// Distance in units of the last place of the exact `y`.
fn ulps(x: f32, y: f64) -> f64 {
    let exponent = y.abs().log2().floor().max(-126.0);
    (f64::from(x) - y).abs() / (exponent - 23.0).exp2()
}

#[test]
fn functions_are_accurate() {
    let mut rng = Rng::new(11, 0);
    for level in LEVELS {
        let x: Vec<f32> = (0..200_000).map(|_| rng.uniform() * 192.0 - 103.5).collect();
        let mut worst = 0f64;
        for (&x, y) in x.iter().zip(map(level, Function::Exp, &x)) {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) {
                assert!(y == f32::INFINITY || x < 88.723, "exp({x}) = {y}");
            } else {
                worst = worst.max(ulps(y, exact));
            }
        }
        assert!(worst < 2.0, "exp is off by {worst} ulp at {level:?}");
        let x: Vec<f32> = (0..100_000).map(|_| rng.uniform() * 12.0 - 6.0).collect();
        let close = |f, exact: &dyn Fn(f64) -> f64| {
            for (&x, y) in x.iter().zip(map(level, f, &x)) {
                let error = (f64::from(y) - exact(f64::from(x))).abs();
                assert!(error <= 2e-7, "{f:?}({x}) is off by {error} at {level:?}");
            }
        };
        close(Function::Tanh, &f64::tanh);
        close(Function::Erf, &erf64);
        close(Function::Sigmoid, &|x| 1.0 / (1.0 + (-x).exp()));
    }
}

#[test]
fn functions_at_the_edges() {
    let inf = f32::INFINITY;
    for level in LEVELS {
        let x = [-inf, -1e30, -200.0, 0.0, -0.0, 88.9, 1e30, inf, f32::NAN];
        let check = |f, want: [f32; 9]| {
            let y = map(level, f, &x);
            for i in 0..8 {
                assert_eq!(y[i], want[i], "{f:?}({}) at {level:?}", x[i]);
            }
            assert!(y[8].is_nan(), "{f:?}(NaN) at {level:?}");
        };
        check(Function::Exp, [0.0, 0.0, 0.0, 1.0, 1.0, inf, inf, inf, 0.0]);
        check(Function::Tanh, [-1.0, -1.0, -1.0, 0.0, -0.0, 1.0, 1.0, 1.0, 0.0]);
        check(Function::Erf, [-1.0, -1.0, -1.0, 0.0, -0.0, 1.0, 1.0, 1.0, 0.0]);
        check(Function::Sigmoid, [0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 0.0]);
    }
}

#[test]
fn a_lane_does_not_matter() {
    let mut rng = Rng::new(12, 0);
    for n in [1, 3, 15, 16, 17, 33, 100] {
        let x: Vec<f32> = (0..n).map(|_| rng.normal() * 5.0).collect();
        for level in LEVELS {
            for f in [Function::Exp, Function::Tanh, Function::Erf, Function::Sigmoid] {
                let whole = map(level, f, &x);
                for i in 0..n {
                    let alone = map(level, f, &x[i..=i])[0];
                    assert_eq!(alone.to_bits(), whole[i].to_bits(), "{f:?}({})", x[i]);
                }
            }
        }
        let mut y = x.clone();
        exp(&mut y);
        assert!(x.iter().zip(&y).all(|(&x, y)| exp_scalar(x).to_bits() == y.to_bits()));
    }
}

fn reductions<E: Elem, F: Elem>(rng: &mut Rng) {
    for n in [0, 1, 2, 3, 5, 16, 17, 31, 33, 64, 100, 257, 1000] {
        let (a, b) = (random::<E>(rng, n), random::<F>(rng, n));
        let wide: Vec<f64> = a.iter().map(|x| f64::from(x.to_f32())).collect();
        let tolerance = 1e-6 * (n + 1) as f64;
        for level in LEVELS {
            let exact: f64 = wide.iter().zip(&b).map(|(x, y)| x * f64::from(y.to_f32())).sum();
            assert!((f64::from(dispatch(level, Dot(&a, &b))) - exact).abs() < tolerance);
            let exact: f64 = wide.iter().sum();
            assert!((f64::from(dispatch(level, Sum(&a))) - exact).abs() < tolerance);
            let exact = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(f64::from(dispatch(level, Max(&a))), exact);
            let old: Vec<f32> = random(rng, n);
            let mut y = old.clone();
            dispatch(level, Axpy(&mut y, 0.3, &a));
            for i in 0..n {
                let exact = f64::from(old[i]) + f64::from(0.3f32) * wide[i];
                assert!((f64::from(y[i]) - exact).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn reductions_match_f64() {
    let mut rng = Rng::new(13, 0);
    reductions::<f32, f32>(&mut rng);
    reductions::<f32, bf16>(&mut rng);
    reductions::<bf16, f32>(&mut rng);
    reductions::<bf16, bf16>(&mut rng);
}

#[test]
fn max_skips_nans() {
    let mut x = vec![f32::NAN; 40];
    assert_eq!(max(&x), f32::NEG_INFINITY);
    (x[3], x[20], x[37]) = (-2.0, 5.0, 1.0);
    assert_eq!(max(&x), 5.0);
}

#[test]
fn conversions_equal_the_scalar_ones() {
    let mut rng = Rng::new(14, 0);
    let mut x: Vec<f32> = (0..5003).map(|_| f32::from_bits(rng.next_u32())).collect();
    x[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::MAX, -0.0]);
    for level in LEVELS {
        let mut y = vec![bf16::ZERO; x.len()];
        dispatch(level, Convert(&mut y, &x));
        let mut z = vec![0f32; x.len()];
        dispatch(level, Convert(&mut z, &y));
        for i in 0..x.len() {
            let want = <bf16 as Elem>::from_f32(x[i]);
            assert_eq!(y[i].to_bits(), want.to_bits(), "{} at {level:?}", x[i]);
            assert_eq!(z[i].to_bits(), want.to_f32().to_bits());
        }
    }
}

/// The building blocks of bf16 products: loading and zipping pairs, transposing a square, dot
/// products of pairs.
struct Pairs<'a>(&'a [bf16], &'a [bf16]);

impl Kernel for Pairs<'_> {
    const PAIRS: bool = true;
    type Out = (Vec<u32>, [f32; LANES]);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        let Pairs(a, b) = self;
        let mut square = [s.splat(0.0); LANES];
        for (i, v) in square.iter_mut().enumerate() {
            // SAFETY: as many as there are, at most 32.
            *v = unsafe { s.load_pairs(a[i..].as_ptr(), (2 * i + 2).min(a.len() - i)) };
        }
        let zipped = s.zip_pairs(a, b);
        let mut bits = s.lanes(zipped).map(f32::to_bits).to_vec();
        for v in s.transpose(square) {
            bits.extend(s.lanes(v).map(f32::to_bits));
        }
        (bits, s.lanes(s.dot_pairs(zipped, square[LANES - 1], s.splat(1.5))))
    }
}

#[test]
fn pairs_are_those_of_plain_rust() {
    if Level::detected() < Level::Avx512Bf16 {
        return;
    }
    let mut rng = Rng::new(9, 0);
    for n in [47, 60] {
        let (a, b) = (random::<bf16>(&mut rng, n), random::<bf16>(&mut rng, n % 20));
        let (bits, dots) = dispatch(Level::Portable, Pairs(&a, &b));
        let (same_bits, same_dots) = dispatch(Level::Avx512Bf16, Pairs(&a, &b));
        assert_eq!(bits, same_bits);
        for (x, y) in dots.into_iter().zip(same_dots) {
            assert!((x - y).abs() <= 1e-6 * (1.0 + x.abs() + y.abs()), "{x} {y}");
        }
    }
}

#[test]
fn levels_are_known_by_their_names() {
    for name in ["portable", "avx2", "avx512", "avx512bf16", "amx"] {
        let level = Level::parse(name).expect(name);
        assert_eq!(format!("{level:?}").to_lowercase(), name);
    }
    let line = Level::parse("sse").expect_err("no such level").to_string();
    assert!(line.contains("avx512bf16") && line.contains("amx"), "{line}");
}
