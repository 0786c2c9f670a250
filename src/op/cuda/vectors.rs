//! Kernels in which a thread takes a vector of neighbouring elements: their grids, and the flags of
//! `cuda/lib/vector.cuh`. The kernels belong to the operators.

use crate::base::{DType, Error, Result};
pub use crate::device::cuda::constants::vector::{FLAG_ADD as ADD, FLAG_ALIGNED as ALIGNED};
use crate::device::cuda::constants::vector::{VEC_BYTES, VEC_THREADS};

/// Threads of a block.
pub const THREADS: u32 = VEC_THREADS as u32;

/// Elements of `dtype` in a vector of 16 bytes.
pub fn vec_len(dtype: DType) -> usize {
    VEC_BYTES / dtype.size()
}

/// `ALIGNED` if vectors of `n` elements can be read and written at once: arrays begin at multiples
/// of 16 bytes, and their rows and what else kernels step over, `steps`, are whole vectors.
pub fn aligned(arrays: &[u64], steps: &[usize], n: usize) -> u32 {
    let fits = arrays.iter().all(|p| p.is_multiple_of(VEC_BYTES as u64))
        && steps.iter().all(|s| s % n == 0);
    if fits { ALIGNED } else { 0 }
}

/// `ADD` if `acc`.
pub fn adding(acc: bool) -> u32 {
    if acc { ADD } else { 0 }
}

/// The grid for `len` elements in vectors of `n`.
pub fn flat_grid(len: usize, n: usize) -> [u32; 3] {
    [len.div_ceil(n * THREADS as usize) as u32, 1, 1]
}

/// The grid for a matrix whose rows are cut into vectors of `n`. Fails beyond 2^32 vectors.
pub fn row_grid(rows: usize, width: usize, n: usize) -> Result<[u32; 3]> {
    let vectors = rows * width.div_ceil(n);
    match u32::try_from(vectors + THREADS as usize) {
        Ok(_) => Ok(flat_grid(vectors * n, n)),
        Err(_) => Err(Error::internal(format!("{rows} x {width} elements in one launch"))),
    }
}
