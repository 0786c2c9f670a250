//! Adam with decoupled weight decay (Loshchilov and Hutter 2019) on a flat partition, in place.
//!
//! w `[n]`, grad f32 `[n]`, clip f32 `[1]`, m, v f32 `[n]`, broken i32 `[1]`, master f32 `[n]` or
//! none -> w, m, v, broken, master. The gradient is multiplied by `clip` first. With a master copy
//! the update is made there and rounded into w. Learning rate and decay go by element ranges;
//! elements outside all ranges are left alone. `broken` becomes 1 where a moment, or as stored a
//! weight that was finite, is not finite any more; else it stays. The arithmetic is that of
//! `torch.optim.AdamW`. No gradient.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::{ADAMW_GROUPS, AdamWGroup, AdamWParams};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::adamw::{self as kernel, Scalars};
use crate::op::cpu::shared::SharedMut;
use crate::op::cuda::vectors::{THREADS, aligned, flat_grid};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required, shape_error};
use crate::tensor::{Desc, Tensor};
use bytemuck::Zeroable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The operator.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Element ranges, disjoint, in any order.
    pub groups: Vec<Group>,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Number of this step, from 1, for the bias correction.
    pub step: u32,
}

/// Settings of the elements `start..end`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// First element.
    pub start: usize,
    /// One past the last element.
    pub end: usize,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay, times the learning rate.
    pub weight_decay: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "adamw",
    about: "w -= lr wd w + lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), in place",
    cases,
};

/// The optimizer's state of its weights: f32 `[n]` each.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// First moments.
    pub m: Tensor,
    /// Second moments.
    pub v: Tensor,
    /// 1 from the first step on that makes a number that is not finite, i32 `[1]`.
    pub broken: Tensor,
    /// Copy of the weights, which are rounded from it.
    pub master: Option<Tensor>,
}

/// One step on `w` `[n]`, its moments and its master copy.
pub fn adamw(
    r: &mut dyn Run,
    op: AdamW,
    w: Tensor,
    grad: Tensor,
    clip: Tensor,
    Kept { m, v, broken, master }: Kept,
) -> Result<()> {
    let ins = [Some(w), Some(grad), Some(clip), Some(m), Some(v), Some(broken), master];
    r.run(Arc::new(op), &ins).map(|_| ())
}

/// Elements a task.
const PIECE: usize = 1 << 14;

