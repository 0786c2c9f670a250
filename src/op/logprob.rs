//! Log-probabilities of given tokens and entropies, straight from hidden states: the logits of a
//! whole batch never exist, only those of a few rows at a time, and backward computes them again.
//!
//! x `[n, hidden]`, w `[vocab, hidden]`, b `[vocab]` or none, targets i32 `[n]` -> logp, entropy
//! and lse (kept for backward) f32 `[n]` of log_softmax(cap(x w^T + b) / T), where cap(l) is l or
//! softcap tanh(l / softcap). Row by row the same bits as `linear`, `softcap` and `sample` in turn.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::softmax::{self, Slope};
use crate::op::def::OpDef;
use crate::op::exact::{exact_logits, log_sum_exp};
use crate::op::{Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run};
use crate::op::{required, shape_error};
use crate::tensor::{Desc, Tensor};
use shares::{Layer, check_targets, most_logits};
use std::sync::Arc;

pub(super) mod cuda;
pub(super) mod shares;

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
    about: "log_softmax(l / T) at the targets, and its entropy; l = x w^T + b or \
        cap tanh((x w^T + b) / cap)",
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
        let scratch = most_logits(n, vocab);
        let cuda = cuda::Room::new(n, vocab, x.dtype);
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[n], DType::F32)); 3],
            differentiable: 0b11,
            saves_ins: 0b1111,
            saves_outs: 0b110,
            bf16_grads: 0b10,
            scratch,
            scratch_backward: scratch,
            cuda_scratch: cuda.logits,
            cuda_scratch_backward: cuda.all(),
            flops: 2 * (n * d * vocab) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        check_targets(&io.input(3), io.input(1).desc.shape.rows())?;
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
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda::forward(self, io) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda::backward(self, io) }
    }
}

fn forward<E: Elem>(op: &LogProb, io: &mut Forward<'_>) {
    let (layer, targets) = (Layer::<E>::new(&io.ins), io.input(3).i32());
    let inv_t = softmax::inverse(op.temperature);
    let [logp, entropy, lse] = &mut io.outs[..] else { panic!("logprob has three outputs") };
    let outs = [logp, entropy, lse].map(|o| SharedMut::new(o.f32()));
    let statistics = |t: usize, z: &mut [f32]| {
        softmax::softcap(z, op.softcap);
        let row = softmax::row(z, inv_t);
        let logp = row.logp(z[targets[t] as usize], inv_t);
        for (out, v) in outs.iter().zip([logp, row.entropy, row.lse()]) {
            // SAFETY: row t belongs to this task alone.
            unsafe { out.slice(t, 1)[0] = v };
        }
    };
    layer.shares(targets.len(), io.scratch, statistics, |_, _| ());
}

/// The logits again, then their gradient, then dx, dw and db from it.
fn backward<E: Elem>(op: &LogProb, io: &mut Backward<'_>) {
    let (layer, targets) = (Layer::<E>::new(&io.ins), io.input(3).i32());
    let (entropy, lse) = (io.output(1).f32(), io.output(2).f32());
    let g_logp = io.douts[0].map(|g| g.f32());
    let g_entropy = io.douts[1].map(|g| g.f32());
    let slope = |t: usize, z: &mut [f32]| {
        softmax::softcap(z, op.softcap);
        let slope = Slope {
            inv_t: softmax::inverse(op.temperature),
            softcap: op.softcap,
            lse: lse[t],
            entropy: entropy[t],
            target: targets[t] as usize,
            g_logp: g_logp.map_or(0.0, |g| g[t]),
            g_entropy: g_entropy.map_or(0.0, |g| g[t]),
        };
        slope.apply::<E>(z);
    };
    let dins = &mut io.dins;
    layer.shares(targets.len(), io.scratch, slope, |rows, dlogits| {
        layer.add_gradients(dins, rows, dlogits);
    });
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
        Case::new(LogProb { temperature, softcap }, ins, move |ins| {
            let (mut logps, mut entropies) = (vec![], vec![]);
            for (mut z, target) in exact_logits(&ins[0], &ins[1], &ins[2], d, softcap).zip(&ins[3])
            {
                z.iter_mut().for_each(|z| *z /= f64::from(temperature));
                let lse = log_sum_exp(&z);
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
