//! Log-probabilities of given tokens and entropies, straight from hidden states: the logits of a
//! whole batch never exist, only those of a few rows at a time, and backward computes them again.
//!
//! x `[n, hidden]`, w `[vocab, hidden]`, b `[vocab]` or none, targets i32 `[n]` -> logp, entropy and
//! lse (kept for backward) f32 `[n]` of log_softmax(cap(x w^T + b) / T), where cap(l) is l or
//! softcap tanh(l / softcap). Row by row the same bits as `linear`, `softcap` and `sample` in turn.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::softmax::{self, Slope};
use crate::op::linear::column_sums;
use crate::op::registry::OpDef;
use crate::op::{Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run};
use crate::op::{required, shape_error};
use crate::tensor::{Desc, Tensor};
use cuda::Chunks;
use std::sync::Arc;

mod cuda;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct LogProb {
    /// Softmax temperature; 0 counts as 1, as it does for tokens drawn greedily.
    pub temperature: f32,
    /// Bound that logits approach smoothly, before the temperature (Gemma 2); 0 = none.
    pub softcap: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "logprob",
    about: "log_softmax(l / T) at the targets, and its entropy; l = x w^T + b or cap tanh((x w^T + b) / cap)",
    cases,
};

/// Log-probabilities of `targets` and entropies, f32 `[n]` each.
pub fn logprob(
    r: &mut dyn Run,
    op: LogProb,
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Tensor,
) -> Result<(Tensor, Tensor)> {
    let outs = r.run(Arc::new(op), &[Some(x), Some(weight), bias, Some(targets)])?;
    Ok((outs[0], outs[1]))
}

/// Rows whose logits exist at once: even shares of at most about 128 MiB, so that reading the weights and
/// adding to their gradients, once for each share, is little beside the products.
fn chunk_rows(n: usize, vocab: usize) -> usize {
    let most = ((128 << 20) / 4 / vocab.max(1)).max(8);
    n.div_ceil(n.div_ceil(most).max(1))
}

impl Op for LogProb {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, w) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let (n, d, vocab) = (x.shape.rows(), x.shape.last(), w.shape.rows());
        let fits = x.dtype.is_float()
            && x == Desc::new(&[n, d], x.dtype)
            && w == Desc::new(&[vocab, d], x.dtype)
            && ins[2].is_none_or(|b| b == Desc::new(&[vocab], x.dtype))
            && required(self, ins, 3)? == Desc::new(&[n], DType::I32);
        if !fits {
            let expected = "x [n, hidden], w [vocab, hidden], b [vocab], targets i32 [n]";
            return Err(shape_error(self, ins, expected));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::internal(format!("logprob at temperature {}", self.temperature)));
        }
        if !(self.softcap >= 0.0 && self.softcap.is_finite()) {
            return Err(Error::internal(format!("logprob with softcap {}", self.softcap)));
        }
        let scratch = chunk_rows(n, vocab) * vocab;
        let cuda = Chunks::new(n, vocab, x.dtype);
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[n], DType::F32)); 3],
            differentiable: 0b11,
            saves_ins: 0b1111,
            saves_outs: 0b110,
            narrow_grads: 0b10,
            scratch,
            scratch_backward: scratch,
            cuda_scratch: cuda.logits,
            cuda_scratch_backward: cuda.logits + cuda.slopes + cuda.sums,
            flops: 2 * (n * d * vocab) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (vocab, targets) = (io.input(1).desc.shape.rows(), io.input(3).i32());
        let known = |t: &i32| usize::try_from(*t).is_ok_and(|t| t < vocab);
        if let Some(t) = targets.iter().find(|t| !known(t)) {
            return Err(Error::user(format!(
                "token {t} is outside the model's vocabulary of {vocab}; use the model's own tokenizer"
            )));
        }
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

    fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        cuda::forward(self, io)
    }

    fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        cuda::backward(self, io)
    }
}

/// The output layer, to compute logits of some rows.
#[derive(Clone, Copy)]
struct Layer<'a, E> {
    x: &'a [E],
    w: &'a [E],
    bias: Option<&'a [E]>,
    d: usize,
    vocab: usize,
}

impl<'a, E: Elem> Layer<'a, E> {
    fn rows(&self, start: usize, n: usize) -> Mat<'a, E> {
        Mat::dense(&self.x[start * self.d..][..n * self.d], n, self.d)
    }

    fn weight(&self) -> Mat<'a, E> {
        Mat::dense(self.w, self.vocab, self.d)
    }

    /// Logits of the rows `start..start + n`, at the front of `scratch`.
    fn logits<'s>(&self, start: usize, n: usize, scratch: &'s mut [f32]) -> &'s mut [f32] {
        let logits = &mut scratch[..n * self.vocab];
        let out = MatMut::dense(&mut *logits, n, self.vocab);
        let epilogue = Epilogue { bias: self.bias, ..Epilogue::default() };
        gemm_nt(self.rows(start, n), self.weight(), out, &epilogue);
        logits
    }
}

