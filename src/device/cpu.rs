//! The host processor: a parallel loop over independent tasks.
//!
//! Results must never depend on how tasks fall on threads: a task owns its outputs and reduces in
//! a fixed order.

mod workers;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use workers::Workers;

/// The number of threads that was asked for; 0 for as many as the process may use.
static ASKED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The workers of this thread's parallel loops.
    static WORKERS: RefCell<Option<Rc<Workers>>> = const { RefCell::new(None) };
}

/// Runs `f(0)`, ..., `f(tasks - 1)` on the calling thread and its workers, in any order; returns
/// when all are done. A loop inside a task runs on that task's thread alone.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 || workers::is_worker() {
        (0..tasks).for_each(f);
    } else {
        mine().run(tasks, &f);
    }
}

/// Number of threads of a parallel loop.
pub fn threads() -> usize {
    if workers::is_worker() { 1 } else { mine().threads() }
}

/// Sets the number of threads of loops started from threads that have not started one yet; 0 for as
/// many as the process may use.
pub fn set_threads(threads: usize) {
    ASKED.store(threads, Ordering::Relaxed);
}

/// Runs `f` with parallel loops of `threads` threads.
pub fn with_threads<T>(threads: usize, f: impl FnOnce() -> T) -> T {
    /// Puts the old workers back, also when `f` panics.
    struct Restore(Option<Rc<Workers>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            WORKERS.set(self.0.take());
        }
    }
    let _restore = Restore(WORKERS.replace(Some(Rc::new(Workers::new(threads)))));
    f()
}

/// The calling thread's workers, started with its first loop.
fn mine() -> Rc<Workers> {
    WORKERS.with_borrow_mut(|workers| {
        workers.get_or_insert_with(|| Rc::new(Workers::new(asked()))).clone()
    })
}

fn asked() -> usize {
    match ASKED.load(Ordering::Relaxed) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

#[cfg(test)]
mod tests;
