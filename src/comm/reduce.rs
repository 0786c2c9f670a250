//! Reductions of the ranks' values on the host, in the order of the ranks, and copies.

use super::{Reduce, Span};
use crate::base::{DType, Elem, Error, Result, bf16};

/// Values at a time: their sums stay in the processor.
const PIECE: usize = 4096;

/// Puts the reduction of `from`, arrays of `dtype` as long as `to`, into `to`, which may be one of
/// them.
///
/// # Safety
/// All ranges are memory of the host, allocated and as long as `to`, that nobody else touches
/// meanwhile.
pub(super) unsafe fn reduce(from: &[Span], to: Span, dtype: DType, by: Reduce) -> Result<()> {
    // SAFETY: the contract of `reduce_as` is that of this function.
    unsafe {
        match dtype {
            DType::F32 => reduce_as::<f32>(from, to, by),
            DType::Bf16 => reduce_as::<bf16>(from, to, by),
            other => return Err(Error::internal(format!("a reduction of {other}"))),
        }
    }
    Ok(())
}

/// # Safety
/// As [`reduce`].
unsafe fn reduce_as<E: Elem>(from: &[Span], to: Span, by: Reduce) {
    let n = to.bytes / size_of::<E>();
    let mut sums = [0f32; PIECE];
    for start in (0..n).step_by(PIECE) {
        let sums = &mut sums[..PIECE.min(n - start)];
        for (i, from) in from.iter().enumerate() {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `start + k` is below the number of values in `to`. By the contract of
                // `reduce`, each range is as long and memory of the host.
                let x = unsafe { from.ptr.cast::<E>().add(start + k).read_unaligned() }.to_f32();
                *sum = match by {
                    _ if i == 0 => x,
                    Reduce::Sum => *sum + x,
                    // `f32::max` would pass over a NaN.
                    Reduce::Max if x.is_nan() || x > *sum => x,
                    Reduce::Max => *sum,
                };
            }
        }
        for (k, sum) in sums.iter().enumerate() {
            // SAFETY: `start + k` is below the number of values in `to`.
            unsafe { to.ptr.cast::<E>().add(start + k).write_unaligned(E::from_f32(*sum)) };
        }
    }
}

/// Copies `from` to `to`, unless it is the same place.
///
/// # Safety
/// Both are memory of the host, allocated and of one length, that nobody else touches meanwhile;
/// otherwise they do not overlap.
pub(super) unsafe fn copy(from: Span, to: Span) {
    if from.ptr != to.ptr {
        // SAFETY: by the contract of this function both are memory of the host of one length, and
        // apart since they are not the same.
        unsafe { std::ptr::copy_nonoverlapping(from.ptr, to.ptr, to.bytes) };
    }
}
