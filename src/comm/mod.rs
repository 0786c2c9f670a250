//! Collectives between the ranks of a run, and who the ranks are.
//!
//! A [`Comm`] is one rank's handle of a group of ranks. Every rank of a group makes the same calls
//! in the same order; a call that is started goes on until its [`Handle`] is waited for, and until
//! then the memory it names is left alone. Sums are made in f32, in the order of the ranks, and
//! rounded once: they are the same bits on every rank and in every run.
//!
//! A rank that is missing ends the others: with an error of
//! [`Kind::Stopped`](crate::base::Kind::Stopped) that names it, at once where its end is known,
//! else within the group's time-out.

mod deferred;
mod fake;
mod launch;
mod local;
mod member;
mod monitor;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
mod noise;
mod reduce;
#[cfg(test)]
mod relay_tests;
mod rendezvous;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod wire;

pub use launch::{DUPLEX, Launch, SOCKET, launched};
pub use local::run_ranks;
pub use member::Member;
pub use monitor::Monitor;
pub use rendezvous::{Met, RendezvousConfig, rendezvous};
pub use wire::secret;

use crate::base::{DType, Error, Result};
use crate::device::Region;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bare range of addresses that a call names, on all threads that take part in it. Whoever makes
/// the call vouches for it ([`Comm`]); what dereferences one is `unsafe`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    ptr: *mut u8,
    bytes: usize,
}

impl Span {
    const NOWHERE: Span = Span { ptr: std::ptr::null_mut(), bytes: 0 };

    /// The bytes `offset..offset + bytes` of the range.
    fn slice(self, offset: usize, bytes: usize) -> Span {
        let inside = offset <= self.bytes && bytes <= self.bytes - offset;
        assert!(inside, "range {offset}+{bytes} of {}", self.bytes);
        Span { ptr: self.ptr.wrapping_add(offset), bytes }
    }
}

impl From<Region<'_>> for Span {
    fn from(region: Region<'_>) -> Span {
        Span { ptr: region.ptr(), bytes: region.bytes() }
    }
}

/// How the values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// The largest; NaN if one is.
    Max,
}

/// A collective call. Lengths are the same on all ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    AllReduce { data: Span, dtype: DType, by: Reduce },
    AllGather { from: Span, to: Span },
    ReduceScatter { from: Span, to: Span, dtype: DType, by: Reduce },
    Broadcast { data: Span, root: usize },
    Barrier,
}

/// The kinds of calls, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Every rank gets the reduction of all ranks' values.
    AllReduce,
    /// Every rank gets the blocks of all ranks.
    AllGather,
    /// Every rank gets its block of the reduction of all ranks' values.
    ReduceScatter,
    /// Every rank gets what one has.
    Broadcast,
    /// Every rank waits for all.
    Barrier,
    /// One rank gives to another.
    Send,
    /// One rank takes from another.
    Receive,
}

impl CallKind {
    /// All of them.
    pub const ALL: [CallKind; 7] = [
        CallKind::AllReduce,
        CallKind::AllGather,
        CallKind::ReduceScatter,
        CallKind::Broadcast,
        CallKind::Barrier,
        CallKind::Send,
        CallKind::Receive,
    ];

    /// Its name in the field.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::AllReduce => "all-reduce",
            CallKind::AllGather => "all-gather",
            CallKind::ReduceScatter => "reduce-scatter",
            CallKind::Broadcast => "broadcast",
            CallKind::Barrier => "barrier",
            CallKind::Send => "send",
            CallKind::Receive => "receive",
        }
    }
}

impl Call {
    fn kind(&self) -> CallKind {
        match self {
            Call::AllReduce { .. } => CallKind::AllReduce,
            Call::AllGather { .. } => CallKind::AllGather,
            Call::ReduceScatter { .. } => CallKind::ReduceScatter,
            Call::Broadcast { .. } => CallKind::Broadcast,
            Call::Barrier => CallKind::Barrier,
        }
    }

    /// The kind, bytes, dtype and reduction, and root of a call, which must be equal on all ranks.
    fn terms(&self) -> (CallKind, usize, Option<(DType, Reduce)>, usize) {
        match *self {
            Call::AllReduce { data, dtype, by } => (self.kind(), data.bytes, Some((dtype, by)), 0),
            Call::AllGather { from, .. } => (self.kind(), from.bytes, None, 0),
            Call::ReduceScatter { to, dtype, by, .. } => {
                (self.kind(), to.bytes, Some((dtype, by)), 0)
            }
            Call::Broadcast { data, root } => (self.kind(), data.bytes, None, root),
            Call::Barrier => (self.kind(), 0, None, 0),
        }
    }

