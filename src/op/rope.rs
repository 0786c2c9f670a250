//! Rotary position embedding (Su et al. 2021) in half-split pairing (NeoX, LLaMA).
//!
//! qkv `[tokens, (heads + 2 kv_heads) head_dim]` laid out q|k|v, positions i32 `[tokens]` -> the same
//! shape. In each q and k head, dimension `i` of the first half of the rotary dimensions pairs with
//! dimension `i` of the second half; other dimensions and v are copied. Angles are f32 products, as
//! the reference implementations compute them.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::registry::OpDef;
use crate::op::{Backward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Angle per position of each pair; half as many as there are rotary dimensions.
    pub inv_freq: Arc<[f32]>,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "rope",
    about: "rotary positions, half-split pairs: (a, b) -> (a cos - b sin, b cos + a sin)",
    cases,
};

/// Rotates the q and k heads of `qkv`. Returns the shape of `qkv`.
pub fn rope(r: &mut dyn Run, op: Rope, qkv: Tensor, positions: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(qkv), Some(positions)])?[0])
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (qkv, at) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        if qkv.dtype == DType::I32
            || at.dtype != DType::I32
            || qkv.shape.dims() != [at.shape.numel(), width]
            || 2 * self.inv_freq.len() > self.head_dim
        {
            return Err(shape_error(
                self,
                ins,
                "qkv [tokens, (heads + 2 kv_heads) head_dim], positions i32 [tokens]",
            ));
        }
        Ok(Plan {
            outs: vec![Place::New(qkv)],
            differentiable: 0b1,
            saves_ins: 0b10,
            cheap: true,
            flops: 3 * qkv.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, at) = (io.input(0), io.input(1).i32());
        match x.desc.dtype {
            DType::Bf16 => rotate::<bf16>(self, x.get(), at, 1.0, io.outs[0].get(), false),
            _ => rotate::<f32>(self, x.get(), at, 1.0, io.outs[0].get(), false),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        let (dy, at) = (io.dout(0), io.input(1).i32());
        let Some(dx) = &mut io.dins[0] else { return Ok(()) };
        match dy.desc.dtype {
            DType::Bf16 => rotate::<bf16>(self, dy.get(), at, -1.0, dx.view.get(), dx.acc),
            _ => rotate::<f32>(self, dy.get(), at, -1.0, dx.view.get(), dx.acc),
        }
        Ok(())
    }
}

/// `out = x` (or `out += x`) with the q and k heads turned by `sign` times their angle.
fn rotate<E: Elem>(op: &Rope, x: &[E], at: &[i32], sign: f32, out: &mut [E], acc: bool) {
    let (d, half) = (op.head_dim, op.inv_freq.len());
    let width = (op.heads + 2 * op.kv_heads) * d;
    let turned = (op.heads + op.kv_heads) * d;
    let out = SharedMut::new(out);
    let chunks = row_chunks(at.len(), width);
    let put = |o: &mut E, v: f32| *o = E::from_f32(if acc { o.to_f32() + v } else { v });
    parallel_for(chunks.len(), |c| {
        let mut angles = vec![(0f32, 0f32); half];
        for t in chunks[c].clone() {
            for (a, freq) in angles.iter_mut().zip(op.inv_freq.iter()) {
                let (sin, cos) = (at[t] as f32 * freq).sin_cos();
                *a = (sign * sin, cos);
            }
            let x = &x[t * width..][..width];
            // SAFETY: row t belongs to this task alone.
            let out = unsafe { out.slice(t * width, width) };
            let (heads, v) = out.split_at_mut(turned);
            for (x, out) in x.chunks_exact(d).zip(heads.chunks_exact_mut(d)) {
                for (i, (sin, cos)) in angles.iter().enumerate() {
                    let (a, b) = (x[i].to_f32(), x[i + half].to_f32());
                    put(&mut out[i], a * cos - b * sin);
                    put(&mut out[i + half], b * cos + a * sin);
                }
                for (o, x) in out.iter_mut().zip(x).skip(2 * half) {
                    put(o, x.to_f32());
                }
            }
            for (o, x) in v.iter_mut().zip(&x[turned..]) {
                put(o, x.to_f32());
            }
        }
    });
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, heads, kv_heads, d, rotary) in
        [(1, 4, 2, 8, 8), (17, 2, 2, 16, 4), (33, 4, 1, 40, 40), (65, 1, 1, 64, 32)]
    {
        let inv_freq: Arc<[f32]> =
            (0..rotary / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / rotary as f32)).collect();
        let op = Rope { heads, kv_heads, head_dim: d, inv_freq: inv_freq.clone() };
        let at: Vec<i32> = (0..tokens).map(|t| ((t * 7) % 29 * (1 + t)) as i32).collect();
        let width = (heads + 2 * kv_heads) * d;
        cases.push(Case::new(
            op,
            vec![Some(Input::act(&[tokens, width], 1.0)), Some(Input::ints(&at))],
            move |ins| {
                let mut y = ins[0].clone();
                for (t, at) in ins[1].iter().enumerate() {
                    for head in 0..heads + kv_heads {
                        for (i, freq) in inv_freq.iter().enumerate() {
                            let angle = f64::from(*at as f32 * freq);
                            let (p, q) = (t * width + head * d + i, rotary / 2);
                            let (a, b) = (ins[0][p], ins[0][p + q]);
                            y[p] = a * angle.cos() - b * angle.sin();
                            y[p + q] = b * angle.cos() + a * angle.sin();
                        }
                    }
                }
                vec![y]
            },
        ));
    }
    cases
}
