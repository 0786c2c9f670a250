//! Generalized advantage estimation (Schulman et al. 2016, eq. 11-16) over packed sequences.
//!
//! rewards, values f32 `[n]`, cu_seqlens i32 `[s + 1]` -> advantages, returns f32 `[n]`. Backwards
//! in each sequence: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1},
//! with value and advantage 0 after the end; returns = A + V. No gradient.

use crate::base::{DType, Error, Result};
use crate::device::cuda::constants::gae::GAE_THREADS;
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::params::GaeParams;
use crate::op::conformance::{Case, Input};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Gae {
    /// Discount of later rewards.
    pub gamma: f32,
    /// Trade between bias (0) and variance (1).
    pub lambda: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "gae",
    about: "A_t = r_t + gamma V_{t+1} - V_t + gamma lambda A_{t+1}; returns = A + V",
    cases,
};

/// Returns advantages and returns, f32 `[n]` each.
pub fn gae(
    r: &mut dyn Run,
    op: Gae,
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
) -> Result<(Tensor, Tensor)> {
    let outs = r.run(Arc::new(op), &[Some(rewards), Some(values), Some(cu_seqlens)])?;
    Ok((outs[0], outs[1]))
}

impl Op for Gae {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let [r, v, cu] =
            [required(self, ins, 0)?, required(self, ins, 1)?, required(self, ins, 2)?];
        let flat = r.dtype == DType::F32 && r.shape.dims().len() == 1 && v == r;
        if !flat || cu.dtype != DType::I32 || cu.shape.dims().len() != 1 || cu.shape.numel() == 0 {
            return Err(shape_error(
                self,
                ins,
                "rewards f32 [n], values f32 [n], cu_seqlens [s + 1]",
            ));
        }
        let flops = 6 * r.shape.numel() as u64;
        Ok(Plan { outs: vec![Place::New(r), Place::New(r)], flops, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (rewards, values) = (io.input(0).f32(), io.input(1).f32());
        let cu = io.input(2).i32();
        let ends = (cu[0], cu[cu.len() - 1] as usize);
        if ends != (0, rewards.len()) || cu.windows(2).any(|w| w[0] > w[1]) {
            let n = rewards.len();
            return Err(Error::internal(format!("sequence bounds do not rise from 0 to {n}")));
        }
        let (gamma, lambda) = (f64::from(self.gamma), f64::from(self.lambda));
        let [advantages, returns] = &mut io.outs[..] else { panic!("gae has two outputs") };
        let (advantages, returns) = (advantages.f32(), returns.f32());
        for w in cu.windows(2) {
            let (mut next_value, mut advantage) = (0f64, 0f64);
            for t in (w[0] as usize..w[1] as usize).rev() {
                let value = f64::from(values[t]);
                let delta = f64::from(rewards[t]) + gamma * next_value - value;
                advantage = delta + gamma * lambda * advantage;
                advantages[t] = advantage as f32;
                returns[t] = (advantage + value) as f32;
                next_value = value;
            }
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        const THREADS: u32 = GAE_THREADS as u32;
        let (tokens, bounds) = (io.input(0).desc.shape.numel(), io.input(2).desc.shape.numel());
        if bounds == 1 && tokens > 0 {
            return Err(Error::internal(format!("{tokens} tokens in no sequence")));
        }
        let params = GaeParams {
            rewards: io.input(0).ptr,
            values: io.input(1).ptr,
            cu_seqlens: io.input(2).ptr,
            advantages: io.outs[0].ptr,
            returns: io.outs[1].ptr,
            fault: io.stream.fault(),
            tokens: tokens as u32,
            sequences: bounds as u32 - 1,
            gamma: self.gamma,
            lambda: self.lambda,
        };
        // A warp per sequence.
        let blocks = params.sequences.div_ceil(THREADS / WARP as u32);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("gae_f32", [blocks, 1, 1], THREADS, 0, &params) }
    }
}

/// The reference sums eq. 16 directly: A_t = sum over l of (gamma lambda)^l delta_{t+l}.
fn cases() -> Vec<Case> {
    let case = |gamma: f32, lambda: f32, cu: &'static [i32]| {
        let n = cu[cu.len() - 1] as usize;
        let ins =
            vec![Some(Input::f32(&[n], 1.0)), Some(Input::f32(&[n], 2.0)), Some(Input::ints(cu))];
        Case::new(Gae { gamma, lambda }, ins, move |ins| {
            let (gamma, lambda) = (f64::from(gamma), f64::from(lambda));
            let (mut advantages, mut returns) = (vec![0.0; n], vec![0.0; n]);
            for w in cu.windows(2) {
                let (start, end) = (w[0] as usize, w[1] as usize);
                let value = |t: usize| if t < end { ins[1][t] } else { 0.0 };
                for t in start..end {
                    for s in t..end {
                        let delta = ins[0][s] + gamma * value(s + 1) - value(s);
                        advantages[t] += (gamma * lambda).powi((s - t) as i32) * delta;
                    }
                    returns[t] = advantages[t] + value(t);
                }
            }
            vec![advantages, returns]
        })
    };
    vec![
        case(1.0, 0.95, &[0, 5, 5, 6, 40]),
        case(0.99, 1.0, &[0, 300]),
        case(0.9, 0.0, &[0, 3, 17]),
    ]
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::op::cpu::testing::Host;
    use crate::op::cuda::testing::forward as emulated;

    #[test]
    fn kernels_refuse_lengths_that_do_not_fit() {
        let run = |cu: &[i32]| {
            let x = Host::new::<f32>(&[4], &[1.0, 2.0, 3.0, 4.0]);
            let ins = [Some(x.clone()), Some(x), Some(Host::ints(cu))];
            emulated(&Gae { gamma: 1.0, lambda: 0.9 }, &ins)
        };
        assert!(run(&[0, 0, 3, 4]).is_ok());
        for bad in [&[0, 5][..], &[1, 4], &[0, 3], &[0, 3, 2, 4], &[0, -1, 4], &[0]] {
            assert!(run(bad).is_err(), "{bad:?}");
        }
    }
}