    /// Bytes that rank `rank` of `size` gives to others, each of whom takes them from it alone.
    fn sent(&self, rank: usize, size: usize) -> u64 {
        let others = size as u64 - 1;
        match *self {
            // A reduce-scatter and an all-gather.
            Call::AllReduce { data, .. } => 2 * others * data.bytes.div_ceil(size) as u64,
            Call::AllGather { from, .. } => others * from.bytes as u64,
            Call::ReduceScatter { to, .. } => others * to.bytes as u64,
            Call::Broadcast { data, root } if root == rank => others * data.bytes as u64,
            Call::Broadcast { .. } | Call::Barrier => 0,
        }
    }
}

/// How the bytes of a group travel.
pub(crate) trait Transport: Send + Sync + std::fmt::Debug {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// # Safety
    /// For this and the others that name memory: what [`Comm`] says of it.
    unsafe fn start(&self, call: Call) -> Result<Box<dyn Pending>>;
    /// [`Transport::start`] with memory of the host, where ranges are otherwise a device's.
    ///
    /// # Safety
    /// As for [`Transport::start`].
    unsafe fn start_on_host(&self, call: Call) -> Result<Box<dyn Pending>> {
        // SAFETY: the contract is that of `start`, to which memory of the host is as good as any
        // where calls are not a device's work; other transports have their own `start_on_host`.
        unsafe { self.start(call) }
    }
    /// True if calls are work of the device, in order with the work of its streams.
    fn is_on_device(&self) -> bool {
        false
    }
    /// # Safety
    /// As for [`Transport::start`].
    unsafe fn send(&self, data: Span, to: usize) -> Result<Box<dyn Pending>>;
    /// # Safety
    /// As for [`Transport::start`].
    unsafe fn receive(&self, data: Span, from: usize) -> Result<Box<dyn Pending>>;
    /// The group of the ranks that give the same `color`, in their order.
    fn split(&self, color: usize) -> Result<Arc<dyn Transport>>;
    /// This rank makes no more calls: it is done, or has failed.
    fn leave(&self, error: Option<&Error>);
}

/// A call under way. Dropped without being waited for, it is waited for then.
pub(crate) trait Pending {
    fn wait(self: Box<Self>) -> Result<()>;
}

/// Calls of one kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// How many.
    pub calls: u64,
    /// Bytes this rank gave to others.
    pub sent: u64,
    /// Time it waited for their end.
    pub waited: Duration,
}

/// Calls of each kind.
pub(crate) type Kinds = [Count; CallKind::ALL.len()];
type Counts = Arc<Mutex<Kinds>>;

impl Count {
    /// The calls since `before`, an earlier value of this count.
    pub(crate) fn since(&self, before: &Count) -> Count {
        let (calls, sent) = (self.calls - before.calls, self.sent - before.sent);
        Count { calls, sent, waited: self.waited.saturating_sub(before.waited) }
    }

    /// Both.
    pub(crate) fn and(&self, other: &Count) -> Count {
        let (calls, sent) = (self.calls + other.calls, self.sent + other.sent);
        Count { calls, sent, waited: self.waited + other.waited }
    }
}

/// One rank's handle of a group of ranks.
///
/// # Safety
/// Calls on regions are `unsafe`, since other threads, ranks and devices reach the memory after
/// they have returned. Until the [`Handle`] has been waited for or dropped, and also where it is
/// leaked, the memory stays allocated, nothing but the call writes it, and nothing else touches
/// what the call writes. It is memory of the device on which the group's calls are, else the host's
/// or an emulated device's. Regions of one call do not overlap, except that one may be this rank's
/// block of the other where the call says so. A call that has failed leaves the memory alone, as
/// one that was waited for does.
#[derive(Clone, Debug)]
pub struct Comm {
    transport: Arc<dyn Transport>,
    counts: Counts,
}

impl Comm {
    fn new(transport: Arc<dyn Transport>) -> Comm {
        Comm { transport, counts: Counts::default() }
    }

    /// A group of one rank.
    pub fn alone() -> Comm {
        Comm::new(local::alone())
    }

