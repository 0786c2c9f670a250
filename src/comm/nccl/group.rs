//! A group of ranks, as one of them sees it: its calls on the stream, messages, and the groups that
//! are made of it.

use super::api::{Api, BYTES, Code, NO_COLOR};
use super::world::{Lane, World};
use crate::base::Result;
use crate::comm::deferred::{Meet, deferred};
use crate::comm::monitor::{PendingOp, part_of};
use crate::comm::{Call, Pending, Span};
use crate::device::{Device, Event};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t};
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The machine of each rank of the first group, and how much a reduction holds.
pub(super) struct Machines {
    pub(super) of: Vec<String>,
    pub(super) held: usize,
}

/// A group of ranks, as one of them sees it.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) world: Arc<World>,
    pub(super) comm: Communicator,
    pub(super) rank: usize,
    /// The ranks' numbers in the first group, by which they are named.
    pub(super) members: Arc<Vec<usize>>,
    /// Its number among all groups of the run.
    pub(super) id: u64,
    /// The number of this rank's next call.
    pub(super) next: Arc<AtomicU64>,
    pub(super) machines: Arc<Machines>,
    /// True if all ranks are on one machine.
    pub(super) near: bool,
    pub(super) held: usize,
    /// The messages to be sent and received.
    messages: Arc<Mutex<Vec<P2pMessage>>>,
    /// The groups made of it, by every rank's place among the colors; a communicator takes memory
    /// of the card, so each is made once.
    pub(super) parts: Arc<Mutex<HashMap<Vec<usize>, Option<Group>>>>,
}

#[derive(Clone, Copy)]
pub(super) struct Communicator(pub(super) ncclComm_t);

// SAFETY: NCCL's communicators may be used from any thread, one at a time, which `Shared::call`
// sees to.
unsafe impl Send for Communicator {}
// SAFETY: a shared one is used with the same lock held.
unsafe impl Sync for Communicator {}

/// A message to, or from, another rank.
struct P2pMessage {
    gives: bool,
    data: Span,
    other: usize,
    done: Arc<OnceLock<Arc<Event>>>,
}

