//! Calls on memory of the host, which goes over the card: NCCL reads no other. Piece by piece,
//! since a card may have little memory left where a host has much.

use super::group::Group;
use crate::base::{Error, Result};
use crate::comm::deferred::Meet;
use crate::comm::{Call, Span};
use crate::device::{Device, Region};

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
    ///
    /// # Safety
    /// The caller vouches for the memory until this returns, as [`Comm`](crate::comm::Comm) says.
    pub(super) unsafe fn on_host(&self, call: Call) -> Result<()> {
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
                    // SAFETY: a piece of what the caller vouches for, and of what is held.
                    unsafe {
                        write(self, data, host)?;
                        self.to_end(Call::AllReduce { data, dtype, by })?;
                        read(self, data, host)?;
                    }
                }
                Ok(())
            }
            Call::AllGather { from, to } => {
                for (at, n) in pieces(from.bytes, size) {
                    let block = |r: usize| held.slice(r * n, n);
                    let (from_piece, all) = (block(self.rank), held.slice(0, n * size));
                    // SAFETY: pieces of what the caller vouches for, and of what is held.
                    unsafe {
                        write(self, from_piece, from.slice(at, n))?;
                        self.to_end(Call::AllGather { from: from_piece, to: all })?;
                        for r in 0..size {
                            read(self, block(r), to.slice(r * from.bytes + at, n))?;
                        }
                    }
                }
                Ok(())
            }
            other => Err(Error::internal(format!("{other:?} of the host's memory on {device}"))),
        }
    }

    /// # Safety
    /// The call's memory is what the world holds on the device for such calls.
    unsafe fn to_end(&self, call: Call) -> Result<()> {
        // SAFETY: that memory stays as long as the world, and the stream that next uses it waits
        // for the call.
        let done = unsafe { self.start(call)? };
        self.device().stream()?.wait(&done)
    }
}

/// Copies values of the host to the card.
///
/// # Safety
/// `to` is memory of the card that stays allocated, `from` as much of the host's that stays so
/// until this returns and is written by nobody meanwhile.
unsafe fn write(group: &Group, to: Span, from: Span) -> Result<()> {
    // SAFETY: by the contract of this function both stay allocated and nobody writes `from` until
    // this returns, when the driver has read it.
    unsafe { on(group.device(), to).write(on(Device::Cpu, from).as_bytes()) }
}

/// Waits for the card and copies values to the host.
///
/// # Safety
/// As for [`write`], and nobody else touches `to` until this returns.
unsafe fn read(group: &Group, from: Span, to: Span) -> Result<()> {
    // SAFETY: by the contract of this function both stay allocated and nobody else touches `to`
    // until this returns, when the driver has written it.
    unsafe { on(group.device(), from).read(on(Device::Cpu, to).as_bytes_mut()) }
}

/// # Safety
/// It is memory of `device`, which the caller keeps allocated as long as it uses the region.
unsafe fn on<'b>(device: Device, span: Span) -> Region<'b> {
    // SAFETY: the contract of this function is that of `Region::new` for this range.
    unsafe { Region::new(device, span.ptr, span.bytes) }
}
