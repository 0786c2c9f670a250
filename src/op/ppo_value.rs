//! The clipped value loss used with PPO: the value may move at most `clip` from its old value to
//! gain anything.
//!
//! values, old_values, returns, mask f32 `[n]` -> loss f32 `[1]`, stats f32 `[4]`.
//! loss = scale * 0.5 * sum mask * max((v - R)^2, (clip(v, old - c, old + c) - R)^2). Stats,
//! weighted by the mask: sum of mask, of clipped tokens, of (v - R)^2, of v.

use crate::base::Result;
use crate::device::cuda::params::PpoValueParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Plan, Run};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct PpoValue {
    /// Values are clipped to old - clip .. old + clip; 0 or less = not clipped.
    pub clip: f32,
    /// Multiplies the loss, not the stats.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "ppo_value",
    about: "scale * 0.5 * sum mask max((v - R)^2, (clip(v, old - c, old + c) - R)^2)",
    cases,
};

/// Returns the loss f32 `[1]` and the stats f32 `[4]`; the gradient goes to `values` only.
pub fn ppo_value(
    r: &mut dyn Run,
    op: PpoValue,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
) -> Result<(Tensor, Tensor)> {
    let ins = [Some(values), Some(old_values), Some(returns), Some(mask)];
    let outs = r.run(Arc::new(op), &ins)?;
    Ok((outs[0], outs[1]))
}

impl PpoValue {
    /// Errors of the plain and of the clipped value of one token.
    fn errors(&self, value: f32, old: f32, target: f32) -> (f64, f64) {
        let (v, old, target) = (f64::from(value), f64::from(old), f64::from(target));
        let c = f64::from(self.clip);
        let clipped = if c > 0.0 { v.max(old - c).min(old + c) } else { v };
        (v - target, clipped - target)
    }
}

impl Op for PpoValue {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        loss::plan(self, ins, 4)
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let [values, old, returns, mask] = [0, 1, 2, 3].map(|i| io.input(i).f32());
        let (mut loss, mut stats) = (0f64, [0f64; 4]);
        // Masked tokens are skipped, not multiplied by 0: their values may be infinite.
        for i in (0..values.len()).filter(|&i| mask[i] != 0.0) {
            let (plain, clipped) = self.errors(values[i], old[i], returns[i]);
            let (plain, clipped, m) = (plain * plain, clipped * clipped, f64::from(mask[i]));
            loss += m * if clipped > plain { clipped } else { plain };
            stats[0] += m;
            stats[1] += m * f64::from(clipped > plain);
            stats[2] += m * plain;
            stats[3] += m * f64::from(values[i]);
        }
        io.outs[0].f32()[0] = (f64::from(self.scale) * 0.5 * loss) as f32;
        io.outs[1].f32().copy_from_slice(&stats.map(|s| s as f32));
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let [values, old, returns, mask] = [0, 1, 2, 3].map(|i| io.input(i).f32());
        loss::write_grad(io, 0, |i| {
            let (plain, clipped) = self.errors(values[i], old[i], returns[i]);
            // Where the clipped error is the larger one, the value is outside its range and that
            // error does not move with it.
            if mask[i] == 0.0 || clipped * clipped > plain * plain {
                return 0.0;
            }
            f64::from(self.scale) * f64::from(mask[i]) * plain
        });
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let [loss, stats] = [0, 1].map(|i| io.outs[i].ptr);
        let params =
            PpoValueParams { loss, stats, ..self.params([0, 1, 2, 3].map(|i| io.input(i))) };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("ppo_value_forward_f32", [1, 1, 1], loss::THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let Some(grad) = io.dins[0] else { return Ok(()) };
        let params = PpoValueParams {
            dloss: io.dout(0).ptr,
            dvalues: grad.arg.ptr,
            acc: grad.acc.into(),
            ..self.params([0, 1, 2, 3].map(|i| io.input(i)))
        };
        let grid = loss::token_grid(params.n);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("ppo_value_backward_f32", grid, loss::THREADS, 0, &params) }
    }
}

impl PpoValue {
    fn params(&self, ins: [Arg; 4]) -> PpoValueParams {
        let [values, old_values, returns, mask] = ins.map(|a| a.ptr);
        let n = ins[0].desc.shape.numel() as u32;
        let zero: PpoValueParams = bytemuck::Zeroable::zeroed();
        let PpoValue { clip, scale } = *self;
        PpoValueParams { values, old_values, returns, mask, n, clip, scale, ..zero }
    }
}

/// Values are drawn within 0.05 of 0; the old ones put them well inside, above or below the range.
fn cases() -> Vec<Case> {
    let case = |n: usize, clip: f32, scale: f32| {
        let column = |f: &dyn Fn(usize) -> f32| Input::Const(vec![n], (0..n).map(f).collect());
        let old = column(&|i| [0.0, 0.5, -0.5][i % 3]);
        let returns = column(&|i| [1.0, -1.2, 0.7, -0.9][i % 4]);
        let mask = column(&|i| [1.0, 1.0, 0.0, 1.0, 0.5][i % 5]);
        Case::new(
            PpoValue { clip, scale },
            vec![Some(Input::f32(&[n], 0.05)), Some(old), Some(returns), Some(mask)],
            move |ins| {
                let (c, mut loss, mut s) = (f64::from(clip), 0.0, vec![0.0; 4]);
                for i in 0..n {
                    let (v, old, target, m) = (ins[0][i], ins[1][i], ins[2][i], ins[3][i]);
                    let near = if c > 0.0 { v.clamp(old - c, old + c) } else { v };
                    let (plain, clipped) = ((v - target).powi(2), (near - target).powi(2));
                    loss += f64::from(scale) * 0.5 * m * plain.max(clipped);
                    s[0] += m;
                    s[1] += if clipped > plain { m } else { 0.0 };
                    s[2] += m * plain;
                    s[3] += m * v;
                }
                vec![vec![loss], s]
            },
        )
    };
    vec![case(60, 0.2, 0.25), case(61, 0.0, -1.5), case(7, 0.3, 1.0)]
}
