//! The scalar head: a value or reward per token.
//!
//! x `[tokens, hidden]`, w `[1, hidden]`, b `[1]` or none -> f32 `[tokens]` = x . w + b.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::constants::score_head::{SCORE_HEAD_PIECE, SCORE_HEAD_THREADS};
use crate::device::cuda::params::ScoreHeadParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::vec::{axpy, dot};
use crate::op::def::OpDef;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run};
use crate::op::{by_dtype, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct ScoreHead;

/// Registry entry.
pub const DEF: OpDef = OpDef { name: "score_head", about: "scalar head in f32: x . w + b", cases };

/// One f32 per row of `x`: `[tokens]`.
pub fn score_head(r: &mut dyn Run, x: Tensor, w: Tensor, b: Option<Tensor>) -> Result<Tensor> {
    Ok(r.run(Arc::new(ScoreHead), &[Some(x), Some(w), b])?[0])
}

impl Op for ScoreHead {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, w) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let b = ins.get(2).copied().flatten();
        let d = x.shape.last();
        if !x.dtype.is_float()
            || d == 0
            || w != Desc::new(&[1, d], x.dtype)
            || b.is_some_and(|b| b != Desc::new(&[1], x.dtype))
        {
            return Err(shape_error(self, ins, "x [tokens, hidden], w [1, hidden], b [1]"));
        }
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[x.shape.rows()], DType::F32))],
            differentiable: 0b1,
            saves_ins: 0b11,
            cheap: true,
            cuda_scratch_backward: x.shape.rows().div_ceil(CUDA_PIECE) * d,
            flops: 2 * x.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(io),
            _ => forward::<f32>(io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(io),
            _ => backward::<f32>(io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let x = io.input(0);
        let params =
            ScoreHeadParams { b: io.ptr(2), y: io.outs[0].ptr, ..params(x, io.input(1), x.rows()) };
        let kernel = by_dtype(x.desc.dtype, "score_head_forward_f32", "score_head_forward_bf16");
        // A warp per token.
        let blocks = params.tokens.div_ceil(CUDA_THREADS / WARP as u32);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, [blocks, 1, 1], CUDA_THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (x, w, dy) = (io.input(0), io.input(1), io.dout(0));
        let tokens = dy.desc.shape.numel();
        let params = ScoreHeadParams { dy: dy.ptr, partial: io.scratch, ..params(x, w, tokens) };
        let launch = |kernel: &str, grid: [usize; 2], params: &ScoreHeadParams| {
            let grid = [grid[0] as u32, grid[1] as u32, 1];
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { io.stream.launch(kernel, grid, CUDA_THREADS, 0, params) }
        };
        let columns = w.last().div_ceil(CUDA_THREADS as usize);
        if let Some(dx) = io.dins[0] {
            let params = ScoreHeadParams { dx: dx.arg.ptr, acc: dx.acc.into(), ..params };
            let kernel = by_dtype(x.desc.dtype, "score_head_dx_f32", "score_head_dx_bf16");
            launch(kernel, [tokens, 1], &params)?;
        }
        if let Some(dw) = io.dins[1] {
            let params = ScoreHeadParams { dw: dw.arg.ptr, acc: dw.acc.into(), ..params };
            let kernel = by_dtype(x.desc.dtype, "score_head_dw_f32", "score_head_dw_bf16");
            launch(kernel, [columns, tokens.div_ceil(CUDA_PIECE)], &params)?;
            launch("score_head_dw_sum", [columns, 1], &params)?;
        }
        if let Some(db) = io.dins[2] {
            let params = ScoreHeadParams { db: db.arg.ptr, acc: db.acc.into(), ..params };
            launch("score_head_db", [1, 1], &params)?;
        }
        Ok(())
    }
}

/// Tokens whose share of the weight's gradient one thread adds up per column.
const CUDA_PIECE: usize = SCORE_HEAD_PIECE as usize;
/// Threads of a block.
const CUDA_THREADS: u32 = SCORE_HEAD_THREADS as u32;

fn params(x: Arg, w: Arg, tokens: usize) -> ScoreHeadParams {
    let (tokens, hidden) = (tokens as u32, w.last() as u32);
    ScoreHeadParams { x: x.ptr, w: w.ptr, tokens, hidden, ..bytemuck::Zeroable::zeroed() }
}

fn forward<E: Elem>(io: &mut Forward<'_>) {
    let (x, w) = (io.input(0).get::<E>(), io.input(1).get::<E>());
    let b = io.ins[2].map_or(0.0, |b| b.get::<E>()[0].to_f32());
    let d = w.len();
    let y = SharedMut::new(io.outs[0].f32());
    let chunks = row_chunks(x.len() / d, d);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            // SAFETY: element t belongs to this task alone.
            let y = unsafe { y.slice(t, 1) };
            y[0] = dot(&x[t * d..][..d], w) + b;
        }
    });
}

/// dx = dy w, dw = sum dy x, db = sum dy, the sums in token order.
fn backward<E: Elem>(io: &mut Backward<'_>) {
    let (x, w, dy) = (io.input(0).get::<E>(), io.input(1).get::<E>(), io.dout(0).f32());
    let d = w.len();
    let [dx, dw, db] = &mut io.dins[..] else { panic!("head has three inputs") };
    if let Some(dx) = dx {
        let acc = dx.acc;
        let out = SharedMut::new(dx.view.get::<E>());
        let chunks = row_chunks(dy.len(), d);
        parallel_for(chunks.len(), |c| {
            for t in chunks[c].clone() {
                // SAFETY: row t belongs to this task alone.
                let out = unsafe { out.slice(t * d, d) };
                for (o, w) in out.iter_mut().zip(w) {
                    let old = if acc { o.to_f32() } else { 0.0 };
                    *o = E::from_f32(old + dy[t] * w.to_f32());
                }
            }
        });
    }
    if let Some(dw) = dw {
        let acc = dw.acc;
        let out = SharedMut::new(dw.view.f32());
        // Columns are split over tasks; each walks the tokens in order.
        let columns = row_chunks(d, dy.len());
        parallel_for(columns.len(), |c| {
            let range = columns[c].clone();
            // SAFETY: the column range belongs to this task alone.
            let out = unsafe { out.slice(range.start, range.len()) };
            if !acc {
                out.fill(0.0);
            }
            for (t, dy) in dy.iter().enumerate() {
                axpy(out, *dy, &x[t * d + range.start..][..range.len()]);
            }
        });
    }
    if let Some(db) = db {
        let old = if db.acc { db.view.f32()[0] } else { 0.0 };
        db.view.f32()[0] = dy.iter().fold(old, |sum, dy| sum + dy);
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, d, bias) in [(1, 40, true), (17, 65, false), (33, 16, true), (130, 8, true)] {
        cases.push(Case::new(
            ScoreHead,
            vec![
                Some(Input::act(&[tokens, d], 1.0)),
                Some(Input::weight(&[1, d], 1.0)),
                bias.then(|| Input::weight(&[1], 1.0)),
            ],
            move |ins| {
                let b = if bias { ins[2][0] } else { 0.0 };
                let row = |x: &[f64]| b + x.iter().zip(&ins[1]).map(|(x, w)| x * w).sum::<f64>();
                vec![ins[0].chunks_exact(d).map(row).collect()]
            },
        ));
    }
    cases
}
