//! AdamW on a compact state, in place: the update of `adamw.rs` where bf16 weights have a
//! correction of a byte instead of an f32 master copy, and the moments are codes of a byte with
//! scales for blocks of 64 (block-wise quantisation, Dettmers et al. 2021). With the weights that
//! is 5.1 bytes a parameter, instead of 14.
//!
//! w bf16 `[n]`, grad f32 or bf16 `[n]`, clip f32 `[1]`, correction u8 `[n]`, codes of m u8 `[n]`,
//! codes of the root of v u8 `[n]`, scales of both in turn f32 `[n / 32]`, broken i32 `[1]` -> all
//! but grad and clip; broken is as in `adamw.rs`.
//! A fresh state is zero. n and the starts of groups are multiples of 64; where a group ends within
//! a block of 64, the rest of that block is padding, zero, and stays so. `cpu/adamw_compact.rs`
//! describes the codes. No gradient.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::{ADAMW_GROUPS, AdamWCompactParams, AdamWGroup};
use crate::op::adamw::{self, AdamW, Group};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::adamw_compact::{self as kernel, BLOCK, State};
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::simd::level;
use crate::op::cuda::vectors::{THREADS, aligned, flat_grid};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required, shape_error};
use crate::tensor::{Desc, Tensor};
use bytemuck::Zeroable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The operator, with the settings of [`AdamW`].
#[derive(Clone, Debug)]
pub struct AdamWCompact(pub AdamW);

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "adamw_compact",
    about: "adamw with weights of 24 bits and moments in codes of 8, scaled by blocks of 64, in \
        place",
    cases,
};

/// The codes and scales beside the weights, as tensors.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// The signed low byte that extends bf16 weights to 24 bits, u8 `[n]`.
    pub correction: Tensor,
    /// The first moment, u8 `[n]`.
    pub m: Tensor,
    /// The root of the second moment, u8 `[n]`.
    pub v: Tensor,
    /// The scales of both in turn, f32 `[n / 32]`.
    pub scales: Tensor,
    /// 1 from the first step on that makes a number that is not finite, i32 `[1]`.
    pub broken: Tensor,
}

/// One step on `w` `[n]` and its state.
pub fn adamw_compact(
    r: &mut dyn Run,
    op: AdamWCompact,
    w: Tensor,
    grad: Tensor,
    clip: Tensor,
    codes: Codes,
) -> Result<()> {
    let Codes { correction, m, v, scales, broken } = codes;
    let ins = [w, grad, clip, correction, m, v, scales, broken].map(Some);
    r.run(Arc::new(op), &ins).map(|_| ())
}

