//! Ranks as threads of one process: they read each other's memory. For tests, and for runs of one
//! process.

use super::deferred::{Meet, deferred};
use super::reduce::{copy, reduce};
use super::{Call, Comm, Pending, Span, Transport};
use crate::base::{Error, Kind, Result};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs `body` as `ranks` ranks, each on a thread of its own, and returns what they return, in
/// order. A rank that waits for another longer than `timeout` gives up.
///
/// # Errors
/// That of the rank that failed first, with its number, rather than that others miss it: they end
/// when they next wait for it.
pub fn run_ranks<T: Send>(
    ranks: usize,
    timeout: Duration,
    body: impl Fn(Comm) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let hub = Arc::new(Hub::new((0..ranks).collect(), timeout));
    let first: Mutex<Option<Error>> = Mutex::new(None);
    let failed = |rank: usize, e: &Error| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        // That another rank is missing may be told before that one tells why.
        if first.as_ref().is_none_or(|f| f.kind() == Kind::Stopped && e.kind() != Kind::Stopped) {
            *first = Some(e.clone().context(format_args!("rank {rank}")));
        }
    };
    let one = |rank: usize| {
        let local = Local { hub: hub.clone(), rank, next: AtomicU64::new(0) };
        let comm = Comm::new(Arc::new(local));
        // The others hear of its end with the reason, so its place is held until there is one.
        let held = comm.clone();
        let done = catch_unwind(AssertUnwindSafe(|| body(comm)))
            .unwrap_or_else(|_| Err(Error::internal("panicked: see the lines above")));
        done.as_ref().err().iter().for_each(|e| failed(rank, e));
        hub.leave(rank, done.as_ref().err());
        drop(held);
        done.ok()
    };
    let done: Vec<Option<T>> = std::thread::scope(|scope| {
        let one = &one;
        let start = |rank| {
            let thread = std::thread::Builder::new().name(format!("rank-{rank}"));
            let started = thread.spawn_scoped(scope, move || one(rank));
            started.map_err(|e| {
                let e = Error::resource(format!("cannot start a thread: {e}"));
                failed(rank, &e);
                hub.leave(rank, Some(&e));
            })
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|t| t.ok().and_then(|t| t.join().ok()).flatten()).collect()
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(done.into_iter().flatten().collect()),
    }
}

/// The transport of a rank that is alone: it waits for nobody.
pub(super) fn alone() -> Arc<dyn Transport> {
    let hub = Arc::new(Hub::new(vec![0], Duration::ZERO));
    Arc::new(Local { hub, rank: 0, next: AtomicU64::new(0) })
}

/// Where the ranks of a group meet.
#[derive(Debug)]
struct Hub {
    /// The ranks' numbers in the first group, by which they are named.
    names: Vec<usize>,
    timeout: Duration,
    meetings: Mutex<Meetings>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Meetings {
    /// Calls under way, by number.
    rounds: HashMap<u64, Round>,
    /// Messages under way, and how many each pair of ranks has sent and asked for so far.
    messages: HashMap<Way, P2pMessage>,
    sent: HashMap<(usize, usize), u64>,
    received: HashMap<(usize, usize), u64>,
    /// Groups being split off, by the number of the call.
    splits: HashMap<u64, Split>,
    /// The ranks that have left, and why.
    left: HashMap<usize, Option<String>>,
    /// The first error of a meeting: it is every rank's.
    broken: Option<Error>,
}

/// A value's sender, receiver, and number among those between them.
type Way = (usize, usize, u64);

/// One call of all ranks.
#[derive(Debug)]
struct Round {
    calls: Vec<Option<Call>>,
    /// Ranks that have begun their part.
    begun: Vec<bool>,
    /// Ranks that are in it: reading or writing the memory of others.
    inside: usize,
    /// How it ended.
    done: Vec<Option<Result<()>>>,
    /// Ranks that have seen all of them end.
    gone: usize,
    /// A rank gave up: its memory may not be touched any more.
    void: bool,
}

/// A message from one rank to another. It is copied once both have named their memory, so that
/// either may wait for something else first.
#[derive(Debug, Default)]
struct P2pMessage {
    given: Option<Span>,
    asked: Option<Span>,
    /// It has been copied, or is not as long as asked for.
    over: Option<Result<()>>,
    /// Ranks that have seen that.
    seen: usize,
}

#[derive(Debug)]
struct Split {
    colors: Vec<Option<usize>>,
    hubs: HashMap<usize, Arc<Hub>>,
    gone: usize,
}

// SAFETY: whoever started a call with these ranges lets any thread use them until it has been
// waited for; `Meeting` and `Post` see to it that nobody does later.
unsafe impl Send for Meetings {}

impl Meetings {
    /// A call that this rank has not left.
    fn round(&mut self, number: u64) -> &mut Round {
        self.rounds.get_mut(&number).expect("removed by the last rank that leaves")
    }

