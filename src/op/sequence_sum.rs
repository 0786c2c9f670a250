//! The sum over each packed sequence of its distance to constants, for losses on the log-ratio of
//! whole answers.
//!
//! x f32 `[n]`, cu_seqlens i32 `[k + 1]`, offsets f32 `[n]` (constant) -> f32 `[k]`,
//! y_i = scale * (sum of x_t - offsets_t over cu_seqlens_i <= t < cu_seqlens_{i + 1}). Each
//! difference is taken before the sum: where `x` and the offsets have the same bits, y is 0. An
//! empty sequence sums to 0. The gradient goes to `x` only: dx_t = scale * dy_i for each t of
//! sequence i.

use crate::base::{DType, Error, Result};
use crate::device::Stream;
use crate::device::cuda::params::SequenceSumParams;
use crate::op::attention::sequences;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::loss;
use crate::op::def::OpDef;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run};
use crate::op::{required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct SequenceSum {
    /// Multiplies each sum.
    pub scale: f32,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "sequence_sum",
    about: "scale * sum of (x - offset) for each packed sequence; offsets are constant",
    cases,
};

/// The sum of `x - offsets`, both `[n]`, over each sequence. Returns f32 `[k]`.
pub fn sequence_sum(
    r: &mut dyn Run,
    op: SequenceSum,
    x: Tensor,
    cu_seqlens: Tensor,
    offsets: Tensor,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x), Some(cu_seqlens), Some(offsets)])?[0])
}

impl Op for SequenceSum {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let [x, cu, offsets] =
            [required(self, ins, 0)?, required(self, ins, 1)?, required(self, ins, 2)?];
        let is = |d: &Desc, dtype: DType| d.dtype == dtype && d.shape.dims().len() == 1;
        let fits = is(&x, DType::F32)
            && is(&cu, DType::I32)
            && is(&offsets, DType::F32)
            && x.shape.numel() == offsets.shape.numel()
            && cu.shape.numel() > 0;
        if !fits {
            return Err(shape_error(self, ins, "x f32 [n], cu_seqlens [k + 1], offsets f32 [n]"));
        }
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[cu.shape.numel() - 1], DType::F32))],
            differentiable: 0b1,
            saves_ins: 0b10,
            cheap: true,
            flops: (2 * x.shape.numel() + cu.shape.numel()) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, offsets) = (io.input(0).f32(), io.input(2).f32());
        let lengths = sequences(io.input(1).i32(), x.len())?;
        for (y, tokens) in io.outs[0].f32().iter_mut().zip(lengths) {
            let above = x[tokens.clone()].iter().zip(&offsets[tokens]);
            let sum: f64 = above.map(|(x, offset)| f64::from(*x) - f64::from(*offset)).sum();
            *y = (f64::from(self.scale) * sum) as f32;
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let (cu, dy) = (io.input(1).i32(), io.dout(0).f32());
        let Some(grad) = &mut io.dins[0] else { return Ok(()) };
        let (acc, dx) = (grad.acc, grad.view.f32());
        for (tokens, dy) in sequences(cu, dx.len())?.into_iter().zip(dy) {
            let slope = (f64::from(self.scale) * f64::from(*dy)) as f32;
            dx[tokens].iter_mut().for_each(|o| *o = if acc { *o + slope } else { slope });
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let params = SequenceSumParams {
            x: io.input(0).ptr,
            offsets: io.input(2).ptr,
            y: io.outs[0].ptr,
            ..self.params(io.stream, io.input(0).desc, io.input(1))?
        };
        let grid = [params.sequences, 1, 1];
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("sequence_sum_forward_f32", grid, loss::THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        loss::constants(self, &io.dins, 1)?;
        let Some(grad) = io.dins[0] else { return Ok(()) };
        let params = SequenceSumParams {
            dy: io.dout(0).ptr,
            dx: grad.arg.ptr,
            acc: grad.acc.into(),
            ..self.params(io.stream, grad.arg.desc, io.input(1))?
        };
        let grid = [params.sequences, 1, 1];
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch("sequence_sum_backward_f32", grid, loss::THREADS, 0, &params) }
    }
}

impl SequenceSum {
    /// The parameters that both kernels take; `x` describes the values, or their gradients.
    fn params(&self, stream: &Stream, x: Desc, cu_seqlens: Arg) -> Result<SequenceSumParams> {
        let (tokens, bounds) = (x.shape.numel(), cu_seqlens.desc.shape.numel());
        if bounds == 1 && tokens > 0 {
            return Err(Error::internal(format!("{tokens} tokens in no sequence")));
        }
        Ok(SequenceSumParams {
            cu_seqlens: cu_seqlens.ptr,
            fault: stream.fault(),
            tokens: tokens as u32,
            sequences: bounds as u32 - 1,
            scale: self.scale,
            ..bytemuck::Zeroable::zeroed()
        })
    }
}

