//! Rotary position embedding (Su et al. 2021), with half-split (NeoX, LLaMA) or interleaved (GPT-J,
//! CodeGen) pairs.
//!
//! qkv `[tokens, (heads + 2 kv_heads) head_dim]` laid out q|k|v, positions i32 `[tokens]` -> the
//! same shape. The first `2 n` dimensions of each q and k head are rotary, `n` angles long:
//! dimension `i` pairs with `i + n`, or interleaved `2 i` with `2 i + 1`; other dimensions and v
//! are copied. Angles are f32 products, as the reference implementations compute them.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::rope::{FLAG_INTERLEAVED, ROPE_THREADS};
use crate::device::cuda::params::{ROPE_PAIRS, RopeParams};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::rope as kernel;
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::vectors::{adding, aligned, vec_len};
use crate::op::def::OpDef;
use crate::op::{
    Arg, Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required,
    shape_error,
};
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
    /// Pairs are neighbours (2i, 2i + 1) instead of (i, i + n).
    pub interleaved: bool,
    /// Multiplies cosines and sines: the attention factor of scaled rotary embeddings; 1 = none.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "rope",
    about: "rotary positions, half-split or interleaved pairs: \
        (a, b) -> (a cos - b sin, b cos + a sin)",
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
        if !qkv.dtype.is_float()
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

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { self.launch(io.stream, io.input(0), io.input(1), 1.0, io.outs[0].ptr, 0) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let Some(dx) = &io.dins[0] else { return Ok(()) };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { self.launch(io.stream, io.dout(0), io.input(1), -1.0, dx.arg.ptr, adding(dx.acc)) }
    }
}

impl Rope {
    /// Sets `out`, or adds to it, to `x` with heads turned by `sign` times their angle; a block a
    /// token.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn launch(
        &self,
        stream: &Stream,
        x: Arg,
        at: Arg,
        sign: f32,
        out: u64,
        flags: u32,
    ) -> Result<()> {
        let half = self.inv_freq.len();
        if half > ROPE_PAIRS {
            return Err(Error::user(format!(
                "{} rotary dimensions of a head are more than the {} that run on CUDA; use the CPU",
                2 * half,
                2 * ROPE_PAIRS
            )));
        }
        let n = vec_len(x.desc.dtype);
        let mut params = RopeParams {
            x: x.ptr,
            at: at.ptr,
            out,
            width: x.desc.shape.last() as u32,
            turned: (self.heads + self.kv_heads) as u32,
            head_dim: self.head_dim as u32,
            half: half as u32,
            sign,
            scale: self.scale,
            flags: flags
                | aligned(&[x.ptr, out], &[self.head_dim, half], n)
                | if self.interleaved { FLAG_INTERLEAVED } else { 0 },
            pad: 0,
            inv_freq: [0.0; ROPE_PAIRS],
        };
        params.inv_freq[..half].copy_from_slice(&self.inv_freq);
        let kernel = by_dtype(x.desc.dtype, "rope_f32", "rope_bf16");
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe {
            stream.launch(
                kernel,
                [at.desc.shape.numel() as u32, 1, 1],
                ROPE_THREADS as u32,
                0,
                &params,
            )
        }
    }
}

