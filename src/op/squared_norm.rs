//! Sum of squares, for the global gradient norm. Cut into pieces of fixed size that are added in
//! order, so the result does not depend on the number of threads.
//!
//! x f32 or bf16, any shape -> f32 `[1]`. No gradient.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::squared_norm::{SQUARED_NORM_PIECE, SQUARED_NORM_THREADS};
use crate::device::cuda::params::SquaredNormParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::vec;
use crate::op::cuda::vectors::aligned;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct SquaredNorm;

/// Registry entry.
pub const DEF: OpDef = OpDef { name: "squared_norm", about: "sum x^2, in a fixed order", cases };

/// Returns the sum of squares of `x`, f32 `[1]`.
pub fn squared_norm(r: &mut dyn Run, x: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(SquaredNorm), &[Some(x)])?[0])
}

/// Elements a piece.
const PIECE: usize = 1 << 16;
/// Elements summed in f32.
const BLOCK: usize = 1 << 10;
/// Elements a piece on CUDA devices.
const CUDA_PIECE: usize = SQUARED_NORM_PIECE as usize;

impl Op for SquaredNorm {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = required(self, ins, 0)?;
        if !x.dtype.is_float() {
            return Err(shape_error(self, ins, "x f32 or bf16"));
        }
        let n = x.shape.numel();
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[1], DType::F32))],
            // An f64 per piece.
            cuda_scratch: 2 * n.div_ceil(CUDA_PIECE),
            flops: 2 * n as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let x = io.input(0);
        io.outs[0].f32()[0] = match x.desc.dtype {
            DType::Bf16 => total::<bf16>(x.get()),
            _ => total::<f32>(x.get()),
        };
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        const THREADS: u32 = SQUARED_NORM_THREADS as u32;
        let x = io.input(0);
        let n = x.desc.shape.numel();
        let params = SquaredNormParams {
            x: x.ptr,
            partial: io.scratch,
            sum: io.outs[0].ptr,
            n: n as u64,
            flags: aligned(&[x.ptr], &[], 4),
            pad: 0,
        };
        let pieces = n.div_ceil(CUDA_PIECE) as u32;
        let kernel = by_dtype(x.desc.dtype, "squared_norm_pieces_f32", "squared_norm_pieces_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, [pieces, 1, 1], THREADS, 0, &params)? };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("squared_norm_total", [1, 1, 1], THREADS, 0, &params) }
    }
}

/// The sums of pieces, added in order.
fn total<E: Elem>(x: &[E]) -> f32 {
    let mut sums = vec![0f64; x.len().div_ceil(PIECE)];
    let out = SharedMut::new(&mut sums);
    parallel_for(x.len().div_ceil(PIECE), |i| {
        // SAFETY: sum i belongs to this task alone.
        let out = unsafe { out.slice(i, 1) };
        out[0] = piece(&x[i * PIECE..x.len().min((i + 1) * PIECE)]);
    });
    sums.iter().sum::<f64>() as f32
}

/// Sums of blocks in f32, added in f64 in order.
fn piece<E: Elem>(x: &[E]) -> f64 {
    x.chunks(BLOCK).map(|x| f64::from(vec::sum_sq(x))).sum()
}

fn cases() -> Vec<Case> {
    let case = |dims: &[usize]| {
        Case::new(SquaredNorm, vec![Some(Input::act(dims, 3.0))], |ins| {
            vec![vec![ins[0].iter().map(|x| x * x).sum::<f64>()]]
        })
    };
    vec![case(&[1]), case(&[37]), case(&[3, 3 * PIECE / 4 + 5])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::with_threads;
    use crate::op::cpu::testing::{Host, forward};

    #[test]
    fn thread_count_does_not_matter() {
        let n = 5 * PIECE + 17;
        let x = Host::normal::<f32>(&[n], 1.0, &mut crate::base::Rng::new(23, 0));
        let run = |threads: usize| {
            with_threads(threads, || forward(&SquaredNorm, &[Some(x.clone())])).expect("sum")
        };
        let one = run(1);
        assert!((2..6).all(|t| run(t) == one));
    }
}
