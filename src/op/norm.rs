//! LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019).
//!
//! x `[tokens, hidden]`, gamma `[hidden]`, beta `[hidden]` or none -> y `[tokens, hidden]`, stats
//! f32 `[tokens, 2]` (mean, 1/std). Statistics are f32, two-pass; each row is reduced on its own,
//! so its result does not depend on the batch. With `unit_offset` gamma is 1 + the weight given
//! (Gemma); normalised value and gamma are multiplied in f32 and rounded once.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::constants::norm::{
    ADD, MEAN, NORM_THREADS, NORM_WIDE_THREADS, UNIT_OFFSET,
};
use crate::device::cuda::params::{NormParams, NormWeightParams};
pub use crate::op::attr::Norm;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::norm as kernel;
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::def::OpDef;
use crate::op::{Arg, CudaBackward, CudaForward, by_dtype, cuda};
use crate::op::{Backward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "norm",
    about: "LayerNorm: (x - mean) / sqrt(var + eps) * gamma + beta; RMSNorm: x / rms(x) * gamma; \
        gamma = w or 1 + w",
    cases,
};

/// Normalises each row of `x`. Returns `[tokens, hidden]`.
pub fn norm(
    r: &mut dyn Run,
    op: Norm,
    x: Tensor,
    gamma: Tensor,
    beta: Option<Tensor>,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x), Some(gamma), beta])?[0])
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, g) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let d = x.shape.last();
        let fits = |w: &Desc| w.dtype == x.dtype && w.shape.dims() == [d];
        if !fits(&g) || !ins[2].as_ref().is_none_or(fits) {
            return Err(shape_error(
                self,
                ins,
                "x [tokens, hidden], gamma [hidden], beta [hidden]",
            ));
        }
        Ok(Plan {
            outs: vec![Place::New(x), Place::New(Desc::new(&[x.shape.rows(), 2], DType::F32))],
            differentiable: 0b1,
            saves_ins: 0b11,
            saves_outs: 0b10,
            cheap: true,
            cuda_scratch_backward: 2 * x.shape.rows().div_ceil(PIECE) * d,
            flops: 6 * x.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(self, io),
            _ => forward::<f32>(self, io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(self, io),
            _ => backward::<f32>(self, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let x = io.input(0);
        let params = NormParams {
            x: x.ptr,
            gamma: io.ptr(1),
            beta: io.ptr(2),
            out: io.outs[0].ptr,
            stats: io.outs[1].ptr,
            ..self.params(x)
        };
        let narrow = by_dtype(x.desc.dtype, "norm_forward_f32", "norm_forward_bf16");
        let wide = by_dtype(x.desc.dtype, "norm_forward_wide_f32", "norm_forward_wide_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { launch_rows(io.stream, x, narrow, wide, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (x, dy, stats) = (io.input(0), io.dout(0), io.output(1));
        if let Some(dx) = &io.dins[0] {
            let base = self.params(x);
            let params = NormParams {
                gamma: io.ptr(1),
                dy: dy.ptr,
                out: dx.arg.ptr,
                stats: stats.ptr,
                flags: base.flags | if dx.acc { ADD } else { 0 },
                ..base
            };
            let narrow = by_dtype(x.desc.dtype, "norm_backward_f32", "norm_backward_bf16");
            let wide = by_dtype(x.desc.dtype, "norm_backward_wide_f32", "norm_backward_wide_bf16");
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { launch_rows(io.stream, x, narrow, wide, &params)? };
        }
        let (rows, hidden) = (x.rows(), x.last());
        let [_, dgamma, dbeta] = &io.dins[..] else { panic!("norm has three inputs") };
        if dgamma.is_none() && dbeta.is_none() {
            return Ok(());
        }
        let pieces = rows.div_ceil(PIECE);
        let second = io.scratch + (pieces * hidden * 4) as u64;
        let params = NormWeightParams {
            x: x.ptr,
            dy: dy.ptr,
            stats: stats.ptr,
            dgamma: io.scratch,
            dbeta: if dbeta.is_some() { second } else { 0 },
            rows: rows as u32,
            hidden: hidden as u32,
            rows_per_block: PIECE as u32,
            zero: 0,
        };
        let kernel = by_dtype(x.desc.dtype, "norm_weights_f32", "norm_weights_bf16");
        let grid = [hidden.div_ceil(NORM_THREADS) as u32, pieces as u32, 1];
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, grid, NORM_THREADS as u32, 0, &params)? };
        for (grad, partial) in [(dgamma, io.scratch), (dbeta, second)] {
            if let Some(grad) = grad {
                // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
                unsafe {
                    cuda::sum_pieces(io.stream, partial, pieces, hidden, grad.arg.ptr, grad.acc)?
                };
            }
        }
        Ok(())
    }
}

/// Rows whose weight gradients one block sums.
const PIECE: usize = 256;

impl Norm {
    fn params(&self, x: Arg) -> NormParams {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        NormParams {
            x: x.ptr,
            rows: x.rows() as u32,
            hidden: x.last() as u32,
            eps: self.eps,
            flags: flag(self.mean, MEAN) | flag(self.unit_offset, UNIT_OFFSET),
            ..bytemuck::Zeroable::zeroed()
        }
    }
}

/// Narrow rows get a warp each, wide ones a block.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
unsafe fn launch_rows(
    stream: &Stream,
    x: Arg,
    narrow: &str,
    wide: &str,
    params: &NormParams,
) -> Result<()> {
    let rows = x.rows();
    if x.last() <= 1024 {
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe {
            stream.launch(
                narrow,
                [rows.div_ceil(NORM_THREADS / WARP) as u32, 1, 1],
                NORM_THREADS as u32,
                0,
                params,
            )
        }
    } else {
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { stream.launch(wide, [rows as u32, 1, 1], NORM_WIDE_THREADS as u32, 0, params) }
    }
}

fn forward<E: Elem>(op: &Norm, io: &mut Forward<'_>) {
    let (x, gamma) = (io.input(0).get::<E>(), io.input(1).get::<E>());
    let beta = io.ins[2].map(|b| b.get::<E>());
    let d = gamma.len();
    let [y, stats] = &mut io.outs[..] else { panic!("norm has two outputs") };
    let (y, stats) = (SharedMut::new(y.get::<E>()), SharedMut::new(stats.f32()));
    let rows = x.len() / d.max(1);
    let chunks = row_chunks(rows, d);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            let row = &x[t * d..][..d];
            // SAFETY: row t belongs to this task alone.
            let (y, stats) = unsafe { (y.slice(t * d, d), stats.slice(2 * t, 2)) };
            stats.copy_from_slice(&kernel::forward(*op, row, gamma, beta, y));
        }
    });
}

