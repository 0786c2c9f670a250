//! A device that is not there: it counts the bytes asked of it, holds none, and computes nothing. A
//! whole training step of any model on any number of ranks runs on it in a moment, by the code that
//! a real one runs, and tells what it would take.
//!
//! The counts, one of each kind, are the calling thread's: what it makes it drops.

use crate::base::{Error, Result};
use std::cell::Cell;

/// Which kind of device it stands for: they plan differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FakeDevice {
    /// A CPU.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// Bytes asked for of a kind so far, on one thread.
#[derive(Clone, Copy)]
struct Taken {
    now: usize,
    peak: usize,
    /// How many there are.
    limit: usize,
}

const NOTHING: Taken = Taken { now: 0, peak: 0, limit: usize::MAX };

thread_local! {
    static TAKEN: [Cell<Taken>; 2] = const { [Cell::new(NOTHING), Cell::new(NOTHING)] };
}

impl FakeDevice {
    fn taken_of(self) -> Taken {
        TAKEN.with(|all| all[self as usize].get())
    }

    fn set(self, taken: Taken) {
        TAKEN.with(|all| all[self as usize].set(taken));
    }

    /// Lets the device have `limit` bytes from here on.
    pub fn set_limit(self, limit: usize) {
        self.set(Taken { limit, ..self.taken_of() });
    }

    /// Bytes that are taken now.
    pub fn taken(self) -> usize {
        self.taken_of().now
    }

    /// The most bytes that were taken since this was last asked.
    pub fn take_peak(self) -> usize {
        let taken = self.taken_of();
        self.set(Taken { peak: taken.now, ..taken });
        taken.peak
    }
}

pub(super) fn alloc(kind: FakeDevice, bytes: usize) -> Result<()> {
    let Taken { now, peak, limit } = kind.taken_of();
    if bytes > limit.saturating_sub(now) {
        return Err(Error::memory(format!(
            "out of memory: {} MiB are asked for where {} of {} are taken",
            bytes >> 20,
            now >> 20,
            limit >> 20
        )));
    }
    let now = now + bytes;
    kind.set(Taken { now, peak: peak.max(now), limit });
    Ok(())
}

pub(super) fn free(kind: FakeDevice, bytes: usize) {
    let taken = kind.taken_of();
    kind.set(Taken { now: taken.now.saturating_sub(bytes), ..taken });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Buffer, Device};

    #[test]
    fn bytes_are_counted_and_limited_and_never_touched() {
        for kind in [FakeDevice::Cpu, FakeDevice::Cuda] {
            let device = Device::Fake(kind);
            // More than any machine has.
            let big = Buffer::zeroed(device, 1 << 50).unwrap();
            big.write(1 << 40, &[1, 2, 3]).unwrap();
            let mut read = [7u8; 3];
            big.read(1 << 40, &mut read).unwrap();
            assert_eq!(read, [7; 3]);
            big.slice(0, 1 << 30).copy_from(big.slice(1 << 30, 1 << 30)).unwrap();
            big.region().clear().unwrap();
            let small = Buffer::zeroed(device, 100).unwrap();
            drop(big);
            assert_eq!((kind.taken(), kind.take_peak()), (100, (1 << 50) + 100));
            assert_eq!(kind.take_peak(), 100);
            kind.set_limit(200);
            assert!(Buffer::zeroed(device, 101).is_err());
            assert_eq!(kind.take_peak(), 100);
            drop(Buffer::zeroed(device, 100).unwrap());
            kind.set_limit(usize::MAX);
            drop(small);
            assert_eq!((kind.taken(), kind.take_peak()), (0, 200));
        }
    }
}
