//! Rows that cannot be used: what becomes of them, and what is told.

use serde::{Deserialize, Serialize};

/// How an unusable row is handled: in text `error` or `skip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Stop with an error naming it.
    Error,
    /// Leave it out and count it.
    Skip,
}

/// The rows left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadRows {
    /// How many.
    pub count: usize,
    /// One line about each of the first few.
    pub first: Vec<String>,
    /// Lines about rows that were read, but not as they may be meant.
    pub notes: Vec<String>,
}

impl BadRows {
    const SHOWN: usize = 5;

    /// Adds another file's count.
    pub fn add(&mut self, other: BadRows) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(Self::SHOWN);
        self.notes.extend(other.notes);
    }
}
