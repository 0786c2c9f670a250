//! The end of a sum over blocks (or ranks): its bias, its residual connection, and the only
//! rounding.
//!
//! sum f32 `[tokens, out]`, bias `[out]` or none, residual `[tokens, out]` or none, both of `dtype`
//! -> y `[tokens, out]` of `dtype` = (sum + bias) + residual, in f32 and rounded once: what
//! `linear` does with its sums, bit for bit. Backward hands dy on, widened to the sum.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::{BiasResidualParams, BiasResidualWidenParams};
use crate::op::add::cuda_pass_on;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::gemm::Mat;
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};
use crate::op::cpu::vec;
use crate::op::cuda::vectors::{THREADS, adding, aligned, flat_grid, row_grid, vec_len};
use crate::op::cuda::{self, column_sums_scratch};
use crate::op::def::OpDef;
use crate::op::linear::{column_sums, pass_on};
use crate::op::{
    Arg, Backward, CudaBackward, CudaForward, CudaGrad, Forward, Grad, Op, Place, Plan, Run,
    by_dtype, required, shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct BiasResidual {
    /// The dtype of the output, and of what is added.
    pub dtype: DType,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "bias_residual",
    about: "y = (sum + bias) + residual of an f32 sum, rounded once",
    cases,
};

/// Ends `sum` f32 `[tokens, out]`. Returns `[tokens, out]` of `op.dtype`.
pub fn bias_residual(
    r: &mut dyn Run,
    op: BiasResidual,
    sum: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(sum), bias, residual])?[0])
}

impl Op for BiasResidual {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let sum = required(self, ins, 0)?;
        let (tokens, width) = (sum.shape.rows(), sum.shape.last());
        let y = Desc::new(&[tokens, width], self.dtype);
        let fits = self.dtype.is_float()
            && sum == Desc::new(&[tokens, width], DType::F32)
            && ins[1].is_none_or(|b| b == Desc::new(&[width], self.dtype))
            && ins[2].is_none_or(|r| r == y);
        if !fits {
            let expected = "sum f32 [tokens, out], bias [out], residual [tokens, out]";
            return Err(shape_error(self, ins, expected));
        }
        Ok(Plan {
            outs: vec![Place::New(y)],
            differentiable: 0b1,
            cuda_scratch_backward: ins[1].map_or(0, |_| column_sums_scratch(tokens, width)),
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match self.dtype {
            DType::Bf16 => forward::<bf16>(io),
            _ => forward::<f32>(io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match self.dtype {
            DType::Bf16 => backward::<bf16>(io),
            _ => backward::<f32>(io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (sum, y) = (io.input(0), io.outs[0]);
        let (tokens, width, n) = (y.rows(), y.last(), vec_len(self.dtype));
        let (bias, residual) = (io.ptr(1), io.ptr(2));
        let flags = aligned(&[sum.ptr, bias, residual, y.ptr], &[width], n);
        let params = BiasResidualParams {
            sum: sum.ptr,
            bias,
            residual,
            y: y.ptr,
            tokens: tokens as u32,
            width: width as u32,
            flags,
            pad: 0,
        };
        let kernel = by_dtype(self.dtype, "bias_residual_f32", "bias_residual_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, row_grid(tokens, width, n)?, THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let dy = io.dout(0);
        if let Some(dsum) = &io.dins[0] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { cuda_widen(io.stream, dy, dsum)? };
        }
        if let Some(db) = &io.dins[1] {
            let from = cuda::Mat::new(dy.ptr, dy.desc.dtype, dy.last());
            let (rows, columns, to) = (dy.rows(), dy.last(), db.arg.ptr);
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { cuda::column_sums(io.stream, from, rows, columns, to, db.acc, io.scratch)? };
        }
        match &io.dins[2] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            Some(dresidual) => unsafe { cuda_pass_on(io.stream, dy, dresidual) },
            None => Ok(()),
        }
    }
}

/// Sets the f32 gradient `to`, or adds to it, what `dy` is.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
unsafe fn cuda_widen(stream: &Stream, dy: Arg, to: &CudaGrad) -> Result<()> {
    if dy.desc.dtype == DType::F32 {
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        return unsafe { cuda_pass_on(stream, dy, to) };
    }
    let (len, n) = (dy.desc.shape.numel(), vec_len(DType::Bf16));
    let flags = aligned(&[dy.ptr, to.arg.ptr], &[], n) | adding(to.acc);
    let params =
        BiasResidualWidenParams { from: dy.ptr, to: to.arg.ptr, n: len as u64, flags, pad: 0 };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch("bias_residual_widen", flat_grid(len, n), THREADS, 0, &params) }
}

/// One row.
struct Row<'a, E> {
    y: &'a mut [E],
    sum: &'a [f32],
    bias: Option<&'a [E]>,
    residual: Option<&'a [E]>,
}

impl<E: Elem> Kernel for Row<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for j in (0..self.y.len()).step_by(LANES) {
            let mut v = s.take(&self.sum[j..]);
            if let Some(bias) = self.bias {
                v = s.add(v, s.take(&bias[j..]));
            }
            if let Some(residual) = self.residual {
                v = s.add(v, s.take(&residual[j..]));
            }
            s.put(&mut self.y[j..], v);
        }
    }
}