fn cases() -> Vec<Case> {
    let case = |scale: f32, cu: &'static [i32]| {
        let (n, k) = (cu[cu.len() - 1] as usize, cu.len() - 1);
        let offsets = (0..n).map(|i| [-2.5, 0.0, 1.25, -0.75, 0.5][i % 5]).collect();
        let ins = vec![
            Some(Input::f32(&[n], 3.0)),
            Some(Input::ints(cu)),
            Some(Input::Const(vec![n], offsets)),
        ];
        Case::new(SequenceSum { scale }, ins, move |ins| {
            let sum = |i: usize| -> f64 {
                (cu[i] as usize..cu[i + 1] as usize).map(|t| ins[0][t] - ins[2][t]).sum()
            };
            vec![(0..k).map(|i| f64::from(scale) * sum(i)).collect()]
        })
    };
    vec![
        // An empty sequence, and one of a single token.
        case(-0.5, &[0, 5, 5, 6, 40]),
        case(1.0, &[0, 513, 1025, 1026, 2100]),
        case(3.0, &[0, 17]),
        // Only empty ones.
        case(-1.0, &[0, 0, 0, 0]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::op::cpu::testing::{Host, Runner, forward};

    const OP: SequenceSum = SequenceSum { scale: -0.7 };

    fn refuses_lengths_that_do_not_fit(forward: Runner) {
        let run = |cu: &[i32]| {
            let x = Host::new::<f32>(&[4], &[1.0, 2.0, 3.0, 4.0]);
            let offsets = Host::new::<f32>(&[4], &[0.5; 4]);
            forward(&OP, &[Some(x), Some(Host::ints(cu)), Some(offsets)])
        };
        assert!(run(&[0, 0, 3, 4]).is_ok());
        for bad in [&[0, 5][..], &[1, 4], &[0, 3], &[0, 3, 2, 4], &[0, -1, 4], &[0]] {
            assert!(run(bad).is_err(), "{bad:?}");
        }
    }

    /// A sequence's sum has the same bits alone as between others.
    fn does_not_depend_on_other_sequences(forward: Runner) {
        let mut rng = Rng::new(5, 0);
        let cu = [0, 3, 700, 700, 701, 2000];
        let x = Host::normal::<f32>(&[2000], 4.0, &mut rng);
        let offsets = Host::normal::<f32>(&[2000], 4.0, &mut rng);
        let sums = |x: &[f32], cu: &[i32], offsets: &[f32]| {
            let f32s = |v: &[f32]| Some(Host::new::<f32>(&[v.len()], v));
            let outs = forward(&OP, &[f32s(x), Some(Host::ints(cu)), f32s(offsets)]);
            outs.expect("sums")[0].f32()
        };
        let (x, offsets) = (x.f32(), offsets.f32());
        let together = sums(&x, &cu, &offsets);
        for (i, w) in cu.windows(2).enumerate() {
            let tokens = w[0] as usize..w[1] as usize;
            let alone = sums(&x[tokens.clone()], &[0, w[1] - w[0]], &offsets[tokens]);
            assert_eq!(alone, together[i..=i], "{i}");
        }
        assert!(sums(&x, &cu, &x).iter().all(|y| *y == 0.0), "a distance to itself");
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        refuses_lengths_that_do_not_fit(forward);
    }

    #[test]
    fn a_sum_does_not_depend_on_other_sequences() {
        does_not_depend_on_other_sequences(forward);
    }

    #[cfg(feature = "emulator")]
    mod emulated {
        use super::*;
        use crate::op::cuda::testing::{backward, forward};

        #[test]
        fn lengths_that_do_not_fit_are_refused() {
            refuses_lengths_that_do_not_fit(forward);
        }

        #[test]
        fn a_sum_does_not_depend_on_other_sequences() {
            does_not_depend_on_other_sequences(forward);
        }

        #[test]
        fn backward_refuses_lengths_that_do_not_fit() {
            let run = |cu: &[i32]| {
                let f32s = |n: usize| Some(Host::new::<f32>(&[n], &vec![1.0; n]));
                let ins = [f32s(4), Some(Host::ints(cu)), f32s(4)];
                let wanted = [Some(DType::F32), None, None];
                backward(&OP, &ins, &[], &[f32s(cu.len() - 1)], &wanted)
            };
            assert!(run(&[0, 1, 4]).is_ok());
            for bad in [&[0, 3][..], &[0, 5, 4], &[1, 4], &[0]] {
                assert!(run(bad).is_err(), "{bad:?}");
            }
        }
    }
}
