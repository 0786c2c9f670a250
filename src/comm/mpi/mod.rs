//! Ranks as processes that MPI connects: for clusters without GPUs. Bytes travel by MPI's
//! nonblocking calls; sums are taken here, in the order of the ranks, since MPI leaves that order
//! open. That a rank is gone is the monitor's to say: MPI itself knows no end of a process, and a
//! call that misses one would wait for ever.

mod engine;
mod meet;
mod reduction;
mod requests;

use super::deferred::{Meet, deferred};
use super::monitor::{PendingOp, part_of};
use super::reduce::copy;
use super::{Call, Comm, Pending, Span, Transport, host};
use crate::base::{Error, Result};
use ::mpi::ffi;
use engine::World;
use reduction::Reduction;
use requests::{Lane, P2P_TAG, Requests, check, tag};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most bytes that MPI is given at once: its counts have 31 bits.
const LARGEST: usize = 1 << 30;

/// Starts MPI and meets the other ranks that its launcher has started; `alike` is what must be the
/// same on all of them, by name, beside this program's version. A rank that waits for another
/// longer than `timeout` gives up. Once in a process. When the last handle is dropped, all ranks
/// have come to that, and no call has failed, MPI is ended too.
///
/// # Errors
/// MPI cannot be used so, or not all ranks come, or they are not of one run.
pub fn start(timeout: Duration, alike: &BTreeMap<String, String>) -> Result<Comm> {
    start_in_pieces(timeout, alike, LARGEST)
}

/// [`start`], with a limit of the bytes given to MPI at once. For tests: there is no other reason
/// to change it.
#[doc(hidden)]
pub fn start_in_pieces(
    timeout: Duration,
    alike: &BTreeMap<String, String>,
    largest: usize,
) -> Result<Comm> {
    let started = meet::start(timeout, alike)?;
    let members = (0..started.size).collect();
    let world = Arc::new(World::new(started, timeout));
    // SAFETY: MPI has been started.
    let comm = unsafe { ffi::RSMPI_COMM_WORLD };
    let lane = Lane { comm, largest };
    Ok(Comm::new(Arc::new(Mpi { group: Group::new(world, lane, members, 0)? })))
}

/// A group of ranks, as one of them sees it.
#[derive(Clone, Debug)]
struct Group {
    world: Arc<World>,
    lane: Lane,
    rank: usize,
    /// The ranks' numbers in the first group, by which they are named.
    members: Arc<Vec<usize>>,
    /// Its number among all groups of the run.
    id: u64,
    /// The number of this rank's next call.
    next: Arc<AtomicU64>,
}

impl Group {
    fn new(world: Arc<World>, lane: Lane, members: Vec<usize>, id: u64) -> Result<Group> {
        let mut rank = 0;
        // SAFETY: a live communicator, as all that is made of it.
        unsafe {
            let ours = ffi::RSMPI_ERRORS_RETURN;
            check("errors", ffi::MPI_Comm_set_errhandler(lane.comm, ours))?;
            check("rank", ffi::MPI_Comm_rank(lane.comm, &mut rank))?;
        }
        let next = world.monitor.started(id);
        Ok(Group { world, lane, rank: rank as usize, members: Arc::new(members), id, next })
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    /// Starts what `begin` does, a call of all the group's ranks with this name and number.
    fn start(
        &self,
        name: &'static str,
        begin: impl FnOnce(u64) -> Result<Box<dyn engine::Work>>,
    ) -> Result<MpiWork> {
        let mut number = 0;
        let id = self.world.start(|| {
            // With the lock held: the order of numbers is that in which MPI is called.
            number = self.next.fetch_add(1, Ordering::Relaxed);
            begin(number)
        })?;
        let (name, call, members) = (name.into(), Some(number), self.members.clone());
        let what = PendingOp { name, group: self.id, call, members };
        Ok(MpiWork { group: self.clone(), id, what })
    }

    /// Starts an all-gather, call `number` of the group.
    ///
    /// # Safety
    /// MPI is used by no other thread meanwhile, and the memory is alive and left alone until the
    /// requests are over.
    unsafe fn all_gather(
        &self,
        requests: &mut Requests,
        from: Span,
        to: Span,
        number: u64,
    ) -> Result<()> {
        let block = |r: usize| to.slice(r * from.bytes, from.bytes);
        let blocks: Vec<Span> = (0..self.size()).map(block).collect();
        let who = (self.rank, tag(number));
        // SAFETY: by the contract of this function the caller leaves both alone until the requests
        // are over, and no other thread uses MPI. A block is as long as `from`.
        unsafe {
            copy(from, blocks[self.rank]);
            requests.all_gather(&self.lane, from, &blocks, who)
        }
    }

    /// Starts a message to or from the rank `other` of the group.
    fn p2p(
        &self,
        name: &str,
        other: usize,
        begin: impl FnOnce(&mut Requests) -> Result<()>,
    ) -> Result<MpiWork> {
        let id = self.world.start(|| {
            let mut requests = Requests::default();
            begin(&mut requests)?;
            Ok(Box::new(requests))
        })?;
        let members = Arc::new(vec![self.members[other]]);
        let name = format!("{name} rank {}", members[0]);
        let what = PendingOp { name, group: self.id, call: None, members };
        Ok(MpiWork { group: self.clone(), id, what })
    }
}

/// A call of this rank that MPI or a reduction is busy with.
struct MpiWork {
    group: Group,
    id: u64,
    what: PendingOp,
}

impl Meet for MpiWork {
    fn meet(&self) -> Result<()> {
        self.group.world.wait(self.id, &self.what)
    }
}

/// A call on slices that a caller has lent, under way on copies of them. MPI may write after a call
/// has failed, when the slices may be gone.
struct OnHost {
    /// The call, and the copies, which end with a copy of `to`.
    begun: Cell<Option<(Box<dyn Pending>, Vec<u8>)>>,
    to: Span,
}

impl Meet for OnHost {
    fn meet(&self) -> Result<()> {
        let Some((begun, mut lent)) = self.begun.take() else { return Ok(()) };
        if let Err(e) = begun.wait() {
            // MPI may still write there.
            std::mem::forget(lent);
            return Err(e);
        }
        let start = lent.len() - self.to.bytes;
        // SAFETY: the caller vouches for its slice until this call has been waited for, which is
        // now; the copy is as long.
        unsafe { copy(host(&mut lent[start..]), self.to) };
        Ok(())
    }
}

/// One rank's place in a group.
#[derive(Debug)]
struct Mpi {
    group: Group,
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    unsafe fn start(&self, call: Call) -> Result<Box<dyn Pending>> {
        let (group, lane) = (&self.group, &self.group.lane);
        let begun = group.start(call.kind().name(), |number| {
            let mut requests = Requests::default();
            // SAFETY: the caller vouches for the memory until the call has been waited for; the
            // lock is held while this begins, so no other thread is inside MPI.
            unsafe {
                match call {
                    Call::Barrier => requests.barrier(lane)?,
                    Call::Broadcast { data, root } => requests.broadcast(lane, data, root)?,
                    Call::AllGather { from, to } => {
                        group.all_gather(&mut requests, from, to, number)?;
                    }
                    Call::ReduceScatter { .. } | Call::AllReduce { .. } => {
                        let ranks = (group.rank, group.size());
                        return Ok(Box::new(Reduction::new(*lane, ranks, number, call)?));
                    }
                }
            }
            Ok(Box::new(requests))
        })?;
        Ok(deferred(begun))
    }

