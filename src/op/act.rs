//! Activations of the MLP: ReLU, GELU (Hendrycks and Gimpel 2016; tanh form and exact) and SiLU,
//! plain or gated (Shazeer 2020).
//!
//! x `[tokens, width]` -> act(x), or gated x `[tokens, 2 width]` laid out gate|up -> act(gate) *
//! up, `[tokens, width]`.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::Stream;
use crate::device::cpu::parallel_for;
use crate::device::cuda::constants::act::FLAG_GATED;
use crate::device::cuda::params::ActParams;
pub use crate::op::attr::Kind;
use crate::op::attr::kernel_number;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::act as kernel;
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::vectors::{THREADS, adding, aligned, row_grid, vec_len};
use crate::op::def::OpDef;
use crate::op::{
    Arg, Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required,
    shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Act {
    /// The function.
    pub kind: Kind,
    /// True if the input holds gate|up.
    pub gated: bool,
}

/// Registry entry.
pub const DEF: OpDef =
    OpDef { name: "act", about: "ReLU, GELU or SiLU: act(x), or gated: act(gate) * up", cases };

/// Applies the activation to each row. Returns `[tokens, width]`.
pub fn act(r: &mut dyn Run, op: Act, x: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x)])?[0])
}

impl Act {
    /// Input elements per output element.
    fn wide(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }
}

