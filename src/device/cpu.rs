//! The host processor: a parallel loop over independent tasks, and what its vector units can do.
//!
//! Results must never depend on how tasks fall on threads: a task owns its outputs and reduces in
//! a fixed order.

use rayon::prelude::*;

/// Runs `f(0)`, ..., `f(tasks - 1)` on the worker threads, in any order; returns when all are done.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(f);
    } else {
        (0..tasks).into_par_iter().for_each(f);
    }
}

/// Number of worker threads.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
