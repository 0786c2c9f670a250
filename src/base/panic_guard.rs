//! Libraries that read what others wrote, held to our rules: their panics become values, and one
//! computation cannot take all memory. Our own code needs neither.

use super::system::write_at_once;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Calls of [`catch_panic`] that this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Bytes that this thread may still allocate.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// The name printed for the code that exceeds that limit.
    static WHOSE: Cell<&'static str> = const { Cell::new("") };
}

/// Runs `f`; None where it panics. What it changed before the panic must not be used any more,
/// unless the change was whole. For libraries that panic on bad input where they should return an
/// error.
pub fn catch_panic<T>(f: impl FnOnce() -> T) -> Option<T> {
    let _inside = Restore::set(&DEPTH, DEPTH.get() + 1);
    catch_unwind(AssertUnwindSafe(f)).ok()
}

/// True if [`catch_panic`] would catch a panic on this thread. A panic hook then prints nothing.
pub fn catches_panic() -> bool {
    DEPTH.get() > 0
}

/// The system's allocator with the limits of [`with_limit`]: for programs, as their
/// `#[global_allocator]`.
#[derive(Debug)]
pub struct Limited;

/// Runs `f`, which may allocate `bytes` in all on this thread, given back or not: a limit on the
/// memory it takes and on the time it spends on copying. Where it asks for more, the program ends
/// with exit code 2 and a line saying that `whose` memory has no end. There is no way back from an
/// allocation that fails, which is why this is only for what nobody means to run. Without
/// [`Limited`] there is no limit.
pub fn with_limit<T>(bytes: usize, whose: &'static str, f: impl FnOnce() -> T) -> T {
    let _whose = Restore::set(&WHOSE, whose);
    let _left = Restore::set(&LEFT, bytes);
    f()
}

/// Puts the old value back, also when the code in between panics.
struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy> Restore<T> {
    fn set(cell: &'static std::thread::LocalKey<Cell<T>>, value: T) -> Restore<T> {
        Restore(cell, cell.replace(value))
    }
}

impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Takes `bytes` off what is left.
fn spend(bytes: usize) {
    let left = LEFT.get();
    if left == usize::MAX {
        return;
    }
    match left.checked_sub(bytes) {
        Some(rest) => LEFT.set(rest),
        None => end(),
    }
}

/// Ends the program with a line, without allocating.
#[cold]
fn end() -> ! {
    let parts =
        ["duplex: ", WHOSE.get(), " asks for memory without end; repair it or leave it out\n"];
    parts.into_iter().for_each(|part| write_at_once(part.as_bytes()));
    // SAFETY: ends the process at once. Files are written beside their places, so none is left half
    // written.
    unsafe { libc::_exit(2) }
}

// SAFETY: all the work is the system's allocator's.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        spend(layout.size());
        // SAFETY: the layout is the caller's, not of size 0 by the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        spend(layout.size());
        // SAFETY: the layout is the caller's, not of size 0 by the contract of `GlobalAlloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        spend(size.saturating_sub(layout.size()));
        // SAFETY: by the contract of `GlobalAlloc`, the block came from this allocator with this
        // layout; so it came from `System`, which makes all of this allocator's blocks.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: by the contract of `GlobalAlloc`, the block came from this allocator with this
        // layout; so it came from `System`, which makes all of this allocator's blocks.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_values_and_limits_end_with_their_scope() {
        assert!(!catches_panic());
        assert_eq!(catch_panic(|| 3), Some(3));
        let inner = catch_panic(|| {
            assert!(catches_panic());
            assert_eq!(catch_panic(|| panic!("a panic of this test")), None::<()>);
            catches_panic()
        });
        assert_eq!((inner, catches_panic()), (Some(true), false));
        let within = with_limit(1 << 20, "a test's", || {
            spend(1000);
            let none: Option<()> =
                catch_panic(|| with_limit(5, "another's", || panic!("another panic of this test")));
            assert_eq!(none, None);
            (LEFT.get(), WHOSE.get())
        });
        assert_eq!(within, ((1 << 20) - 1000, "a test's"));
        assert_eq!((LEFT.get(), WHOSE.get()), (usize::MAX, ""));
    }
}
