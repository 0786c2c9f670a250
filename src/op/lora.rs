//! Low-rank adapters (LoRA; Hu et al. 2021) on some output columns of a linear layer.
//!
//! y `[tokens, total]`, x `[tokens, in]`, a `[rank, in]`, b `[n, rank]` -> y in place,
//! y[:, offset..offset + n] += scale * (dropout(x) a^T) b^T, and u = dropout(x) a^T f32
//! `[tokens, rank]`, kept for backward. Where the update is 0 (b starts at 0) y keeps its bits.
//! Large operands go through in pieces of a fixed number of rows, so workspace stays small.
//!
//! y may be f32 where the others are bf16: the sum of a product over blocks of columns (see
//! `linear`). Then each block's columns of x and a are an update of their own, with the dropout
//! that they have in the whole x.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::dropout::{Dropout, Numbers};
use crate::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::def::OpDef;
use crate::op::{
    Backward, CudaBackward, CudaForward, Forward, Grad, Op, Place, Plan, Run, required, shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

mod cuda;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// Scale of the update, alpha / rank.
    pub scale: f32,
    /// First column of y that is updated.
    pub offset: usize,
    /// Dropout on x; 0 = none.
    pub dropout: f32,
    /// Seed of the dropout, another one every step.
    pub seed: u64,
    /// Number of the adapter in the model.
    pub site: u64,
    /// Number of the first token in the step: the mask of a token depends on its number there, not
    /// on the micro-batch it is in.
    pub first: usize,
    /// The columns that x and a are, of an input with more; `None`: all.
    pub columns: Option<Columns>,
}

/// A run of columns of an input.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// The first.
    pub first: usize,
    /// Columns of the whole input. What the run has beyond them is padding.
    pub total: usize,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "lora",
    about: "y[:, offset..offset + n] += scale * (dropout(x) a^T) b^T, in place",
    cases,
};

/// Adds the adapter's update to `y`, which is returned.
pub fn lora(
    r: &mut dyn Run,
    op: Lora,
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(y), Some(x), Some(a), Some(b)])?[0])
}

/// Rows that go through at once.
const PIECE: usize = 256;

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    total: usize,
    inner: usize,
    rank: usize,
    n: usize,
}

impl Lora {
    fn sizes(&self, ins: &[Option<Desc>]) -> Result<Sizes> {
        let [y, x, a, b] = [0, 1, 2, 3].map(|i| required(self, ins, i));
        let (y, x, a, b) = (y?, x?, a?, b?);
        let s = Sizes {
            tokens: x.shape.rows(),
            total: y.shape.last(),
            inner: x.shape.last(),
            rank: a.shape.rows(),
            n: b.shape.rows(),
        };
        let fits = x.dtype.is_float()
            && (y.dtype == x.dtype || y.dtype == DType::F32)
            && y == Desc::new(&[s.tokens, s.total], y.dtype)
            && x == Desc::new(&[s.tokens, s.inner], x.dtype)
            && a == Desc::new(&[s.rank, s.inner], x.dtype)
            && b == Desc::new(&[s.n, s.rank], x.dtype)
            && self.offset + s.n <= s.total;
        if !fits {
            let expected =
                "y [tokens, total], x [tokens, in], a [rank, in], b [n, rank], offset + n <= total";
            return Err(shape_error(self, ins, expected));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::internal(format!("lora with dropout {}", self.dropout)));
        }
        Ok(s)
    }

    fn dropout(&self) -> Option<Dropout> {
        (self.dropout > 0.0).then_some(Dropout {
            p: self.dropout,
            seed: self.seed,
            site: self.site,
        })
    }

    /// Dropout's numbering of the elements of x, from row `row` on.
    fn numbers(&self, s: &Sizes, row: usize) -> Numbers {
        let whole = Columns { first: 0, total: s.inner };
        let Columns { first, total } = self.columns.unwrap_or(whole);
        Numbers { first: (self.first + row) * total + first, width: s.inner, stride: total }
    }

    /// Elements that dropout(x) of one piece takes.
    fn dropped(&self, s: &Sizes) -> usize {
        self.dropout().map_or(0, |_| s.tokens.min(PIECE) * s.inner)
    }
}

impl Op for Lora {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let s = self.sizes(ins)?;
        let rows = s.tokens.min(PIECE);
        let [cuda_scratch, cuda_scratch_backward] =
            cuda::scratch(self, &s, required(self, ins, 1)?.dtype);
        Ok(Plan {
            outs: vec![Place::InPlace(0), Place::New(Desc::new(&[s.tokens, s.rank], DType::F32))],
            differentiable: 0b1,
            saves_ins: 0b1110,
            saves_outs: 0b10,
            // b^T, the update, dropout(x).
            scratch: s.rank * s.n + rows * s.n + self.dropped(&s),
            cuda_scratch,
            cuda_scratch_backward,
            // b^T, du, scale * u, dropout(x).
            scratch_backward: s.rank * s.n + 2 * rows * s.rank + self.dropped(&s),
            flops: 2 * (s.tokens * s.rank * (s.inner + s.n)) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match (io.input(1).desc.dtype, io.outs[0].desc.dtype) {
            (DType::Bf16, DType::Bf16) => forward::<bf16, bf16>(self, io),
            (DType::Bf16, _) => forward::<bf16, f32>(self, io),
            _ => forward::<f32, f32>(self, io),
        }
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match (io.input(1).desc.dtype, io.dout(0).desc.dtype) {
            (DType::Bf16, DType::Bf16) => backward::<bf16, bf16>(self, io),
            (DType::Bf16, _) => backward::<bf16, f32>(self, io),
            _ => backward::<f32, f32>(self, io),
        }
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda::forward(self, io) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda::backward(self, io) }
    }
}

