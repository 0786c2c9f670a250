//! `logprob` on CUDA devices, and what `cross_entropy` shares with it. A GEMM makes the logits of
//! some rows in f32, one kernel takes their statistics, one turns them into their gradient in the
//! dtype of x, so that the GEMMs after it are of one dtype.

use super::LogProb;
use crate::base::{DType, Error, Result};
use crate::device::Stream;
use crate::device::cuda::params::{LogProbParams, LogProbSlopeParams};
use crate::op::cpu::softmax;
use crate::op::cuda::{Layout, Mat, Out, Rows, SUM_ROWS, column_sums, column_sums_scratch, gemm};
use crate::op::{Arg, CudaBackward, CudaForward, CudaGrad, by_dtype};
use std::ops::Range;

/// Logits that exist at once: 256 MiB, so that a GEMM of their rows is far from waiting for the
/// weights. Tests have small chunks, so as to have several.
const CHUNK: usize = if cfg!(test) { 1 << 12 } else { 64 << 20 };
/// Rows of logits start at multiples of this many elements, for copies of 16 bytes.
const ALIGN: usize = 8;
/// Rows of a chunk are a multiple of this, where there are several chunks.
const ROWS: usize = if cfg!(test) { 2 } else { 128 };

/// How rows go through, and the parts of the workspace in f32 elements, each a multiple of 256
/// bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::op) struct Chunks {
    /// Rows of a chunk.
    pub(in crate::op) rows: usize,
    /// From one row of logits to the next.
    pub(in crate::op) ld: usize,
    /// Logits, of which f32 gradients take the place.
    pub(in crate::op) logits: usize,
    /// Gradients of logits in bf16.
    pub(in crate::op) slopes: usize,
    /// For column sums.
    pub(in crate::op) sums: usize,
}

impl Chunks {
    pub(in crate::op) fn new(n: usize, vocab: usize, dtype: DType) -> Chunks {
        let ld = vocab.next_multiple_of(ALIGN);
        let rows = (CHUNK / ld.max(1) / ROWS * ROWS).max(ROWS).min(n);
        let [logits, slopes] = room_for(rows * ld, dtype);
        Chunks { rows, ld, logits, slopes, sums: column_sums_scratch(rows, vocab) }
    }

    /// The length of all parts.
    pub(in crate::op) fn parts(&self) -> usize {
        self.logits + self.slopes + self.sums
    }
}

/// Room in f32 elements for so many logits, and for their gradients where those are bf16.
fn room_for(logits: usize, dtype: DType) -> [usize; 2] {
    let slopes = if dtype == DType::Bf16 { logits / 2 } else { 0 };
    [logits, slopes].map(|n| n.next_multiple_of(64))
}

/// Workspace in f32 elements that holds the parts for every smaller number of rows and every
/// smaller vocabulary: it grows with both, which the parts do not, since the rows of a chunk are
/// whole multiples.
#[derive(Clone, Copy, Debug)]
pub(in crate::op) struct Room {
    /// For the logits alone.
    pub(in crate::op) logits: usize,
    rest: usize,
}

impl Room {
    pub(in crate::op) fn new(n: usize, vocab: usize, dtype: DType) -> Room {
        let ld = vocab.next_multiple_of(ALIGN);
        let elements = (n * ld).min(CHUNK.max(ROWS * ld));
        let [logits, slopes] = room_for(elements, dtype);
        // A piece of rows may have one row.
        let sums = column_sums_scratch(n, vocab).min(elements.div_ceil(SUM_ROWS) + vocab);
        Room { logits, rest: slopes + sums }
    }

    /// For all parts.
    pub(in crate::op) fn all(&self) -> usize {
        self.logits + self.rest
    }
}

/// The output layer, share by share.
pub(in crate::op) struct Layer<'a> {
    stream: &'a Stream,
    x: Arg,
    w: Arg,
    bias: u64,
    targets: u64,
    /// Softmax temperature and bound of the logits.
    op: LogProb,
    chunks: Chunks,
    scratch: u64,
}