    unsafe fn start_on_host(&self, call: Call) -> Result<Box<dyn Pending>> {
        let (from, to) = match call {
            Call::AllGather { from, to } => (from, to),
            Call::AllReduce { data, .. } => (Span::NOWHERE, data),
            other => return Err(Error::internal(format!("{other:?} of the caller's memory"))),
        };
        let mut lent = vec![0u8; from.bytes + to.bytes];
        let all = host(&mut lent);
        let (own, result) = (all.slice(0, from.bytes), all.slice(from.bytes, to.bytes));
        // SAFETY: the caller vouches for its ranges, and the copies have just been made.
        unsafe {
            if from.bytes > 0 {
                copy(from, own);
            }
            copy(to, result);
        }
        let call = match call {
            Call::AllGather { .. } => Call::AllGather { from: own, to: result },
            Call::AllReduce { dtype, by, .. } => Call::AllReduce { data: result, dtype, by },
            other => other,
        };
        // SAFETY: the copies are freed once the call has ended well, else never.
        match unsafe { self.start(call) } {
            Ok(begun) => Ok(deferred(OnHost { begun: Cell::new(Some((begun, lent))), to })),
            Err(e) => {
                std::mem::forget(lent);
                Err(e)
            }
        }
    }

    unsafe fn send(&self, data: Span, to: usize) -> Result<Box<dyn Pending>> {
        let lane = &self.group.lane;
        // SAFETY: the caller vouches for the memory until the message has been waited for.
        let begin = |r: &mut Requests| unsafe { r.send(lane, data, to, P2P_TAG) };
        Ok(deferred(self.group.p2p("send to", to, begin)?))
    }

    unsafe fn receive(&self, data: Span, from: usize) -> Result<Box<dyn Pending>> {
        let lane = &self.group.lane;
        // SAFETY: the caller vouches for the memory until the message has been waited for.
        let begin = |r: &mut Requests| unsafe { r.receive(lane, data, from, P2P_TAG) };
        Ok(deferred(self.group.p2p("receive from", from, begin)?))
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Transport>> {
        let (group, lane) = (&self.group, self.group.lane);
        let (mut own, mut colors) = (vec![color as u64], vec![0u64; group.size()]);
        let (from, to) = (host(&mut own), host(&mut colors));
        // MPI's own call blocks, and does nothing for calls that others wait for: so all come here
        // first.
        let all_here = group.start("split", |number| {
            let mut requests = Requests::default();
            // SAFETY: both live until the call has ended, or for ever where it fails.
            unsafe { group.all_gather(&mut requests, from, to, number)? };
            Ok(Box::new(requests))
        });
        let met = all_here.and_then(|call| call.meet().map(|()| call));
        let all_here = match met {
            Ok(call) => call,
            Err(e) => {
                // MPI may still write there, and read there.
                std::mem::forget((own, colors));
                return Err(e);
            }
        };
        let mut distinct = colors.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let index = distinct.partition_point(|c| *c < color as u64) as i32;
        let key = group.rank as i32;
        let comm = group.world.blocking(&all_here.what, move || {
            // SAFETY: a live communicator; the result is read once MPI has written it.
            unsafe {
                let mut comm = ffi::RSMPI_COMM_NULL;
                let code = ffi::MPI_Comm_split(lane.whole().comm, index, key, &mut comm);
                check("split", code).map(|()| Lane { comm, ..lane })
            }
        })??;
        let ours = (0..group.size()).filter(|r| colors[*r] == color as u64);
        let members = ours.map(|r| group.members[r]).collect();
        let number = all_here.what.call.unwrap_or_default();
        let id = part_of(group.id, number, color as u64);
        let world = group.world.clone();
        Ok(Arc::new(Mpi { group: Group::new(world, comm, members, id)? }))
    }

    fn leave(&self, error: Option<&Error>) {
        self.group.world.leave(error);
    }
}
