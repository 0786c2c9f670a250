//! The linear layer, with its bias and the residual connection it ends in.
//!
//! x `[tokens, in]`, w `[out, in]`, b `[out]` or none, residual `[tokens, out]` or none (in the
//! dtype of the output) -> y `[tokens, out]` = x w^T + b + residual, summed in f32 and rounded
//! once. With `f32_out` y is f32 whatever the dtype of x: logits. With an activation
//! y = act(x w^T + b), its argument rounded as if it had been stored: for passes without a
//! backward, which needs the argument.
//!
//! A product over all input columns may be made of products over blocks of them: the first with
//! `f32_out`, the others with `onto`, which adds to it in place. That is the sum of the blocks'
//! products in their order, bit for bit what ranks with a block each get by reducing.
//! `bias_residual` ends it.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::act::{Kind, reference};
use crate::op::add::cuda_pass_on;
use crate::op::cast_accumulate;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::act;
use crate::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::{self, Layout, Out, gemm};
use crate::op::def::OpDef;
use crate::op::{Arg, CudaBackward, CudaForward, CudaGrad};
use crate::op::{Backward, Forward, Grad, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Keep the f32 sums as the output.
    pub f32_out: bool,
    /// Applied last. Then there is no residual, and no gradient.
    pub activation: Option<Kind>,
    /// The residual is the f32 sum so far and is updated in place: y = residual + x w^T. With
    /// `f32_out` and without a bias.
    pub onto: bool,
}

impl Linear {
    /// x w^T + b + residual.
    pub const PLAIN: Linear = Linear { f32_out: false, activation: None, onto: false };
    /// The same, not rounded.
    pub const LOGITS: Linear = Linear { f32_out: true, ..Linear::PLAIN };
    /// Added to an f32 sum in place.
    pub const ONTO: Linear = Linear { onto: true, ..Linear::LOGITS };
}

/// Registry entry.
pub const DEF: OpDef = OpDef { name: "linear", about: "y = x w^T + b + residual", cases };