    /// This rank's number within the group.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// Ranks of the group.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// True if calls are work of the device. A call then begins after the earlier work of the
    /// calling thread's stream. Work that the stream gets after [`Handle::wait`] begins after the
    /// call. Otherwise the device must have finished with the memory.
    pub fn is_on_device(&self) -> bool {
        self.transport.is_on_device()
    }

    /// Reduces `data`, an array of `dtype` on every rank, to the same on all.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn all_reduce(&self, data: Region<'_>, dtype: DType, by: Reduce) -> Result<Handle> {
        let data = Span::from(data);
        whole(data, dtype)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { self.start(Call::AllReduce { data, dtype, by }) }
    }

    /// Puts the ranks' `from` one behind the other into every rank's `to`, of which `from` may be
    /// the own block.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn all_gather(&self, from: Region<'_>, to: Region<'_>) -> Result<Handle> {
        let (from, to) = (Span::from(from), Span::from(to));
        self.blocks(from, to)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { self.start(Call::AllGather { from, to }) }
    }

    /// Reduces the ranks' `from`, arrays of `dtype`, and puts block `rank` of the result into `to`,
    /// which may be that block of `from`.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn reduce_scatter(
        &self,
        from: Region<'_>,
        to: Region<'_>,
        dtype: DType,
        by: Reduce,
    ) -> Result<Handle> {
        let (from, to) = (Span::from(from), Span::from(to));
        self.blocks(to, from)?;
        whole(to, dtype)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { self.start(Call::ReduceScatter { from, to, dtype, by }) }
    }

    /// Gives rank `root`'s `data` to all.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn broadcast(&self, data: Region<'_>, root: usize) -> Result<Handle> {
        self.member(root)?;
        let data = Span::from(data);
        // SAFETY: the caller vouches for the memory.
        unsafe { self.start(Call::Broadcast { data, root }) }
    }

    /// Waits until every rank has come here.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: names no memory.
        unsafe { self.start(Call::Barrier)? }.wait()
    }

    /// Gives `data` to rank `to`, which [`Comm::receive`]s it.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn send(&self, data: Region<'_>, to: usize) -> Result<Handle> {
        self.member(to)?;
        self.count(CallKind::Send, data.bytes() as u64);
        // SAFETY: the caller vouches for the memory.
        let pending = unsafe { self.transport.send(data.into(), to)? };
        Ok(self.handle(CallKind::Send, pending))
    }

    /// Takes `data` from rank `from`, which [`Comm::send`]s as many bytes.
    ///
    /// # Safety
    /// As for all calls on regions ([`Comm`]).
    pub unsafe fn receive(&self, data: Region<'_>, from: usize) -> Result<Handle> {
        self.member(from)?;
        self.count(CallKind::Receive, 0);
        // SAFETY: the caller vouches for the memory.
        let pending = unsafe { self.transport.receive(data.into(), from)? };
        Ok(self.handle(CallKind::Receive, pending))
    }

    /// The group of those ranks of this one that give the same `color`, in their order here. It
    /// counts with this one.
    pub fn split(&self, color: usize) -> Result<Comm> {
        Ok(Comm { transport: self.transport.split(color)?, counts: self.counts.clone() })
    }

    /// Calls of a kind so far, in this group and those split from it.
    pub fn counted(&self, kind: CallKind) -> Count {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)[kind as usize]
    }

    /// Bytes this rank gave to others so far, in this group and those split from it.
    pub fn sent(&self) -> u64 {
        CallKind::ALL.iter().map(|kind| self.counted(*kind).sent).sum()
    }

    /// Time this rank waited for calls to end so far, in this group and those split from it.
    pub fn waited(&self) -> Duration {
        CallKind::ALL.iter().map(|kind| self.counted(*kind).waited).sum()
    }

    /// All ranks' values end to end, in the order of the ranks; each may give another number of
    /// them.
    pub fn concat<T: bytemuck::Pod>(&self, own: &[T]) -> Result<Vec<T>> {
        if self.size() == 1 {
            return Ok(own.to_vec());
        }
        let mut lengths = vec![0u64; self.size()];
        let mut length = [own.len() as u64];
        self.gather_on_host(&mut length, &mut lengths)?;
        let longest = lengths.iter().max().copied().unwrap_or(0) as usize;
        let mut block = vec![T::zeroed(); longest];
        block[..own.len()].copy_from_slice(own);
        let mut all = vec![T::zeroed(); longest * self.size()];
        self.gather_on_host(&mut block, &mut all)?;
        let of = |(r, n): (usize, &u64)| all[r * longest..][..*n as usize].to_vec();
        Ok(lengths.iter().enumerate().flat_map(of).collect())
    }

    /// For each flag whether any rank raises it.
    pub fn any<const N: usize>(&self, flags: [bool; N]) -> Result<[bool; N]> {
        if self.size() == 1 {
            return Ok(flags);
        }
        let mut values = flags.map(|flag| f32::from(u8::from(flag)));
        self.reduce_on_host(&mut values, Reduce::Max)?;
        Ok(values.map(|value| value > 0.0))
    }

    /// Makes `values` the sums over the ranks of what each has there.
    pub fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.reduce_on_host(values, Reduce::Sum)
    }

    /// Tells the other ranks that this one makes no more calls, and why, if it has failed: they
    /// name it and stop, at the latest when they next wait. A handle that is just dropped tells
    /// them that its rank is done.
    pub fn leave(&self, error: Option<&Error>) {
        self.transport.leave(error);
    }

    fn gather_on_host<T: bytemuck::Pod>(&self, from: &mut [T], to: &mut [T]) -> Result<()> {
        let (from, to) = (host(from), host(to));
        self.blocks(from, to)?;
        // SAFETY: both are borrowed exclusively, and so do not overlap, until the call has ended.
        unsafe { self.on_host(Call::AllGather { from, to }) }
    }

    fn reduce_on_host(&self, values: &mut [f32], by: Reduce) -> Result<()> {
        let data = host(values);
        // SAFETY: the values are borrowed exclusively until the call has ended.
        unsafe { self.on_host(Call::AllReduce { data, dtype: DType::F32, by }) }
    }

    /// Makes a call on memory of the host, to its end.
    ///
    /// # Safety
    /// As for all calls, until this returns.
    unsafe fn on_host(&self, call: Call) -> Result<()> {
        self.count(call.kind(), call.sent(self.rank(), self.size()));
        // SAFETY: the caller vouches for the memory.
        let pending = unsafe { self.transport.start_on_host(call)? };
        self.handle(call.kind(), pending).wait()
    }

    /// # Safety
    /// As for all calls.
    unsafe fn start(&self, call: Call) -> Result<Handle> {
        self.count(call.kind(), call.sent(self.rank(), self.size()));
        // SAFETY: the caller vouches for the memory.
        let pending = unsafe { self.transport.start(call)? };
        Ok(self.handle(call.kind(), pending))
    }

    fn handle(&self, kind: CallKind, pending: Box<dyn Pending>) -> Handle {
        Handle { kind, pending, counts: self.counts.clone() }
    }

    fn count(&self, kind: CallKind, sent: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts[kind as usize].calls += 1;
        counts[kind as usize].sent += sent;
    }

    fn member(&self, rank: usize) -> Result<()> {
        if rank < self.size() {
            return Ok(());
        }
        Err(Error::internal(format!("rank {rank} in a group of {}", self.size())))
    }

    /// Checks that `all` has a block like `one` for every rank.
    fn blocks(&self, one: Span, all: Span) -> Result<()> {
        if one.bytes * self.size() == all.bytes {
            return Ok(());
        }
        let (one, all, size) = (one.bytes, all.bytes, self.size());
        Err(Error::internal(format!("{size} blocks of {one} bytes in {all} bytes")))
    }
}

/// Memory of the host that a call names.
fn host<T: bytemuck::Pod>(values: &mut [T]) -> Span {
    Region::of_host(bytemuck::cast_slice_mut(values)).into()
}

fn whole(data: Span, dtype: DType) -> Result<()> {
    if data.bytes.is_multiple_of(dtype.size()) {
        return Ok(());
    }
    Err(Error::internal(format!("{} bytes of {dtype}", data.bytes)))
}

/// A call under way. The memory it names may be touched again once it has been waited for. Dropped,
/// it is waited for.
#[must_use = "the call is under way until it is waited for"]
pub struct Handle {
    kind: CallKind,
    pending: Box<dyn Pending>,
    counts: Counts,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} under way", self.kind.name())
    }
}

impl Handle {
    /// Waits for the end of the call; where calls are work of the device, the calling thread's
    /// stream does, and the thread itself at a barrier only. That a rank is missing is then told
    /// here, or where the thread next waits for the device.
    ///
    /// # Errors
    /// A rank of the group is gone or does not come.
    pub fn wait(self) -> Result<()> {
        let clock = Instant::now();
        let done = self.pending.wait();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts[self.kind as usize].waited += clock.elapsed();
        done
    }
}
