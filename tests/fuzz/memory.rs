//! Counts what each thread has allocated, and refuses what no parser can need.

use duplex::base::Limited;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

/// The program's allocator, which has limits of its own, with a count for each thread.
pub(crate) struct Counting;

/// Bytes at which the process is ended, before the machine is out of memory.
const MOST: isize = 1 << 30;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts from nothing.
pub(crate) fn reset() {
    LIVE.set(0);
    PEAK.set(0);
}

/// Most bytes that this thread has held at once since the last reset.
pub(crate) fn peak() -> usize {
    PEAK.get().max(0) as usize
}

fn count(bytes: isize) -> bool {
    let live = LIVE.get() + bytes;
    if live > MOST {
        return false;
    }
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    true
}

// SAFETY: the program's allocator does the work; counting allocates nothing, and a null pointer
// says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { Limited.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as isize) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { Limited.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while the bytes are copied.
        if !count(size as isize) {
            return std::ptr::null_mut();
        }
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { Limited.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { Limited.dealloc(ptr, layout) }
    }
}
