//! RMSNorm of each query and key head before rotary positions (Qwen3).
//!
//! x `[tokens, (heads + 2 kv_heads) head_dim]` laid out q|k|v, q_weight and k_weight `[head_dim]`
//! -> y of the shape of x, and f32 `[tokens, heads + kv_heads]` 1/rms, kept for backward. Value
//! heads are copied. Each head is a row of `norm`, with its bits; see `norm.rs` for whole rows.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::constants::qk_norm::{
    QK_NORM_CHUNK, QK_NORM_THREADS, QK_NORM_WEIGHT_THREADS,
};
use crate::device::cuda::params::{QkNormParams, QkNormWeightParams};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::norm;
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::sum_pieces;
use crate::op::cuda::vectors::{adding, aligned};
use crate::op::def::OpDef;
use crate::op::norm::Norm;
use crate::op::{
    Arg, Backward, CudaBackward, CudaForward, CudaGrad, Forward, Op, Place, Plan, Run, by_dtype,
    required, shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "qk_norm",
    about: "RMSNorm of each q and k head of the q|k|v rows: x / rms(x) * weight; v is copied",
    cases,
};

/// Normalises the q and k heads of `qkv`. Returns the shape of `qkv`.
pub fn qk_norm(
    r: &mut dyn Run,
    op: QkNorm,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(qkv), Some(q_weight), Some(k_weight)])?[0])
}

impl QkNorm {
    /// Normalised heads per token.
    fn normed(&self) -> usize {
        self.heads + self.kv_heads
    }

    /// Elements per token.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The norm of one head.
    fn norm(&self) -> Norm {
        Norm { mean: false, eps: self.eps, unit_offset: false }
    }

    /// The weight of head `h`.
    fn weight<'a, E>(&self, h: usize, q: &'a [E], k: &'a [E]) -> &'a [E] {
        if h < self.heads { q } else { k }
    }
}

impl Op for QkNorm {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = required(self, ins, 0)?;
        let tokens = x.shape.rows();
        let weight = Some(Desc::new(&[self.head_dim], x.dtype));
        if !x.dtype.is_float()
            || x.shape.dims() != [tokens, self.width()]
            || (1..3).any(|i| ins.get(i).copied().flatten() != weight)
        {
            return Err(shape_error(
                self,
                ins,
                "x [tokens, (heads + 2 kv_heads) head_dim], q_weight and k_weight [head_dim]",
            ));
        }
        let stats = Desc::new(&[tokens, self.normed()], DType::F32);
        Ok(Plan {
            outs: vec![Place::New(x), Place::New(stats)],
            differentiable: 0b1,
            saves_ins: 0b111,
            saves_outs: 0b10,
            cheap: true,
            cuda_scratch_backward: tokens.div_ceil(CUDA_CHUNK) * self.head_dim,
            flops: 5 * x.shape.numel() as u64,
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
        let (x, rstd, y) = (io.input(0), io.outs[1].ptr, io.outs[0].ptr);
        let kernel = by_dtype(x.desc.dtype, "qk_norm_forward_f32", "qk_norm_forward_bf16");
        let params = self.params([x, io.input(1), io.input(2)], rstd, y);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { self.launch(io.stream, kernel, params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (x, dy, rstd) = (io.input(0), io.dout(0).ptr, io.output(1).ptr);
        if let Some(dx) = &io.dins[0] {
            let kernel = by_dtype(x.desc.dtype, "qk_norm_backward_f32", "qk_norm_backward_bf16");
            let params = self.params([x, io.input(1), io.input(2)], rstd, dx.arg.ptr);
            let params = QkNormParams { dy, flags: adding(dx.acc), ..params };
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { self.launch(io.stream, kernel, params)? };
        }
        for (grad, heads) in [(1, 0..self.heads), (2, self.heads..self.normed())] {
            if let Some(grad) = &io.dins[grad] {
                // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
                unsafe { self.cuda_weight_gradient(io, heads, grad)? };
            }
        }
        Ok(())
    }
}

/// Tokens whose share of a weight's gradient one block adds up.
const CUDA_CHUNK: usize = QK_NORM_CHUNK as usize;
/// Threads of a block with a head for each warp, and of one that sums a weight's gradient.
const THREADS: u32 = QK_NORM_THREADS as u32;
const WEIGHT_THREADS: u32 = QK_NORM_WEIGHT_THREADS as u32;

impl QkNorm {
    /// The parameters of either pass: without a gradient, and nothing added to.
    fn params(&self, [x, q, k]: [Arg; 3], rstd: u64, out: u64) -> QkNormParams {
        QkNormParams {
            x: x.ptr,
            q_weight: q.ptr,
            k_weight: k.ptr,
            dy: 0,
            rstd,
            out,
            tokens: x.desc.shape.rows() as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            eps: self.eps,
            flags: 0,
        }
    }

    /// One warp a head.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn launch(&self, stream: &Stream, kernel: &str, mut params: QkNormParams) -> Result<()> {
        let QkNormParams { x, q_weight, k_weight, dy, out, .. } = params;
        params.flags |= aligned(&[x, q_weight, k_weight, dy, out], &[self.head_dim], 4);
        let rows = params.tokens as usize * (self.heads + 2 * self.kv_heads);
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe {
            stream.launch(
                kernel,
                [rows.div_ceil(QK_NORM_THREADS / WARP) as u32, 1, 1],
                THREADS,
                0,
                &params,
            )
        }
    }

    /// The gradient of the weight that `heads` share: sums over chunks of tokens, then their sum in
    /// order.
    ///
    /// # Safety
    /// As for `Op::cuda_forward`.
    unsafe fn cuda_weight_gradient(
        &self,
        io: &CudaBackward<'_>,
        heads: Range<usize>,
        grad: &CudaGrad,
    ) -> Result<()> {
        let (x, d) = (io.input(0), self.head_dim);
        let tokens = x.desc.shape.rows();
        let params = QkNormWeightParams {
            x: x.ptr,
            dy: io.dout(0).ptr,
            rstd: io.output(1).ptr,
            partial: io.scratch,
            tokens: tokens as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: d as u32,
            first_head: heads.start as u32,
            head_count: heads.len() as u32,
        };
        let kernel = by_dtype(x.desc.dtype, "qk_norm_weight_f32", "qk_norm_weight_bf16");
        let chunks = tokens.div_ceil(CUDA_CHUNK);
        let grid = [chunks as u32, d.div_ceil(WARP) as u32, 1];
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, grid, WEIGHT_THREADS, 0, &params)? };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { sum_pieces(io.stream, io.scratch, chunks, d, grad.arg.ptr, grad.acc) }
    }
}

