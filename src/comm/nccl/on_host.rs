//! Calls on memory of the host, which goes over the card: NCCL reads no other. Piece by piece,
//! since a card may have little memory left where a host has much.

use super::group::Group;
use crate::base::{Error, Result};
use crate::comm::Call;
use crate::comm::under_way::Meet;
use crate::device::Region;

/// Bytes of the card that values of the host take on their way.
const HELD: usize = 16 << 20;
/// Unit of a piece: of whole values.
const LINE: usize = 64;

/// A call that is over.
pub(super) struct Over;

impl Meet for Over {
    fn meet(&self) -> Result<()> {
        Ok(())
    }
}

impl Group {
    /// Makes a call on memory of the host, to its end.
    pub(super) fn on_host(&self, call: Call) -> Result<()> {
        let (device, size) = (self.device(), self.size());
        let held = self.world.held_for_host(HELD.max(LINE * size))?;
        let pieces = |bytes: usize, of: usize| {
            let most = held.bytes / of / LINE * LINE;
            (0..bytes).step_by(most).map(move |at| (at, most.min(bytes - at)))
        };
        match call {
            Call::AllReduce { data, dtype, by } => {
                for (at, n) in pieces(data.bytes, 1) {
                    let (host, data) = (data.slice(at, n), held.slice(0, n));
                    write(self, data, host)?;
                    self.to_end(Call::AllReduce { data, dtype, by })?;
                    read(self, data, host)?;
                }
                Ok(())
            }
            Call::AllGather { from, to } => {
                for (at, n) in pieces(from.bytes, size) {
                    let block = |r: usize| held.slice(r * n, n);
                    write(self, block(self.rank), from.slice(at, n))?;
                    let (from_piece, all) = (block(self.rank), held.slice(0, n * size));
                    self.to_end(Call::AllGather { from: from_piece, to: all })?;
                    for r in 0..size {
                        read(self, block(r), to.slice(r * from.bytes + at, n))?;
                    }
                }
                Ok(())
            }
            other => Err(Error::internal(format!("{other:?} of the host's memory on {device}"))),
        }
    }

    fn to_end(&self, call: Call) -> Result<()> {
        let done = self.start(call)?;
        self.device().stream()?.wait(&done)
    }
}

/// Copies values of the host to the card.
fn write(group: &Group, to: Region, from: Region) -> Result<()> {
    // SAFETY: the caller of the collective call lends this memory of the host.
    group.device().write(to, unsafe { from.as_bytes() })
}

/// Waits for the card and copies values to the host.
fn read(group: &Group, from: Region, to: Region) -> Result<()> {
    // SAFETY: as above; nobody else touches it until the call is over.
    group.device().read(from, unsafe { to.as_bytes_mut() })
}