/// With n = (x - mean) rstd and g = dy gamma:
/// dx = rstd (g - n mean(g n) [- mean(g)]), dgamma = sum dy n, dbeta = sum dy.
fn backward<E: Elem>(op: &Norm, io: &mut Backward<'_>) {
    let (x, gamma) = (io.input(0).get::<E>(), io.input(1).get::<E>());
    let (stats, dy) = (io.output(1).f32(), io.dout(0).get::<E>());
    let d = gamma.len();
    let rows = x.len() / d.max(1);
    let [dx, dgamma, dbeta] = &mut io.dins[..] else { panic!("norm has three inputs") };
    if let Some(dx) = dx {
        let acc = dx.acc;
        let out = SharedMut::new(dx.view.get::<E>());
        let chunks = row_chunks(rows, d);
        parallel_for(chunks.len(), |c| {
            for t in chunks[c].clone() {
                let (x, dy) = (&x[t * d..][..d], &dy[t * d..][..d]);
                let stats = [stats[2 * t], stats[2 * t + 1]];
                // SAFETY: row t belongs to this task alone.
                let out = unsafe { out.slice(t * d, d) };
                kernel::backward(*op, x, dy, gamma, stats, out, acc);
            }
        });
    }
    if dgamma.is_none() && dbeta.is_none() {
        return;
    }
    let grads = [dgamma, dbeta].map(|g| g.as_mut().map(|g| (g.acc, SharedMut::new(g.view.f32()))));
    // Blocks of columns are split over tasks; each walks the tokens in order.
    parallel_for(d.div_ceil(kernel::COLUMNS), |c| {
        let first = c * kernel::COLUMNS;
        let width = kernel::COLUMNS.min(d - first);
        let sums = kernel::weights(x, dy, stats, d, first, width);
        for (grad, sums) in grads.iter().zip(&sums) {
            let Some((acc, out)) = grad else { continue };
            // SAFETY: the block of columns belongs to this task alone.
            let out = unsafe { out.slice(first, width) };
            for (o, s) in out.iter_mut().zip(sums) {
                *o = if *acc { *o + s } else { *s };
            }
        }
    });
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, hidden, mean, beta, unit_offset) in [
        (5, 32, true, true, false),
        (3, 17, false, false, false),
        (1, 100, true, false, false),
        (7, 48, false, false, true),
        (2, 33, true, true, true),
        (300, 20, true, true, false),
        (3, 1100, true, true, false),
    ] {
        let op = Norm { mean, eps: 1e-5, unit_offset };
        let offset = if unit_offset { 1.0 } else { 0.0 };
        cases.push(Case::new(
            op,
            vec![
                Some(Input::act(&[tokens, hidden], 2.0)),
                Some(Input::weight(&[hidden], 1.0)),
                beta.then(|| Input::weight(&[hidden], 1.0)),
            ],
            move |ins| {
                let mut y = vec![0.0; tokens * hidden];
                for t in 0..tokens {
                    let x = &ins[0][t * hidden..][..hidden];
                    let m = if mean { x.iter().sum::<f64>() / hidden as f64 } else { 0.0 };
                    let var = x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / hidden as f64;
                    for i in 0..hidden {
                        let n = (x[i] - m) / (var + 1e-5).sqrt() * (offset + ins[1][i]);
                        y[t * hidden + i] = n + if beta { ins[2][i] } else { 0.0 };
                    }
                }
                vec![y]
            },
        ));
    }
    cases
}