/// scale * b^T `[rank, n]` in f32.
fn scaled_transpose<E: Elem>(b: &[E], scale: f32, s: &Sizes, out: &mut [f32]) {
    for (j, row) in b.chunks_exact(s.rank.max(1)).enumerate() {
        for (k, v) in row.iter().enumerate() {
            out[k * s.n + j] = scale * v.to_f32();
        }
    }
}

fn forward<E: Elem, Y: Elem>(op: &Lora, io: &mut Forward<'_>) -> Result<()> {
    let (x, a, b) = (io.input(1), io.input(2), io.input(3));
    let [y, u] = &mut io.outs[..] else { panic!("lora has two outputs") };
    let s = op.sizes(&[Some(y.desc), Some(x.desc), Some(a.desc), Some(b.desc)])?;
    let (x, a, y, u) = (x.get::<E>(), a.get::<E>(), y.get::<Y>(), u.f32());
    let (transposed, rest) = io.scratch.split_at_mut(s.rank * s.n);
    let (update, dropped) = rest.split_at_mut(s.tokens.min(PIECE) * s.n);
    scaled_transpose(b.get::<E>(), op.scale, &s, transposed);
    let a = Mat::dense(a, s.rank, s.inner);
    for start in (0..s.tokens).step_by(PIECE) {
        let rows = PIECE.min(s.tokens - start);
        let x = &x[start * s.inner..][..rows * s.inner];
        let u = &mut u[start * s.rank..][..rows * s.rank];
        let out = MatMut::dense(&mut *u, rows, s.rank);
        match op.dropout() {
            Some(dropout) => {
                let dropped = &mut dropped[..rows * s.inner];
                dropout.forward(x, op.numbers(&s, start), dropped);
                let x = Mat::dense(&*dropped, rows, s.inner);
                gemm_nt(x, a, out, &Epilogue::<f32>::default());
            }
            None => gemm_nt(Mat::dense(x, rows, s.inner), a, out, &Epilogue::<f32>::default()),
        }
        let update = &mut update[..rows * s.n];
        let b = Mat::dense(&*transposed, s.rank, s.n);
        let out = MatMut::dense(&mut *update, rows, s.n);
        gemm_nn(Mat::dense(&*u, rows, s.rank), b, out, false);
        add(&mut y[start * s.total..][..rows * s.total], update, op.offset, &s);
    }
    Ok(())
}

/// Adds the update to its columns of `y`, but leaves elements alone where it is 0: -0 + 0 is not
/// -0.
fn add<E: Elem>(y: &mut [E], update: &[f32], offset: usize, s: &Sizes) {
    let rows = y.len() / s.total.max(1);
    let chunks = row_chunks(rows, s.n);
    let y = SharedMut::new(y);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            // SAFETY: row t belongs to this task alone.
            let y = unsafe { y.slice(t * s.total + offset, s.n) };
            for (y, d) in y.iter_mut().zip(&update[t * s.n..][..s.n]) {
                *y = if *d == 0.0 { *y } else { E::from_f32(y.to_f32() + d) };
            }
        }
    });
}

