//! Softcap of logits before a token is drawn (Gemma 2): logits f32 `[n, vocab]` -> cap tanh(logits
//! / cap), in place, with the bits that `logprob` computes from. No gradient: training takes
//! log-probabilities from `logprob`, which caps the logits itself; nothing that is trained may go
//! through this operator.

use crate::base::{DType, Error, Result};
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::softcap::SOFTCAP_THREADS;
use crate::device::cuda::params::SoftcapParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::softmax;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Softcap {
    /// The bound that logits approach smoothly; above 0.
    pub cap: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "softcap",
    about: "logits = cap tanh(logits / cap), in place; no gradient (logprob has its own)",
    cases,
};

/// Caps `logits` `[n, vocab]` in place and returns them.
pub fn softcap(r: &mut dyn Run, op: Softcap, logits: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(logits)])?[0])
}

impl Op for Softcap {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let logits = required(self, ins, 0)?;
        if logits.dtype != DType::F32 || logits.shape.dims().len() != 2 {
            return Err(shape_error(self, ins, "logits f32 [n, vocab]"));
        }
        if !(self.cap > 0.0 && self.cap.is_finite()) {
            return Err(Error::internal(format!("softcap at {}", self.cap)));
        }
        Ok(Plan {
            outs: vec![Place::InPlace(0)],
            flops: 10 * logits.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let logits = io.outs[0].f32();
        // Elements are capped one by one, so where the cuts are does not matter.
        let chunks = row_chunks(logits.len(), 1);
        let logits = SharedMut::new(logits);
        parallel_for(chunks.len(), |c| {
            // SAFETY: the range belongs to this task alone.
            let part = unsafe { logits.slice(chunks[c].start, chunks[c].len()) };
            softmax::softcap(part, self.cap);
        });
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let logits = io.outs[0];
        let n = logits.desc.shape.numel() as u64;
        let params = SoftcapParams { logits: logits.ptr, n, cap: self.cap, padding: 0 };
        let blocks = n.div_ceil(SOFTCAP_THREADS as u64) as u32;
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            io.stream.launch("softcap_f32", [blocks, 1, 1], SOFTCAP_THREADS as u32, 0, &params)
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |dims: [usize; 2], cap: f32, scale: f32| {
        Case::new(Softcap { cap }, vec![Some(Input::f32(&dims, scale))], move |ins| {
            let cap = f64::from(cap);
            vec![ins[0].iter().map(|l| cap * (l / cap).tanh()).collect()]
        })
    };
    vec![case([1, 5], 30.0, 10.0), case([7, 97], 2.5, 20.0), case([33, 1003], 50.0, 200.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::cpu::testing::{Host, forward};

    #[test]
    fn large_logits_meet_the_cap_and_nan_is_not_hidden() {
        let z = [1e30, -1e30, 0.0, 1e-20, f32::NAN, f32::INFINITY];
        let run = |op: Softcap| forward(&op, &[Some(Host::new::<f32>(&[1, 6], &z))]);
        let y = run(Softcap { cap: 30.0 }).expect("softcap").remove(0).f32();
        assert!(y[..4] == [30.0, -30.0, 0.0, 1e-20] && y[4].is_nan() && y[5] == 30.0, "{y:?}");
        assert!(run(Softcap { cap: 0.0 }).is_err() && run(Softcap { cap: f32::NAN }).is_err());
    }
}