    /// The first call that all have started and `rank` has not begun its part in.
    fn ready(&self, rank: usize) -> Option<u64> {
        let ready = |r: &Round| !r.void && !r.begun[rank] && r.calls.iter().all(Option::is_some);
        self.rounds.iter().filter(|(_, r)| ready(r)).map(|(number, _)| *number).min()
    }
}

impl Hub {
    fn new(names: Vec<usize>, timeout: Duration) -> Hub {
        Hub { names, timeout, meetings: Mutex::default(), changed: Condvar::new() }
    }

    fn size(&self) -> usize {
        self.names.len()
    }

    fn lock(&self) -> MutexGuard<'_, Meetings> {
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rank `rank` makes no more calls.
    fn leave(&self, rank: usize, error: Option<&Error>) {
        self.lock().left.entry(rank).or_insert(error.map(ToString::to_string));
        self.changed.notify_all();
    }

    /// Rank `rank` waits until `missing` names no rank any more; `what` is what it waits for.
    /// Meanwhile it does its part in calls that all have started: the others may wait for them in
    /// another order.
    fn until<'h>(
        &'h self,
        rank: usize,
        mut meetings: MutexGuard<'h, Meetings>,
        what: &dyn Fn() -> String,
        missing: &dyn Fn(&Meetings) -> Vec<usize>,
    ) -> Result<MutexGuard<'h, Meetings>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let ranks = missing(&meetings);
            if ranks.is_empty() {
                return Ok(meetings);
            }
            if let Some(e) = &meetings.broken {
                return Err(e.clone());
            }
            if let Some(number) = meetings.ready(rank) {
                meetings = self.take_part(rank, number, meetings);
                continue;
            }
            let left = ranks.iter().find_map(|r| meetings.left.get(r).map(|why| (r, why)));
            let time = deadline.saturating_duration_since(Instant::now());
            let why = match left {
                Some((&rank, Some(why))) => {
                    format!("rank {} has failed ({why})", self.names[rank])
                }
                Some((&rank, None)) => format!("rank {} has ended", self.names[rank]),
                None if time.is_zero() => self.late(&ranks),
                None => {
                    let woken = self.changed.wait_timeout(meetings, time);
                    meetings = woken.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            return Err(self.break_up(
                &mut meetings,
                Error::stopped(format!(
                    "{}: {why}; the same command resumes from the last checkpoint",
                    what()
                )),
            ));
        }
    }

