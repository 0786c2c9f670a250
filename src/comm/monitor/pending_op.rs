//! The operation that a rank waits for, and the error if it does not end. Both are the same for
//! every transport.

use super::Monitor;
use crate::base::{Error, Kind, Result};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a rank's end may take to be told, where a library notices it first.
const NEWS: Duration = Duration::from_secs(2);

/// The operation waited for, as errors name it if it does not end.
#[derive(Clone)]
pub(in crate::comm) struct PendingOp {
    pub(in crate::comm) name: String,
    /// The group's number, and that of the call among the group's; none for point-to-point
    /// messages.
    pub(in crate::comm) group: u64,
    pub(in crate::comm) call: Option<u64>,
    /// The ranks that take part, by their numbers in the first group.
    pub(in crate::comm) members: Arc<Vec<usize>>,
}

impl fmt::Display for PendingOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call {
            Some(number) => write!(f, "{} number {number}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The number of the group of those that give `color` in call `number` of the group `parent`.
pub(in crate::comm) fn part_of(parent: u64, number: u64, color: u64) -> u64 {
    let id = [parent, number, color].map(u64::to_le_bytes).concat();
    blake3::hash(&id).as_bytes()[..8].iter().fold(0, |id, b| id << 8 | u64::from(*b))
}

impl Monitor {
    /// Fails if a rank has ended well without coming to `what`.
    pub(in crate::comm) fn may_end(&self, what: &PendingOp) -> Result<()> {
        let ended = what.call.and_then(|n| self.ended_before(&what.members, what.group, n));
        ended.map_or(Ok(()), |e| Err(e.context(what)))
    }

    /// Why `what` did not end within `timeout`.
    pub(in crate::comm) fn overdue(&self, what: &PendingOp, timeout: Duration) -> Error {
        // Of a message there is no number: whoever it is from or to has not come.
        let number = what.call.unwrap_or(u64::MAX);
        let late = self.late(&what.members, what.group, number, timeout);
        // Another may have found out meanwhile.
        self.gone().unwrap_or_else(|| {
            let again = "the same command resumes from the last checkpoint";
            Error::stopped(format!("{what}: {late}; {again}"))
        })
    }

    /// The error of the rank whose end caused a library's error `e`, which names no rank; else `e`
    /// itself.
    pub(in crate::comm) fn culprit(&self, e: Error) -> Error {
        let clock = Instant::now();
        while matches!(e.kind(), Kind::Stopped | Kind::Resource) && clock.elapsed() < NEWS {
            if let Some(gone) = self.gone() {
                return gone;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        e
    }
}