// SAFETY: whoever wrote the message vouches for its memory until it has been waited for, whichever
// thread puts it on the stream.
unsafe impl Send for P2pMessage {}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    pub(super) fn new(
        world: Arc<World>,
        comm: ncclComm_t,
        members: Arc<Vec<usize>>,
        rank: usize,
        id: u64,
        machines: Arc<Machines>,
    ) -> Group {
        let next = world.shared.monitor.started(id);
        let near = members.iter().all(|m| machines.of[*m] == machines.of[members[0]]);
        Group {
            comm: Communicator(comm),
            rank,
            members,
            id,
            next,
            near,
            held: machines.held,
            machines,
            messages: Arc::default(),
            parts: Arc::default(),
            world,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.members.len()
    }

    pub(super) fn device(&self) -> Device {
        self.world.shared.device
    }

    /// This rank's next operation; it gets the next number if it is a `call` of all ranks.
    pub(super) fn pending_op(&self, name: &'static str, call: bool) -> PendingOp {
        let call = call.then(|| self.next.fetch_add(1, Ordering::Relaxed));
        PendingOp { name: name.into(), group: self.id, call, members: self.members.clone() }
    }

    /// Puts a call on the stream, behind what the calling thread's was given so far.
    ///
    /// # Safety
    /// For this and those below: the ranges are memory of the device for which the caller vouches
    /// until the call is over, as [`Comm`](crate::comm::Comm) says.
    pub(super) unsafe fn start(&self, call: Call) -> Result<Arc<Event>> {
        let name = call.kind().name();
        // SAFETY: `put` has the contract of this function: the caller vouches for the call's ranges
        // until it is over.
        self.world.run(|| self.pending_op(name, true), |lane| unsafe { self.put(lane, call) })
    }

    unsafe fn put(&self, lane: &mut Lane, call: Call) -> Result<()> {
        match call {
            Call::AllReduce { data: Span { bytes: 0, .. }, .. }
            | Call::AllGather { from: Span { bytes: 0, .. }, .. }
            | Call::ReduceScatter { to: Span { bytes: 0, .. }, .. }
            | Call::Broadcast { data: Span { bytes: 0, .. }, .. } => Ok(()),
            // Every rank waits for what all others give.
            Call::Barrier => {
                let word = lane.held(0, self.device(), self.held)?;
                let (own, size) = (word.slice(self.rank, 1), self.size());
                // SAFETY: memory of the world's own for such, used by one call after another.
                unsafe { self.gather(lane, own, word.slice(0, size)) }
            }
            Call::Broadcast { data, root } => self.one(lane, "broadcast", |api, comm, stream| {
                let (at, n, root) = (data.ptr.cast(), data.bytes, root as c_int);
                // SAFETY: `n` bytes of the device for which the caller vouches until the end.
                unsafe { (api.broadcast)(at, at, n, BYTES, root, comm, stream) }
            }),
            // SAFETY: `gather` has the contract of `start`, under which this is called.
            Call::AllGather { from, to } => unsafe { self.gather(lane, from, to) },
            // SAFETY: `reduce` has the contract of `start`, under which this is called.
            Call::ReduceScatter { .. } | Call::AllReduce { .. } => unsafe {
                self.reduce(lane, call)
            },
        }
    }

    /// Makes one call of NCCL.
    pub(super) fn one(
        &self,
        lane: &mut Lane,
        name: &str,
        call: impl FnOnce(&Api, ncclComm_t, cudaStream_t) -> Code,
    ) -> Result<()> {
        let (comm, stream) = (self.comm.0, lane.stream.raw().cast());
        self.world.shared.call(name, comm, |api| api.check(name, call(api, comm, stream)))
    }

    /// # Safety
    /// As for [`Group::start`].
    pub(super) unsafe fn gather(&self, lane: &mut Lane, from: Span, to: Span) -> Result<()> {
        self.one(lane, "all-gather", |api, comm, stream| {
            // SAFETY: the caller vouches for both until the end, and that `to` has room for every
            // rank's `from`, which `Comm` has checked.
            unsafe {
                (api.all_gather)(from.ptr.cast(), to.ptr.cast(), from.bytes, BYTES, comm, stream)
            }
        })
    }

    /// Gives every other rank what is `given` to it, and takes what is `taken` from it.
    ///
    /// # Safety
    /// As for [`Group::start`].
    pub(super) unsafe fn exchange(
        &self,
        lane: &mut Lane,
        name: &str,
        given: impl Fn(usize) -> Span,
        taken: impl Fn(usize) -> Span,
    ) -> Result<()> {
        let messages = (1..self.size()).flat_map(|i| {
            let other = (self.rank + i) % self.size();
            [(true, given(other), other), (false, taken(other), other)]
        });
        // SAFETY: the ranges are those of `given` and `taken`, for which the caller vouches as for
        // those of `start`.
        unsafe { self.together(lane, name, messages) }
    }

    /// Sends and receives, none of which waits for another.
    ///
    /// # Safety
    /// As for [`Group::start`].
    unsafe fn together(
        &self,
        lane: &mut Lane,
        name: &str,
        messages: impl Iterator<Item = (bool, Span, usize)>,
    ) -> Result<()> {
        let (comm, stream) = (self.comm.0, lane.stream.raw().cast());
        self.world.shared.call(name, comm, |api| {
            // SAFETY: `n` bytes of the device for which the caller vouches until the end; a group
            // is ended whatever comes of it.
            unsafe {
                api.check(name, (api.group_start)())?;
                let mut put = Ok(());
                for (gives, data, other) in messages.filter(|l| l.1.bytes > 0) {
                    let (at, n, other) = (data.ptr.cast(), data.bytes, other as c_int);
                    let code = match gives {
                        true => (api.send)(at, n, BYTES, other, comm, stream),
                        false => (api.receive)(at.cast(), n, BYTES, other, comm, stream),
                    };
                    put = put.and(api.check(name, code));
                }
                let ended = api.check(name, (api.group_end)());
                put.and(ended)
            }
        })
    }

    /// Notes a message. Messages go together, when one of them or another call is waited for: so
    /// those between two ranks that both send first, or both receive first, do not wait for each
    /// other.
    ///
    /// # Safety
    /// As for [`Group::start`].
    pub(super) unsafe fn p2p(
        &self,
        gives: bool,
        data: Span,
        other: usize,
    ) -> Result<Box<dyn Pending>> {
        self.device().ended()?;
        let done = Arc::new(OnceLock::new());
        lock(&self.messages).push(P2pMessage { gives, data, other, done: done.clone() });
        Ok(deferred(NcclWork { group: self.clone(), done, is_barrier: false }))
    }

    /// Lets the messages go.
    pub(super) fn post(&self) -> Result<()> {
        let messages = std::mem::take(&mut *lock(&self.messages));
        if messages.is_empty() {
            return Ok(());
        }
        let all = messages.iter().map(|l| (l.gives, l.data, l.other));
        let members = Arc::new(messages.iter().map(|l| self.members[l.other]).collect());
        let what = || PendingOp { members, ..self.pending_op("send/receive", false) };
        // SAFETY: whoever wrote a message vouches for its memory until it has been waited for, and
        // what waits posts it first.
        let together = |lane: &mut Lane| unsafe { self.together(lane, "send/receive", all) };
        let done = self.world.run(what, together)?;
        messages.iter().for_each(|l| drop(l.done.set(done.clone())));
        Ok(())
    }

    /// The group of the ranks that are at one place in `places`, which has this rank's own and all
    /// others'.
    pub(super) fn part(&self, places: &[usize], number: u64) -> Result<Option<Group>> {
        let own = places[self.rank];
        let ranks: Vec<usize> = (0..self.size()).filter(|r| places[*r] == own).collect();
        let rank = ranks.iter().filter(|r| **r < self.rank).count();
        let groups = places.iter().max().map_or(0, |last| last + 1);
        if groups == self.size() {
            return Ok(None);
        }
        let mut made = None;
        self.world.run(
            || self.pending_op("split", true),
            |_| {
                made = self.split_off(own, ranks.len())?;
                Ok(())
            },
        )?;
        let Some(comm) = made else { return Ok(None) };
        let members = Arc::new(ranks.iter().map(|r| self.members[*r]).collect());
        let id = part_of(self.id, number, own as u64);
        let machines = self.machines.clone();
        Ok(Some(Group::new(self.world.clone(), comm, members, rank, id, machines)))
    }

    /// The communicator of the `size` ranks of this group that give the same color; of one there is
    /// none. Nothing may be under way meanwhile: the colors have just been read off the card,
    /// behind all calls.
    fn split_off(&self, color: usize, size: usize) -> Result<Option<ncclComm_t>> {
        let (shared, parent) = (&self.world.shared, self.comm.0);
        let split = |api: &Api, color: c_int, made: *mut ncclComm_t| {
            // SAFETY: a live communicator; NCCL writes the new one where it is told to, which lives
            // for ever where this fails.
            unsafe { (api.split)(parent, color, self.rank as c_int, made, std::ptr::null_mut()) }
        };
        if size == 1 {
            let nowhere = Box::leak(Box::new(std::ptr::null_mut()));
            shared
                .call("split", parent, |api| api.check("split", split(api, NO_COLOR, nowhere)))?;
            return Ok(None);
        }
        shared.make("split", Some(parent), |api, made| split(api, color as c_int, made)).map(Some)
    }
}

/// A call of this rank.
pub(super) struct NcclWork {
    pub(super) group: Group,
    /// Its end, once it is on the stream.
    pub(super) done: Arc<OnceLock<Arc<Event>>>,
    pub(super) is_barrier: bool,
}

impl Meet for NcclWork {
    fn meet(&self) -> Result<()> {
        self.group.post()?;
        let device = self.group.device();
        device.ended()?;
        let stream = device.stream()?;
        if let Some(done) = self.done.get() {
            stream.wait(done)?;
        }
        if self.is_barrier { stream.synchronize() } else { Ok(()) }
    }
}