/// `out = x` (or `out += x`) with the q and k heads turned by `sign` times their angle, and scaled.
fn rotate<E: Elem>(op: &Rope, x: &[E], at: &[i32], sign: f32, out: &mut [E], acc: bool) {
    let (d, half) = (op.head_dim, op.inv_freq.len());
    let width = (op.heads + 2 * op.kv_heads) * d;
    let turned = (op.heads + op.kv_heads) * d;
    // Packed sequences share their positions: sines are computed once for each.
    let last = at.iter().copied().max().unwrap_or(0);
    let shared = (last as usize) < at.len();
    let positions = if shared { last as usize + 1 } else { at.len() };
    let mut angles = vec![0f32; positions * 2 * half];
    let table = SharedMut::new(&mut angles);
    let chunks = row_chunks(positions, 16 * half);
    parallel_for(chunks.len(), |c| {
        for p in chunks[c].clone() {
            let position = if shared { p as f32 } else { at[p] as f32 };
            // SAFETY: row p belongs to this task alone.
            let (cosines, sines) =
                unsafe { table.slice(p * 2 * half, 2 * half) }.split_at_mut(half);
            for ((cosine, sine), freq) in cosines.iter_mut().zip(sines).zip(op.inv_freq.iter()) {
                let (sin, cos) = (position * freq).sin_cos();
                (*cosine, *sine) = (cos * op.scale, sign * sin * op.scale);
            }
        }
    });
    let out = SharedMut::new(out);
    let chunks = row_chunks(at.len(), width);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            let p = if shared { at[t] as usize } else { t };
            let (cosines, sines) = angles[p * 2 * half..][..2 * half].split_at(half);
            // SAFETY: row t belongs to this task alone.
            let out = unsafe { out.slice(t * width, width) };
            let x = &x[t * width..][..width];
            let interleaved = op.interleaved;
            kernel::turn(kernel::Turn { x, turned, d, interleaved, cosines, sines, acc, out });
        }
    });
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, heads, kv_heads, d, rotary, interleaved, scale) in [
        (1, 4, 2, 8, 8, false, 1.0),
        (17, 2, 2, 16, 4, false, 1.0),
        (33, 4, 1, 40, 40, false, 1.0),
        (65, 1, 1, 64, 32, false, 1.19),
        (19, 3, 1, 24, 24, true, 1.0),
        (31, 2, 2, 20, 8, true, 0.83),
    ] {
        let inv_freq: Arc<[f32]> =
            (0..rotary / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / rotary as f32)).collect();
        let op =
            Rope { heads, kv_heads, head_dim: d, inv_freq: inv_freq.clone(), interleaved, scale };
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
                            let (p, q) = match interleaved {
                                true => (2 * i, 2 * i + 1),
                                false => (i, i + rotary / 2),
                            };
                            let at = t * width + head * d;
                            let (a, b) = (ins[0][at + p], ins[0][at + q]);
                            let (sin, cos) = angle.sin_cos();
                            y[at + p] = (a * cos - b * sin) * f64::from(scale);
                            y[at + q] = (b * cos + a * sin) * f64::from(scale);
                        }
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
    use crate::op::cpu::testing::{Host, forward};

    /// Both layouts of one head hold the same numbers, and only rotary dimensions move.
    #[test]
    fn layouts_are_permutations_and_the_rest_of_a_head_stays() {
        let (tokens, heads, kv_heads, d, n) = (23, 3, 2, 14, 5);
        let width = (heads + 2 * kv_heads) * d;
        let mut rng = Rng::new(71, 0);
        let split = Rope {
            heads,
            kv_heads,
            head_dim: d,
            inv_freq: (0..n).map(|_| rng.uniform()).collect(),
            interleaved: false,
            scale: 1.1,
        };
        let neighbours = Rope { interleaved: true, ..split.clone() };
        let x: Vec<f32> = (0..tokens * width).map(|_| rng.normal()).collect();
        let at = Host::ints(&(0..tokens as i32).map(|t| 5 * t + 1).collect::<Vec<_>>());
        let run = |op: &Rope, x: &[f32]| {
            let x = Host::new::<f32>(&[tokens, width], x);
            forward(op, &[Some(x), Some(at.clone())]).expect("rope")[0].f32()
        };
        // From half-split to interleaved, head by head.
        let interleave = |x: &[f32]| {
            let mut y = x.to_vec();
            for (x, y) in x.chunks(d).zip(y.chunks_mut(d)) {
                for i in 0..n {
                    (y[2 * i], y[2 * i + 1]) = (x[i], x[i + n]);
                }
            }
            y
        };
        let y = run(&split, &x);
        assert_eq!(interleave(&y), run(&neighbours, &interleave(&x)));
        for (c, (x, y)) in x.chunks(d).zip(y.chunks(d)).enumerate() {
            let rotary = if c % (heads + 2 * kv_heads) < heads + kv_heads { 2 * n } else { 0 };
            assert!((0..rotary).all(|i| x[i] != y[i]) && x[rotary..] == y[rotary..]);
        }
    }
}
