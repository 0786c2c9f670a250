//! Codes and levels. What the operator does over many steps is tested beside it.

use super::*;
use crate::base::Rng;

const LEVELS: [Level; 4] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Amx];

/// Owned blocks of state.
#[derive(Clone, Debug, PartialEq)]
struct Blocks {
    w: Vec<bf16>,
    correction: Vec<u8>,
    m: Vec<u8>,
    v: Vec<u8>,
    scales: Vec<f32>,
}

impl Blocks {
    fn state(&mut self) -> State<'_> {
        let Blocks { w, correction, m, v, scales } = self;
        State { w, correction, m, v, scales }
    }
}

fn scalars(rng: &mut Rng) -> Scalars {
    Scalars {
        clip: 0.3 + rng.uniform(),
        keep: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.95,
        one_minus_beta2: 0.05,
        step_size: 0.01,
        v_factor: 1.5,
        eps: 1e-8,
    }
}

fn levels_agree<G: Elem>(rng: &mut Rng) {
    let n = 7 * BLOCK;
    let mut all = LEVELS.map(|_| Blocks {
        w: vec![bf16::ZERO; n],
        correction: vec![0; n],
        m: vec![0; n],
        v: vec![0; n],
        scales: vec![0.0; n / BLOCK * 2],
    });
    for step in 1..40 {
        let c = scalars(rng);
        // Blocks of many magnitudes, one of them without gradients, and single zeros.
        let size = |i: usize| [1.0, 1e-6, 0.0, 3e4, 1e-20, 0.1, 1e-3][i / BLOCK];
        let grad: Vec<G> = (0..n)
            .map(|i| G::from_f32(if rng.below(5) == 0 { 0.0 } else { size(i) * rng.normal() }))
            .collect();
        for (level, blocks) in LEVELS.iter().zip(&mut all) {
            update(*level, c, step, &grad, blocks.state());
        }
        for (level, blocks) in LEVELS.iter().zip(&all) {
            assert_eq!(*blocks, all[0], "{level:?} step {step}");
        }
    }
    let quiet = 2 * BLOCK..3 * BLOCK;
    assert!(all[0].w[quiet.clone()].iter().all(|w| w.to_bits() == 0));
    assert!(all[0].correction[quiet.clone()].iter().chain(&all[0].m[quiet]).all(|c| *c == 0));
    assert!(all[0].w[..BLOCK].iter().all(|w| w.to_f32() != 0.0));
}

#[test]
fn every_level_gives_the_same_bits() {
    let mut rng = Rng::new(3, 0);
    levels_agree::<f32>(&mut rng);
    levels_agree::<bf16>(&mut rng);
}

/// Bits of floats: any, and those around every exponent, zero, the smallest, and the largest.
fn some_bits() -> Vec<u32> {
    let mut rng = Rng::new(8, 0);
    let mut all: Vec<u32> = (0..200_000).map(|_| rng.next_u32()).collect();
    for exponent in 0..=255u32 {
        for near in -0x18000..0x18000 {
            all.push((exponent << 23).wrapping_add_signed(near * 0x61));
        }
    }
    all.extend((0..1 << 16).chain(0x7f7f_0000..=0x7f7f_ffff));
    let negative: Vec<u32> = all.iter().map(|bits| bits ^ 1 << 31).collect();
    all.extend(negative);
    all.retain(|bits| f32::from_bits(*bits).is_finite());
    all
}

#[test]
fn weights_split_and_join_exactly() {
    for bits in some_bits() {
        let (w, correction) = split(f32::from_bits(bits), 0);
        assert_eq!(joined(w, correction), bits & !0xff, "{bits:x}");
        // The bf16 is the nearest, away from zero where there are two.
        let nearest = (bits & !0xff).wrapping_add(0x8000) >> 16;
        assert_eq!(u32::from(w.to_bits()), nearest, "{bits:x}");
        // All dithers give one of two neighbours.
        let dither = bits.wrapping_mul(0x9e37_79b9);
        let (w, correction) = split(f32::from_bits(bits), dither);
        let up = bits & 0xff > 255 - (dither >> 24);
        assert_eq!(joined(w, correction), (bits & !0xff) + if up { 256 } else { 0 }, "{bits:x}");
    }
    for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(u32::MAX)] {
        let (w, correction) = split(nan, u32::MAX);
        assert!(w.is_nan() && f32::from_bits(joined(w, correction)).is_nan());
    }
}

#[test]
fn largest_and_zero_keep_their_codes_under_every_dither() {
    let mut rng = Rng::new(9, 0);
    for dither in (0..1 << 16).map(|high| high << 16) {
        let u = code_dither(dither);
        assert!(0.0 < u && u < 1.0);
        let scale = (rng.normal() * 20.0).exp();
        let codes = [scale, -scale, 0.0, -0.0].map(|m| m_code(m, scale, u) as i8);
        assert_eq!(codes, [127, -127, 0, 0], "{scale} {u}");
        assert_eq!([127u8, 129, 0].map(m_value), [1.0, -1.0, 0.0]);
        assert_eq!([scale, 0.0].map(|root| v_code(root, scale, u)), [255, 0]);
        assert!(v_code(scale * 1e-6, scale, u) >= 1);
    }
}

#[test]
fn codes_are_right_on_average_and_within_one() {
    let mut rng = Rng::new(10, 0);
    for _ in 0..300 {
        let (x, root) = (2.0 * rng.uniform() - 1.0, rng.uniform());
        let exact = [254.0 * f64::from(x / (1.0 + x.abs())), 255.0 * f64::from(root)];
        let mut sums = [0.0; 2];
        let steps = 4000;
        for step in 0..steps {
            let u = code_dither(dither(step, rng.below(BLOCK as u32) as usize));
            let codes = [f64::from(m_code(x, 1.0, u) as i8), f64::from(v_code(root, 1.0, u))];
            for i in 0..2 {
                assert!((codes[i] - exact[i]).abs() <= 1.0, "{x} {root} {codes:?}");
                sums[i] += codes[i] / f64::from(steps);
            }
        }
        assert!((sums[0] - exact[0]).abs() < 0.05, "{x} {sums:?}");
        assert!((sums[1] - exact[1]).abs() < 0.05 || exact[1] < 1.0, "{root} {sums:?}");
    }
}