fn forward<E: Elem>(op: &QkNorm, io: &mut Forward<'_>) {
    let [x, q, k] = [0, 1, 2].map(|i| io.input(i));
    let (tokens, x, q, k) = (x.desc.shape.rows(), x.get::<E>(), q.get(), k.get());
    let (d, width, normed) = (op.head_dim, op.width(), op.normed());
    let [y, stats] = &mut io.outs[..] else { panic!("qk_norm has two outputs") };
    let (y, stats) = (SharedMut::new(y.get::<E>()), SharedMut::new(stats.f32()));
    let chunks = row_chunks(tokens, width);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            let x = &x[t * width..][..width];
            // SAFETY: row t belongs to this task alone.
            let (y, stats) =
                unsafe { (y.slice(t * width, width), stats.slice(t * normed, normed)) };
            for h in 0..normed {
                let (x, y) = (&x[h * d..][..d], &mut y[h * d..][..d]);
                let [_, rstd] = norm::forward(op.norm(), x, op.weight(h, q, k), None, y);
                stats[h] = rstd;
            }
            y[normed * d..].copy_from_slice(&x[normed * d..]);
        }
    });
}

fn backward<E: Elem>(op: &QkNorm, io: &mut Backward<'_>) {
    let [x, q, k] = [0, 1, 2].map(|i| io.input(i));
    let (tokens, x, q, k) = (x.desc.shape.rows(), x.get::<E>(), q.get(), k.get());
    let (rstd, dy) = (io.output(1).f32(), io.dout(0).get::<E>());
    let (d, width, normed) = (op.head_dim, op.width(), op.normed());
    let [dx, dq, dk] = &mut io.dins[..] else { panic!("qk_norm has three inputs") };
    if let Some(dx) = dx {
        let acc = dx.acc;
        let out = SharedMut::new(dx.view.get::<E>());
        let chunks = row_chunks(tokens, width);
        parallel_for(chunks.len(), |c| {
            for t in chunks[c].clone() {
                let (x, dy) = (&x[t * width..][..width], &dy[t * width..][..width]);
                // SAFETY: row t belongs to this task alone.
                let out = unsafe { out.slice(t * width, width) };
                for h in 0..normed {
                    let (x, dy, out) =
                        (&x[h * d..][..d], &dy[h * d..][..d], &mut out[h * d..][..d]);
                    let (weight, rstd) = (op.weight(h, q, k), rstd[t * normed + h]);
                    norm::backward(op.norm(), x, dy, weight, [0.0, rstd], out, acc);
                }
                for (o, g) in out[normed * d..].iter_mut().zip(&dy[normed * d..]) {
                    *o = if acc { E::from_f32(o.to_f32() + g.to_f32()) } else { *g };
                }
            }
        });
    }
    for (grad, heads) in [(dq, 0..op.heads), (dk, op.heads..normed)] {
        if let Some(grad) = grad {
            let acc = grad.acc;
            weight_gradient(op, heads, x, dy, rstd, grad.view.f32(), acc);
        }
    }
}

