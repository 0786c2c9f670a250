//! AdamW over a compact state, one pass: what of it is kept, how it is coded, and the update of a
//! block of 64 elements. The operator is `op/adamw_compact.rs`; `cuda/op/adamw_compact.cu` computes
//! the same bits.
//!
//! - A weight has 24 bits, an f32 without its low 8: the bf16 nearest to it, and a correction of 8
//!   bits.
//! - A block has two scales: the largest |m|, and the largest root of v.
//! - m / scale = x becomes y = 2x / (1 + |x|), in 127ths: finer near zero, where most of the
//!   moments are.
//! - The root of v / scale is kept in 255ths; a v above 0 never becomes 0, for it is in a
//!   denominator.
//! - What falls between two codes goes up or down by a [`dither`], so that small changes add up
//!   over steps.

use crate::base::{Elem, bf16};
use crate::device::cuda::constants::adamw_compact::COMPACT_BLOCK;
use crate::op::cpu::adamw::Scalars;
use crate::op::cpu::simd::{Kernel, Level, Simd, dispatch};

/// Elements of a block, which have a scale of each moment in common.
pub const BLOCK: usize = COMPACT_BLOCK;

/// The compact state of some blocks of elements, and their weights.
#[derive(Debug)]
pub struct State<'a> {
    /// Weights `[n]`.
    pub w: &'a mut [bf16],
    /// The signed low byte that extends the weights to 24 bits `[n]`.
    pub correction: &'a mut [u8],
    /// Codes of the first moment `[n]`, signed.
    pub m: &'a mut [u8],
    /// Codes of the root of the second moment `[n]`.
    pub v: &'a mut [u8],
    /// The scales of both in turn `[2 n / 64]`.
    pub scales: &'a mut [f32],
}

/// Where in its period of 2^32 the dither of step `step` is for element `l` of a block: a Weyl
/// sequence in each of both, so that any few steps, and any few neighbours, spread evenly.
pub fn dither(step: u32, l: usize) -> u32 {
    // The fractions 0.7548776662 and 0.6180339887.
    step.wrapping_mul(0xc13f_a9a9).wrapping_add((l as u32).wrapping_mul(0x9e37_79b9))
}

/// The value in 0..1 that a dither adds to a code before its fraction is cut off. It has 16 bits,
/// the last of them set. So it is exact beside any code, never 0, and one half on average.
#[inline(always)]
fn code_dither(dither: u32) -> f32 {
    ((dither >> 16) | 1) as f32 * (1.0 / 65536.0)
}

/// The f32 bits of a weight and its correction.
#[inline(always)]
fn joined(w: bf16, correction: u8) -> u32 {
    let correction = i32::from(correction as i8) << 8;
    (u32::from(w.to_bits()) << 16).wrapping_add(correction as u32)
}

/// A weight of 24 bits of an f32, after `dither` is added below them: its bf16, and the correction.
/// A NaN stays one.
#[inline(always)]
fn split(x: f32, dither: u32) -> (bf16, u8) {
    let bits = if x.is_nan() { 0x7fc0_0000 } else { x.to_bits().wrapping_add(dither >> 24) };
    let high = bits.wrapping_add(0x8000) >> 16;
    (bf16::from_bits(high as u16), (bits >> 8).wrapping_sub(high << 8) as u8)
}

/// The first moment of a code, in units of the scale.
#[inline(always)]
fn m_value(code: u8) -> f32 {
    let code = f32::from(code as i8);
    code / (254.0 - code.abs())
}

/// The code of `m`. At most 127 / 127 of the scale, which needs no dither.
#[inline(always)]
fn m_code(m: f32, scale: f32, dither: f32) -> u8 {
    // Shifted by 128, so that what is cut off is always below.
    let shifted = 254.0 * (m / (scale + m.abs())) + (128.0 + dither);
    whole(shifted, 1.0) as u8 ^ 0x80
}

