//! Processes of a run, and the connections between them.

use super::wire::Line;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One process of a run, as it tells the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its rank.
    pub rank: usize,
    /// How many ranks it takes there to be.
    pub size: usize,
    /// The machine it runs on.
    pub host: String,
    /// Values that must be the same on all ranks, by name: version, configuration, data.
    pub alike: BTreeMap<String, String>,
}

/// The connections of those who have met, by the rank at their other end: rank 0 has one to each of
/// the others, who have one to it.
pub(super) type Lines = Vec<(usize, Arc<Line>)>;
