//! Where the processes of a run meet before there is a network between them: rank 0 listens, the
//! others come to it over TCP. They learn who takes part, get what rank 0 has for them (NCCL's id),
//! and find out at once if they are not of one run. Both sides first prove that they know the run's
//! secret (`noise.rs`); nothing of the run is sent before. The connections remain, encrypted and
//! authentic, as the run's [`Monitor`].

mod door;
#[cfg(test)]
mod files_tests;
mod guest;
mod host;
mod messages;
#[cfg(test)]
mod tests;

pub(super) use guest::join;
pub(super) use host::{bind, serve};
pub use messages::{Met, RendezvousConfig};

use super::member::{Lines, Member};
use super::monitor::Monitor;
use crate::base::{Error, Result};
use std::sync::Arc;

/// Meets the other ranks; `gift` is rank 0's for all.
///
/// # Errors
/// Not all come in time, or they are not of one run: each gets the line that names who differs, and
/// in what.
pub fn rendezvous(
    me: &Member,
    place: &RendezvousConfig,
    gift: &[u8],
) -> Result<(Met, Arc<Monitor>)> {
    let (met, lines) = meet(me, place, gift)?;
    let monitor = Monitor::new(me.rank, &met.members, lines)?;
    Ok((met, monitor))
}

fn meet(me: &Member, place: &RendezvousConfig, gift: &[u8]) -> Result<(Met, Lines)> {
    if me.rank > 0 {
        return join(me, place);
    }
    let address = place.addresses.first();
    let address = address.ok_or_else(|| Error::internal("no address to meet at"))?;
    serve(me, place, gift, bind(address)?)
}
