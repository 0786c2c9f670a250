//! The sum over ranks, as an operator, so that a program that is recorded can contain it.
//!
//! x f32 of any shape, in place: the sum of all ranks' x in the order of the ranks, the same bits
//! on each. Every rank must run it at the same place of the same program. No gradient.

use crate::base::{DType, Result};
use crate::comm::{Comm, Reduce};
use crate::device::Region;
use crate::op::conformance::{Case, Input};
use crate::op::cuda::ready_for_ranks;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Debug)]
pub struct AllReduce {
    /// The ranks.
    pub comm: Comm,
}

/// Registry entry.
pub const DEF: OpDef =
    OpDef { name: "all_reduce", about: "the sum over ranks, in their order, in place", cases };

/// Makes `x` f32 the sum of all ranks' `x`, and returns it.
pub fn all_reduce(r: &mut dyn Run, comm: &Comm, x: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(AllReduce { comm: comm.clone() }), &[Some(x)])?[0])
}

impl Op for AllReduce {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        if required(self, ins, 0)?.dtype != DType::F32 {
            return Err(shape_error(self, ins, "x f32"));
        }
        Ok(Plan { outs: vec![Place::InPlace(0)], ..Plan::default() })
    }

    fn fake_forward(&self, ins: &[Option<Desc>]) -> Result<()> {
        let x = Region::nowhere(required(self, ins, 0)?.bytes());
        // SAFETY: there is no memory, and ranks on fake devices touch none.
        unsafe { self.comm.all_reduce(x, DType::F32, Reduce::Sum)? }.wait()
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        self.comm.sum(io.outs[0].f32())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        if self.comm.size() == 1 {
            return Ok(());
        }
        ready_for_ranks(&self.comm, io.stream)?;
        // SAFETY: the caller vouches for `io`, and this waits for the call.
        unsafe {
            let x = io.outs[0].region(io.stream.device());
            self.comm.all_reduce(x, DType::F32, Reduce::Sum)?.wait()
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |dims: &[usize]| {
        let ins = vec![Some(Input::f32(dims, 1.0))];
        let case = Case::new(AllReduce { comm: Comm::alone() }, ins, |ins| vec![ins[0].clone()]);
        Case { dtypes: &[DType::F32], ..case }
    };
    vec![case(&[7, 33]), case(&[1])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::comm::run_ranks;
    use crate::op::cpu::testing::{Host, Runner, forward};
    use std::time::Duration;

    /// Uses values of such different magnitudes that the order of summation shows.
    fn ranks_have_the_sum_in_order(run: Runner) {
        let mut rng = Rng::new(81, 0);
        for dims in [&[1][..], &[7, 33], &[3, 5, 701]] {
            let n: usize = dims.iter().product();
            let mut draw =
                || (0..n).map(|_| rng.normal() * 10f32.powi(rng.below(9) as i32)).collect();
            let own: [Vec<f32>; 3] = std::array::from_fn(|_| draw());
            let sums: Vec<f32> = (0..n).map(|i| (own[0][i] + own[1][i]) + own[2][i]).collect();
            let ranks = run_ranks(3, Duration::from_secs(60), |comm| {
                let x = Host::new::<f32>(dims, &own[comm.rank()]);
                run(&AllReduce { comm }, &[Some(x)])
            });
            for outs in ranks.expect("all ranks come") {
                assert_eq!(outs, [Host::new::<f32>(dims, &sums)]);
            }
        }
    }

    #[test]
    fn every_rank_has_the_sum_in_order() {
        ranks_have_the_sum_in_order(forward);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn every_rank_has_the_sum_in_order_on_the_emulated_device() {
        ranks_have_the_sum_in_order(crate::op::cuda::testing::forward);
    }
}