impl Op for Act {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = required(self, ins, 0)?;
        let last = x.shape.last();
        if !x.dtype.is_float() || last == 0 || !last.is_multiple_of(self.wide()) {
            return Err(shape_error(self, ins, "x [tokens, width], gated [tokens, 2 width]"));
        }
        let y = Desc::new(&[x.shape.rows(), last / self.wide()], x.dtype);
        Ok(Plan {
            outs: vec![Place::New(y)],
            differentiable: 0b1,
            saves_ins: 0b1,
            cheap: true,
            flops: 10 * y.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(self, io),
            _ => forward::<f32>(self, io),
        }
        Ok(())
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(self, io),
            _ => backward::<f32>(self, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (x, y) = (io.input(0), io.outs[0]);
        let kernel = by_dtype(x.desc.dtype, "act_forward_f32", "act_forward_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { self.launch(io.stream, kernel, x, 0, y.ptr, 0) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (x, dy) = (io.input(0), io.dout(0));
        let Some(dx) = &io.dins[0] else { return Ok(()) };
        let kernel = by_dtype(x.desc.dtype, "act_backward_f32", "act_backward_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { self.launch(io.stream, kernel, x, dy.ptr, dx.arg.ptr, adding(dx.acc)) }
    }
}

impl Act {
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &str,
        x: Arg,
        dy: u64,
        out: u64,
        flags: u32,
    ) -> Result<()> {
        let (rows, width) = (x.desc.shape.rows(), x.desc.shape.last() / self.wide());
        let n = vec_len(x.desc.dtype);
        let params = ActParams {
            x: x.ptr,
            dy,
            out,
            rows: rows as u32,
            width: width as u32,
            kind: kernel_number(self.kind),
            flags: flags
                | aligned(&[x.ptr, dy, out], &[width], n)
                | if self.gated { FLAG_GATED } else { 0 },
        };
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { stream.launch(kernel, row_grid(rows, width, n)?, THREADS, 0, &params) }
    }
}

fn forward<E: Elem>(op: &Act, io: &mut Forward<'_>) {
    let x = io.input(0);
    let (rows, wide) = (x.desc.shape.rows(), x.desc.shape.last());
    let (x, width) = (x.get::<E>(), wide / op.wide());
    let y = SharedMut::new(io.outs[0].get::<E>());
    let chunks = row_chunks(rows, wide);
    parallel_for(chunks.len(), |c| {
        let (first, n) = (chunks[c].start, chunks[c].len());
        // SAFETY: these rows belong to this task alone.
        let y = unsafe { y.slice(first * width, n * width) };
        kernel::forward(op.kind, op.gated, width, &x[first * wide..][..n * wide], y);
    });
}

fn backward<E: Elem>(op: &Act, io: &mut Backward<'_>) {
    let (x, dy) = (io.input(0), io.dout(0).get::<E>());
    let (rows, wide) = (x.desc.shape.rows(), x.desc.shape.last());
    let (x, width) = (x.get::<E>(), wide / op.wide());
    let Some(grad) = &mut io.dins[0] else { return };
    let (acc, dx) = (grad.acc, SharedMut::new(grad.view.get::<E>()));
    let chunks = row_chunks(rows, wide);
    parallel_for(chunks.len(), |c| {
        let (first, n) = (chunks[c].start, chunks[c].len());
        let (x, dy) = (&x[first * wide..][..n * wide], &dy[first * width..][..n * width]);
        // SAFETY: these rows belong to this task alone.
        let dx = unsafe { dx.slice(first * wide, n * wide) };
        kernel::backward(op.kind, op.gated, width, x, dy, dx, acc);
    });
}

/// The float64 reference.
pub(crate) fn reference(kind: Kind, x: f64) -> f64 {
    match kind {
        Kind::Relu => x.max(0.0),
        Kind::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Kind::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Kind::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The error function by its series of positive terms (Abramowitz and Stegun 7.1.6); for |x| < 6.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, width, kind, gated, scale) in [
        // With this scale inputs are multiples of 1/256, so finite differences do not straddle
        // the kink (except at 0 itself, which is drawn once in 2^24 times).
        (1, 65, Kind::Relu, false, 32768.0),
        (17, 5, Kind::GeluTanh, false, 4.0),
        (31, 33, Kind::GeluErf, false, 4.0),
        (33, 16, Kind::Silu, true, 6.0),
        (130, 17, Kind::GeluTanh, true, 4.0),
        (65, 1, Kind::Silu, false, 20.0),
    ] {
        let wide = if gated { 2 * width } else { width };
        cases.push(Case::new(
            Act { kind, gated },
            vec![Some(Input::act(&[tokens, wide], scale))],
            move |ins| {
                let mut y = vec![];
                for x in ins[0].chunks_exact(wide) {
                    y.extend(
                        (0..width).map(|i| {
                            reference(kind, x[i]) * if gated { x[width + i] } else { 1.0 }
                        }),
                    );
                }
                vec![y]
            },
        ));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{View, ViewMut};

    fn apply(op: Act, x: &[f32], width: usize) -> Vec<f32> {
        let rows = x.len() / width;
        let mut y = vec![f32::NAN; x.len() / op.wide()];
        let desc = Desc::new(&[rows, width / op.wide()], DType::F32);
        let mut io = Forward {
            ins: vec![Some(View::new(
                bytemuck::cast_slice(x),
                Desc::new(&[rows, width], DType::F32),
            ))],
            outs: vec![ViewMut::new(bytemuck::cast_slice_mut(&mut y), desc)],
            scratch: &mut [],
        };
        op.cpu_forward(&mut io).unwrap();
        y
    }

    #[test]
    fn extreme_inputs_keep_their_limits_and_nan_passes() {
        for kind in [Kind::Relu, Kind::GeluTanh, Kind::GeluErf, Kind::Silu] {
            let y = apply(Act { kind, gated: false }, &[1e4, -1e4, 0.0, f32::NAN], 4);
            assert!(y[0] == 1e4 && y[1] == 0.0 && y[2] == 0.0 && y[3].is_nan(), "{kind:?} {y:?}");
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_place() {
        let mut rng = crate::base::Rng::new(3, 1);
        let x: Vec<f32> = (0..37 * 3).map(|_| rng.normal() * 3.0).collect();
        for kind in [Kind::Relu, Kind::GeluTanh, Kind::GeluErf, Kind::Silu] {
            let op = Act { kind, gated: false };
            let (rows, flat) = (apply(op, &x, 37), apply(op, &x, 1));
            assert!(rows.iter().zip(&flat).all(|(a, b)| a.to_bits() == b.to_bits()), "{kind:?}");
        }
    }
}