/// Where statistics of rows are, f32 `[n]` each.
#[derive(Clone, Copy)]
pub(in crate::op) struct Statistics {
    pub(in crate::op) logp: u64,
    pub(in crate::op) entropy: u64,
    pub(in crate::op) lse: u64,
}

impl<'a> Layer<'a> {
    /// The layer of x, w, an optional bias and targets, with the workspace at `scratch`, whose
    /// parts are those of [`Chunks`].
    pub(in crate::op) fn new(
        op: LogProb,
        stream: &'a Stream,
        ins: &[Option<Arg>],
        scratch: u64,
    ) -> Result<Layer<'a>> {
        let [Some(x), Some(w), bias, Some(targets), ..] = ins else {
            return Err(Error::internal("logprob without hidden states, weights or targets"));
        };
        let chunks = Chunks::new(targets.desc.shape.numel(), w.rows(), x.desc.dtype);
        let (bias, targets) = (bias.map_or(0, |b| b.ptr), targets.ptr);
        Ok(Layer { stream, x: *x, w: *w, bias, targets, op, chunks, scratch })
    }

    /// How its rows go through.
    pub(in crate::op) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The shares of `n` rows: without rows one (empty) share, which sets the gradients to 0.
    pub(in crate::op) fn shares(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = self.chunks.rows.max(1);
        (0..n.div_ceil(step).max(1)).map(move |c| c * step..((c + 1) * step).min(n))
    }

    /// Rows of x.
    fn rows(&self, rows: &Range<usize>) -> Mat {
        let (d, dtype) = (self.w.last(), self.x.desc.dtype);
        Mat::new(self.x.ptr + (rows.start * d * dtype.size()) as u64, dtype, d)
    }

    fn weight(&self) -> Mat {
        Mat::new(self.w.ptr, self.w.desc.dtype, self.w.last())
    }

    /// Logits of a share, as `linear` makes them, at the front of the workspace.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    pub(in crate::op) unsafe fn logits(&self, rows: &Range<usize>) -> Result<()> {
        let (d, vocab) = (self.w.last(), self.w.rows());
        let out = Out { bias: self.bias, ..Out::new(self.scratch, DType::F32, self.chunks.ld) };
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe {
            gemm(
                self.stream,
                Layout::Nt.of(rows.len(), vocab, d),
                self.rows(rows),
                self.weight(),
                out,
            )
        }
    }

    /// Statistics of a share's logits.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    pub(in crate::op) unsafe fn statistics(
        &self,
        rows: &Range<usize>,
        to: Statistics,
    ) -> Result<()> {
        let start = rows.start;
        let params = LogProbParams {
            logits: self.scratch,
            targets: at(self.targets, start),
            logp: at(to.logp, start),
            entropy: at(to.entropy, start),
            lse: at(to.lse, start),
            fault: self.stream.fault(),
            vocab: self.w.rows() as u32,
            ld: self.chunks.ld as u32,
            inv_t: softmax::inverse(self.op.temperature),
            softcap: self.op.softcap,
        };
        let kind = Rows::of(self.w.rows());
        let kernel = kind.kernel("logprob_rows_small", "logprob_rows");
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { self.stream.launch(kernel, [rows.len() as u32, 1, 1], kind.threads(), 0, &params) }
    }

    /// Turns a share's logits into their gradients, from the statistics and `dlogp` and `dentropy`,
    /// f32 `[n]` or 0, and those into the gradients of x, w and b. `capped`: [`Layer::statistics`]
    /// has seen these logits, and put them through the cap.
    ///
    /// # Safety
    /// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
    pub(in crate::op) unsafe fn gradients(
        &self,
        rows: &Range<usize>,
        of: Statistics,
        [dlogp, dentropy]: [u64; 2],
        dins: &[Option<CudaGrad>],
        capped: bool,
    ) -> Result<()> {
        let (start, chunks, dtype) = (rows.start, &self.chunks, self.x.desc.dtype);
        let (d, vocab) = (self.w.last(), self.w.rows());
        let narrow = dtype == DType::Bf16;
        let dlogits = if narrow { at(self.scratch, chunks.logits) } else { self.scratch };
        let params = LogProbSlopeParams {
            logits: self.scratch,
            dlogits,
            targets: at(self.targets, start),
            entropy: at(of.entropy, start),
            lse: at(of.lse, start),
            dlogp: at(dlogp, start),
            dentropy: at(dentropy, start),
            vocab: vocab as u32,
            ld: chunks.ld as u32,
            inv_t: softmax::inverse(self.op.temperature),
            softcap: self.op.softcap,
            to_cap: if capped { 0.0 } else { self.op.softcap },
            pad: 0,
        };
        let kernel = by_dtype(dtype, "logprob_slope_f32", "logprob_slope_bf16");
        let threads = Rows::of(vocab).threads();
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        unsafe { self.stream.launch(kernel, [rows.len() as u32, 1, 1], threads, 0, &params)? };
        let (slopes, first) = (Mat::new(dlogits, dtype, chunks.ld), start == 0);
        if let Some(dx) = dins[0] {
            let ptr = dx.arg.ptr + (start * d * dtype.size()) as u64;
            let out = Out { accumulate: dx.acc, ..Out::new(ptr, dtype, d) };
            // SAFETY: the caller vouches for the addresses, and for as much memory there as the
            // sizes say.
            unsafe {
                gemm(self.stream, Layout::Nn.of(rows.len(), d, vocab), slopes, self.weight(), out)?
            };
        }
        if let Some(dw) = dins[1] {
            let out = Out { accumulate: dw.acc || !first, ..Out::new(dw.arg.ptr, DType::F32, d) };
            // SAFETY: the caller vouches for the addresses, and for as much memory there as the
            // sizes say.
            unsafe {
                gemm(
                    self.stream,
                    Layout::Tn.of(vocab, d, rows.len()),
                    slopes,
                    self.rows(rows),
                    out,
                )?
            };
        }
        if let Some(db) = dins[2] {
            let sums = at(self.scratch, chunks.logits + chunks.slopes);
            let add = db.acc || !first;
            // SAFETY: the caller vouches for the addresses, and for as much memory there as the
            // sizes say.
            unsafe { column_sums(self.stream, slopes, rows.len(), vocab, db.arg.ptr, add, sums)? };
        }
        Ok(())
    }
}

