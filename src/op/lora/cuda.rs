//! Adapters on CUDA: matrix products around the kernels of `cuda/op/lora.cu`. The maths is that of
//! the CPU, in one go rather than in pieces, except that dropout(x) of only [`PIECE`] rows is kept.
//! In bf16 u and du are rounded to bf16, so that products run on tensor cores.

use super::{Lora, Sizes};
use crate::base::{DType, Result};
use crate::device::Stream;
use crate::device::cuda::params::{self, LoraDropParams};
use crate::op::cast_accumulate;
use crate::op::cpu::dropout::Numbers;
use crate::op::cuda::gemm::{Layout, Mat, Out, gemm};
use crate::op::cuda::vectors::{THREADS, adding, aligned, row_grid};
use crate::op::{Arg, CudaBackward, CudaForward, by_dtype};

/// Rows whose dropout(x) is kept at once.
pub(super) const PIECE: usize = 4096;

/// The parts of the workspace, in f32 elements: dropout(x), rounded u, du.
fn parts(op: &Lora, s: &Sizes, dtype: DType) -> [usize; 3] {
    let part = |elements: usize| (elements * dtype.size()).div_ceil(256) * 64;
    let dropped = op.dropout().map_or(0, |_| part(s.tokens.min(PIECE) * s.inner));
    let rounded = if dtype == DType::Bf16 { part(s.tokens * s.rank) } else { 0 };
    [dropped, rounded, part(s.tokens * s.rank)]
}

/// Workspace of forward and backward, in f32 elements.
pub(super) fn scratch(op: &Lora, s: &Sizes, dtype: DType) -> [usize; 2] {
    let [dropped, rounded, du] = parts(op, s, dtype);
    [dropped + rounded, dropped + rounded + du]
}

/// One call: its sizes, the workspace, and the pieces of x.
struct Call<'a> {
    op: &'a Lora,
    stream: &'a Stream,
    s: Sizes,
    dtype: DType,
    dropped: u64,
    rounded: u64,
    du: u64,
}

impl<'a> Call<'a> {
    fn new(
        op: &'a Lora,
        stream: &'a Stream,
        [y, x, a, b]: [Arg; 4],
        scratch: u64,
    ) -> Result<Call<'a>> {
        let s = op.sizes(&[y, x, a, b].map(|t| Some(t.desc)))?;
        let [dropped, rounded, _] = parts(op, &s, x.desc.dtype).map(|n| 4 * n as u64);
        Ok(Call {
            op,
            stream,
            s,
            dtype: x.desc.dtype,
            dropped: scratch,
            rounded: scratch + dropped,
            du: scratch + dropped + rounded,
        })
    }

    /// First row and number of rows of each piece; one that is empty where there are no tokens.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tokens = self.s.tokens;
        let rows = self.op.dropout().map_or(tokens.max(1), |_| PIECE);
        (0..tokens.max(1)).step_by(rows).map(move |start| (start, rows.min(tokens - start)))
    }

    /// The matrix of the call's dtype at `ptr`.
    fn mat(&self, ptr: u64, ld: usize) -> Mat {
        Mat::new(ptr, self.dtype, ld)
    }

    /// The address of row `row` of x or dx.
    fn row(&self, x: Arg, row: usize) -> u64 {
        x.ptr + (row * self.s.inner * self.dtype.size()) as u64
    }

    /// The columns of y, or of its gradient, that the adapter updates.
    fn columns(&self, y: Arg) -> u64 {
        y.ptr + (self.op.offset * y.desc.dtype.size()) as u64
    }

    /// u as an operand: in the dtype of the call.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn operand(&self, u: Arg) -> Result<Mat> {
        if self.dtype == DType::F32 {
            return Ok(self.mat(u.ptr, self.s.rank));
        }
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe {
            cast_accumulate::launch(
                self.stream,
                u.ptr,
                self.rounded,
                self.s.tokens * self.s.rank,
                false,
            )?
        };
        Ok(self.mat(self.rounded, self.s.rank))
    }

    /// `rows` rows of x from `start` with dropped elements 0, and the factor that is left to apply.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn dropped(&self, x: Arg, start: usize, rows: usize) -> Result<(Mat, f32)> {
        let Some(dropout) = self.op.dropout() else {
            return Ok((self.mat(self.row(x, start), self.s.inner), 1.0));
        };
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { self.drop(self.row(x, start), self.dropped, start, rows, 1.0, 0)? };
        Ok((self.mat(self.dropped, self.s.inner), dropout.kept()))
    }

    /// Sets `to`, or adds to it, to `factor` times what dropout leaves of `from`.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    unsafe fn drop(
        &self,
        from: u64,
        to: u64,
        start: usize,
        rows: usize,
        factor: f32,
        flags: u32,
    ) -> Result<()> {
        let Some(dropout) = self.op.dropout() else { return Ok(()) };
        let Numbers { first, width, stride } = self.op.numbers(&self.s, start);
        let params = LoraDropParams {
            from,
            to,
            first: first as u64,
            dropout: params::Dropout {
                seed: dropout.seed,
                site: dropout.site,
                limit: dropout.limit(),
                factor,
            },
            rows: rows as u32,
            width: width as u32,
            stride: stride as u32,
            flags: flags | aligned(&[from, to], &[width], 4),
        };
        let kernel = by_dtype(self.dtype, "lora_drop_f32", "lora_drop_bf16");
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { self.stream.launch(kernel, row_grid(rows, width, 4)?, THREADS, 0, &params) }
    }
}

