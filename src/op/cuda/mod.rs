//! CUDA launches that several operators share: matrix products and column sums.

pub mod gemm;
pub mod scatter;
pub mod vectors;

pub use gemm::{Layout, Mat, Out, Product, gemm};

use crate::base::{Error, Result};
use crate::comm::Comm;
use crate::device::cuda::constants::linear::SUM_THREADS;
use crate::device::cuda::constants::softmax::{ROW_THREADS, SMALL_ROW_THREADS, SMALL_VOCAB};
use crate::device::cuda::params::{MAX_EOS, SumParams};
use crate::device::{Device, Stream};
use crate::op::by_dtype;

/// End tokens as a kernel takes them; fails where there are too many.
pub fn eos_list(eos: &[i32]) -> Result<[i32; MAX_EOS]> {
    let mut list = [0; MAX_EOS];
    let Some(used) = list.get_mut(..eos.len()) else {
        return Err(Error::user(format!(
            "{} end tokens are more than the {MAX_EOS} that run on CUDA; use the CPU",
            eos.len()
        )));
    };
    used.copy_from_slice(eos);
    Ok(list)
}

/// Which kernels work on rows of logits (`cuda/lib/softmax.cuh`). The vocabulary alone decides, so
/// that sampling and scoring sum in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Blocks of few threads, for small vocabularies.
    Small,
    /// Blocks of many.
    Full,
}

impl Rows {
    /// The kernels for a vocabulary.
    pub fn of(vocab: usize) -> Rows {
        if vocab <= SMALL_VOCAB { Rows::Small } else { Rows::Full }
    }

    /// Threads of a block, which has one row.
    pub fn threads(self) -> u32 {
        match self {
            Rows::Small => SMALL_ROW_THREADS as u32,
            Rows::Full => ROW_THREADS as u32,
        }
    }

    /// One of two names.
    pub fn kernel(self, small: &'static str, full: &'static str) -> &'static str {
        if self == Rows::Small { small } else { full }
    }
}

/// Waits for the work of `stream`, so that ranks may reach into its memory from the host, unless
/// calls of `comm` are work of the device: on the emulated device, whose memory is the host's.
/// Fails on others, and while the stream is captured.
pub fn ready_for_ranks(comm: &Comm, stream: &Stream) -> Result<()> {
    if comm.is_on_device() {
        return Ok(());
    }
    let emulated = Device::Emulated.stream().is_ok_and(|e| std::ptr::eq(e.card(), stream.card()));
    if !emulated {
        return Err(Error::internal("ranks on GPUs that nothing of theirs connects"));
    }
    stream.synchronize()
}

/// Rows that one block sums.
pub const SUM_ROWS: usize = 256;
/// Columns that one block sums, and its threads.
const SUM_COLUMNS: u32 = SUM_THREADS as u32;

/// Workspace of [`column_sums`] in f32 elements.
pub fn column_sums_scratch(rows: usize, columns: usize) -> usize {
    rows.div_ceil(SUM_ROWS) * columns
}

/// Sums the rows of `x` `[rows, columns]` into f32 `out` `[columns]`, in a fixed order: pieces of
/// 256 rows each on their own, then the pieces.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub unsafe fn column_sums(
    stream: &Stream,
    x: Mat,
    rows: usize,
    columns: usize,
    out: u64,
    add: bool,
    scratch: u64,
) -> Result<()> {
    let pieces = rows.div_ceil(SUM_ROWS) as u32;
    let first = SumParams {
        x: x.ptr,
        out: scratch,
        rows: rows as u32,
        columns: columns as u32,
        ld: x.ld as u32,
        rows_per_block: SUM_ROWS as u32,
        add: 0,
        zero: 0,
    };
    let blocks = (columns as u32).div_ceil(SUM_COLUMNS);
    let kernel = by_dtype(x.dtype, "column_sums_f32", "column_sums_bf16");
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(kernel, [blocks, pieces, 1], SUM_COLUMNS, 0, &first)? };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { sum_pieces(stream, scratch, pieces as usize, columns, out, add) }
}

/// Sums f32 `pieces` `[n, columns]` into f32 `out` `[columns]`, in order.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub unsafe fn sum_pieces(
    stream: &Stream,
    pieces: u64,
    n: usize,
    columns: usize,
    out: u64,
    add: bool,
) -> Result<()> {
    let params = SumParams {
        x: pieces,
        out,
        rows: n as u32,
        columns: columns as u32,
        ld: columns as u32,
        rows_per_block: n as u32,
        add: u32::from(add),
        zero: 0,
    };
    let blocks = (columns as u32).div_ceil(SUM_COLUMNS);
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch("column_sums_f32", [blocks, 1, 1], SUM_COLUMNS, 0, &params) }
}

#[cfg(all(test, feature = "emulator"))]
pub(crate) mod testing;
#[cfg(all(test, feature = "emulator"))]
mod tests;