/// Multiplies rows of `x` by `weight` `[out, in]`. Returns `[tokens, out]`.
pub fn linear(
    r: &mut dyn Run,
    op: Linear,
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x), Some(weight), bias, residual])?[0])
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, w) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let (tokens, inner, outer) = (x.shape.rows(), x.shape.last(), w.shape.rows());
        let dtype = if self.f32_out { DType::F32 } else { x.dtype };
        let y = Desc::new(&[tokens, outer], dtype);
        let fits = x.dtype.is_float()
            && x == Desc::new(&[tokens, inner], x.dtype)
            && w == Desc::new(&[outer, inner], x.dtype)
            && ins[2].is_none_or(|b| b == Desc::new(&[outer], x.dtype))
            && ins[3].is_none_or(|r| r == y)
            && (self.activation.is_none() || (ins[3].is_none() && !self.f32_out))
            && (!self.onto || (self.f32_out && ins[2].is_none() && ins[3].is_some()));
        if !fits {
            let expected = "x [tokens, in], w [out, in], b [out], residual [tokens, out]";
            return Err(shape_error(self, ins, expected));
        }
        Ok(Plan {
            outs: vec![if self.onto { Place::InPlace(3) } else { Place::New(y) }],
            differentiable: u64::from(self.activation.is_none()),
            saves_ins: 0b11,
            bf16_grads: 0b10,
            cuda_scratch_backward: narrowed(self, x.dtype, tokens * outer)
                + cuda::column_sums_scratch(tokens, outer),
            flops: 2 * (tokens * inner * outer) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match (io.input(0).desc.dtype, self.f32_out) {
            (DType::Bf16, false) => forward::<bf16, bf16>(self, io),
            (DType::Bf16, true) => forward::<bf16, f32>(self, io),
            _ => forward::<f32, f32>(self, io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match (io.input(0).desc.dtype, self.f32_out) {
            (DType::Bf16, false) => backward::<bf16, bf16>(io),
            (DType::Bf16, true) => backward::<bf16, f32>(io),
            _ => backward::<f32, f32>(io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (x, w, y) = (io.input(0), io.input(1), io.outs[0]);
        let out = Out {
            bias: io.ptr(2),
            // Not by adding to what is there, which keeps the bits of -0 where the product is 0.
            residual: if self.onto { y.ptr } else { io.ptr(3) },
            activation: self.activation,
            ..Out::new(y.ptr, y.desc.dtype, y.last())
        };
        let [m, n, k] = [x.rows(), w.rows(), x.last()];
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { gemm(io.stream, Layout::Nt.of(m, n, k), on_device(x), on_device(w), out) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (x, w, dy) = (io.input(0), io.input(1), io.dout(0));
        let (tokens, inner, outer) = (x.rows(), x.last(), w.rows());
        let out = |g: &CudaGrad| Out {
            accumulate: g.acc,
            ..Out::new(g.arg.ptr, g.arg.desc.dtype, g.arg.last())
        };
        let scratch = io.scratch + 4 * narrowed(self, x.desc.dtype, tokens * outer) as u64;
        let mut dy_mat = on_device(dy);
        if scratch > io.scratch {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe {
                cast_accumulate::launch(io.stream, dy.ptr, io.scratch, tokens * outer, false)?
            };
            dy_mat = cuda::Mat::new(io.scratch, DType::Bf16, outer);
        }
        let (x, w) = (on_device(x), on_device(w));
        if let Some(dx) = &io.dins[0] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { gemm(io.stream, Layout::Nn.of(tokens, inner, outer), dy_mat, w, out(dx))? };
        }
        if let Some(dw) = &io.dins[1] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { gemm(io.stream, Layout::Tn.of(outer, inner, tokens), dy_mat, x, out(dw))? };
        }
        if let Some(db) = &io.dins[2] {
            let (ptr, acc) = (db.arg.ptr, db.acc);
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe {
                cuda::column_sums(io.stream, on_device(dy), tokens, outer, ptr, acc, scratch)?
            };
        }
        match &io.dins[3] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            Some(dresidual) => unsafe { cuda_pass_on(io.stream, dy, dresidual) },
            None => Ok(()),
        }
    }
}

/// f32 elements of memory for the gradient of an f32 output beside operands in bf16, rounded to
/// that: both of its products then take the tensor cores. Behind `bias_residual` it has no other
/// bits to lose.
fn narrowed(op: &Linear, dtype: DType, elements: usize) -> usize {
    if op.f32_out && dtype == DType::Bf16 { elements.div_ceil(2).next_multiple_of(4) } else { 0 }
}

fn on_device(x: Arg) -> cuda::Mat {
    cuda::Mat::new(x.ptr, x.desc.dtype, x.last())
}

/// A view as a dense matrix.
fn matrix<'a, E: Elem>(view: crate::op::View<'a>) -> Mat<'a, E> {
    Mat::dense(view.get(), view.desc.shape.rows(), view.desc.shape.last())
}

fn forward<E: Elem, Y: Elem>(op: &Linear, io: &mut Forward<'_>) {
    let (x, w) = (io.input(0), io.input(1));
    let bias = io.ins[2].map(|b| b.get::<E>());
    let residual = io.ins[3].map(|r| r.get::<Y>());
    let y = io.outs[0].get::<Y>();
    // The residual may be of another type than the bias; as the old value of y it need not be told.
    if let Some(residual) = residual {
        y.copy_from_slice(residual);
    }
    let accumulate = op.onto || residual.is_some();
    let epilogue = Epilogue { bias, accumulate, ..Epilogue::default() };
    let out = MatMut::dense(y, x.desc.shape.rows(), w.desc.shape.rows());
    gemm_nt(matrix::<E>(x), matrix::<E>(w), out, &epilogue);
    let Some(kind) = op.activation else { return };
    let chunks = row_chunks(y.len(), 1);
    let y = SharedMut::new(y);
    parallel_for(chunks.len(), |c| {
        // SAFETY: the range belongs to this task alone.
        act::in_place(kind, unsafe { y.slice(chunks[c].start, chunks[c].len()) });
    });
}

