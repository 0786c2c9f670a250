//! All-gather as an operator, so that a recorded program can contain it.
//!
//! x `[..]` of any dtype, of one shape on all ranks -> y `[ranks, ..]`: the ranks' x one behind the
//! other, in rank order. Every rank must run it at the same place of the same program. No gradient.

use crate::base::{DType, Result};
use crate::comm::Comm;
use crate::device::{Device, Region};
use crate::op::conformance::{Case, Input};
use crate::op::cuda::ready_for_ranks;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Debug)]
pub struct AllGather {
    /// The ranks.
    pub comm: Comm,
}

/// Registry entry.
pub const DEF: OpDef =
    OpDef { name: "all_gather", about: "what all ranks have: y[r] = x of rank r", cases };

/// All ranks' `x`, in order. Returns `[ranks, ..]`.
pub fn all_gather(r: &mut dyn Run, comm: &Comm, x: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(AllGather { comm: comm.clone() }), &[Some(x)])?[0])
}

impl Op for AllGather {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = required(self, ins, 0)?;
        if x.shape.dims().len() > 3 {
            return Err(shape_error(self, ins, "x of at most three dimensions"));
        }
        let dims = [&[self.comm.size()], x.shape.dims()].concat();
        Ok(Plan { outs: vec![Place::New(Desc::new(&dims, x.dtype))], ..Plan::default() })
    }

    fn fake_forward(&self, ins: &[Option<Desc>]) -> Result<()> {
        let bytes = required(self, ins, 0)?.bytes();
        let [x, y] = [bytes, bytes * self.comm.size()].map(Region::nowhere);
        // SAFETY: there is no memory, and ranks on fake devices touch none.
        unsafe { self.comm.all_gather(x, y)? }.wait()
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, y) = (io.input(0).bytes(), io.outs[0].bytes());
        let ptr = x.as_ptr().cast_mut();
        // SAFETY: both are borrowed, `y` exclusively, until the call has ended, which is waited
        // for here; `x` is only read, by this rank and the others.
        unsafe {
            let from = Region::new(Device::Cpu, ptr, x.len());
            self.comm.all_gather(from, Region::of_host(y))?.wait()
        }
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let device = io.stream.device();
        // SAFETY: the caller vouches for `io` until the stream is done with the operator.
        let (from, to) = unsafe { (io.input(0).region(device), io.outs[0].region(device)) };
        if self.comm.size() == 1 {
            return io.stream.copy(to, from);
        }
        ready_for_ranks(&self.comm, io.stream)?;
        // SAFETY: the same, and this waits for the call.
        unsafe { self.comm.all_gather(from, to)? }.wait()
    }
}

fn cases() -> Vec<Case> {
    let case = |input: Input, dtypes: &'static [DType]| {
        let op = AllGather { comm: Comm::alone() };
        Case { dtypes, ..Case::new(op, vec![Some(input)], |ins| vec![ins[0].clone()]) }
    };
    vec![
        case(Input::act(&[7, 33], 1.0), &[DType::F32, DType::Bf16]),
        case(Input::act(&[2, 3, 5], 1.0), &[DType::F32, DType::Bf16]),
        case(Input::ints(&[3, -1, 7]), &[DType::F32]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Elem, Rng, bf16};
    use crate::comm::run_ranks;
    use crate::op::cpu::testing::{Host, Runner, forward};
    use std::time::Duration;

    fn gathers(run: Runner, own: &[Host; 3], dims: &[usize]) {
        let ranks = run_ranks(3, Duration::from_secs(60), |comm| {
            let x = own[comm.rank()].clone();
            run(&AllGather { comm }, &[Some(x)])
        });
        let all: Vec<u8> = own.iter().flat_map(|x| x.bytes().to_vec()).collect();
        for outs in ranks.expect("all ranks come") {
            assert_eq!(outs[0].desc, Desc::new(dims, own[0].desc.dtype));
            assert_eq!(outs[0].bytes(), all);
        }
    }

    fn floats<E: Elem>(run: Runner, rng: &mut Rng) {
        let own = std::array::from_fn(|_| Host::normal::<E>(&[5, 31], 1.0, rng));
        gathers(run, &own, &[3, 5, 31]);
    }

    fn all_dtypes(run: Runner) {
        let mut rng = Rng::new(82, 0);
        floats::<f32>(run, &mut rng);
        floats::<bf16>(run, &mut rng);
        gathers(run, &[1, 2, 3].map(|i| Host::ints(&[i, -i])), &[3, 2]);
    }

    #[test]
    fn every_rank_has_what_all_have() {
        all_dtypes(forward);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn every_rank_has_what_all_have_on_the_emulated_device() {
        all_dtypes(crate::op::cuda::testing::forward);
    }
}