impl Op for AdamW {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (w, clip) = (required(self, ins, 0)?, required(self, ins, 2)?);
        let n = w.shape.numel();
        let flat = Desc::new(&[n], DType::F32);
        let state = [required(self, ins, 1)?, required(self, ins, 3)?, required(self, ins, 4)?];
        let fits = w == Desc { dtype: w.dtype, ..flat }
            && w.dtype.is_float()
            && clip == Desc::new(&[1], DType::F32)
            && required(self, ins, 5)? == Desc::new(&[1], DType::I32)
            && state.iter().chain(&ins[6]).all(|d| *d == flat);
        if !fits || !self.settings_fit(n) {
            let expected = "w [n], grad f32 [n], clip f32 [1], m, v f32 [n], broken i32 [1], \
                            master f32 [n], disjoint groups in 0..n, step from 1";
            return Err(shape_error(self, ins, expected));
        }
        let mut outs = [0, 3, 4, 5].map(Place::InPlace).to_vec();
        outs.extend(ins[6].map(|_| Place::InPlace(6)));
        Ok(Plan { outs, flops: 14 * n as u64, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.outs[0].desc.dtype {
            DType::Bf16 => forward::<bf16>(self, io),
            _ => forward::<f32>(self, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let w = io.outs[0];
        let [m, v, broken] = [1, 2, 3].map(|i| io.outs[i].ptr);
        let master = io.outs.get(4).map_or(0, |p| p.ptr);
        let (grad, kernel) = (io.ptr(1), by_dtype(w.desc.dtype, "adamw_f32", "adamw_bf16"));
        let s = self.scalars(0.0, 0.0, 1.0);
        for groups in self.cuda_groups().chunks(ADAMW_GROUPS) {
            let mut params = AdamWParams {
                w: w.ptr,
                grad,
                clip: io.ptr(2),
                m,
                v,
                master,
                broken,
                start: groups[0].start / 4 * 4,
                end: groups[groups.len() - 1].end,
                one_minus_beta1: s.one_minus_beta1,
                beta2: s.beta2,
                one_minus_beta2: s.one_minus_beta2,
                v_factor: s.v_factor,
                eps: s.eps,
                groups: groups.len() as u32,
                flags: aligned(&[w.ptr, grad, m, v, master], &[], 4),
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

impl AdamW {
    /// True if groups are disjoint and within `n` elements, and steps count from 1.
    pub(super) fn settings_fit(&self, n: usize) -> bool {
        let mut bounds: Vec<(usize, usize)> =
            self.groups.iter().map(|g| (g.start, g.end)).collect();
        bounds.sort_unstable();
        self.step > 0
            && bounds.iter().all(|b| b.0 <= b.1 && b.1 <= n)
            && bounds.windows(2).all(|p| p[0].1 <= p[1].0)
    }

    pub(super) fn scalars(&self, lr: f32, weight_decay: f32, clip: f32) -> Scalars {
        let (b1, b2) = (f64::from(self.beta1), f64::from(self.beta2));
        let (lr, t) = (f64::from(lr), f64::from(self.step));
        Scalars {
            clip,
            keep: (1.0 - lr * f64::from(weight_decay)) as f32,
            one_minus_beta1: (1.0 - b1) as f32,
            beta2: self.beta2,
            one_minus_beta2: (1.0 - b2) as f32,
            step_size: (lr / (1.0 - b1.powf(t))) as f32,
            v_factor: (1.0 / (1.0 - b2.powf(t)).sqrt()) as f32,
            eps: self.eps,
        }
    }

    /// All elements of all groups, cut into tasks: first element, number, scalars.
    pub(super) fn pieces(&self, clip: f32) -> Vec<(usize, usize, Scalars)> {
        let of_group = |g: &Group| {
            let (end, s) = (g.end, self.scalars(g.lr, g.weight_decay, clip));
            (g.start..end).step_by(PIECE).map(move |at| (at, PIECE.min(end - at), s))
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    /// The groups that have elements, by their start.
    pub(super) fn cuda_groups(&self) -> Vec<AdamWGroup> {
        let group = |g: &Group| {
            let Scalars { keep, step_size, .. } = self.scalars(g.lr, g.weight_decay, 1.0);
            AdamWGroup { start: g.start as u64, end: g.end as u64, keep, step_size }
        };
        let mut groups: Vec<AdamWGroup> =
            self.groups.iter().filter(|g| g.start < g.end).map(group).collect();
        groups.sort_unstable_by_key(|g| g.start);
        groups
    }
}

fn forward<E: Elem>(op: &AdamW, io: &mut Forward<'_>) {
    let (grad, clip) = (io.input(1).f32(), io.input(2).f32()[0]);
    let [w, m, v, broken, master @ ..] = &mut io.outs[..] else {
        panic!("adamw has four or five outputs")
    };
    let w = SharedMut::new(w.get::<E>());
    let (m, v) = (SharedMut::new(m.f32()), SharedMut::new(v.f32()));
    let master = master.first_mut().map(|p| SharedMut::new(p.f32()));
    let (pieces, breaks) = (op.pieces(clip), AtomicBool::new(false));
    parallel_for(pieces.len(), |i| {
        let (at, n, s) = pieces[i];
        let grad = &grad[at..][..n];
        // SAFETY: groups are disjoint, and so are their pieces.
        let (w, m, v) = unsafe { (w.slice(at, n), m.slice(at, n), v.slice(at, n)) };
        // SAFETY: the pieces of the master weights are those of the weights, and so disjoint.
        let master = master.as_ref().map(|p| unsafe { p.slice(at, n) });
        if kernel::update(s, grad, w, master, m, v) {
            breaks.store(true, Ordering::Relaxed);
        }
    });
    if breaks.into_inner() {
        broken.i32()[0] = 1;
    }
}

/// One step in f64: weights (or master) and moments afterwards.
pub(super) fn reference(
    op: &AdamW,
    p: &mut [f64],
    grad: &[f64],
    clip: f64,
    m: &mut [f64],
    v: &mut [f64],
) {
    let (b1, b2) = (f64::from(op.beta1), f64::from(op.beta2));
    let t = op.step as i32;
    for g in &op.groups {
        for i in g.start..g.end {
            let grad = grad[i] * clip;
            p[i] -= f64::from(g.lr) * f64::from(g.weight_decay) * p[i];
            m[i] = b1 * m[i] + (1.0 - b1) * grad;
            v[i] = b2 * v[i] + (1.0 - b2) * grad * grad;
            let (m_hat, v_hat) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
            p[i] -= f64::from(g.lr) * m_hat / (v_hat.sqrt() + f64::from(op.eps));
        }
    }
}

fn groups(n: usize) -> Vec<Group> {
    let cut = |a: usize| a * n / 7;
    vec![
        Group { start: cut(3), end: cut(6), lr: 0.02, weight_decay: 0.0 },
        Group { start: 0, end: cut(2), lr: 0.05, weight_decay: 0.1 },
        Group { start: cut(2), end: cut(2), lr: 1.0, weight_decay: 0.0 },
    ]
}

fn cases() -> Vec<Case> {
    let case = |n: usize, groups: Vec<Group>, step: u32, master: bool| {
        let op = AdamW { groups, beta1: 0.9, beta2: 0.95, eps: 1e-6, step };
        let variances = (0..n).map(|i| 0.01 + 0.3 * (i % 11) as f32).collect();
        let ins = vec![
            Some(Input::weight(&[n], 1.0)),
            Some(Input::f32(&[n], 2.0)),
            Some(Input::Const(vec![1], vec![0.37])),
            Some(Input::f32(&[n], 1.0)),
            Some(Input::Const(vec![n], variances)),
            Some(Input::ints(&[0])),
            master.then(|| Input::f32(&[n], 1.0)),
        ];
        let mut case = Case::new(op.clone(), ins, move |ins| {
            let (mut m, mut v) = (ins[3].clone(), ins[4].clone());
            let mut p = ins[if master { 6 } else { 0 }].clone();
            reference(&op, &mut p, &ins[1], ins[2][0], &mut m, &mut v);
            if !master {
                return vec![p, m, v, vec![0.0]];
            }
            let touched = |i: &usize| op.groups.iter().any(|g| (g.start..g.end).contains(i));
            let w = (0..n).map(|i| if touched(&i) { p[i] } else { ins[0][i] }).collect();
            vec![w, m, v, vec![0.0], p]
        });
        if master {
            case.dtypes = &[DType::Bf16];
        }
        case
    };
    // More groups than one launch takes, of 0 to 12 elements, with gaps.
    let count = 2 * ADAMW_GROUPS + 3;
    let many = (0..count).map(|i| Group {
        start: 13 * i + i % 3,
        end: 13 * i + 1 + i % 13,
        lr: 0.001 * (1 + i % 40) as f32,
        weight_decay: 0.01 * (i % 7) as f32,
    });
    let many: Vec<Group> = many.filter(|g| g.start <= g.end).collect();
    vec![
        case(70, groups(70), 1, false),
        case(40_003, groups(40_003), 1000, false),
        case(700, groups(700), 3, true),
        case(13 * count, many.clone(), 2, false),
        case(13 * count, many, 2, true),
    ]
}

#[cfg(test)]
#[path = "adamw_tests.rs"]
pub(crate) mod tests;