/// With dv the gradient of the updated columns: du = scale dv b, da = du^T dropout(x),
/// db = scale dv^T u, dx = du a through the same dropout.
fn backward<E: Elem, Y: Elem>(op: &Lora, io: &mut Backward<'_>) -> Result<()> {
    let (x, a, b, u) = (io.input(1), io.input(2), io.input(3), io.output(1).f32());
    let dy = io.dout(0);
    let s = op.sizes(&[Some(dy.desc), Some(x.desc), Some(a.desc), Some(b.desc)])?;
    let (x, dy) = (x.get::<E>(), dy.get::<Y>());
    let a = Mat::dense(a.get::<E>(), s.rank, s.inner);
    let piece = s.tokens.min(PIECE);
    let (transposed, rest) = io.scratch.split_at_mut(s.rank * s.n);
    let (du, rest) = rest.split_at_mut(piece * s.rank);
    let (scaled_u, dropped) = rest.split_at_mut(piece * s.rank);
    scaled_transpose(b.get::<E>(), op.scale, &s, transposed);
    let b = Mat::dense(&*transposed, s.rank, s.n);
    let [_, dx, da, db] = &mut io.dins[..] else { panic!("lora has four inputs") };
    // Without rows there is still one (empty) piece, which sets the gradients to 0.
    for start in (0..s.tokens.max(1)).step_by(PIECE) {
        let rows = PIECE.min(s.tokens - start);
        let columns = match rows {
            0 => &dy[..0],
            _ => &dy[start * s.total + op.offset..][..(rows - 1) * s.total + s.n],
        };
        let dv = Mat::new(columns, rows, s.n, s.total);
        if let Some(Grad { view, acc }) = db {
            let scaled_u = &mut scaled_u[..rows * s.rank];
            let from = &u[start * s.rank..][..rows * s.rank];
            scaled_u.iter_mut().zip(from).for_each(|(o, u)| *o = op.scale * u);
            let out = MatMut::dense(view.f32(), s.n, s.rank);
            gemm_tn(dv, Mat::dense(&*scaled_u, rows, s.rank), out, *acc || start > 0);
        }
        if dx.is_none() && da.is_none() {
            continue;
        }
        let du = &mut du[..rows * s.rank];
        let out = MatMut::dense(&mut *du, rows, s.rank);
        gemm_nt(dv, b, out, &Epilogue::<f32>::default());
        let du = Mat::dense(&*du, rows, s.rank);
        let (first, x) = (start * s.inner, &x[start * s.inner..][..rows * s.inner]);
        let drawn = op.numbers(&s, start);
        if let Some(Grad { view, acc }) = da {
            let out = MatMut::dense(view.f32(), s.rank, s.inner);
            let acc = *acc || start > 0;
            if let Some(dropout) = op.dropout() {
                let dropped = &mut dropped[..rows * s.inner];
                dropout.forward(x, drawn, dropped);
                gemm_tn(du, Mat::dense(&*dropped, rows, s.inner), out, acc);
            } else {
                gemm_tn(du, Mat::dense(x, rows, s.inner), out, acc);
            }
        }
        if let Some(Grad { view, acc }) = dx {
            let dx = &mut view.get::<E>()[first..][..rows * s.inner];
            if let Some(dropout) = op.dropout() {
                let dropped = &mut dropped[..rows * s.inner];
                gemm_nn(du, a, MatMut::dense(&mut *dropped, rows, s.inner), false);
                dropout.backward(dropped, drawn, dx, *acc);
            } else {
                gemm_nn(du, a, MatMut::dense(dx, rows, s.inner), *acc);
            }
        }
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let op = |tokens: usize, offset: usize, dropout: f32| {
        let (seed, site) = (3 << 33, 12);
        Lora { scale: 1.5, offset, dropout, seed, site, first: 2 * tokens, columns: None }
    };
    let part = |first, total, op| Lora { columns: Some(Columns { first, total }), ..op };
    let (plain, onto_f32) = (false, true);
    vec![
        case([5, 24, 19, 4, 8], op(5, 8, 0.0), plain),
        case([7, 16, 32, 8, 16], op(7, 0, 0.25), plain),
        case([3, 30, 21, 3, 7], op(3, 23, 0.5), plain),
        case([PIECE + 9, 6, 10, 2, 5], op(PIECE + 9, 1, 0.1), plain),
        case([cuda::PIECE + 3, 4, 3, 2, 2], op(cuda::PIECE + 3, 1, 0.2), plain),
        case([9, 20, 16, 4, 8], op(9, 4, 0.0), onto_f32),
        case([11, 13, 12, 3, 7], part(12, 31, op(11, 2, 0.3)), onto_f32),
        // The last columns are padding.
        case([PIECE + 5, 9, 16, 2, 9], part(32, 45, op(PIECE + 5, 0, 0.4)), onto_f32),
        case([6, 17, 7, 2, 4], part(7, 14, op(6, 11, 0.5)), plain),
    ]
}

/// With y in f32, or as all else.
fn case([tokens, total, inner, rank, n]: [usize; 5], op: Lora, onto_f32: bool) -> Case {
    let y = [tokens, total];
    let ins = vec![
        Some(if onto_f32 { Input::f32(&y, 1.0) } else { Input::act(&y, 1.0) }),
        Some(Input::act(&[tokens, inner], 1.0)),
        Some(Input::weight(&[rank, inner], 1.0)),
        Some(Input::weight(&[n, rank], 1.0)),
    ];
    let whole = op.columns.unwrap_or(Columns { first: 0, total: inner });
    Case::new(op, ins, move |ins| {
        let mut y = ins[0].clone();
        let factor = |i: usize| {
            let number = (op.first + i / inner) * whole.total + whole.first + i % inner;
            op.dropout().map_or(1.0, |d| f64::from(d.factor(number as u64)))
        };
        for t in 0..tokens {
            for k in 0..rank {
                let u: f64 = (t * inner..(t + 1) * inner)
                    .map(|i| ins[1][i] * factor(i) * ins[2][k * inner + i % inner])
                    .sum();
                for j in 0..n {
                    y[t * total + op.offset + j] += 1.5 * u * ins[3][j * rank + k];
                }
            }
        }
        vec![y]
    })
}

#[cfg(test)]
mod tests;