/// The code of `root`, the root of the second moment.
#[inline(always)]
fn v_code(root: f32, scale: f32, dither: f32) -> u8 {
    let least = if root > 0.0 { 1.0 } else { 0.0 };
    whole(255.0 * (root / scale) + dither, least) as u8
}

/// The whole part of `x` in `least..=255`; `least` of a NaN.
#[inline(always)]
fn whole(x: f32, least: f32) -> i32 {
    let x = if x > least { x } else { least };
    let x = if x < 255.0 { x } else { 255.0 };
    // SAFETY: it is between 0 and 255.
    unsafe { x.to_int_unchecked() }
}

/// Updates whole blocks: `grad` `[n]` and the state of as many elements. `step` counts from 1.
/// Returns true if a moment, or as stored a weight that was finite, is not finite any more.
pub fn update<G: Elem>(level: Level, c: Scalars, step: u32, grad: &[G], state: State<'_>) -> bool {
    let n = grad.len();
    assert!(n.is_multiple_of(BLOCK) && state.w.len() == n && state.correction.len() == n);
    assert!(state.m.len() == n && state.v.len() == n && state.scales.len() == n / BLOCK * 2);
    dispatch(level, Update { c, dither: std::array::from_fn(|l| dither(step, l)), grad, state })
}

struct Update<'a, G> {
    c: Scalars,
    dither: [u32; BLOCK],
    grad: &'a [G],
    state: State<'a>,
}

impl<G: Elem> Kernel for Update<'_, G> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let Update { c, dither, grad, state } = self;
        let mut broken = false;
        for b in 0..grad.len() / BLOCK {
            let at = b * BLOCK;
            let scales = &mut state.scales[2 * b..][..2];
            let grad = &grad[at..][..BLOCK];
            let (w, correction) =
                (&mut state.w[at..][..BLOCK], &mut state.correction[at..][..BLOCK]);
            let (m, v) = (&mut state.m[at..][..BLOCK], &mut state.v[at..][..BLOCK]);
            let (m_unit, v_unit) = (scales[0], scales[1] / 255.0);
            // Plain loops over fixed lengths: the compiler makes vectors of them, of the level's
            // width.
            let (mut new_m, mut root) = ([0f32; BLOCK], [0f32; BLOCK]);
            for l in 0..BLOCK {
                let g = grad[l].to_f32() * c.clip;
                let old_m = m_unit * m_value(m[l]);
                new_m[l] = old_m + c.one_minus_beta1 * (g - old_m);
                let old_root = f32::from(v[l]) * v_unit;
                let new_v = c.beta2 * (old_root * old_root) + c.one_minus_beta2 * g * g;
                root[l] = new_v.sqrt();
            }
            for l in 0..BLOCK {
                let old = f32::from_bits(joined(w[l], correction[l]));
                let change = c.step_size * (new_m[l] / (root[l] * c.v_factor + c.eps));
                (w[l], correction[l]) = split(old * c.keep - change, dither[l]);
                broken |= old.is_finite() & !w[l].is_finite();
            }
            // Floats of one sign are in the order of their bits, and the largest of integers is a
            // loop that the compiler makes vectors of.
            let (mut m_bits, mut v_bits) = (0, 0);
            for l in 0..BLOCK {
                m_bits = m_bits.max(new_m[l].abs().to_bits());
                v_bits = v_bits.max(root[l].abs().to_bits());
            }
            (scales[0], scales[1]) = (f32::from_bits(m_bits), f32::from_bits(v_bits));
            broken |= m_bits.max(v_bits) >= f32::INFINITY.to_bits();
            // Where all are 0 so are the codes, whatever they are divided by.
            let m_scale = if m_bits == 0 { 1.0 } else { scales[0] };
            let v_scale = if v_bits == 0 { 1.0 } else { scales[1] };
            for l in 0..BLOCK {
                let dither = code_dither(dither[l]);
                m[l] = m_code(new_m[l], m_scale, dither);
                v[l] = v_code(root[l], v_scale, dither);
            }
        }
        broken
    }
}

#[cfg(test)]
#[path = "adamw_compact_tests.rs"]
mod tests;
