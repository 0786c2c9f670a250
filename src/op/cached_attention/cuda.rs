//! Cached attention on a CUDA device: one launch appends, one attends with the kernels of packed
//! attention.

use super::CachedAttention;
use crate::base::Result;
use crate::op::CudaForward;
use crate::op::attention::cuda::{append, attend, params};

/// `Op::cuda_forward` of cached attention.
///
/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn forward(op: &CachedAttention, io: &CudaForward<'_>) -> Result<()> {
    let (op, qkv, table) = (&op.0, io.input(0), io.input(3));
    let [o, k, v] = &io.outs[..] else { panic!("cached_attention has three outputs") };
    let mut params = params(op, io.stream, qkv, io.input(1))?;
    (params.starts, params.page_table) = (io.input(2).ptr, table.ptr);
    (params.kcache, params.vcache, params.o) = (k.ptr, v.ptr, o.ptr);
    (params.columns, params.pages) = (table.last() as u32, k.dims()[0] as u32);
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe { append(op, io.stream, qkv.desc.dtype, params)? };
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe { attend(op, io.stream, qkv.desc.dtype, params) }
}
