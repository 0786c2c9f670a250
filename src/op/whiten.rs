//! Whitening over the unmasked positions of a batch: unit variance, and zero mean if wanted.
//!
//! x, mask f32 `[n]` -> y f32 `[n]`: (x - mean) / sqrt(var + 1e-8), plus the mean again where
//! `shift_mean` is off; 0 at masked-out positions. Mean and (biased) variance are weighted by the
//! mask and summed in f64. No gradient.

use crate::base::{DType, Result};
use crate::device::cuda::params::WhitenParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Whiten {
    /// Move the mean to 0; otherwise it stays where it was.
    pub shift_mean: bool,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "whiten",
    about: "(x - mean) / sqrt(var + 1e-8) over unmasked positions [+ mean]",
    cases,
};

/// Whitens `x` where `mask` is not 0. Returns f32 `[n]`.
pub fn whiten(r: &mut dyn Run, op: Whiten, x: Tensor, mask: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x), Some(mask)])?[0])
}

impl Op for Whiten {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, mask) = (required(self, ins, 0)?, required(self, ins, 1)?);
        if x.dtype != DType::F32 || mask != x {
            return Err(shape_error(self, ins, "x f32 [n], mask f32 [n]"));
        }
        let flops = 6 * x.shape.numel() as u64;
        Ok(Plan { outs: vec![Place::New(x)], flops, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, mask) = (io.input(0).f32(), io.input(1).f32());
        // Masked positions are skipped, not multiplied by 0: their values may be infinite.
        let used = || x.iter().zip(mask).filter(|(_, m)| **m != 0.0);
        let weighted = |f: &dyn Fn(f64) -> f64| -> f64 {
            used().map(|(x, m)| f64::from(*m) * f(f64::from(*x))).sum()
        };
        let weight = weighted(&|_| 1.0);
        let mean = weighted(&|x| x) / weight;
        let var = weighted(&|x| (x - mean) * (x - mean)) / weight;
        let rstd = 1.0 / (var + 1e-8).sqrt();
        let shift = if self.shift_mean { 0.0 } else { mean };
        for (y, (x, m)) in io.outs[0].f32().iter_mut().zip(x.iter().zip(mask)) {
            let white = (f64::from(*x) - mean) * rstd + shift;
            *y = if *m != 0.0 { white as f32 } else { 0.0 };
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let params = WhitenParams {
            x: io.input(0).ptr,
            mask: io.input(1).ptr,
            y: io.outs[0].ptr,
            n: io.outs[0].desc.shape.numel() as u32,
            shift_mean: self.shift_mean.into(),
        };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("whiten_f32", [1, 1, 1], loss::THREADS, 0, &params) }
    }
}

fn cases() -> Vec<Case> {
    let case = |n: usize, shift_mean: bool, pattern: &'static [f32]| {
        let mask = (0..n).map(|i| pattern[i % pattern.len()]).collect();
        let ins = vec![Some(Input::f32(&[n], 3.0)), Some(Input::Const(vec![n], mask))];
        Case::new(Whiten { shift_mean }, ins, move |ins| {
            let kept: Vec<usize> = (0..n).filter(|i| ins[1][*i] != 0.0).collect();
            let count = kept.len() as f64;
            let mean = kept.iter().map(|&i| ins[0][i]).sum::<f64>() / count;
            let var = kept.iter().map(|&i| (ins[0][i] - mean).powi(2)).sum::<f64>() / count;
            let mut y = vec![0.0; n];
            for &i in &kept {
                let centred = (ins[0][i] - mean) / (var + 1e-8).sqrt();
                y[i] = if shift_mean { centred } else { centred + mean };
            }
            vec![y]
        })
    };
    vec![
        case(50, true, &[1.0]),
        case(77, true, &[1.0, 0.0, 1.0, 1.0]),
        case(33, false, &[0.0, 1.0]),
        case(5, true, &[0.0]),
    ]
}
