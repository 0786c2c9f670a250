//! The clipped policy loss of PPO (Schulman et al. 2017, eq. 7), negated so that it is minimised.
//!
//! logp, old_logp, advantages, mask f32 `[n]` -> loss f32 `[1]`, stats f32 `[6]`. With ratio =
//! exp(logp - old): loss = scale * sum mask * max(-A ratio, -A clip(ratio, 1 - c, 1 + c)). Stats,
//! weighted by the mask: sum of mask, of clipped tokens, of k3 = (ratio - 1) - log ratio and of
//! k1 = old - logp (Schulman, "Approximating KL divergence"), largest |ratio - 1|, sum of ratio.

use crate::base::Result;
use crate::device::cuda::params::PpoPolicyParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Plan, Run};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct PpoPolicy {
    /// Ratios are clipped to 1 - clip .. 1 + clip.
    pub clip: f32,
    /// Multiplies the loss, not the stats.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "ppo_policy",
    about: "scale * sum mask max(-A ratio, -A clip(ratio, 1 - c, 1 + c)), ratio = exp(logp - old)",
    cases,
};

/// Returns the loss f32 `[1]` and the stats f32 `[6]`; the gradient goes to `logp` only.
pub fn ppo_policy(
    r: &mut dyn Run,
    op: PpoPolicy,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
) -> Result<(Tensor, Tensor)> {
    let ins = [Some(logp), Some(old_logp), Some(advantages), Some(mask)];
    let outs = r.run(Arc::new(op), &ins)?;
    Ok((outs[0], outs[1]))
}

/// One token in f64.
struct Token {
    log_ratio: f64,
    ratio: f64,
    plain: f64,
    clipped: f64,
}

impl PpoPolicy {
    fn token(&self, logp: f32, old: f32, advantage: f32) -> Token {
        let log_ratio = f64::from(logp) - f64::from(old);
        let (ratio, a, c) = (log_ratio.exp(), f64::from(advantage), f64::from(self.clip));
        // Not `clamp`: it panics where 1 - c > 1 + c.
        let clipped = -a * ratio.max(1.0 - c).min(1.0 + c);
        Token { log_ratio, ratio, plain: -a * ratio, clipped }
    }
}

impl Op for PpoPolicy {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        loss::plan(self, ins, 6)
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let [logp, old, advantages, mask] = [0, 1, 2, 3].map(|i| io.input(i).f32());
        let (mut loss, mut stats) = (0f64, [0f64; 6]);
        // Masked tokens are skipped, not multiplied by 0: their values may be infinite.
        for i in (0..logp.len()).filter(|&i| mask[i] != 0.0) {
            let (t, m) = (self.token(logp[i], old[i], advantages[i]), f64::from(mask[i]));
            loss += m * if t.clipped > t.plain { t.clipped } else { t.plain };
            stats[0] += m;
            stats[1] += m * f64::from(t.clipped > t.plain);
            stats[2] += m * (t.log_ratio.exp_m1() - t.log_ratio);
            stats[3] -= m * t.log_ratio;
            stats[4] = stats[4].max((t.ratio - 1.0).abs());
            stats[5] += m * t.ratio;
        }
        io.outs[0].f32()[0] = (f64::from(self.scale) * loss) as f32;
        io.outs[1].f32().copy_from_slice(&stats.map(|s| s as f32));
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let [logp, old, advantages, mask] = [0, 1, 2, 3].map(|i| io.input(i).f32());
        loss::write_grad(io, 0, |i| {
            if mask[i] == 0.0 {
                return 0.0;
            }
            let t = self.token(logp[i], old[i], advantages[i]);
            // d(-A ratio)/d(logp) is -A ratio itself; a clipped token does not move.
            let slope = if t.clipped > t.plain { 0.0 } else { t.plain };
            f64::from(self.scale) * f64::from(mask[i]) * slope
        });
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let [loss, stats] = [0, 1].map(|i| io.outs[i].ptr);
        let params =
            PpoPolicyParams { loss, stats, ..self.params([0, 1, 2, 3].map(|i| io.input(i))) };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("ppo_policy_forward_f32", [1, 1, 1], loss::THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let Some(grad) = io.dins[0] else { return Ok(()) };
        let params = PpoPolicyParams {
            dloss: io.dout(0).ptr,
            dlogp: grad.arg.ptr,
            acc: grad.acc.into(),
            ..self.params([0, 1, 2, 3].map(|i| io.input(i)))
        };
        let grid = loss::token_grid(params.n);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("ppo_policy_backward_f32", grid, loss::THREADS, 0, &params) }
    }
}

impl PpoPolicy {
    fn params(&self, ins: [Arg; 4]) -> PpoPolicyParams {
        let [logp, old_logp, advantages, mask] = ins.map(|a| a.ptr);
        let n = ins[0].desc.shape.numel() as u32;
        let zero: PpoPolicyParams = bytemuck::Zeroable::zeroed();
        let PpoPolicy { clip, scale } = *self;
        PpoPolicyParams { logp, old_logp, advantages, mask, n, clip, scale, ..zero }
    }
}

/// Log-probabilities are drawn within 0.05 of 0, so ratios stay well inside, above or below the
/// clip range depending on the old ones, and both signs of the advantage meet all three.
fn cases() -> Vec<Case> {
    let case = |n: usize, clip: f32, scale: f32| {
        let column = |f: &dyn Fn(usize) -> f32| Input::Const(vec![n], (0..n).map(f).collect());
        let old = column(&|i| [0.0, 0.5, -0.5][i % 3]);
        let advantages = column(&|i| [1.3, 0.4, -0.7, -1.1][i % 4]);
        let mask = column(&|i| [1.0, 1.0, 0.0, 1.0, 0.5][i % 5]);
        Case::new(
            PpoPolicy { clip, scale },
            vec![Some(Input::f32(&[n], 0.05)), Some(old), Some(advantages), Some(mask)],
            move |ins| {
                let (c, mut loss, mut s) = (f64::from(clip), 0.0, vec![0.0f64; 6]);
                for i in 0..n {
                    let (d, a, m) = (ins[0][i] - ins[1][i], ins[2][i], ins[3][i]);
                    let ratio = d.exp();
                    let (plain, clipped) = (-a * ratio, -a * ratio.clamp(1.0 - c, 1.0 + c));
                    loss += f64::from(scale) * m * plain.max(clipped);
                    s[0] += m;
                    s[1] += if clipped > plain { m } else { 0.0 };
                    s[2] += m * (ratio - 1.0 - d);
                    s[3] += m * -d;
                    s[4] = s[4].max(if m > 0.0 { (ratio - 1.0).abs() } else { 0.0 });
                    s[5] += m * ratio;
                }
                vec![vec![loss], s]
            },
        )
    };
    vec![case(60, 0.2, 0.25), case(61, 0.3, -1.5), case(7, 0.2, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logprobs_give_ratio_one_exactly() {
        let op = PpoPolicy { clip: 0.2, scale: 1.0 };
        let mut rng = crate::base::Rng::new(11, 0);
        for _ in 0..1000 {
            let (logp, a) = (-20.0 * rng.uniform(), rng.normal());
            let t = op.token(logp, logp, a);
            assert_eq!((t.ratio, t.log_ratio), (1.0, 0.0));
            assert!(t.clipped == t.plain && t.plain == -f64::from(a));
        }
    }
}
