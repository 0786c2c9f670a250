//! Libraries that panic where they should return an error: their panics become values.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Calls of [`catch_panic`] that this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs `f`; None where it panics. What it changed before the panic must not be used any more,
/// unless the change was whole. For libraries that panic on bad input where they should return an
/// error.
pub fn catch_panic<T>(f: impl FnOnce() -> T) -> Option<T> {
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(f)).ok()
}

/// True if [`catch_panic`] would catch a panic on this thread. A panic hook then prints nothing.
pub fn catches_panic() -> bool {
    DEPTH.get() > 0
}

/// A call of [`catch_panic`], until it is dropped.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_values() {
        assert!(!catches_panic());
        assert_eq!(catch_panic(|| 3), Some(3));
        let inner = catch_panic(|| {
            assert!(catches_panic());
            assert_eq!(catch_panic(|| panic!("a panic of this test")), None::<()>);
            catches_panic()
        });
        assert_eq!((inner, catches_panic()), (Some(true), false));
    }
}