impl Op for AdamWCompact {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (w, grad) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let n = w.shape.numel();
        let flat = |dtype| Some(Desc::new(&[n], dtype));
        let codes = [flat(DType::U8); 3];
        let fits = Some(w) == flat(DType::Bf16)
            && grad.dtype.is_float()
            && Some(grad) == flat(grad.dtype)
            && n.is_multiple_of(BLOCK)
            && ins[2] == Some(Desc::new(&[1], DType::F32))
            && ins[3..6] == codes
            && ins[6] == Some(Desc::new(&[n / BLOCK * 2], DType::F32))
            && ins[7] == Some(Desc::new(&[1], DType::I32));
        let whole = self.0.groups.iter().all(|g| g.start.is_multiple_of(BLOCK));
        if !fits || !whole || !self.0.settings_fit(n) {
            let expected = "w bf16 [n], grad [n], clip f32 [1], correction, m, v u8 [n], scales \
                f32 [n / 32], broken i32 [1], disjoint groups in 0..n from multiples of 64, step \
                from 1";
            return Err(shape_error(self, ins, expected));
        }
        let outs = [0, 3, 4, 5, 6, 7].map(Place::InPlace).to_vec();
        Ok(Plan { outs, flops: 30 * n as u64, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(1).desc.dtype {
            DType::Bf16 => forward::<bf16>(&self.0, io),
            _ => forward::<f32>(&self.0, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let grad = io.input(1);
        let [w, correction, m, v, scales, broken] = [0, 1, 2, 3, 4, 5].map(|i| io.outs[i].ptr);
        if aligned(&[w, grad.ptr, correction, m, v, scales], &[], 1) == 0 {
            return Err(Error::internal("adamw_compact: tensors that are not aligned"));
        }
        let kernel = by_dtype(grad.desc.dtype, "adamw_compact_f32", "adamw_compact_bf16");
        let s = self.0.scalars(0.0, 0.0, 1.0);
        let mut groups = self.0.cuda_groups();
        groups.iter_mut().for_each(|g| g.end = g.end.next_multiple_of(BLOCK as u64));
        for groups in groups.chunks(ADAMW_GROUPS) {
            let mut params = AdamWCompactParams {
                w,
                grad: grad.ptr,
                clip: io.ptr(2),
                correction,
                m,
                v,
                scales,
                broken,
                start: groups[0].start,
                end: groups[groups.len() - 1].end,
                one_minus_beta1: s.one_minus_beta1,
                beta2: s.beta2,
                one_minus_beta2: s.one_minus_beta2,
                v_factor: s.v_factor,
                eps: s.eps,
                groups: groups.len() as u32,
                dither: kernel::dither(self.0.step, 0),
                pad: 0,
                group: [AdamWGroup::zeroed(); ADAMW_GROUPS],
            };
            params.group[..groups.len()].copy_from_slice(groups);
            let len = (params.end - params.start) as usize;
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { io.stream.launch(kernel, flat_grid(len, 4), THREADS, 0, &params)? };
        }
        Ok(())
    }
}

fn forward<G: Elem>(op: &AdamW, io: &mut Forward<'_>) {
    let (grad, clip) = (io.input(1).get::<G>(), io.input(2).f32()[0]);
    let [w, correction, m, v, scales, broken] = &mut io.outs[..] else {
        panic!("adamw_compact has six outputs")
    };
    let w = SharedMut::new(w.get::<bf16>());
    let [correction, m, v] = [correction, m, v].map(|codes| SharedMut::new(codes.u8()));
    let scales = SharedMut::new(scales.f32());
    let (pieces, breaks) = (op.pieces(clip), AtomicBool::new(false));
    parallel_for(pieces.len(), |i| {
        let (at, n, s) = pieces[i];
        let n = n.next_multiple_of(BLOCK);
        // SAFETY: groups are disjoint and begin with a block; so do their pieces.
        let state = unsafe {
            State {
                w: w.slice(at, n),
                correction: correction.slice(at, n),
                m: m.slice(at, n),
                v: v.slice(at, n),
                scales: scales.slice(at / BLOCK * 2, n / BLOCK * 2),
            }
        };
        if kernel::update(level(), s, op.step, &grad[at..][..n], state) {
            breaks.store(true, Ordering::Relaxed);
        }
    });
    if breaks.into_inner() {
        broken.i32()[0] = 1;
    }
}

/// Weights of 24 bits, and both moments.
type Values = [Vec<f64>; 3];

/// The 24-bit weights and both moments that w, correction, m, v and scales stand for.
fn decode(state: &[Vec<f64>]) -> Values {
    let [w, correction, m, v, scales, ..] = state else { panic!("five tensors and a flag") };
    let signed = |code: f64| if code > 127.0 { code - 256.0 } else { code };
    let weight = |i: usize| {
        let correction = signed(correction[i]) as i32 * 256;
        f64::from(f32::from_bits((w[i] as f32).to_bits().wrapping_add_signed(correction)))
    };
    let m = |i: usize| {
        let y = signed(m[i]) / 127.0;
        scales[i / BLOCK * 2] * y / (2.0 - y.abs())
    };
    let v = |i: usize| (scales[i / BLOCK * 2 + 1] * v[i] / 255.0).powi(2);
    let n = 0..w.len();
    [n.clone().map(weight).collect(), n.clone().map(m).collect(), n.map(v).collect()]
}

/// The decoded values after a step in f64 from `state`, coded and decoded: plain loops after the
/// formulas, which share nothing with the kernels.
fn reference(op: &AdamW, state: &[Vec<f64>], grad: &[f64], clip: f64) -> Values {
    let mut op = op.clone();
    op.groups.iter_mut().for_each(|g| g.end = g.end.next_multiple_of(BLOCK));
    let [mut w, mut m, mut v] = decode(state);
    let (mut all_w, mut all_m, mut all_v) = (w.clone(), m.clone(), v.clone());
    adamw::reference(&op, &mut w, grad, clip, &mut m, &mut v);
    let t = f64::from(op.step);
    let dither = |l: usize| (l as f64 * 0.618_033_988_75 + t * 0.754_877_666_247).fract();
    for g in &op.groups {
        for block in g.start / BLOCK..g.end / BLOCK {
            let block = block * BLOCK..(block + 1) * BLOCK;
            let largest = |x: &[f64]| x[block.clone()].iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            let (m_scale, v_scale) = (largest(&m).max(1e-30), largest(&v).sqrt().max(1e-30));
            for (l, i) in block.enumerate() {
                let u = dither(l);
                let bits = (w[i] as f32).to_bits() + (256.0 * u) as u32;
                all_w[i] = f64::from(f32::from_bits(bits & !0xff));
                let x = m[i] / m_scale;
                let y = (127.0 * 2.0 * x / (1.0 + x.abs()) + u).floor().clamp(-127.0, 127.0);
                all_m[i] = m_scale * y / (254.0 - y.abs());
                let y = (255.0 * v[i].sqrt() / v_scale + u).floor().min(255.0);
                all_v[i] = (v_scale * y.max(f64::from(v[i] > 0.0)) / 255.0).powi(2);
            }
        }
    }
    [all_w, all_m, all_v]
}

fn cases() -> Vec<Case> {
    let group = |start, end, lr, weight_decay| Group { start, end, lr, weight_decay };
    let some = |n: usize| {
        let cut = |a: usize| a * n / 7 / BLOCK * BLOCK;
        vec![
            group(cut(3), n, 0.02, 0.0),
            group(0, cut(2), 0.05, 0.1),
            group(cut(2), cut(2), 1.0, 0.0),
        ]
    };
    let case = |n: usize, groups: Vec<Group>, step: u32, grad: Input| {
        let op = AdamW { groups, beta1: 0.9, beta2: 0.95, eps: 1e-6, step };
        let codes = |a: usize, b: usize| {
            Some(Input::Bytes(vec![n], (0..n).map(|i| (i * a % b) as u8).collect()))
        };
        let scales = (0..n / BLOCK * 2).map(|i| 0.1 + 0.3 * (i % 11) as f32).collect();
        let ins = vec![
            Some(Input::weight(&[n], 1.0)),
            Some(grad),
            Some(Input::Const(vec![1], vec![0.37])),
            codes(149, 255),
            // No -128: it codes no moment.
            codes(31, 128),
            codes(67, 256),
            Some(Input::Const(vec![n / BLOCK * 2], scales)),
            Some(Input::ints(&[0])),
        ];
        let mut case = Case::new(AdamWCompact(op.clone()), ins, move |ins| {
            let state = [0, 3, 4, 5, 6].map(|i| ins[i].clone());
            reference(&op, &state, &ins[1], ins[2][0]).to_vec()
        });
        case.dtypes = &[DType::Bf16];
        case.decode = Some(|outs| decode(outs).to_vec());
        // Codes are computed too: all that differs is where f32 and f64 fall on two sides of one,
        // which is rare. Half the tolerance still sees a dither that is not the same.
        case.slack = 0.5;
        case
    };
    // More groups than one launch takes, of 0 to 3 blocks, the last not whole, with gaps.
    let count = 2 * ADAMW_GROUPS + 3;
    let start = |i: usize| (3 * i + i % 2) * BLOCK;
    let many = (0..count).map(|i| {
        let (lr, decay) = (0.001 * (1 + i % 40) as f32, 0.01 * (i % 7) as f32);
        group(start(i), start(i) + i * 37 % (2 * BLOCK), lr, decay)
    });
    let n = 3 * (count + 1) * BLOCK;
    vec![
        case(BLOCK, vec![group(0, 40, 0.1, 0.1)], 1, Input::f32(&[BLOCK], 2.0)),
        case(40_000, some(40_000), 1000, Input::f32(&[40_000], 2.0)),
        case(704, some(704), 3, Input::act(&[704], 2.0)),
        case(n, many.collect(), 2, Input::act(&[n], 1.0)),
    ]
}

#[cfg(test)]
#[path = "adamw_compact_tests.rs"]
mod tests;