fn forward<E: Elem>(op: &LogProb, io: &mut Forward<'_>) {
    let (x, w, targets) = (io.input(0), io.input(1), io.input(3).i32());
    let bias = io.ins[2].map(|b| b.get::<E>());
    let (d, vocab) = (w.desc.shape.last(), w.desc.shape.rows());
    let layer = Layer::<E> { x: x.get(), w: w.get(), bias, d, vocab };
    let inv_t = softmax::inverse(op.temperature);
    let [logp, entropy, lse] = &mut io.outs[..] else { panic!("logprob has three outputs") };
    let outs = [logp, entropy, lse].map(|o| SharedMut::new(o.f32()));
    let n = targets.len();
    let step = chunk_rows(n, vocab);
    for start in (0..n).step_by(step.max(1)) {
        let rows = step.min(n - start);
        let logits = SharedMut::new(layer.logits(start, rows, io.scratch));
        let chunks = row_chunks(rows, vocab);
        parallel_for(chunks.len(), |c| {
            for i in chunks[c].clone() {
                let t = start + i;
                // SAFETY: row i belongs to this task alone.
                let z = unsafe { logits.slice(i * vocab, vocab) };
                softmax::softcap(z, op.softcap);
                let row = softmax::row(z, inv_t);
                let logp = row.logp(z[targets[t] as usize], inv_t);
                for (out, v) in outs.iter().zip([logp, row.entropy, row.lse()]) {
                    // SAFETY: row t belongs to this task alone.
                    unsafe { out.slice(t, 1)[0] = v };
                }
            }
        });
    }
}

/// Per chunk: the logits again, then their gradient in place in the dtype of x, then dx, dw and db from it.
fn backward<E: Elem>(op: &LogProb, io: &mut Backward<'_>) {
    let (x, w, targets) = (io.input(0), io.input(1), io.input(3).i32());
    let bias = io.ins[2].map(|b| b.get::<E>());
    let (d, vocab) = (w.desc.shape.last(), w.desc.shape.rows());
    let layer = Layer::<E> { x: x.get(), w: w.get(), bias, d, vocab };
    let (entropy, lse) = (io.output(1).f32(), io.output(2).f32());
    let g_logp = io.douts[0].map(|g| g.f32());
    let g_entropy = io.douts[1].map(|g| g.f32());
    let slope = |t: usize| Slope {
        inv_t: softmax::inverse(op.temperature),
        softcap: op.softcap,
        lse: lse[t],
        entropy: entropy[t],
        target: targets[t] as usize,
        g_logp: g_logp.map_or(0.0, |g| g[t]),
        g_entropy: g_entropy.map_or(0.0, |g| g[t]),
    };
    let [dx, dw, db, _] = &mut io.dins[..] else { panic!("logprob has four inputs") };
    let n = targets.len();
    let step = chunk_rows(n, vocab);
    // Without rows there is still one (empty) chunk, which sets the gradients to 0.
    for c in 0..n.div_ceil(step.max(1)).max(1) {
        let start = c * step;
        let rows = step.min(n - start);
        let logits = layer.logits(start, rows, io.scratch);
        let tasks = row_chunks(rows, vocab);
        let shared = SharedMut::new(&mut *logits);
        parallel_for(tasks.len(), |k| {
            for i in tasks[k].clone() {
                // SAFETY: row i belongs to this task alone.
                let z = unsafe { shared.slice(i * vocab, vocab) };
                softmax::softcap(z, op.softcap);
                slope(start + i).apply::<E>(z);
            }
        });
        // Rows start where those of the logits did.
        let dlogits = bytemuck::cast_slice::<f32, E>(logits);
        let dlogits = Mat::new(dlogits, rows, vocab, vocab * size_of::<f32>() / size_of::<E>());
        if let Some(dx) = dx {
            let out = &mut dx.view.get::<E>()[start * d..][..rows * d];
            gemm_nn(dlogits, layer.weight(), MatMut::dense(out, rows, d), dx.acc);
        }
        if let Some(dw) = dw {
            let (x, acc) = (layer.rows(start, rows), dw.acc || c > 0);
            if dw.view.desc.dtype == DType::F32 {
                gemm_tn(dlogits, x, MatMut::dense(dw.view.f32(), vocab, d), acc);
            } else {
                gemm_tn(dlogits, x, MatMut::dense(dw.view.get::<E>(), vocab, d), acc);
            }
        }
        if let Some(db) = db {
            column_sums(dlogits, db.view.f32(), db.acc || c > 0);
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |[n, d, vocab]: [usize; 3], temperature: f32, softcap: f32, bias: bool| {
        let targets: Vec<i32> = (0..n).map(|i| ((i * 31 + 5) % vocab) as i32).collect();
        let ins = vec![
            Some(Input::act(&[n, d], 1.0)),
            Some(Input::weight(&[vocab, d], 1.0)),
            bias.then(|| Input::weight(&[vocab], 1.0)),
            Some(Input::ints(&targets)),
        ];
        let cap = f64::from(softcap);
        let capped = move |l: f64| if cap == 0.0 { l } else { cap * (l / cap).tanh() };
        Case::new(LogProb { temperature, softcap }, ins, move |ins| {
            let (mut logps, mut entropies) = (vec![], vec![]);
            for (x, target) in ins[0].chunks(d).zip(&ins[3]) {
                let z: Vec<f64> = (0..vocab)
                    .map(|v| {
                        let w = &ins[1][v * d..][..d];
                        let dot = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                        capped(dot + ins[2].get(v).unwrap_or(&0.0)) / f64::from(temperature)
                    })
                    .collect();
                let top = z.iter().copied().fold(f64::MIN, f64::max);
                let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
                logps.push(z[*target as usize] - lse);
                entropies.push(z.iter().map(|z| (z - lse).exp() * (lse - z)).sum::<f64>());
            }
            vec![logps, entropies]
        })
    };
    vec![
        case([7, 12, 97], 1.0, 0.0, false),
        case([1, 33, 20], 0.7, 0.0, true),
        case([20, 8, 530], 1.3, 0.0, true),
        case([9, 16, 75], 1.0, 4.0, false),
        case([13, 10, 131], 0.8, 1.5, true),
    ]
}

#[cfg(test)]
mod tests;
