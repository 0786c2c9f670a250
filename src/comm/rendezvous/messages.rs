//! The messages of the ranks at the rendezvous.

use crate::comm::member::Member;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Largest message: of a configuration and a thousand members there is room.
pub(super) const LARGEST: usize = 1 << 20;
/// How much later than its time-out a rank may give up: rank 0 tells at its own who is missing.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long both sides of a new connection have to prove that they are of the run. One who is
/// late may call again.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// Where and how the ranks meet.
#[derive(Clone, Debug)]
pub struct RendezvousConfig {
    /// Hosts and ports at which the others may find rank 0. Each is tried.
    pub addresses: Vec<String>,
    /// The secret that only the processes of the run know.
    pub secret: String,
    /// From when on `timeout` counts.
    pub since: Instant,
    /// How long to wait for the others.
    pub timeout: Duration,
    /// The user's way out where ranks do not meet.
    pub advice: &'static str,
}

impl RendezvousConfig {
    /// When the ranks must have met.
    pub(super) fn end(&self) -> Instant {
        self.since + self.timeout
    }

    /// The addresses and the time-out, as errors tell them.
    pub(super) fn told(&self) -> String {
        format!("{} within {} s", self.addresses.join(", "), self.timeout.as_secs_f64())
    }
}

/// The result of a rendezvous.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Met {
    /// All ranks, in order.
    pub members: Vec<Member>,
    /// The bytes that rank 0 gave to all.
    pub gift: Vec<u8>,
}

/// The message of a rank that joins.
#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
    /// The same number whenever the same process calls, and no other's.
    pub(super) process: [u8; 32],
    pub(super) member: Member,
}

/// The host's answer: the meeting, or the reason why there is none.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Met(Met),
    Refused(String),
}
