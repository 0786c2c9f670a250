//! Code that the scalar losses share. Every input is f32 `[n]`; the outputs are a loss `[1]` and
//! sums for reports. All sums are in f64 in token order: there are few tokens, and the order must
//! not depend on threads. On CUDA devices one block computes them (cuda/lib/loss.cuh).

use crate::base::{DType, Error, Result};
use crate::device::cuda::constants::loss::LOSS_THREADS;
use crate::op::{Backward, Op, Place, Plan, required, shape_error};
use crate::tensor::Desc;

/// The plan of a loss over f32 `[n]` inputs: output 0 is the loss, output 1 holds `stats` sums.
pub fn plan(op: &dyn Op, ins: &[Option<Desc>], stats: usize) -> Result<Plan> {
    let x = required(op, ins, 0)?;
    let fits = |d: &Option<Desc>| *d == Some(x);
    if x.dtype != DType::F32 || x.shape.dims().len() != 1 || !ins.iter().all(fits) {
        return Err(shape_error(op, ins, "f32 [n] everywhere"));
    }
    let mut outs = vec![Place::New(Desc::new(&[1], DType::F32))];
    if stats > 0 {
        outs.push(Place::New(Desc::new(&[stats], DType::F32)));
    }
    Ok(Plan {
        outs,
        differentiable: 0b1,
        saves_ins: (1 << ins.len()) - 1,
        cheap: true,
        flops: 8 * x.shape.numel() as u64,
        ..Plan::default()
    })
}

/// Puts d(loss)/d(input `i`) in place; `slope(k)` is the derivative of the loss by its element `k`.
pub fn write_grad(io: &mut Backward<'_>, i: usize, slope: impl Fn(usize) -> f64) {
    let upstream = f64::from(io.dout(0).f32()[0]);
    let Some(grad) = &mut io.dins[i] else { return };
    let acc = grad.acc;
    for (k, o) in grad.view.f32().iter_mut().enumerate() {
        let v = (upstream * slope(k)) as f32;
        *o = if acc { *o + v } else { v };
    }
}

/// Threads of a block of the losses' kernels.
pub const THREADS: u32 = LOSS_THREADS as u32;

/// The grid of a kernel with a thread per token.
pub fn token_grid(n: u32) -> [u32; 3] {
    [n.div_ceil(THREADS), 1, 1]
}

/// Refuses gradients of inputs from `first` on, which the loss treats as constants.
pub fn constants<G>(op: &dyn Op, dins: &[Option<G>], first: usize) -> Result<()> {
    match dins.iter().skip(first).position(Option::is_some) {
        Some(i) => Err(Error::internal(format!(
            "{}: input {} is a constant and has no gradient",
            op.name(),
            first + i
        ))),
        None => Ok(()),
    }
}
