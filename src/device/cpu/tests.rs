//! Loops: each task once, from any thread, nested, with panics, and many short ones.

use super::*;
use std::sync::atomic::Ordering::Relaxed;

#[test]
fn each_task_runs_once_whatever_the_number_of_threads() {
    for threads in [1, 2, 3, 8] {
        with_threads(threads, || {
            assert_eq!(super::threads(), threads);
            for tasks in [0, 1, 2, 7, 100, 5000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                parallel_for(tasks, |i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{tasks} on {threads}");
            }
        });
    }
}

#[test]
fn many_short_loops_with_pauses_lose_nothing() {
    with_threads(4, || {
        let mut rng = crate::base::Rng::new(9, 0);
        let sum = AtomicUsize::new(0);
        let mut want = 0;
        for i in 0..20_000 {
            let tasks = 1 + (rng.next_u32() % 9) as usize;
            want += tasks * (tasks - 1) / 2;
            parallel_for(tasks, |t| {
                sum.fetch_add(t, Relaxed);
            });
            if i % 2000 == 0 {
                // Long enough for the workers to sleep.
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        assert_eq!(sum.load(Relaxed), want);
    });
}

#[test]
fn a_loop_in_a_task_runs_there() {
    with_threads(3, || {
        let sum = AtomicUsize::new(0);
        parallel_for(10, |i| {
            assert_eq!(threads(), 1);
            parallel_for(10, |j| {
                sum.fetch_add(10 * i + j, Relaxed);
            });
        });
        assert_eq!(sum.load(Relaxed), 99 * 100 / 2);
        assert_eq!(threads(), 3);
    });
}

#[test]
fn a_panic_in_a_task_is_passed_on_and_the_next_loop_runs() {
    with_threads(2, || {
        for bad in [0, 1, 40, 99] {
            let run = std::panic::AssertUnwindSafe(|| {
                parallel_for(100, |i| {
                    std::thread::sleep(std::time::Duration::from_micros(20));
                    assert_ne!(i, bad);
                });
            });
            assert!(std::panic::catch_unwind(run).is_err());
            let sum = AtomicUsize::new(0);
            parallel_for(100, |i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 4950);
        }
    });
}

#[test]
fn threads_have_workers_of_their_own() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for tasks in 0..500 {
                    let sum = AtomicUsize::new(0);
                    parallel_for(tasks, |i| {
                        sum.fetch_add(i + 1, Relaxed);
                    });
                    assert_eq!(sum.load(Relaxed), tasks * (tasks + 1) / 2);
                }
            });
        }
    });
}
