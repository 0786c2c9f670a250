//! The calls that a run made, as the library wrote them down.

use std::path::Path;

/// A call of the system.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// `open`, `read`, ...: one name for all functions of a kind.
    pub(crate) function: String,
    /// A hash of the return addresses.
    pub(crate) site: String,
    /// The file it is about, or `-`.
    pub(crate) path: String,
    /// Return addresses inside the binary, innermost first.
    pub(crate) frames: String,
}

impl Call {
    /// The stacks for signals that Rust maps for each of its threads are not our calls. Nothing of
    /// ours is on the stack then.
    fn is_ours(&self) -> bool {
        self.function != "mmap" || self.path != "-" || self.frames.split(' ').count() > 4
    }
}

/// Reads a log; there is none if there was no call.
pub(crate) fn read(log: &Path) -> Vec<Call> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let calls = text.lines().filter_map(|line| {
        let mut parts = line.split('\t').map(String::from);
        let mut part = || parts.next();
        Some(Call { function: part()?, site: part()?, path: part()?, frames: part()? })
    });
    calls.filter(Call::is_ours).collect()
}
