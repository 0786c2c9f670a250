//! The supervised loss straight from hidden states: a weighted sum of the log-probabilities of
//! given tokens. Unlike `logprob` with `weighted_sum` after it, whose bits it has, it makes the
//! logits once in training: a loss that is linear in log-probabilities has slopes that need no
//! value of theirs, so that all is done by backward, share by share.
//!
//! x `[n, hidden]`, w `[vocab, hidden]`, b `[vocab]` or none, targets i32 `[n]`, weights f32 `[n]`
//! (constant) -> loss f32 `[1]`, scale * sum weights logp, and logp f32 `[n]`, where logp =
//! log_softmax(cap(x w^T + b)) at the targets. While a tape records, both are there after backward.

use crate::base::{DType, Elem, Result, bf16};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::softmax::{self, Slope};
use crate::op::def::OpDef;
use crate::op::exact::{exact_logits, log_sum_exp};
use crate::op::logprob::LogProb;
use crate::op::logprob::cuda::{self, Room, Statistics, at};
use crate::op::logprob::shares::{Layer, check_targets};
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run, ViewMut};
use crate::op::{required, shape_error, weighted_sum};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// Multiplies the sum: -1 / tokens for a mean of negative log-likelihoods.
    pub scale: f32,
    /// Bound that logits approach smoothly (Gemma 2); 0 = none.
    pub softcap: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "cross_entropy",
    about: "scale * sum weights log_softmax(l) at the targets, l = x w^T + b or \
        cap tanh((x w^T + b) / cap); logits are made once",
    cases,
};

/// The loss f32 `[1]`. On a recording tape its value is there after backward.
pub fn cross_entropy(
    r: &mut dyn Run,
    op: CrossEntropy,
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    targets: Tensor,
    weights: Tensor,
) -> Result<Tensor> {
    let ins = [Some(x), Some(weight), bias, Some(targets), Some(weights)];
    Ok(r.run(Arc::new(op), &ins)?[0])
}

impl CrossEntropy {
    fn logprob(&self) -> LogProb {
        LogProb { temperature: 1.0, softcap: self.softcap }
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, w) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let plan = self.logprob().plan(ins)?;
        let n = x.shape.rows();
        if required(self, ins, 4)? != Desc::new(&[n], DType::F32) {
            return Err(shape_error(self, ins, "weights f32 [n] for x [n, hidden]"));
        }
        let cuda = Room::new(n, w.shape.rows(), x.dtype);
        let f32s = |dims: &[usize]| Place::New(Desc::new(dims, DType::F32));
        Ok(Plan {
            outs: vec![f32s(&[1]), f32s(&[n])],
            differentiable: 0b1,
            saves_ins: 0b11111,
            saves_outs: 0,
            late: true,
            cuda_scratch: cuda.logits + 2 * n,
            cuda_scratch_backward: cuda.all() + 3 * n,
            ..plan
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
        check_targets(&io.input(3), io.input(1).desc.shape.rows())?;
        loss::constants(self, &io.dins, 3)?;
        match io.input(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(self, io),
            _ => backward::<f32>(self, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let layer = cuda::Layer::new(self.logprob(), io.stream, &io.ins, io.scratch)?;
        let (n, rest) = (io.input(4).desc.shape.numel(), at(io.scratch, layer.chunks().logits));
        let logp = io.outs[1].ptr;
        for rows in layer.shares(n) {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { layer.logits(&rows)? };
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe {
                layer.statistics(&rows, Statistics { logp, entropy: rest, lse: at(rest, n) })?
            };
        }
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            weighted_sum::cuda_sum(io.stream, self.scale, io.outs[1], io.input(4), io.outs[0].ptr)
        }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 3)?;
        let layer = cuda::Layer::new(self.logprob(), io.stream, &io.ins, io.scratch)?;
        let [loss, logp]: [Arg; 2] = [io.late[0], io.late[1]];
        let n = io.input(4).desc.shape.numel();
        let [entropy, lse, dlogp] =
            [0, 1, 2].map(|i| at(io.scratch, layer.chunks().parts() + i * n));
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            weighted_sum::cuda_slopes(
                io.stream,
                self.scale,
                io.input(4),
                io.dout(0).ptr,
                dlogp,
                false,
            )?
        };
        for rows in layer.shares(n) {
            let statistics = Statistics { logp: logp.ptr, entropy, lse };
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { layer.logits(&rows)? };
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { layer.statistics(&rows, statistics)? };
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { layer.gradients(&rows, statistics, [dlogp, 0], &io.dins, true)? };
        }
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { weighted_sum::cuda_sum(io.stream, self.scale, logp, io.input(4), loss.ptr) }
    }
}

