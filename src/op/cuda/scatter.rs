//! Scatter-add on CUDA, the gradient of reading rows by index. Entries that name one row are linked
//! in order, and each row is summed in that order, as in `op/cpu/scatter.rs`: no atomics.

use super::vectors::{THREADS, adding, aligned, row_grid, vec_len};
use crate::base::{DType, Error, Result};
use crate::device::Stream;
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::params::{ScatterLinksParams, ScatterParams};
use crate::op::{Arg, CudaGrad};

/// Workspace for `count` entries, in f32 elements.
pub fn scatter_scratch(count: usize) -> usize {
    count
}

/// The rows that are added, and where: `scale * from[t]` to row `index[t] + offset`.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// Row of each entry.
    pub index: Arg,
    /// Added to it.
    pub offset: usize,
    /// A row of each entry.
    pub from: Arg,
    /// Elements of a row.
    pub width: usize,
    /// Multiplies the rows.
    pub scale: f32,
}

/// Adds `entries` to `to` in their order, summed in f32. Without `to.acc` the whole of `to` is set.
/// Entries outside `to` are left out.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub unsafe fn scatter_add(
    stream: &Stream,
    entries: Entries,
    to: &CudaGrad,
    scratch: u64,
) -> Result<()> {
    let Entries { index, offset, from, width, scale } = entries;
    let (count, len) = (index.desc.shape.numel(), to.arg.desc.shape.numel());
    if !to.acc {
        let to = to.arg;
        // SAFETY: the caller vouches for `to`.
        stream.fill(unsafe { to.region(stream.device()) }, 0)?;
    }
    let links =
        ScatterLinksParams { index: index.ptr, links: scratch, count: count as u32, pad: 0 };
    let warps = THREADS / WARP as u32;
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe {
        stream.launch("scatter_links", [links.count.div_ceil(warps), 1, 1], THREADS, 0, &links)?
    };
    let n = vec_len(from.desc.dtype);
    let params = ScatterParams {
        index: index.ptr,
        links: scratch,
        from: from.ptr,
        to: to.arg.ptr,
        count: count as u32,
        width: width as u32,
        rows: (len / width) as u32,
        offset: offset as u32,
        scale,
        // Rows that are not named by an index are 0 by now; those that are hold what to add to.
        flags: aligned(&[from.ptr, to.arg.ptr], &[width], n) | adding(to.acc),
    };
    let kernel = match (from.desc.dtype, to.arg.desc.dtype) {
        (DType::F32, DType::F32) => "scatter_add_f32",
        (DType::Bf16, DType::Bf16) => "scatter_add_bf16",
        (DType::Bf16, DType::F32) => "scatter_add_bf16_f32",
        (a, b) => return Err(Error::internal(format!("scatter_add of {a} into {b}"))),
    };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(kernel, row_grid(count, width, n)?, THREADS, 0, &params) }
}
