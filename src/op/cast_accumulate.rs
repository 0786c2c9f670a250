//! A gradient made in f32 goes to where gradients are kept in bf16: set, or added to what is there.
//! The tape runs it for operators that cannot write bf16 gradients themselves.
//!
//! x f32, y bf16 of its shape -> y in place: x, or y + x; summed in f32 and rounded once. No
//! gradient.

use crate::base::{DType, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::CastAccumulateParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::vec;
use crate::op::cuda::vectors::{THREADS, adding, aligned, flat_grid, vec_len};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, required, shape_error};
use crate::tensor::Desc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct CastAccumulate {
    /// Add to y instead of setting it.
    pub add: bool,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "cast_accumulate",
    about: "a gradient cast to bf16, in place: y = x, or y + x",
    cases,
};

impl Op for CastAccumulate {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, y) = (required(self, ins, 0)?, required(self, ins, 1)?);
        if (x.dtype, y.dtype) != (DType::F32, DType::Bf16) || x.shape != y.shape {
            return Err(shape_error(self, ins, "x f32, y bf16 of its shape"));
        }
        Ok(Plan { outs: vec![Place::InPlace(1)], ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let x = io.input(0).f32();
        let chunks = row_chunks(x.len(), 1);
        let y = SharedMut::new(io.outs[0].get::<bf16>());
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let y = unsafe { y.slice(range.start, range.len()) };
            if self.add { vec::add_to(y, &x[range]) } else { vec::narrow(y, &x[range]) }
        });
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let x = io.input(0);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { launch(io.stream, x.ptr, io.outs[0].ptr, x.desc.shape.numel(), self.add) }
    }
}

/// Rounds `len` f32 at `x` into the bf16 at `y`, or adds them to those.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(super) unsafe fn launch(stream: &Stream, x: u64, y: u64, len: usize, add: bool) -> Result<()> {
    let n = vec_len(DType::Bf16);
    let flags = aligned(&[x, y], &[], n) | adding(add);
    let params = CastAccumulateParams { x, y, n: len as u64, flags, pad: 0 };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch("cast_accumulate", flat_grid(len, n), THREADS, 0, &params) }
}

fn cases() -> Vec<Case> {
    let case = |dims: &[usize], add: bool| {
        let ins = vec![Some(Input::f32(dims, 1.0)), Some(Input::act(dims, 2.0))];
        let case = Case::new(CastAccumulate { add }, ins, move |ins| {
            let old = |i: usize| if add { ins[1][i] } else { 0.0 };
            vec![ins[0].iter().enumerate().map(|(i, x)| x + old(i)).collect()]
        });
        Case { dtypes: &[DType::Bf16], ..case }
    };
    vec![case(&[3], false), case(&[67, 41], true), case(&[200, 256], false), case(&[1, 9], true)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Elem, Rng};
    use crate::op::cpu::testing::{Host, forward};

    /// Every element is rounded once, to nearest, ties to even, for lengths that fill no vector.
    #[test]
    fn each_sum_is_rounded_once() {
        let mut rng = Rng::new(61, 0);
        for n in [1, 15, 16, 77, 70_001] {
            let x = Host::normal::<f32>(&[n], 1.0, &mut rng);
            let y = Host::normal::<bf16>(&[n], 1.0, &mut rng);
            for add in [false, true] {
                let ins = [Some(x.clone()), Some(y.clone())];
                let got = forward(&CastAccumulate { add }, &ins)
                    .expect("cast_accumulate")
                    .remove(0)
                    .get::<bf16>();
                for ((got, x), y) in got.iter().zip(x.f32()).zip(y.get::<bf16>()) {
                    let sum = if add { y.to_f32() + x } else { x };
                    assert_eq!(*got, <bf16 as Elem>::from_f32(sum));
                }
            }
        }
    }
}
