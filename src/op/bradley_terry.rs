//! The pairwise preference loss (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).
//!
//! chosen, rejected, weights f32 `[m]` -> loss f32 `[1]` = scale * sum w * -log sigmoid(c - r),
//! stats f32 `[2]`: sum of w where c > r, sum of w (c - r).

use crate::base::Result;
use crate::device::cuda::params::BradleyTerryParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::exact::softplus;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Plan, Run};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct BradleyTerry {
    /// Multiplies the loss, not the stats.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "bradley_terry",
    about: "scale * sum w * -log sigmoid(chosen - rejected)",
    cases,
};

/// Returns the loss f32 `[1]` and the stats f32 `[2]`; gradients go to both scores.
pub fn bradley_terry(
    r: &mut dyn Run,
    op: BradleyTerry,
    chosen: Tensor,
    rejected: Tensor,
    weights: Tensor,
) -> Result<(Tensor, Tensor)> {
    let outs = r.run(Arc::new(op), &[Some(chosen), Some(rejected), Some(weights)])?;
    Ok((outs[0], outs[1]))
}

impl Op for BradleyTerry {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        loss::plan(self, ins, 2)
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let [chosen, rejected, weights] = [0, 1, 2].map(|i| io.input(i).f32());
        let (mut loss, mut won, mut margin) = (0f64, 0f64, 0f64);
        for i in 0..chosen.len() {
            let (d, w) = (f64::from(chosen[i]) - f64::from(rejected[i]), f64::from(weights[i]));
            // -log sigmoid(d) without overflow on either side.
            loss += w * ((-d).max(0.0) + (-d.abs()).exp().ln_1p());
            won += if d > 0.0 { w } else { 0.0 };
            margin += w * d;
        }
        io.outs[0].f32()[0] = (f64::from(self.scale) * loss) as f32;
        io.outs[1].f32().copy_from_slice(&[won as f32, margin as f32]);
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 2)?;
        let [chosen, rejected, weights] = [0, 1, 2].map(|i| io.input(i).f32());
        let slope = |i: usize| {
            let d = f64::from(chosen[i]) - f64::from(rejected[i]);
            -f64::from(self.scale) * f64::from(weights[i]) / (1.0 + d.exp())
        };
        loss::write_grad(io, 0, slope);
        loss::write_grad(io, 1, |i| -slope(i));
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let [loss, stats] = [0, 1].map(|i| io.outs[i].ptr);
        let params =
            BradleyTerryParams { loss, stats, ..self.params([0, 1, 2].map(|i| io.input(i))) };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            io.stream.launch("bradley_terry_forward_f32", [1, 1, 1], loss::THREADS, 0, &params)
        }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 2)?;
        let [chosen, rejected] = [0, 1].map(|i| io.dins[i]);
        let params = BradleyTerryParams {
            dloss: io.dout(0).ptr,
            dchosen: chosen.map_or(0, |g| g.arg.ptr),
            drejected: rejected.map_or(0, |g| g.arg.ptr),
            acc_chosen: chosen.is_some_and(|g| g.acc).into(),
            acc_rejected: rejected.is_some_and(|g| g.acc).into(),
            ..self.params([0, 1, 2].map(|i| io.input(i)))
        };
        let grid = loss::token_grid(params.n);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("bradley_terry_backward_f32", grid, loss::THREADS, 0, &params) }
    }
}

impl BradleyTerry {
    fn params(&self, ins: [Arg; 3]) -> BradleyTerryParams {
        let [chosen, rejected, weights] = ins.map(|a| a.ptr);
        let n = ins[0].desc.shape.numel() as u32;
        let zero: BradleyTerryParams = bytemuck::Zeroable::zeroed();
        BradleyTerryParams { chosen, rejected, weights, n, scale: self.scale, ..zero }
    }
}

fn cases() -> Vec<Case> {
    let case = |m: usize, spread: f32, scale: f32| {
        let weights = (0..m).map(|i| [1.0, 0.5, 0.0, 2.0][i % 4]).collect();
        Case::new(
            BradleyTerry { scale },
            vec![
                Some(Input::f32(&[m], spread)),
                Some(Input::f32(&[m], spread)),
                Some(Input::Const(vec![m], weights)),
            ],
            move |ins| {
                let (mut loss, mut won, mut margin) = (0.0, 0.0, 0.0);
                for i in 0..m {
                    let (d, w) = (ins[0][i] - ins[1][i], ins[2][i]);
                    loss += f64::from(scale) * w * softplus(-d);
                    won += if ins[0][i] > ins[1][i] { w } else { 0.0 };
                    margin += w * d;
                }
                vec![vec![loss], vec![won, margin]]
            },
        )
    };
    vec![case(8, 2.0, 0.125), case(33, 15.0, 1.0), case(1, 1.0, -3.0)]
}
