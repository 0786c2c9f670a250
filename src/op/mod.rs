//! The operators: all the maths, one file each. Knows tensors, not models.
//!
//! An operator plans its outputs from the shapes of its inputs, runs forward, and runs backward
//! from what its plan declared saved. `registry.rs` lists them all; tests, gradient checks and
//! `docs/ops.md` are derived from that list.

pub mod act;
pub mod adamw;
pub mod adamw_compact;
pub mod add;
pub mod all_gather;
pub mod all_reduce;
pub mod attention;
mod attr;
pub mod bench;
pub mod bias_residual;
pub mod bradley_terry;
pub mod cached_attention;
pub mod cast_accumulate;
pub mod concat_columns;
pub mod conformance;
pub mod cpu;
pub mod cross_entropy;
pub mod cuda;
pub mod decode_update;
pub mod def;
pub mod ema;
pub mod embed;
pub mod exact;
pub mod gae;
pub mod gather;
mod io;
pub mod linear;
pub mod logprob;
pub mod lora;
pub mod norm;
#[cfg(test)]
mod plan_tests;
pub mod ppo_policy;
pub mod ppo_value;
pub mod qk_norm;
pub mod registry;
pub mod rope;
pub mod sample;
pub mod score_head;
pub mod sequence_sum;
pub mod shapes;
pub mod softcap;
pub mod squared_norm;
pub mod weighted_sum;
pub mod whiten;

pub use io::{Arg, CudaBackward, CudaForward, CudaGrad, by_dtype};
pub use io::{Backward, Forward, Grad, View, ViewMut};

use crate::base::{Error, Kind, Result};
use crate::tensor::{Desc, Tensor};
use std::fmt;
use std::sync::Arc;

/// Where an output lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory of its own.
    New(Desc),
    /// In the memory of input `i`, which is updated in place. The gradient with respect to that
    /// input is the gradient of the output, untouched.
    InPlace(usize),
}

/// An operator's outputs and needs, from shapes alone.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Outputs in order.
    pub outs: Vec<Place>,
    /// Bit `i`: gradients flow through output `i` (statistics kept for backward have none).
    pub differentiable: u64,
    /// Bit `i`: backward reads input `i`.
    pub saves_ins: u64,
    /// Bit `i`: backward reads output `i`.
    pub saves_outs: u64,
    /// Bit `i`: on the CPU the gradient of input `i` may be bf16, where the input is; sums are f32
    /// and rounded as they are stored.
    pub bf16_grads: u64,
    /// While a tape records, forward is left out: backward makes the outputs too, and nothing may
    /// read them before.
    pub late: bool,
    /// Cheaper to redo than to keep (memory-bound, not compute-bound).
    pub cheap: bool,
    /// Workspace of forward, in f32 elements.
    pub scratch: usize,
    /// Workspace of backward, in f32 elements.
    pub scratch_backward: usize,
    /// Workspace of forward on a CUDA device, in f32 elements.
    pub cuda_scratch: usize,
    /// Workspace of backward on a CUDA device, in f32 elements.
    pub cuda_scratch_backward: usize,
    /// Floating-point operations of forward.
    pub flops: u64,
}

/// One operator with its attributes.
pub trait Op: std::fmt::Debug + Send + Sync {
    /// The operator's name in the registry.
    fn name(&self) -> &'static str;

    /// Checks the inputs and says what will be made.
    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan>;

    /// Computes the outputs on the CPU.
    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()>;

    /// Tells other ranks what it would, where nothing is computed: on a fake device.
    fn fake_forward(&self, ins: &[Option<Desc>]) -> Result<()> {
        let _ = ins;
        Ok(())
    }

    /// Computes the wanted input gradients on the CPU.
    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        let _ = io;
        Err(Error::internal(format!("{} has no backward", self.name())))
    }

    /// Launches what computes the outputs on a CUDA device.
    ///
    /// # Safety
    /// `io` has the tensors that were planned for, in order, and the workspace asked for. Each
    /// address is memory of the stream's device, as long as the shape says, that stays allocated
    /// until the stream is done with what is launched, or with the graph that is recorded. What is
    /// written is apart from all else in `io`, and nothing else touches it meanwhile.
    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let _ = io;
        Err(Error::internal(format!("{} has no CUDA kernel", self.name())))
    }

    /// Launches what computes the wanted input gradients on a CUDA device.
    ///
    /// # Safety
    /// As for [`Op::cuda_forward`].
    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let _ = io;
        Err(Error::internal(format!("{} has no backward on CUDA", self.name())))
    }
}

/// Runs operators. The tape implements it; operators' typed functions take it, so that they do not
/// depend on the tape.
pub trait Run {
    /// Runs `op` on `ins` and returns its outputs.
    fn run(&mut self, op: Arc<dyn Op>, ins: &[Option<Tensor>]) -> Result<Vec<Tensor>>;
}

/// The description of required input `i` of `op`.
pub fn required(op: &dyn Op, ins: &[Option<Desc>], i: usize) -> Result<Desc> {
    ins.get(i)
        .copied()
        .flatten()
        .ok_or_else(|| Error::internal(format!("{}: input {i} is missing", op.name())))
}

/// An error that names the operator and the shapes it got.
pub fn shape_error(op: &dyn Op, ins: &[Option<Desc>], expected: &str) -> Error {
    Error::internal(format!(
        "{}: expected {expected}, got {}",
        op.name(),
        shapes(ins.iter().copied())
    ))
}

/// The error of an operator that ran as `name`; with the shapes it got, unless the cause is
/// outside.
pub fn run_error(
    e: Error,
    name: impl fmt::Display,
    ins: impl Iterator<Item = Option<Desc>>,
) -> Error {
    match e.kind() {
        Kind::Stopped | Kind::Internal => e.context(format_args!("{name} of {}", shapes(ins))),
        _ => e.context(name),
    }
}

fn shapes(ins: impl Iterator<Item = Option<Desc>>) -> String {
    let shape = |d: Option<Desc>| d.map_or("-".into(), |d| format!("{}{}", d.dtype, d.shape));
    ins.map(shape).collect::<Vec<String>>().join(" ")
}
