//! The place where the programs of a workspace are, for another thread to read. Each program and
//! each operator that begins updates it, except those of a recorded program. It watches nothing
//! itself.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A place that one thread updates and another reads. An update takes a lock that is nearly always
/// free, and the clock: some tens of nanoseconds.
#[derive(Debug, Default)]
pub struct ProgressMarker(Mutex<Progress>);

/// The program, segment and operator that was begun last.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    program: String,
    operator: &'static str,
    segment: usize,
    backward: bool,
    since: Option<Instant>,
}

impl ProgressMarker {
    /// The program, segment and operator that was begun last.
    pub fn last(&self) -> Progress {
        self.progress().clone()
    }

    pub(super) fn enter(&self, program: &str) {
        let mut progress = self.progress();
        *progress = Progress { since: Some(Instant::now()), ..Progress::default() };
        progress.program.push_str(program);
    }

    pub(super) fn at(&self, operator: &'static str, segment: usize, backward: bool) {
        let mut progress = self.progress();
        (progress.operator, progress.segment, progress.backward) = (operator, segment, backward);
        progress.since = Some(Instant::now());
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Time since then; none where nothing was begun yet.
    pub fn age(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { program, operator, segment, backward, .. } = self;
        match (program.as_str(), *operator) {
            ("", _) => f.write_str("no program has begun"),
            (program, "") => write!(f, "program {program:?}"),
            (program, operator) => {
                let way = if *backward { " backward" } else { "" };
                write!(f, "program {program:?}, segment {segment}, operator {operator}{way}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_was_begun_is_told() {
        let marker = ProgressMarker::default();
        assert!(marker.last().age().is_none());
        assert_eq!(marker.last().to_string(), "no program has begun");
        marker.enter("sft 3");
        assert_eq!(marker.last().to_string(), "program \"sft 3\"");
        marker.at("linear", 4, true);
        let told = marker.last().to_string();
        assert_eq!(told, "program \"sft 3\", segment 4, operator linear backward");
        marker.enter("adamw 3");
        assert_eq!(marker.last().to_string(), "program \"adamw 3\"");
        assert!(marker.last().age().is_some());
    }
}
