//! `logprob` on CUDA devices. A GEMM makes the logits of some rows in f32, one kernel takes their
//! statistics; backward makes them again and turns them into their gradient in the dtype of x, so that
//! the GEMMs after it are of one dtype.

use super::LogProb;
use crate::base::{DType, Result};
use crate::device::Stream;
use crate::op::cpu::softmax;
use crate::op::cuda::{Layout, Mat, Out, Rows, column_sums, column_sums_scratch, gemm};
use crate::op::{Arg, CudaBackward, CudaForward, by_dtype};

/// Logits that exist at once: 256 MiB, so that a GEMM of their rows is far from waiting for the
/// weights. Tests have small chunks, so as to have several.
const CHUNK: usize = if cfg!(test) { 1 << 12 } else { 64 << 20 };
/// Rows of logits start at multiples of this many elements, for copies of 16 bytes.
const ALIGN: usize = 8;
/// Rows of a chunk are a multiple of this, where there are several chunks.
const ROWS: usize = if cfg!(test) { 2 } else { 128 };

/// How rows go through, and the parts of the workspace in f32 elements, each a multiple of 256 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    /// Rows of a chunk.
    pub rows: usize,
    /// From one row of logits to the next.
    pub ld: usize,
    /// Logits, of which f32 gradients take the place.
    pub logits: usize,
    /// Gradients of logits in bf16.
    pub slopes: usize,
    /// For column sums.
    pub sums: usize,
}

impl Chunks {
    pub(super) fn new(n: usize, vocab: usize, dtype: DType) -> Chunks {
        let ld = vocab.next_multiple_of(ALIGN);
        let rows = (CHUNK / ld.max(1) / ROWS * ROWS).max(ROWS).min(n);
        let logits = (rows * ld).next_multiple_of(64);
        let slopes = if dtype == DType::Bf16 { (rows * ld / 2).next_multiple_of(64) } else { 0 };
        Chunks { rows, ld, logits, slopes, sums: column_sums_scratch(rows, vocab) }
    }
}

/// LogProbParams of cuda/op/logprob.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RowParams {
    logits: u64,
    targets: u64,
    logp: u64,
    entropy: u64,
    lse: u64,
    fault: u64,
    vocab: u32,
    ld: u32,
    inv_t: f32,
    softcap: f32,
}

/// LogProbSlopeParams of cuda/op/logprob.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SlopeParams {
    logits: u64,
    dlogits: u64,
    targets: u64,
    entropy: u64,
    lse: u64,
    dlogp: u64,
    dentropy: u64,
    vocab: u32,
    ld: u32,
    inv_t: f32,
    softcap: f32,
}

/// The output layer.
struct Layer<'a> {
    stream: &'a Stream,
    x: Arg,
    w: Arg,
    bias: u64,
    chunks: Chunks,
}

impl Layer<'_> {
    /// Rows of x from `start` on.
    fn rows(&self, start: usize) -> Mat {
        let d = self.w.last();
        let offset = start * d * self.x.desc.dtype.size();
        Mat::new(self.x.ptr + offset as u64, self.x.desc.dtype, d)
    }

    fn weight(&self) -> Mat {
        Mat::new(self.w.ptr, self.w.desc.dtype, self.w.last())
    }

    /// Logits of the rows `start..start + n`, as `linear` makes them.
    fn logits(&self, start: usize, n: usize, to: u64) -> Result<()> {
        let (d, vocab) = (self.w.last(), self.w.rows());
        let out = Out { bias: self.bias, ..Out::new(to, DType::F32, self.chunks.ld) };
        gemm(self.stream, Layout::Nt, n, vocab, d, self.rows(start), self.weight(), out)
    }
}

/// Address of element `i` of an f32 or i32 array; null stays null.
fn at(ptr: u64, i: usize) -> u64 {
    if ptr == 0 { 0 } else { ptr + 4 * i as u64 }
}