fn forward<E: Elem>(op: &CrossEntropy, io: &mut Forward<'_>) {
    let (layer, targets) = (Layer::<E>::new(&io.ins), io.input(3).i32());
    let weights = io.input(4).f32();
    let [loss, logp] = &mut io.outs[..] else { panic!("cross_entropy has two outputs") };
    let shared = SharedMut::new(logp.f32());
    let take = |t: usize, z: &mut [f32]| {
        softmax::softcap(z, op.softcap);
        // SAFETY: row t belongs to this task alone.
        unsafe { shared.slice(t, 1)[0] = softmax::row(z, 1.0).logp(z[targets[t] as usize], 1.0) };
    };
    layer.shares(targets.len(), io.scratch, take, |_, _| ());
    finish(op, loss, logp, weights);
}

/// Everything: log-probabilities and slopes from the same logits.
fn backward<E: Elem>(op: &CrossEntropy, io: &mut Backward<'_>) {
    let (layer, targets) = (Layer::<E>::new(&io.ins), io.input(3).i32());
    let (weights, upstream) = (io.input(4).f32(), f64::from(io.dout(0).f32()[0]));
    let [loss, logp] = &mut io.late[..] else { panic!("cross_entropy has two outputs") };
    let shared = SharedMut::new(logp.f32());
    let take = |t: usize, z: &mut [f32]| {
        softmax::softcap(z, op.softcap);
        let (row, target) = (softmax::row(z, 1.0), targets[t] as usize);
        // SAFETY: row t belongs to this task alone.
        unsafe { shared.slice(t, 1)[0] = row.logp(z[target], 1.0) };
        let (lse, entropy) = (row.lse(), row.entropy);
        let g_logp = (upstream * (f64::from(op.scale) * f64::from(weights[t]))) as f32;
        let softcap = op.softcap;
        Slope { inv_t: 1.0, softcap, lse, entropy, target, g_logp, g_entropy: 0.0 }.apply::<E>(z);
    };
    let dins = &mut io.dins;
    layer.shares(targets.len(), io.scratch, take, |rows, dlogits| {
        layer.add_gradients(dins, rows, dlogits);
    });
    finish(op, loss, logp, weights);
}

fn finish(op: &CrossEntropy, loss: &mut ViewMut<'_>, logp: &mut ViewMut<'_>, weights: &[f32]) {
    loss.f32()[0] = weighted_sum::sum(op.scale, logp.f32(), weights);
}

fn cases() -> Vec<Case> {
    let case = |[n, d, vocab]: [usize; 3], scale: f32, softcap: f32, bias: bool| {
        let targets: Vec<i32> = (0..n).map(|i| ((i * 31 + 5) % vocab) as i32).collect();
        let weights = (0..n).map(|i| [1.0, 0.5, 0.0, 2.0][i % 4]).collect();
        let ins = vec![
            Some(Input::act(&[n, d], 1.0)),
            Some(Input::weight(&[vocab, d], 1.0)),
            bias.then(|| Input::weight(&[vocab], 1.0)),
            Some(Input::ints(&targets)),
            Some(Input::Const(vec![n], weights)),
        ];
        Case::new(CrossEntropy { scale, softcap }, ins, move |ins| {
            let logps: Vec<f64> = exact_logits(&ins[0], &ins[1], &ins[2], d, softcap)
                .zip(&ins[3])
                .map(|(z, target)| z[*target as usize] - log_sum_exp(&z))
                .collect();
            let sum = logps.iter().zip(&ins[4]).map(|(l, w)| l * w).sum::<f64>();
            vec![vec![f64::from(scale) * sum], logps]
        })
    };
    vec![
        case([7, 12, 97], -0.125, 0.0, false),
        case([20, 8, 530], -1.0, 0.0, true),
        case([13, 10, 131], 0.5, 1.5, true),
    ]
}

#[cfg(test)]
mod tests;