    /// Notes one rank's side of a message, which is copied if the other's is there.
    fn post(
        &self,
        mut meetings: MutexGuard<'_, Meetings>,
        way: Way,
        side: impl FnOnce(&mut P2pMessage),
    ) -> Result<()> {
        if let Some(e) = &meetings.broken {
            return Err(e.clone());
        }
        let message = meetings.messages.entry(way).or_default();
        side(message);
        let (Some(given), Some(asked)) = (message.given, message.asked) else { return Ok(()) };
        message.over = Some(if given.bytes == asked.bytes {
            // SAFETY: both ranks vouch for their memory until they have waited for the message, and
            // neither has: that takes the lock, which is held here. Each named its own memory.
            unsafe { copy(given, asked) };
            Ok(())
        } else {
            let (from, to) = (self.names[way.0], self.names[way.1]);
            let (sent, takes) = (given.bytes, asked.bytes);
            Err(Error::internal(format!("rank {from} sent {sent} bytes, rank {to} takes {takes}")))
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Does rank `rank`'s part in a call that all have started.
    fn take_part<'h>(
        &'h self,
        rank: usize,
        number: u64,
        mut meetings: MutexGuard<'h, Meetings>,
    ) -> MutexGuard<'h, Meetings> {
        let round = meetings.round(number);
        round.begun[rank] = true;
        round.inside += 1;
        let calls: Vec<Call> = round.calls.iter().copied().flatten().collect();
        drop(meetings);
        // SAFETY: all ranks have started this call and vouch for its memory until they have waited
        // for it, which none does while one is inside (`Meeting`).
        let done = unsafe { take_part(&calls, rank) };
        let mut meetings = self.lock();
        let round = meetings.round(number);
        round.inside -= 1;
        round.done[rank] = Some(done);
        self.changed.notify_all();
        meetings
    }

    /// Ends all meetings with `e`.
    fn break_up(&self, meetings: &mut Meetings, e: Error) -> Error {
        meetings.broken = Some(e.clone());
        self.changed.notify_all();
        e
    }

    /// "rank 3 has", or "ranks 1, 3 have", "not come".
    fn late(&self, ranks: &[usize]) -> String {
        let numbers: Vec<String> = ranks.iter().map(|r| self.names[*r].to_string()).collect();
        let who = match &numbers[..] {
            [rank] => format!("rank {rank} has"),
            _ => format!("ranks {} have", numbers.join(", ")),
        };
        format!("{who} not come within {} s", self.timeout.as_secs_f64())
    }
}

/// One rank's place in a group.
#[derive(Debug)]
struct Local {
    hub: Arc<Hub>,
    rank: usize,
    /// The number of this rank's next call.
    next: AtomicU64,
}

impl Transport for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.size()
    }

    unsafe fn start(&self, call: Call) -> Result<Box<dyn Pending>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (hub, rank, size) = (self.hub.clone(), self.rank, self.hub.size());
        let mut meetings = hub.lock();
        if let Some(e) = &meetings.broken {
            return Err(e.clone());
        }
        let round = meetings.rounds.entry(number).or_insert_with(|| Round {
            calls: vec![None; size],
            begun: vec![false; size],
            inside: 0,
            done: vec![None; size],
            gone: 0,
            void: false,
        });
        let others = round.calls.iter().zip(&hub.names);
        let other = others.filter_map(|(c, name)| c.map(|c| (c.terms(), name))).next();
        if let Some((terms, name)) = other.filter(|(terms, _)| *terms != call.terms()) {
            let (mine, me) = (call.terms(), hub.names[rank]);
            let line = format!(
                "the ranks do not agree on call {number}: rank {name} {terms:?}, rank {me} {mine:?}"
            );
            return Err(hub.break_up(&mut meetings, Error::internal(line)));
        }
        round.calls[rank] = Some(call);
        hub.changed.notify_all();
        drop(meetings);
        Ok(deferred(Meeting { hub, rank, number, call }))
    }

    unsafe fn send(&self, data: Span, to: usize) -> Result<Box<dyn Pending>> {
        let mut meetings = self.hub.lock();
        let way = next_way(&mut meetings.sent, self.rank, to);
        self.hub.post(meetings, way, |message| message.given = Some(data))?;
        Ok(deferred(Post { hub: self.hub.clone(), way, receiver: false }))
    }

    unsafe fn receive(&self, data: Span, from: usize) -> Result<Box<dyn Pending>> {
        let mut meetings = self.hub.lock();
        let way = next_way(&mut meetings.received, from, self.rank);
        self.hub.post(meetings, way, |message| message.asked = Some(data))?;
        Ok(deferred(Post { hub: self.hub.clone(), way, receiver: true }))
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Transport>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (hub, size) = (&*self.hub, self.hub.size());
        let mut meetings = hub.lock();
        let new = || Split { colors: vec![None; size], hubs: HashMap::new(), gone: 0 };
        meetings.splits.entry(number).or_insert_with(new).colors[self.rank] = Some(color);
        hub.changed.notify_all();
        let mut meetings = hub.until(self.rank, meetings, &|| "split".into(), &|m| {
            let colors = &m.splits[&number].colors;
            (0..size).filter(|r| colors[*r].is_none()).collect()
        })?;
        let split = meetings.splits.get_mut(&number).expect("removed by the last rank");
        let members: Vec<usize> = (0..size).filter(|r| split.colors[*r] == Some(color)).collect();
        let rank = members.iter().filter(|r| **r < self.rank).count();
        let names = members.iter().map(|r| hub.names[*r]).collect();
        let new = || Arc::new(Hub::new(names, hub.timeout));
        let part = split.hubs.entry(color).or_insert_with(new).clone();
        split.gone += 1;
        if split.gone == size {
            meetings.splits.remove(&number);
        }
        Ok(Arc::new(Local { hub: part, rank, next: AtomicU64::new(0) }))
    }

    fn leave(&self, error: Option<&Error>) {
        self.hub.leave(self.rank, error);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.hub.leave(self.rank, None);
    }
}

fn next_way(counts: &mut HashMap<(usize, usize), u64>, from: usize, to: usize) -> Way {
    let count = counts.entry((from, to)).or_default();
    *count += 1;
    (from, to, *count)
}

