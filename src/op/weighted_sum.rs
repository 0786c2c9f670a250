//! A weighted sum of per-token values, the last step of the losses that are linear in
//! log-probabilities or entropies: the SFT loss, the mixture loss, the entropy bonus.
//!
//! x f32 `[n]`, w f32 `[n]` (constant) -> f32 `[1]`, scale * sum x w.

use crate::base::Result;
use crate::device::Stream;
use crate::device::cuda::params::WeightedSumParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Plan, Run};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct WeightedSum {
    /// Multiplies the sum.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "weighted_sum",
    about: "scale * sum x w; w is constant (SFT and mixture loss, entropy bonus)",
    cases,
};

/// The sum of `x` under weights `w`. Returns f32 `[1]`.
pub fn weighted_sum(r: &mut dyn Run, op: WeightedSum, x: Tensor, w: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x), Some(w)])?[0])
}

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        Ok(Plan { saves_ins: 0b10, ..loss::plan(self, ins, 0)? })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, w) = (io.input(0).f32(), io.input(1).f32());
        io.outs[0].f32()[0] = sum(self.scale, x, w);
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let w = io.input(1).f32();
        loss::write_grad(io, 0, |k| f64::from(self.scale) * f64::from(w[k]));
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda_sum(io.stream, self.scale, io.input(0), io.input(1), io.outs[0].ptr) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let Some(grad) = io.dins[0] else { return Ok(()) };
        let (w, dsum) = (io.input(1), io.dout(0).ptr);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda_slopes(io.stream, self.scale, w, dsum, grad.arg.ptr, grad.acc) }
    }
}

/// `scale` times the sum of `x` under weights `w`.
pub(super) fn sum(scale: f32, x: &[f32], w: &[f32]) -> f32 {
    let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    (f64::from(scale) * sum) as f32
}

/// The same on a device, to `sum`.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(super) unsafe fn cuda_sum(stream: &Stream, scale: f32, x: Arg, w: Arg, sum: u64) -> Result<()> {
    let n = x.desc.shape.numel() as u32;
    let params =
        WeightedSumParams { x: x.ptr, w: w.ptr, sum, n, scale, ..bytemuck::Zeroable::zeroed() };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch("weighted_sum_forward_f32", [1, 1, 1], loss::THREADS, 0, &params) }
}

/// Sets `dx`, or adds to it: what the sum's slope `dsum`, f32 `[1]`, makes of each weight.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(super) unsafe fn cuda_slopes(
    stream: &Stream,
    scale: f32,
    w: Arg,
    dsum: u64,
    dx: u64,
    add: bool,
) -> Result<()> {
    let (n, acc) = (w.desc.shape.numel() as u32, add.into());
    let params =
        WeightedSumParams { w: w.ptr, dsum, dx, n, scale, acc, ..bytemuck::Zeroable::zeroed() };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe {
        stream.launch("weighted_sum_backward_f32", loss::token_grid(n), loss::THREADS, 0, &params)
    }
}

fn cases() -> Vec<Case> {
    let case = |n: usize, scale: f32| {
        let w = (0..n).map(|i| [0.0, 1.0, 0.25, -2.0][i % 4]).collect();
        Case::new(
            WeightedSum { scale },
            vec![Some(Input::f32(&[n], 3.0)), Some(Input::Const(vec![n], w))],
            move |ins| {
                let sum: f64 = ins[0].iter().zip(&ins[1]).map(|(x, w)| x * w).sum();
                vec![vec![f64::from(scale) * sum]]
            },
        )
    };
    vec![case(13, -0.125), case(1000, 1.0), case(2, 3.0)]
}