/// An output that is set, or added to.
fn out(ptr: u64, dtype: DType, ld: usize, accumulate: bool, scale: f32) -> Out {
    Out { accumulate, scale, ..Out::new(ptr, dtype, ld) }
}

/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn forward(op: &Lora, io: &CudaForward<'_>) -> Result<()> {
    let (y, x, a, b, u) = (io.outs[0], io.input(1), io.input(2), io.input(3), io.outs[1]);
    let call = Call::new(op, io.stream, [y, x, a, b], io.scratch)?;
    let s = call.s;
    for (start, rows) in call.pieces() {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        let (x, kept) = unsafe { call.dropped(x, start, rows)? };
        let to = u.ptr + 4 * (start * s.rank) as u64;
        let to = out(to, DType::F32, s.rank, false, kept);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            gemm(io.stream, Layout::Nt.of(rows, s.rank, s.inner), x, call.mat(a.ptr, s.inner), to)?
        };
    }
    let to = out(call.columns(y), y.desc.dtype, s.total, true, op.scale);
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    let (u, b) = (unsafe { call.operand(u)? }, call.mat(b.ptr, s.rank));
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe { gemm(io.stream, Layout::Nt.of(s.tokens, s.n, s.rank), u, b, to) }
}

/// With dv the gradient of the updated columns: du = scale dv b, da = du^T dropout(x),
/// db = scale dv^T u, dx = du a through the same dropout.
///
/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn backward(op: &Lora, io: &CudaBackward<'_>) -> Result<()> {
    let (x, a, b, dy) = (io.input(1), io.input(2), io.input(3), io.dout(0));
    let call = Call::new(op, io.stream, [dy, x, a, b], io.scratch)?;
    let s = call.s;
    let dv = Mat::new(call.columns(dy), dy.desc.dtype, s.total);
    if let Some(db) = &io.dins[3] {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        let (u, to) = (unsafe { call.operand(io.output(1))? }, db.arg.ptr);
        let to = out(to, DType::F32, s.rank, db.acc, op.scale);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { gemm(io.stream, Layout::Tn.of(s.n, s.rank, s.tokens), dv, u, to)? };
    }
    if io.dins[1].is_none() && io.dins[2].is_none() {
        return Ok(());
    }
    let to = out(call.du, call.dtype, s.rank, false, op.scale);
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe {
        gemm(io.stream, Layout::Nn.of(s.tokens, s.rank, s.n), dv, call.mat(b.ptr, s.rank), to)?
    };
    for (start, rows) in call.pieces() {
        let du = call.du + (start * s.rank * call.dtype.size()) as u64;
        let du = call.mat(du, s.rank);
        if let Some(da) = &io.dins[2] {
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            let (x, kept) = unsafe { call.dropped(x, start, rows)? };
            let to = out(da.arg.ptr, DType::F32, s.inner, da.acc || start > 0, kept);
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { gemm(io.stream, Layout::Tn.of(s.rank, s.inner, rows), du, x, to)? };
        }
        let Some(dx) = &io.dins[1] else { continue };
        let (a, to) = (call.mat(a.ptr, s.inner), call.row(dx.arg, start));
        let Some(dropout) = op.dropout() else {
            let to = out(to, call.dtype, s.inner, dx.acc, 1.0);
            // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
            unsafe { gemm(io.stream, Layout::Nn.of(rows, s.inner, s.rank), du, a, to)? };
            continue;
        };
        let product = out(call.dropped, call.dtype, s.inner, false, 1.0);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { gemm(io.stream, Layout::Nn.of(rows, s.inner, s.rank), du, a, product)? };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { call.drop(call.dropped, to, start, rows, dropout.kept(), adding(dx.acc))? };
    }
    Ok(())
}
