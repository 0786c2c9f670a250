//! Elementwise sum.
//!
//! a, b `[..]` of one shape and dtype -> y = a + b, rounded once. Backward hands dy to both.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::AddParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::vectors::{THREADS, aligned, flat_grid, vec_len};
use crate::op::def::OpDef;
use crate::op::{
    Arg, Backward, CudaBackward, CudaForward, CudaGrad, Forward, Op, Place, Plan, Run, by_dtype,
    required, shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Add;

/// Registry entry.
pub const DEF: OpDef = OpDef { name: "add", about: "y = a + b", cases };

/// The sum of `a` and `b`.
pub fn add(r: &mut dyn Run, a: Tensor, b: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(Add), &[Some(a), Some(b)])?[0])
}

impl Op for Add {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (a, b) = (required(self, ins, 0)?, required(self, ins, 1)?);
        if a != b || !a.dtype.is_float() {
            return Err(shape_error(self, ins, "a and b of one shape and dtype"));
        }
        Ok(Plan { outs: vec![Place::New(a)], differentiable: 0b1, cheap: true, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(io),
            _ => forward::<f32>(io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.dout(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(io),
            _ => backward::<f32>(io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { launch(io.stream, io.input(0), io.ptr(1), io.outs[0].ptr) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        let pass_on = |grad| unsafe { cuda_pass_on(io.stream, io.dout(0), grad) };
        io.dins.iter().flatten().try_for_each(pass_on)
    }
}

/// Sets a gradient, or adds to it, that is the output's own: of a term of a sum.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(crate) unsafe fn cuda_pass_on(stream: &Stream, dy: Arg, to: &CudaGrad) -> Result<()> {
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { launch(stream, dy, if to.acc { to.arg.ptr } else { 0 }, to.arg.ptr) }
}

/// y = a + b, or y = a where `b` is 0.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
unsafe fn launch(stream: &Stream, a: Arg, b: u64, y: u64) -> Result<()> {
    let (len, n) = (a.desc.shape.numel(), vec_len(a.desc.dtype));
    let flags = aligned(&[a.ptr, b, y], &[], n);
    let params = AddParams { a: a.ptr, b, y, n: len as u64, flags, pad: 0 };
    let kernel = by_dtype(a.desc.dtype, "add_f32", "add_bf16");
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(kernel, flat_grid(len, n), THREADS, 0, &params) }
}

fn forward<E: Elem>(io: &mut Forward<'_>) {
    let (a, b) = (io.input(0).get::<E>(), io.input(1).get::<E>());
    let y = SharedMut::new(io.outs[0].get::<E>());
    let chunks = row_chunks(a.len(), 1);
    parallel_for(chunks.len(), |c| {
        let range = chunks[c].clone();
        // SAFETY: the range belongs to this task alone.
        let y = unsafe { y.slice(range.start, range.len()) };
        for ((y, a), b) in y.iter_mut().zip(&a[range.clone()]).zip(&b[range]) {
            *y = E::from_f32(a.to_f32() + b.to_f32());
        }
    });
}

fn backward<E: Elem>(io: &mut Backward<'_>) {
    let dy = io.dout(0).get::<E>();
    for grad in io.dins.iter_mut().flatten() {
        let acc = grad.acc;
        let dx = SharedMut::new(grad.view.get::<E>());
        let chunks = row_chunks(dy.len(), 1);
        parallel_for(chunks.len(), |c| {
            let range = chunks[c].clone();
            // SAFETY: the range belongs to this task alone.
            let dx = unsafe { dx.slice(range.start, range.len()) };
            for (dx, dy) in dx.iter_mut().zip(&dy[range]) {
                *dx = if acc { E::from_f32(dx.to_f32() + dy.to_f32()) } else { *dy };
            }
        });
    }
}

fn cases() -> Vec<Case> {
    let case = |dims: &[usize]| {
        let ins = vec![Some(Input::act(dims, 1.0)), Some(Input::act(dims, 1.0))];
        Case::new(Add, ins, |ins| vec![ins[0].iter().zip(&ins[1]).map(|(a, b)| a + b).collect()])
    };
    vec![case(&[7, 33]), case(&[1, 1]), case(&[130, 257])]
}