pub(super) fn forward(op: &LogProb, io: &CudaForward<'_>) -> Result<()> {
    let (x, w, targets) = (io.input(0), io.input(1), io.input(3));
    let (n, vocab) = (targets.desc.shape.numel(), w.rows());
    let chunks = Chunks::new(n, vocab, x.desc.dtype);
    let layer = Layer { stream: io.stream, x, w, bias: io.ptr(2), chunks };
    for start in (0..n).step_by(chunks.rows.max(1)) {
        let rows = chunks.rows.min(n - start);
        layer.logits(start, rows, io.scratch)?;
        let params = RowParams {
            logits: io.scratch,
            targets: at(targets.ptr, start),
            logp: at(io.outs[0].ptr, start),
            entropy: at(io.outs[1].ptr, start),
            lse: at(io.outs[2].ptr, start),
            fault: io.stream.fault(),
            vocab: vocab as u32,
            ld: chunks.ld as u32,
            inv_t: softmax::inverse(op.temperature),
            softcap: op.softcap,
        };
        let kind = Rows::of(params.vocab as usize);
        let kernel = kind.kernel("logprob_rows_small", "logprob_rows");
        io.stream.launch(kernel, [rows as u32, 1, 1], kind.threads(), 0, &params)?;
    }
    Ok(())
}

pub(super) fn backward(op: &LogProb, io: &CudaBackward<'_>) -> Result<()> {
    let (x, w, targets) = (io.input(0), io.input(1), io.input(3));
    let (n, d, vocab, dtype) = (targets.desc.shape.numel(), w.last(), w.rows(), x.desc.dtype);
    let chunks = Chunks::new(n, vocab, dtype);
    let layer = Layer { stream: io.stream, x, w, bias: io.ptr(2), chunks };
    let dlogits = if dtype == DType::Bf16 { at(io.scratch, chunks.logits) } else { io.scratch };
    let slopes = Mat::new(dlogits, dtype, chunks.ld);
    let sums = at(io.scratch, chunks.logits + chunks.slopes);
    let dout = |i: usize, start: usize| at(io.douts[i].map_or(0, |g| g.ptr), start);
    let kernel = by_dtype(dtype, "logprob_slope_f32", "logprob_slope_bf16");
    // Without rows there is still one (empty) chunk, which sets the gradients to 0.
    for c in 0..n.div_ceil(chunks.rows.max(1)).max(1) {
        let start = c * chunks.rows;
        let rows = chunks.rows.min(n - start);
        layer.logits(start, rows, io.scratch)?;
        let params = SlopeParams {
            logits: io.scratch,
            dlogits,
            targets: at(targets.ptr, start),
            entropy: at(io.output(1).ptr, start),
            lse: at(io.output(2).ptr, start),
            dlogp: dout(0, start),
            dentropy: dout(1, start),
            vocab: vocab as u32,
            ld: chunks.ld as u32,
            inv_t: softmax::inverse(op.temperature),
            softcap: op.softcap,
        };
        let threads = Rows::of(vocab).threads();
        io.stream.launch(kernel, [rows as u32, 1, 1], threads, 0, &params)?;
        if let Some(dx) = io.dins[0] {
            let ptr = dx.arg.ptr + (start * d * dtype.size()) as u64;
            let out = Out { accumulate: dx.acc, ..Out::new(ptr, dtype, d) };
            gemm(io.stream, Layout::Nn, rows, d, vocab, slopes, layer.weight(), out)?;
        }
        if let Some(dw) = io.dins[1] {
            let accumulate = dw.acc || c > 0;
            let out = Out { accumulate, ..Out::new(dw.arg.ptr, DType::F32, d) };
            gemm(io.stream, Layout::Tn, vocab, d, rows, slopes, layer.rows(start), out)?;
        }
        if let Some(db) = io.dins[2] {
            let add = db.acc || c > 0;
            column_sums(io.stream, slopes, rows, vocab, db.arg.ptr, add, sums)?;
        }
    }
    Ok(())
}