/// One rank's part in a call. Nobody touches a rank's memory before all have started the call, nor
/// after that rank has waited for it: it leaves when all are done, or makes the round void and
/// waits for those inside.
struct Meeting {
    hub: Arc<Hub>,
    rank: usize,
    number: u64,
    call: Call,
}

impl Meet for Meeting {
    fn meet(&self) -> Result<()> {
        let met = self.try_to();
        if met.is_err() {
            let mut meetings = self.hub.lock();
            while let Some(round) = meetings.rounds.get_mut(&self.number) {
                round.void = true;
                if round.inside == 0 {
                    break;
                }
                let woken = self.hub.changed.wait(meetings);
                meetings = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
        met
    }
}

impl Meeting {
    fn try_to(&self) -> Result<()> {
        let (hub, number, size) = (&*self.hub, self.number, self.hub.size());
        let what = || format!("{} number {number}", self.call.kind().name());
        let mut meetings = hub.until(self.rank, hub.lock(), &what, &|m| {
            let round = &m.rounds[&number];
            let absent = |r: &usize| round.calls[*r].is_none();
            let all_came = !(0..size).any(|r| absent(&r));
            let open = |r: &usize| absent(r) || all_came && round.done[*r].is_none();
            (0..size).filter(open).collect()
        })?;
        let round = meetings.round(number);
        let done = round.done[self.rank].clone();
        round.gone += 1;
        if round.gone == size {
            meetings.rounds.remove(&number);
        }
        done.expect("all are done")
    }
}

/// Does rank `rank`'s part of a call that all ranks have started.
///
/// # Safety
/// The ranges of all calls are memory of the host that stays allocated until this returns, in which
/// every rank does this and nothing else.
unsafe fn take_part(calls: &[Call], rank: usize) -> Result<()> {
    let size = calls.len();
    // SAFETY: by the contract of this function the ranges are memory of the host that stays
    // allocated until this returns. They have the lengths used here, on which the ranks have agreed
    // (`Call::terms`). Each rank writes its own memory, or its share of everybody's; nobody reads
    // what another writes.
    unsafe {
        match calls[rank] {
            Call::Barrier => Ok(()),
            Call::Broadcast { data, root } => {
                if let Call::Broadcast { data: from, .. } = calls[root] {
                    copy(from, data);
                }
                Ok(())
            }
            Call::AllGather { from: own, to } => {
                for (r, call) in calls.iter().enumerate() {
                    if let Call::AllGather { from, .. } = *call {
                        copy(from, to.slice(r * own.bytes, own.bytes));
                    }
                }
                Ok(())
            }
            Call::ReduceScatter { to, dtype, by, .. } => {
                let block = |call: &Call| match *call {
                    Call::ReduceScatter { from, .. } => from.slice(rank * to.bytes, to.bytes),
                    _ => to,
                };
                let from: Vec<Span> = calls.iter().map(block).collect();
                reduce(&from, to, dtype, by)
            }
            Call::AllReduce { data, dtype, by } => {
                let elements = data.bytes / dtype.size();
                let at = |r: usize| elements * r / size * dtype.size();
                let share = |call: &Call| match *call {
                    Call::AllReduce { data, .. } => data.slice(at(rank), at(rank + 1) - at(rank)),
                    _ => data,
                };
                let shares: Vec<Span> = calls.iter().map(share).collect();
                reduce(&shares, shares[rank], dtype, by)?;
                shares.iter().for_each(|to| copy(shares[rank], *to));
                Ok(())
            }
        }
    }
}

/// One rank's side of a message. Nobody touches its memory after it has been waited for.
struct Post {
    hub: Arc<Hub>,
    way: Way,
    receiver: bool,
}

impl Meet for Post {
    fn meet(&self) -> Result<()> {
        let (way, hub) = (self.way, &*self.hub);
        let (me, other, name) = match self.receiver {
            true => (way.1, way.0, "receive from"),
            false => (way.0, way.1, "send to"),
        };
        let what = || format!("{name} rank {}", hub.names[other]);
        let open = |m: &Meetings| m.messages.get(&way).is_none_or(|l| l.over.is_none());
        let waiting = |m: &Meetings| if open(m) { vec![other] } else { vec![] };
        let met = hub.until(me, hub.lock(), &what, &waiting).map(drop);
        let mut meetings = hub.lock();
        let Some(message) = meetings.messages.get_mut(&way) else { return met };
        message.seen += 1;
        let over = message.over.clone().filter(|_| self.receiver).unwrap_or(Ok(()));
        // Seen by both, or taken back.
        if message.seen == 2 || met.is_err() {
            meetings.messages.remove(&way);
        }
        met.and(over)
    }
}
