//! How long each rank works on an iteration, apart from what it waits for others: one that takes
//! much longer slows down all.

use crate::base::{Error, Result};
use crate::comm::Comm;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rank that takes so many times the median is told of.
const TIMES: f64 = 3.0;
/// And so many seconds more.
const LEAST: f64 = 1.0;
/// Iterations before it is told of again.
const PAUSE: u32 = 20;

/// How long the thread sleeps that notices when the whole process stands still.
const NAP: Duration = Duration::from_millis(100);

/// The clock of one rank.
#[derive(Debug)]
pub(super) struct StragglerDetector {
    since: Instant,
    waited: Duration,
    /// Iterations until something may be told.
    quiet: u32,
    /// Milliseconds in which this process was stopped: if it waited then, others waited for it.
    stopped: Arc<AtomicU64>,
    stopped_before: u64,
}

impl StragglerDetector {
    /// The clock of a rank of `comm`.
    pub(super) fn new(comm: &Comm) -> Result<StragglerDetector> {
        let stopped = Arc::new(AtomicU64::new(0));
        if comm.size() > 1 {
            let told = Arc::downgrade(&stopped);
            let watch = move || {
                let mut last = Instant::now();
                while let Some(stopped) = told.upgrade() {
                    let gap = last.elapsed().saturating_sub(2 * NAP);
                    stopped.fetch_add(gap.as_millis() as u64, Ordering::Relaxed);
                    last = Instant::now();
                    drop(stopped);
                    std::thread::sleep(NAP);
                }
            };
            let thread = std::thread::Builder::new().name("straggler".into()).spawn(watch);
            thread.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?;
        }
        let (since, waited) = (Instant::now(), comm.waited());
        Ok(StragglerDetector { since, waited, quiet: 0, stopped, stopped_before: 0 })
    }

    /// Begins to measure.
    pub(super) fn begin(&mut self, comm: &Comm) {
        (self.since, self.waited) = (Instant::now(), comm.waited());
        self.stopped_before = self.stopped.load(Ordering::Relaxed);
    }

    /// Ends an iteration on all ranks, and begins the next; says which rank is slow, if one is.
    pub(super) fn end(&mut self, comm: &Comm) -> Result<Option<String>> {
        if comm.size() == 1 {
            return Ok(None);
        }
        let worked = self.since.elapsed().saturating_sub(comm.waited() - self.waited);
        let stopped = self.stopped.load(Ordering::Relaxed);
        let worked = worked.max(Duration::from_millis(stopped - self.stopped_before));
        let all = comm.concat(&[worked.as_secs_f64()])?;
        self.begin(comm);
        // What the thread has noticed since belongs to the next iteration.
        self.stopped_before = stopped;
        self.quiet = self.quiet.saturating_sub(1);
        let told = slow(&all).filter(|_| self.quiet == 0);
        if told.is_some() {
            self.quiet = PAUSE;
        }
        Ok(told)
    }
}

/// Returns a warning if the slowest rank worked much longer than the median rank. `seconds` has the
/// time that each rank worked, by rank.
fn slow(seconds: &[f64]) -> Option<String> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The lower one of two: with two ranks one of them is slow, or none.
    let (median, most) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() - 1]);
    let rank = seconds.iter().position(|s| *s == most)?;
    (most > TIMES * median && most > median + LEAST).then(|| {
        format!(
            "rank {rank} is slow: it worked {most:.1} s on this iteration, the median rank \
             {median:.1} s; all wait for it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rank_that_is_much_slower_is_told_of() {
        assert_eq!(slow(&[1.0, 1.2, 0.9, 2.5]), None, "not three times");
        assert_eq!(slow(&[0.01, 0.01, 0.9]), None, "not a second");
        let line = slow(&[1.0, 1.1, 9.0, 1.2]).unwrap();
        assert!(line.starts_with("rank 2 is slow: it worked 9.0 s"), "{line}");
        assert!(slow(&[5.0, 1.0]).unwrap().starts_with("rank 0 "));
        assert!(slow(&[1.0, 5.0]).unwrap().starts_with("rank 1 "));
    }
}