fn forward<E: Elem>(io: &mut Forward<'_>) {
    let sum = io.input(0);
    let (tokens, width) = (sum.desc.shape.rows(), sum.desc.shape.last());
    let sum = sum.f32();
    let [bias, residual] = [1, 2].map(|i| io.ins[i].map(|x| x.get::<E>()));
    let y = SharedMut::new(io.outs[0].get::<E>());
    let chunks = row_chunks(tokens, width);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            // SAFETY: row t belongs to this task alone.
            let y = unsafe { y.slice(t * width, width) };
            let sum = &sum[t * width..][..width];
            let residual = residual.map(|r| &r[t * width..][..width]);
            dispatch(level(), Row { y, sum, bias, residual });
        }
    });
}

/// dsum = dy in f32, db = column sums of dy, dresidual = dy.
fn backward<E: Elem>(io: &mut Backward<'_>) {
    let dy = io.dout(0);
    let (tokens, width) = (dy.desc.shape.rows(), dy.desc.shape.last());
    let dy = dy.get::<E>();
    let [dsum, db, dresidual] = &mut io.dins[..] else { panic!("bias_residual has three inputs") };
    if let Some(Grad { view, acc }) = dsum {
        widen(dy, view.f32(), *acc);
    }
    if let Some(Grad { view, acc }) = db {
        column_sums(Mat::dense(dy, tokens, width), view.f32(), *acc);
    }
    if let Some(Grad { view, acc }) = dresidual {
        pass_on(dy, view.get::<E>(), *acc);
    }
}

fn widen<E: Elem>(dy: &[E], out: &mut [f32], acc: bool) {
    let chunks = row_chunks(dy.len(), 1);
    let out = SharedMut::new(out);
    parallel_for(chunks.len(), |c| {
        let range = chunks[c].clone();
        // SAFETY: the range belongs to this task alone.
        let out = unsafe { out.slice(range.start, range.len()) };
        match acc {
            true => out.iter_mut().zip(&dy[range]).for_each(|(o, d)| *o += d.to_f32()),
            false => vec::widen(out, &dy[range]),
        }
    });
}

fn cases() -> Vec<Case> {
    let case = |dtype: DType, [tokens, width]: [usize; 2], bias: bool, residual: bool| {
        let ins = vec![
            Some(Input::f32(&[tokens, width], 3.0)),
            bias.then(|| Input::weight(&[width], 1.0)),
            residual.then(|| Input::act(&[tokens, width], 1.0)),
        ];
        let case = Case::new(BiasResidual { dtype }, ins, move |ins| {
            let at = |i: usize, k: usize| ins[i].get(k).unwrap_or(&0.0);
            vec![(0..tokens * width).map(|k| ins[0][k] + at(1, k % width) + at(2, k)).collect()]
        });
        Case { dtypes: if dtype == DType::Bf16 { &[DType::Bf16] } else { &[DType::F32] }, ..case }
    };
    let mut cases = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        cases.push(case(dtype, [7, 33], true, true));
        cases.push(case(dtype, [1, 5], false, true));
        cases.push(case(dtype, [300, 64], true, false));
        cases.push(case(dtype, [41, 24], false, false));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::cpu::testing::{Host, forward};

    /// Each of two terms is less than half a unit of 1 in bf16, their sum is more; and large terms
    /// of sum and bias cancel before the small residual comes.
    #[test]
    fn terms_are_added_in_order_and_rounded_once() {
        let run = |sum: f32, bias: f32, residual: f32| {
            let one = |dims: &[usize], v: f32| Some(Host::new::<bf16>(dims, &[v]));
            let sum = Some(Host::new::<f32>(&[1, 1], &[sum]));
            let ins = [sum, one(&[1], bias), one(&[1, 1], residual)];
            let y = forward(&BiasResidual { dtype: DType::Bf16 }, &ins)
                .expect("bias_residual")
                .remove(0);
            y.get::<bf16>()[0].to_f32()
        };
        let (unit, small) = (2f32.powi(-7), 3.0 * 2f32.powi(-10));
        assert_eq!(run(1.0, small, small), 1.0 + unit);
        let large = 2f32.powi(60);
        assert_eq!(run(large, -large, 0.5), 0.5);
    }
}
