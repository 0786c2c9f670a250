//! Causal self-attention over packed sequences, with grouped query heads (Ainslie et al. 2023).
//!
//! qkv `[tokens, (heads + 2 kv_heads) head_dim]` laid out q|k|v (after rotary positions), cu_seqlens
//! i32 `[sequences + 1]` -> o `[tokens, heads head_dim]`, lse f32 `[tokens, heads]` (log-sum-exp of
//! the scores, kept for backward). Query head i reads kv head i / (heads / kv_heads).

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::attend::{Block, KEYS, Queries, attend, query_tokens};
use crate::op::cpu::attend_backward::{Gradient, attend_backward};
use crate::op::cpu::shared::SharedMut;
use crate::op::registry::OpDef;
use crate::op::{Backward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// The operator. What a model adds to the scores (slopes, a window) belongs here.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

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

impl Attention {
    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a row of qkv.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Whether the attributes make sense and `qkv` and `cu_seqlens` fit them.
    pub(super) fn fits(&self, qkv: &Desc, cu_seqlens: &Desc) -> bool {
        self.kv_heads > 0
            && self.heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_dim > 0
            && qkv.dtype != DType::I32
            && qkv.shape.dims() == [qkv.shape.rows(), self.width()]
            && cu_seqlens.dtype == DType::I32
            && cu_seqlens.shape.numel() > 0
    }
}

/// The token ranges of the sequences; fails unless they cut `0..tokens` in order.
pub(super) fn sequences(cu_seqlens: &[i32], tokens: usize) -> Result<Vec<Range<usize>>> {
    let ordered = cu_seqlens.windows(2).all(|w| w[0] <= w[1]);
    if cu_seqlens[0] != 0 || !ordered || cu_seqlens[cu_seqlens.len() - 1] != tokens as i32 {
        return Err(Error::internal(format!(
            "attention: cu_seqlens must rise from 0 to {tokens}, got {cu_seqlens:?}"
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
                "qkv [tokens, (heads + 2 kv_heads) head_dim], cu_seqlens i32 [sequences + 1]",
            ));
        }
        let (tokens, rows) = (qkv.shape.rows(), qkv.shape.rows() * self.heads);
        // Lengths are not known here; equal ones are assumed.
        let keys = tokens / (cu.shape.numel() - 1).max(1) / 2 + 1;
        Ok(Plan {
            outs: vec![
                Place::New(Desc::new(&[tokens, self.heads * self.head_dim], qkv.dtype)),
                Place::New(Desc::new(&[tokens, self.heads], DType::F32)),
            ],
            differentiable: 0b1,
            saves_ins: 0b11,
            saves_outs: 0b11,
            scratch_backward: rows * (self.head_dim + 1),
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

/// Float64 attention of the query row `q` over `keys` (pairs of key and value); returns the output
/// and the log-sum-exp.
pub(super) fn reference(scale: f64, q: &[f64], keys: &[(&[f64], &[f64])]) -> (Vec<f64>, f64) {
    let dot = |k: &[f64]| scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|(k, _)| dot(k)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let mut o = vec![0.0; q.len()];
    for (s, (_, v)) in scores.iter().zip(keys) {
        let p = (s - max).exp() / sum;
        o.iter_mut().zip(*v).for_each(|(o, v)| *o += p * v);
    }
    (o, max + sum.ln())
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
                let (row, l) = reference(f64::from(op.scale), head(t, h), &keys);
                o.extend(row);
                lse.push(l);
            }
        }
    }
    vec![o, lse]
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let shapes: [(&[i32], usize, usize, usize); 5] = [
        (&[1, 17, 31], 4, 2, 16),
        (&[33, 1, 2], 4, 4, 40),
        (&[65], 4, 1, 64),
        (&[130, 3], 4, 2, 8),
        (&[0, 5, 64], 1, 1, 24),
    ];
    for (lengths, heads, kv_heads, head_dim) in shapes {
        let op = Attention { heads, kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) };
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
