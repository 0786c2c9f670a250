//! Causal self-attention over packed sequences, with grouped query heads (Ainslie et al. 2023).
//!
//! qkv `[tokens, (heads + 2 kv_heads) head_dim]` laid out q|k|v (after rotary positions),
//! cu_seqlens i32 `[sequences + 1]` -> o `[tokens, heads head_dim]`, lse f32 `[tokens, heads]`
//! (log-sum-exp of the scores, kept for backward). Query head i reads kv head i / (heads /
//! kv_heads).

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
pub use crate::op::attr::Attention;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::attend::{Block, KEYS, Queries, attend, query_tokens};
use crate::op::cpu::attend_backward::{Gradient, attend_backward};
use crate::op::cpu::shared::SharedMut;
use crate::op::def::OpDef;
use crate::op::exact::log_sum_exp;
use crate::op::{Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run};
use crate::op::{required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::ops::Range;
use std::sync::Arc;

pub(super) mod cuda;

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "attention",
    about: "causal attention within packed sequences, grouped heads: softmax(scale q k') v",
    cases,
};

/// Attends within each sequence. Returns o `[tokens, heads * head_dim]`.
pub fn attention(
    r: &mut dyn Run,
    op: Attention,
    qkv: Tensor,
    cu_seqlens: Tensor,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(qkv), Some(cu_seqlens)])?[0])
}

/// The token ranges of the sequences; fails unless they cut `0..tokens` in order.
pub(super) fn sequences(cu_seqlens: &[i32], tokens: usize) -> Result<Vec<Range<usize>>> {
    let ordered = cu_seqlens.windows(2).all(|w| w[0] <= w[1]);
    if cu_seqlens[0] != 0 || !ordered || cu_seqlens[cu_seqlens.len() - 1] != tokens as i32 {
        return Err(Error::internal(format!(
            "cu_seqlens must rise from 0 to {tokens}, got {cu_seqlens:?}"
        )));
    }
    Ok(cu_seqlens.windows(2).map(|w| w[0] as usize..w[1] as usize).collect())
}

