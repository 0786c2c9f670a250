//! A thread that looks whether iterations end, and tells where the run is when one takes far longer
//! than the others: a device that hangs, a disk that does not answer, a machine that swaps. It
//! tells and does nothing else: whether to wait is the user's to say.

use crate::base::{Error, Result};
use crate::tape::ProgressMarker;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many times the usual iteration is too long: above what evaluations, samples and waiting for
/// a checkpoint add.
const TIMES: u32 = 10;
/// Iterations of which the median is the usual one.
const LAST: usize = 32;

/// The thread, as long as this lives.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The current iteration and the durations of the last ones.
struct State {
    /// Step and number of the iteration under way.
    now: Option<(String, u64)>,
    since: Instant,
    /// Times it has been reported.
    told: u32,
    /// How long the last ones took.
    last: VecDeque<Duration>,
    ended: bool,
}

impl State {
    fn usual(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.last.iter().copied().collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied()
    }

    /// How long the iteration may take before it is told of, again after twice the time.
    fn limit(&self, least: Duration) -> Option<Duration> {
        self.now.as_ref()?;
        let limit = self.usual().map_or(least, |usual| least.max(usual.saturating_mul(TIMES)));
        Some(limit.saturating_mul(1 << self.told.min(20)))
    }

    fn line(&self, marker: &ProgressMarker) -> String {
        let (step, iteration) = self.now.clone().unwrap_or_default();
        let time = |d: Duration| match d.as_secs() {
            s if s < 300 => format!("{s} s"),
            s => format!("{} min", s / 60),
        };
        let usual = self.usual().map_or("none before it has ended".into(), |d| {
            format!("the usual one takes {:.1} s", d.as_secs_f64())
        });
        let place = marker.last();
        let age = place.age().map_or(String::new(), |age| format!(", {} ago", time(age)));
        format!(
            "{step}: iteration {iteration} has taken {} so far, {usual}; begun last: {place}{age}",
            time(self.since.elapsed())
        )
    }
}

impl Watchdog {
    /// Starts the thread. `tell` gets a line when an iteration has taken `least`, and [`TIMES`]
    /// times as long as the usual one of its step.
    pub(super) fn start(
        least: Duration,
        marker: Arc<ProgressMarker>,
        tell: impl Fn(&str) + Send + 'static,
    ) -> Result<Watchdog> {
        let (since, last) = (Instant::now(), VecDeque::new());
        let state = State { now: None, since, told: 0, last, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let watched = shared.clone();
        let watch = move || watch(&watched, least, &marker, &tell);
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(watch);
        let thread = thread.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?;
        Ok(Watchdog { shared, thread: Some(thread) })
    }

    /// A step begins with this iteration.
    pub(super) fn begin(&self, step: &str, iteration: u64) {
        let mut state = self.shared.state();
        state.last.clear();
        (state.now, state.since, state.told) = (Some((step.into(), iteration)), Instant::now(), 0);
        self.shared.changed.notify_all();
    }

    /// An iteration has ended, and the one after it begins.
    pub(super) fn next(&self) {
        let mut state = self.shared.state();
        let took = state.since.elapsed();
        if state.last.len() == LAST {
            state.last.pop_front();
        }
        state.last.push_back(took);
        state.now.iter_mut().for_each(|now| now.1 += 1);
        // The thread hears of it when it would have told.
        (state.since, state.told) = (Instant::now(), 0);
    }

    /// There are no iterations for a while.
    pub(super) fn rest(&self) {
        self.shared.state().now = None;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        self.thread.take().map(JoinHandle::join);
    }
}

fn watch(shared: &Shared, least: Duration, marker: &ProgressMarker, tell: &dyn Fn(&str)) {
    let mut state = shared.state();
    while !state.ended {
        let Some(limit) = state.limit(least) else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = limit.saturating_sub(state.since.elapsed());
        if left.is_zero() {
            state.told += 1;
            let line = state.line(marker);
            // Whoever trains does not wait for whoever reads.
            drop(state);
            tell(&line);
            state = shared.state();
        } else {
            let waited = shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    const MS: Duration = Duration::from_millis(1);

    fn watchdog(least: Duration) -> (Watchdog, Receiver<String>) {
        let (to, from) = channel();
        let tell = move |line: &str| to.send(line.to_string()).unwrap();
        (Watchdog::start(least, Arc::default(), tell).unwrap(), from)
    }

    #[test]
    fn only_an_iteration_far_longer_than_the_others_is_told_of() {
        // A machine that is busy must not make an iteration as long as this.
        let (dog, told) = watchdog(2000 * MS);
        // Nothing is watched before a step and between steps.
        assert_eq!(told.recv_timeout(2500 * MS), Err(RecvTimeoutError::Timeout));
        dog.begin("ppo", 4);
        for _ in 0..40 {
            std::thread::sleep(30 * MS);
            dog.next();
        }
        assert!(told.try_recv().is_err(), "none of them took ten times as long");
        let began = Instant::now();
        let line = told.recv_timeout(10_000 * MS).unwrap();
        assert!(began.elapsed() >= 1500 * MS, "it was told too early: {:?}", began.elapsed());
        assert!(line.starts_with("ppo: iteration 44 has taken "), "{line}");
        assert!(line.contains("the usual one takes 0.0 s; begun last: no program has begun"));
        // Again after twice the time.
        let line = told.recv_timeout(10_000 * MS).unwrap();
        assert!(began.elapsed() >= 3500 * MS && line.contains("iteration 44"), "{line}");
        dog.rest();
        assert_eq!(told.recv_timeout(2500 * MS), Err(RecvTimeoutError::Timeout));
        dog.begin("sft", 1);
        let line = told.recv_timeout(10_000 * MS).unwrap();
        assert!(line.starts_with("sft: iteration 1 has ") && line.contains("none before it"));
    }
}