/// dx = dy w, dw = dy^T x, db = column sums of dy, dresidual = dy (where it is not in place).
fn backward<E: Elem, Y: Elem>(io: &mut Backward<'_>) {
    let (x, w, dy) = (io.input(0), io.input(1), io.dout(0));
    let (tokens, inner, outer) = (x.desc.shape.rows(), x.desc.shape.last(), w.desc.shape.rows());
    let [dx, dw, db, dresidual] = &mut io.dins[..] else { panic!("linear has four inputs") };
    if let Some(Grad { view, acc }) = dx {
        let dx = MatMut::dense(view.get::<E>(), tokens, inner);
        gemm_nn(matrix::<Y>(dy), matrix::<E>(w), dx, *acc);
    }
    if let Some(Grad { view, acc }) = dw {
        let (dy, x) = (matrix::<Y>(dy), matrix::<E>(x));
        if view.desc.dtype == DType::F32 {
            gemm_tn(dy, x, MatMut::dense(view.f32(), outer, inner), *acc);
        } else {
            gemm_tn(dy, x, MatMut::dense(view.get::<E>(), outer, inner), *acc);
        }
    }
    if let Some(Grad { view, acc }) = db {
        column_sums(matrix::<Y>(dy), view.f32(), *acc);
    }
    if let Some(Grad { view, acc }) = dresidual {
        pass_on(dy.get::<Y>(), view.get::<Y>(), *acc);
    }
}

/// Sums (or adds) the rows of `x` into `out`, in row order. Columns are split over tasks.
pub(crate) fn column_sums<E: Elem>(x: Mat<'_, E>, out: &mut [f32], acc: bool) {
    let columns = row_chunks(out.len(), x.rows());
    let out = SharedMut::new(out);
    parallel_for(columns.len(), |c| {
        let range = columns[c].clone();
        // SAFETY: the column range belongs to this task alone.
        let out = unsafe { out.slice(range.start, range.len()) };
        if !acc {
            out.fill(0.0);
        }
        for row in 0..x.rows() {
            for (o, v) in out.iter_mut().zip(x.row(row, range.clone())) {
                *o += v.to_f32();
            }
        }
    });
}

/// Sets (or adds) a gradient that is the output's own.
pub(crate) fn pass_on<E: Elem>(dy: &[E], out: &mut [E], acc: bool) {
    if !acc {
        return out.copy_from_slice(dy);
    }
    let chunks = row_chunks(dy.len(), 1);
    let out = SharedMut::new(out);
    parallel_for(chunks.len(), |c| {
        let range = chunks[c].clone();
        // SAFETY: the range belongs to this task alone.
        let out = unsafe { out.slice(range.start, range.len()) };
        for (o, d) in out.iter_mut().zip(&dy[range]) {
            *o = E::from_f32(o.to_f32() + d.to_f32());
        }
    });
}

fn cases() -> Vec<Case> {
    let case = |[tokens, inner, outer]: [usize; 3], op: Linear, bias: bool, residual: bool| {
        let y = [tokens, outer];
        let residual = residual.then(|| match op.f32_out {
            true => Input::f32(&y, 1.0),
            false => Input::act(&y, 1.0),
        });
        let ins = vec![
            Some(Input::act(&[tokens, inner], 1.0)),
            Some(Input::weight(&[outer, inner], 1.0)),
            bias.then(|| Input::weight(&[outer], 1.0)),
            residual,
        ];
        Case::new(op, ins, move |ins| {
            let mut y = vec![0.0; tokens * outer];
            for (i, y) in y.iter_mut().enumerate() {
                let (t, o) = (i / outer, i % outer);
                let (x, w) = (&ins[0][t * inner..][..inner], &ins[1][o * inner..][..inner]);
                *y = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                *y += ins[2].get(o).unwrap_or(&0.0) + ins[3].get(i).unwrap_or(&0.0);
                *y = op.activation.map_or(*y, |kind| reference(kind, *y));
            }
            vec![y]
        })
    };
    let with = |kind: Kind| Linear { activation: Some(kind), ..Linear::PLAIN };
    vec![
        case([5, 32, 48], Linear::PLAIN, true, true),
        case([1, 17, 9], Linear::PLAIN, false, false),
        case([33, 100, 65], Linear::PLAIN, true, false),
        case([7, 24, 31], Linear::LOGITS, true, true),
        case([3, 64, 130], Linear::LOGITS, false, false),
        case([6, 32, 48], with(Kind::GeluTanh), true, false),
        case([33, 19, 70], with(Kind::Silu), false, false),
        case([65, 64, 72], with(Kind::GeluErf), true, false),
        case([9, 23, 37], Linear::ONTO, false, true),
        case([40, 64, 96], Linear::ONTO, false, true),
    ]
}

#[cfg(test)]
mod tests;
