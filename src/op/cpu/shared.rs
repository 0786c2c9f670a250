//! Splitting work over tasks: disjoint mutable pieces of one slice, and even row ranges.

use crate::device::cpu::threads;
use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice whose disjoint parts are written by different tasks. Each has a copy of it.
#[derive(Clone, Copy, Debug)]
pub struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    marker: PhantomData<&'a mut [T]>,
}

// SAFETY: it is the exclusive borrow that it was made of, which may go to another thread.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: threads that share it reach parts only through `slice`, whose contract is that live
// parts are disjoint: so each element is one thread's at a time.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Wraps a slice.
    pub fn new(slice: &'a mut [T]) -> SharedMut<'a, T> {
        SharedMut { ptr: slice.as_mut_ptr(), len: slice.len(), marker: PhantomData }
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No other live slice of this object may overlap it.
    pub unsafe fn slice(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len, "{start}+{len} of {}", self.len);
        // SAFETY: in range, as asserted, of a slice that is borrowed exclusively for `'a`. By the
        // contract of this function no other live part overlaps it.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Cuts `rows` rows of `width` elements into even ranges, one or a few per thread, or a single one
/// where the work is too small to share.
pub fn row_chunks(rows: usize, width: usize) -> Vec<Range<usize>> {
    const SMALL: usize = 16 * 1024;
    let tasks = if rows * width < SMALL { 1 } else { (2 * threads()).min(rows) };
    (0..tasks).map(|i| i * rows / tasks..(i + 1) * rows / tasks).collect()
}
