//! Exponential moving average of weights, in f32 beside weights of either dtype.
//!
//! ema f32 `[n]`, w `[n]` -> ema in place: decay * ema + (1 - decay) * w. No gradient.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::EmaParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::vectors::{THREADS, aligned, flat_grid};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Ema {
    /// Share of the old average that stays; 0 copies the weights.
    pub decay: f32,
}

/// Registry entry.
pub const DEF: OpDef =
    OpDef { name: "ema", about: "ema = decay * ema + (1 - decay) * w, in place", cases };

/// Moves the average `ema` towards `w`.
pub fn ema(r: &mut dyn Run, op: Ema, ema: Tensor, w: Tensor) -> Result<()> {
    r.run(Arc::new(op), &[Some(ema), Some(w)]).map(|_| ())
}

impl Op for Ema {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (ema, w) = (required(self, ins, 0)?, required(self, ins, 1)?);
        if ema.dtype != DType::F32 || !w.dtype.is_float() || w.shape != ema.shape {
            return Err(shape_error(self, ins, "ema f32 [n], w [n]"));
        }
        let flops = 3 * w.shape.numel() as u64;
        Ok(Plan { outs: vec![Place::InPlace(0)], flops, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(1).desc.dtype {
            DType::Bf16 => forward::<bf16>(self.decay, io),
            _ => forward::<f32>(self.decay, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (w, ema) = (io.input(1), io.outs[0].ptr);
        let len = w.desc.shape.numel();
        let params = EmaParams {
            w: w.ptr,
            ema,
            n: len as u64,
            decay: self.decay,
            rest: 1.0 - self.decay,
            flags: aligned(&[w.ptr, ema], &[], 4),
            pad: 0,
        };
        let kernel = by_dtype(w.desc.dtype, "ema_f32", "ema_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, flat_grid(len, 4), THREADS, 0, &params) }
    }
}

fn forward<E: Elem>(decay: f32, io: &mut Forward<'_>) {
    let w = io.input(1).get::<E>();
    let ema = SharedMut::new(io.outs[0].f32());
    let chunks = row_chunks(w.len(), 1);
    parallel_for(chunks.len(), |c| {
        let range = chunks[c].clone();
        // SAFETY: the range belongs to this task alone.
        let ema = unsafe { ema.slice(range.start, range.len()) };
        for (e, w) in ema.iter_mut().zip(&w[range]) {
            *e = decay * *e + (1.0 - decay) * w.to_f32();
        }
    });
}

fn cases() -> Vec<Case> {
    let case = |n: usize, decay: f32| {
        let ins = vec![Some(Input::f32(&[n], 1.0)), Some(Input::weight(&[n], 1.0))];
        Case::new(Ema { decay }, ins, move |ins| {
            let d = f64::from(decay);
            vec![ins[0].iter().zip(&ins[1]).map(|(e, w)| d * e + (1.0 - d) * w).collect()]
        })
    };
    vec![case(19, 0.992), case(40_000, 0.5), case(3, 0.0)]
}