/// Address of element `i` of an f32 or i32 array; null stays null.
pub(in crate::op) fn at(ptr: u64, i: usize) -> u64 {
    if ptr == 0 { 0 } else { ptr + 4 * i as u64 }
}

/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn forward(op: &LogProb, io: &CudaForward<'_>) -> Result<()> {
    let layer = Layer::new(*op, io.stream, &io.ins, io.scratch)?;
    let [logp, entropy, lse] = [0, 1, 2].map(|i| io.outs[i].ptr);
    for rows in layer.shares(io.input(3).desc.shape.numel()) {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { layer.logits(&rows)? };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { layer.statistics(&rows, Statistics { logp, entropy, lse })? };
    }
    Ok(())
}

/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn backward(op: &LogProb, io: &CudaBackward<'_>) -> Result<()> {
    let layer = Layer::new(*op, io.stream, &io.ins, io.scratch)?;
    let of = Statistics { logp: 0, entropy: io.output(1).ptr, lse: io.output(2).ptr };
    let douts = [0, 1].map(|i| io.douts[i].map_or(0, |g| g.ptr));
    for rows in layer.shares(io.input(3).desc.shape.numel()) {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { layer.logits(&rows)? };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { layer.gradients(&rows, of, douts, &io.dins, false)? };
    }
    Ok(())
}