/// Sums dy x rstd over tokens, and in each token over `heads`, in this order. Blocks of dimensions
/// are split over tasks.
fn weight_gradient<E: Elem>(
    op: &QkNorm,
    heads: Range<usize>,
    x: &[E],
    dy: &[E],
    rstd: &[f32],
    out: &mut [f32],
    acc: bool,
) {
    const BLOCK: usize = 32;
    let (d, width) = (op.head_dim, op.width());
    let out = SharedMut::new(out);
    parallel_for(d.div_ceil(BLOCK), |c| {
        let first = c * BLOCK;
        let n = BLOCK.min(d - first);
        // SAFETY: the block of dimensions belongs to this task alone.
        let out = unsafe { out.slice(first, n) };
        let mut sums = [0f32; BLOCK];
        for (t, rstd) in rstd.chunks_exact(op.normed()).enumerate() {
            let mut token = [0f32; BLOCK];
            for h in heads.clone() {
                let at = t * width + h * d + first;
                for (s, (x, dy)) in token.iter_mut().zip(x[at..][..n].iter().zip(&dy[at..])) {
                    *s += dy.to_f32() * (x.to_f32() * rstd[h]);
                }
            }
            sums.iter_mut().zip(&token).for_each(|(s, t)| *s += t);
        }
        for (o, s) in out.iter_mut().zip(&sums) {
            *o = if acc { *o + s } else { *s };
        }
    });
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, heads, kv_heads, d) in
        [(1, 2, 1, 8), (13, 4, 2, 24), (5, 3, 3, 33), (40, 1, 1, 64), (9, 3, 1, 16)]
    {
        let eps = 1e-3;
        let width = (heads + 2 * kv_heads) * d;
        cases.push(Case::new(
            QkNorm { heads, kv_heads, head_dim: d, eps },
            vec![
                Some(Input::act(&[tokens, width], 2.0)),
                Some(Input::weight(&[d], 1.0)),
                Some(Input::weight(&[d], 1.5)),
            ],
            move |ins| {
                let mut y = ins[0].clone();
                for row in y.chunks_mut(width) {
                    for (h, head) in row.chunks_mut(d).take(heads + kv_heads).enumerate() {
                        let square = head.iter().map(|v| v * v).sum::<f64>() / d as f64;
                        let weight = &ins[if h < heads { 1 } else { 2 }];
                        let rms = (square + f64::from(eps)).sqrt();
                        head.iter_mut().zip(weight).for_each(|(v, w)| *v *= w / rms);
                    }
                }
                vec![y]
            },
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::op::cpu::testing::{Host, backward, forward};

    /// Each head has the bits of a row of `norm`, and a token does not depend on the others.
    fn heads_are_rows_of_norm<E: Elem>(rng: &mut Rng) {
        let (tokens, heads, kv_heads, d) = (37, 4, 2, 40);
        let op = QkNorm { heads, kv_heads, head_dim: d, eps: 1e-6 };
        let x = Host::normal::<E>(&[tokens, op.width()], 2.0, rng);
        let [q, k] = [(); 2].map(|_| Host::normal::<E>(&[d], 1.0, rng));
        let run = |x: &Host| {
            let ins = [Some(x.clone()), Some(q.clone()), Some(k.clone())];
            forward(&op, &ins).expect("qk_norm").remove(0)
        };
        let y = run(&x);
        for at in [vec![0], vec![36, 3], (5..30).rev().collect()] {
            assert_eq!(run(&x.rows(&at)), y.rows(&at));
        }
        let (y, flat): (Vec<f32>, Vec<f32>) = (widen(&y.get::<E>()), widen(&x.get::<E>()));
        for (c, (x, y)) in flat.chunks(d).zip(y.chunks(d)).enumerate() {
            let h = c % (heads + 2 * kv_heads);
            if h >= op.normed() {
                assert_eq!(x, y, "a value head");
                continue;
            }
            let weight = op.weight(h, std::slice::from_ref(&q), std::slice::from_ref(&k));
            let ins = [Some(Host::new::<E>(&[1, d], x)), Some(weight[0].clone()), None];
            let row = forward(&op.norm(), &ins).expect("norm").remove(0);
            assert_eq!(widen(&row.get::<E>()), y, "head {h}");
        }
    }

    fn widen<E: Elem>(x: &[E]) -> Vec<f32> {
        x.iter().map(|v| v.to_f32()).collect()
    }

    #[test]
    fn a_head_is_a_row_of_norm() {
        heads_are_rows_of_norm::<f32>(&mut Rng::new(81, 0));
        heads_are_rows_of_norm::<bf16>(&mut Rng::new(81, 1));
    }

    #[test]
    fn without_tokens_weight_gradients_are_zero_and_wrong_shapes_are_refused() {
        let op = QkNorm { heads: 2, kv_heads: 1, head_dim: 3, eps: 1e-6 };
        let weight = || Some(Host::new::<f32>(&[3], &[1.0; 3]));
        let ins = [Some(Host::new::<f32>(&[0, 12], &[])), weight(), weight()];
        let outs = forward(&op, &ins).expect("qk_norm");
        let (f, dy) = (Some(DType::F32), ins[0].clone());
        let grads = backward(&op, &ins, &outs, &[dy, None], &[f, f, f]).expect("gradients");
        assert!(grads[1..].iter().flatten().all(|g| g.f32() == [0.0; 3]));
        let x = Some(Host::new::<f32>(&[1, 9], &[1.0; 9]));
        assert!(forward(&op, &[x, weight(), weight()]).is_err());
        let short = Some(Host::new::<f32>(&[2], &[1.0; 2]));
        assert!(forward(&op, &[ins[0].clone(), weight(), short]).is_err());
    }
}
