//! Ranks that are not there. What this one gives them is counted; of them it hears what it says
//! itself.

use super::{Call, CallKind, Comm, Kinds, Pending, Span, Transport, reduce};
use crate::base::{Error, Result};
use std::sync::{Arc, PoisonError};

impl Comm {
    /// The first of `size` ranks, of which the others are fake.
    pub fn fake(size: usize) -> Comm {
        Comm::new(Arc::new(FakeRanks { size }))
    }

    /// All calls so far.
    pub(crate) fn counts(&self) -> Kinds {
        CallKind::ALL.map(|kind| self.counted(kind))
    }

    /// Counts what was said since `before` another `times`.
    pub(crate) fn repeat(&self, before: &Kinds, times: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (count, before) in counts.iter_mut().zip(before) {
            let since = count.since(before);
            count.calls += times * since.calls;
            count.sent += times * since.sent;
        }
    }
}

#[derive(Debug)]
struct FakeRanks {
    size: usize,
}

struct Done;

impl Pending for Done {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Transport for FakeRanks {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.size
    }

    /// It is fake too.
    fn is_on_device(&self) -> bool {
        true
    }

    unsafe fn start(&self, _: Call) -> Result<Box<dyn Pending>> {
        Ok(Box::new(Done))
    }

    unsafe fn start_on_host(&self, call: Call) -> Result<Box<dyn Pending>> {
        // SAFETY: memory of the host, for which the caller vouches until this returns. `from` is as
        // long as a block of `to` and apart from it, or the block itself.
        let copy = |from: Span, to: Span| unsafe { reduce::copy(from, to) };
        match call {
            Call::AllGather { from, to } => {
                (0..self.size).for_each(|i| copy(from, to.slice(i * from.bytes, from.bytes)));
            }
            Call::ReduceScatter { from, to, .. } => copy(from.slice(0, to.bytes), to),
            // What one rank has is what it is given, and the largest of all.
            Call::AllReduce { .. } | Call::Broadcast { .. } | Call::Barrier => {}
        }
        Ok(Box::new(Done))
    }

    unsafe fn send(&self, _: Span, _: usize) -> Result<Box<dyn Pending>> {
        Ok(Box::new(Done))
    }

    unsafe fn receive(&self, _: Span, _: usize) -> Result<Box<dyn Pending>> {
        Err(Error::internal("fake ranks send nothing"))
    }

    fn split(&self, _: usize) -> Result<Arc<dyn Transport>> {
        Err(Error::internal("fake ranks are in no groups"))
    }

    fn leave(&self, _: Option<&Error>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;
    use crate::comm::{CallKind, Reduce};
    use crate::device::Region;

    #[test]
    fn fake_ranks_say_what_this_one_says_and_what_they_are_given_is_counted() {
        let comm = Comm::fake(4);
        assert_eq!((comm.rank(), comm.size()), (0, 4));
        assert_eq!(comm.concat(&[3u8, 5]).unwrap(), [3, 5, 3, 5, 3, 5, 3, 5]);
        assert_eq!(comm.any([true, false]).unwrap(), [true, false]);
        let before = comm.sent();
        let device = Region::nowhere;
        // SAFETY: there is no memory, and fake ranks touch none of a device.
        let calls = unsafe {
            [
                comm.all_gather(device(10), device(40)),
                comm.all_reduce(device(40), DType::F32, Reduce::Sum),
                comm.reduce_scatter(device(16), device(4), DType::F32, Reduce::Sum),
            ]
        };
        calls.into_iter().for_each(|call| call.unwrap().wait().unwrap());
        assert_eq!(comm.sent() - before, 3 * 10 + 2 * 3 * 10 + 3 * 4);
        assert_eq!(comm.counted(CallKind::ReduceScatter).sent, 12);
    }
}