/// One task of forward: sequence, kv head, and offset of its first token in the sequence.
pub(super) fn tasks(op: &Attention, lengths: &[Range<usize>]) -> Vec<(usize, usize, usize)> {
    let mut tasks = vec![];
    for (s, range) in lengths.iter().enumerate() {
        for first in (0..range.len()).step_by(query_tokens(op)) {
            tasks.extend((0..op.kv_heads).map(|h| (s, h, first)));
        }
    }
    tasks
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (qkv, cu) = (required(self, ins, 0)?, required(self, ins, 1)?);
        if !self.fits(&qkv, &cu) {
            return Err(shape_error(
                self,
                ins,
                "qkv [tokens, (heads + 2 kv_heads) head_dim], cu_seqlens i32 [sequences + 1], a \
                 slope per head, a softcap of 0 or more",
            ));
        }
        let (tokens, rows) = (qkv.shape.rows(), qkv.shape.rows() * self.heads);
        // Lengths are not known here; equal ones are assumed.
        let keys = (tokens / (cu.shape.numel() - 1).max(1) / 2 + 1).min(self.reach());
        Ok(Plan {
            outs: vec![
                Place::New(Desc::new(&[tokens, self.heads * self.head_dim], qkv.dtype)),
                Place::New(Desc::new(&[tokens, self.heads], DType::F32)),
            ],
            differentiable: 0b1,
            saves_ins: 0b11,
            saves_outs: 0b11,
            scratch_backward: rows * (self.head_dim + 1),
            cuda_scratch_backward: rows,
            flops: 4 * (rows * keys * self.head_dim) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(self, io),
            _ => forward::<f32>(self, io),
        }
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(self, io),
            _ => backward::<f32>(self, io),
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

fn forward<E: Elem>(op: &Attention, io: &mut Forward<'_>) -> Result<()> {
    let (qkv, cu) = (io.input(0), io.input(1).i32());
    let lengths = sequences(cu, qkv.dims()[0])?;
    let (qkv, width) = (qkv.get::<E>(), op.width());
    let [o, lse] = &mut io.outs[..] else { panic!("attention has two outputs") };
    let (o, lse) = (SharedMut::new(o.get::<E>()), SharedMut::new(lse.f32()));
    let tasks = tasks(op, &lengths);
    parallel_for(tasks.len(), |i| {
        let (s, kv_head, first) = tasks[i];
        let range = lengths[s].clone();
        let queries = Queries {
            op,
            qkv,
            kv_head,
            token: range.start + first,
            tokens: query_tokens(op).min(range.len() - first),
            position: first,
            o,
            lse: Some(lse),
        };
        attend(queries, |b| {
            let row = &qkv[(range.start + b * KEYS) * width..];
            let k = (op.heads + kv_head) * op.head_dim;
            Block { k: &row[k..], v: &row[k + op.kv_heads * op.head_dim..], stride: width }
        });
    });
    Ok(())
}

fn backward<E: Elem>(op: &Attention, io: &mut Backward<'_>) -> Result<()> {
    let (qkv, cu) = (io.input(0), io.input(1).i32());
    let tokens = qkv.dims()[0];
    let lengths = sequences(cu, tokens)?;
    let (qkv, o, lse) = (qkv.get::<E>(), io.output(0).get::<E>(), io.output(1).f32());
    let d_o = io.dout(0).get::<E>();
    let Some(grad) = &mut io.dins[0] else { return Ok(()) };
    let (acc, dqkv) = (grad.acc, SharedMut::new(grad.view.get::<E>()));
    let work = SharedMut::new(io.scratch);
    let row = op.group() * (op.head_dim + 1);
    parallel_for(lengths.len() * op.kv_heads, |i| {
        let (range, kv_head) = (lengths[i / op.kv_heads].clone(), i % op.kv_heads);
        let at = (kv_head * tokens + range.start) * row;
        // SAFETY: the workspace is cut by kv head, then by token: tasks share none of it.
        let work = unsafe { work.slice(at, range.len() * row) };
        let (start, tokens) = (range.start, range.len());
        attend_backward(Gradient { op, qkv, o, d_o, lse, dqkv, acc, kv_head, start, tokens, work });
    });
    Ok(())
}

/// Float64 attention of the query row `q` of `head` over `keys` (pairs of key and value, from the
/// first of the sequence to the query's own); returns the output and the log-sum-exp.
pub(super) fn reference(
    op: &Attention,
    head: usize,
    q: &[f64],
    keys: &[(&[f64], &[f64])],
) -> (Vec<f64>, f64) {
    let score = |(j, (k, _)): (usize, &(&[f64], &[f64]))| {
        let behind = keys.len() - 1 - j;
        if op.window > 0 && behind >= op.window {
            return f64::NEG_INFINITY;
        }
        let dot: f64 = q.iter().zip(*k).map(|(a, b)| a * b).sum();
        let (scaled, cap) = (f64::from(op.scale) * dot, f64::from(op.softcap));
        let capped = if cap > 0.0 { cap * (scaled / cap).tanh() } else { scaled };
        let slope = op.alibi.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
        capped - slope * behind as f64
    };
    let scores: Vec<f64> = keys.iter().enumerate().map(score).collect();
    let lse = log_sum_exp(&scores);
    let mut o = vec![0.0; q.len()];
    for (s, (_, v)) in scores.iter().zip(keys) {
        let p = (s - lse).exp();
        o.iter_mut().zip(*v).for_each(|(o, v)| *o += p * v);
    }
    (o, lse)
}

/// The float64 reference of the whole operator: o and lse.
fn reference_packed(op: &Attention, qkv: &[f64], cu: &[f64]) -> Vec<Vec<f64>> {
    let (d, width) = (op.head_dim, op.width());
    let head = |t: usize, h: usize| &qkv[t * width + h * d..][..d];
    let (mut o, mut lse) = (vec![], vec![]);
    for w in cu.windows(2) {
        for t in w[0] as usize..w[1] as usize {
            for h in 0..op.heads {
                let kv = op.heads + h / op.group();
                let keys: Vec<_> =
                    (w[0] as usize..=t).map(|j| (head(j, kv), head(j, kv + op.kv_heads))).collect();
                let (row, l) = reference(op, h, head(t, h), &keys);
                o.extend(row);
                lse.push(l);
            }
        }
    }
    vec![o, lse]
}

/// Heads, kv heads, dimensions per head.
pub(super) type Heads = (usize, usize, usize);

/// A case's changes to the scores: true with slopes, the window, the soft cap.
pub(super) type Adjust = (bool, usize, f32);

/// Nothing done to the scores.
pub(super) const PLAIN: Adjust = (false, 0, 0.0);

/// An operator of the usual scale; its slopes are those of Press et al. 2022, all different.
pub(super) fn example(shape: Heads, adjust: Adjust) -> Attention {
    let (heads, kv_heads, head_dim) = shape;
    let (slopes, window, softcap) = adjust;
    let slope = |h: usize| (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    let alibi = slopes.then(|| (0..heads).map(slope).collect());
    let plain = Attention::new(heads, kv_heads, head_dim, (head_dim as f32).powf(-0.5));
    Attention { alibi, window, softcap, ..plain }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let shapes: [(&[i32], Heads, Adjust); 19] = [
        (&[1, 17, 31], (4, 2, 16), PLAIN),
        (&[33, 1, 2], (4, 4, 40), PLAIN),
        (&[65], (4, 1, 64), PLAIN),
        (&[130, 3], (4, 2, 8), PLAIN),
        (&[0, 5, 64], (1, 1, 24), PLAIN),
        (&[70, 3], (4, 2, 8), (true, 0, 0.0)),
        (&[150, 5], (2, 1, 8), (false, 20, 0.0)),
        (&[0, 200, 33], (2, 2, 8), (false, 70, 0.0)),
        (&[66, 1], (4, 1, 24), (false, 0, 1.5)),
        (&[135, 64], (4, 2, 16), (true, 64, 2.0)),
        (&[140], (2, 1, 40), (true, 5, 0.7)),
        (&[9, 195], (2, 1, 8), (true, 129, 30.0)),
        (&[67, 5], (3, 1, 20), (true, 0, 0.0)),
        (&[3, 130], (2, 1, 80), (false, 70, 0.0)),
        (&[131], (2, 1, 128), PLAIN),
        (&[66, 70], (3, 1, 104), (true, 65, 2.0)),
        (&[5, 133], (2, 1, 256), (true, 100, 0.0)),
        (&[33, 70], (3, 1, 16), PLAIN),
        (&[1, 67], (1, 1, 64), PLAIN),
    ];
    for (lengths, shape, adjust) in shapes {
        let op = example(shape, adjust);
        let cu = cumulative(lengths);
        let tokens = cu[lengths.len()] as usize;
        cases.push(Case::new(
            op.clone(),
            vec![Some(Input::act(&[tokens, op.width()], 1.5)), Some(Input::ints(&cu))],
            move |ins| reference_packed(&op, &ins[0], &ins[1]),
        ));
    }
    cases
}

/// 0 and the running sums of `lengths`.
pub(super) fn cumulative(lengths: &[i32]) -> Vec<i32> {
    let mut cu = vec![0];
    for n in lengths {
        cu.push(cu[cu.len() - 1] + n);
    }
    cu
}

#[cfg(test)]
#[path = "attention_tests.rs"]
pub(super) mod tests;
