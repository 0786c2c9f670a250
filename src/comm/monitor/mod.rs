//! Which ranks of a run are still there. Every rank keeps the TCP connection to rank 0 over which
//! they met: where a process ends, its connection does, and rank 0 passes that on. A rank also
//! tells its last word, and about twice a second how many calls it has started, so that a rank
//! which hangs can be named once the others have waited too long. No data of training goes this
//! way, and whatever carries that need not notice a death.

mod pending_op;
#[cfg(test)]
mod tests;

pub(super) use pending_op::{PendingOp, part_of};

use super::member::{Lines, Member};
use super::wire::Line;
use crate::base::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a rank tells that it is there.
const BEAT: Duration = Duration::from_millis(500);
/// A rank that has told nothing for so long is stopped or cut off.
const SILENT: Duration = Duration::from_secs(3);
/// How long rank 0 is waited for when it is asked. It answers in half of that, or is stopped: a
/// launcher that ends the run may let it go on when the first rank has given up.
const ANSWER: Duration = Duration::from_secs(2);
/// A launcher ends with the code of the rank that ended first, so one that failed goes before those
/// that miss it.
const GO_FIRST: Duration = Duration::from_millis(300);
/// Largest message, of which the reason of a failure may have this many characters.
const LARGEST: usize = 1 << 20;
const LONGEST_REASON: usize = 2000;
/// Groups of which a rank may tell.
const MOST_GROUPS: usize = 4096;

/// One rank's side of the connections between the ranks of a run. Dropped, it says that this rank
/// is done.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    /// Dropped, it ends the beat.
    beat: Mutex<Option<Sender<()>>>,
}

#[derive(Debug)]
struct Shared {
    rank: usize,
    members: Vec<Member>,
    /// Calls that this rank has started, by group.
    started: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
    state: Mutex<State>,
    changed: Condvar,
    /// `State::gone` may be told. Asked without a lock in every round of waiting.
    gone: AtomicBool,
}

#[derive(Debug)]
struct State {
    lines: Lines,
    ended: BTreeMap<usize, End>,
    /// Ends that rank 0 has not passed on yet.
    news: Vec<ExitNotice>,
    /// The first end that ends all.
    gone: Option<Error>,
    /// Calls started, by rank and group, as far as known here.
    reached: Vec<HashMap<u64, u64>>,
    /// When rank 0 last heard of each.
    heard: Vec<Instant>,
    answer: Option<ProgressReport>,
    closing: bool,
}

/// How a rank ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum End {
    /// It has made all its calls.
    Done,
    /// It misses another rank, which the line names.
    Stopped(String),
    /// It failed by itself.
    Failed(String),
    /// Its connection ended without a word.
    Lost(String),
}

/// A rank's last word.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ExitNotice {
    rank: usize,
    how: End,
    started: Vec<(u64, u64)>,
}

/// The state of a group's calls, as rank 0 knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ProgressReport {
    /// Calls started, by rank.
    started: Vec<u64>,
    silent: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
enum Word {
    /// This rank has started so many calls in these groups.
    Started(Vec<(u64, u64)>),
    Ended(Vec<ExitNotice>),
    /// Asks which ranks are behind in this group, or have been silent for so long.
    Ask(u64, Duration),
    Answer(ProgressReport),
}

impl Monitor {
    /// Takes over the `lines` of rank `rank` of `members`, who have met.
    ///
    /// # Errors
    /// There are no threads for it.
    pub(super) fn new(rank: usize, members: &[Member], lines: Lines) -> Result<Arc<Monitor>> {
        let readers = lines.clone();
        let shared = Arc::new(Shared {
            rank,
            members: members.to_vec(),
            started: Mutex::default(),
            state: Mutex::new(State {
                lines,
                ended: BTreeMap::new(),
                news: vec![],
                gone: None,
                reached: vec![HashMap::new(); members.len()],
                heard: vec![Instant::now(); members.len()],
                answer: None,
                closing: false,
            }),
            changed: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        let (beat, stop) = channel();
        let monitor = Arc::new(Monitor { shared: shared.clone(), beat: Mutex::new(Some(beat)) });
        // Their stack is small: rank 0 has a thread for every other rank.
        let thread = || std::thread::Builder::new().name("monitor".into()).stack_size(256 << 10);
        let start = || {
            for (other, line) in readers {
                let shared = shared.clone();
                line.wait_for_bytes()?;
                thread().spawn(move || shared.listen(other, &line))?;
            }
            thread().spawn(move || shared.beat(&stop))
        };
        match start() {
            Ok(_) => Ok(monitor),
            Err(e) => {
                let e = Error::resource(format!("the ranks' monitor: {e}"));
                monitor.leave(Some(&e));
                Err(e)
            }
        }
    }

    /// Counts the calls that this rank starts in a group, whose number is the same on all its
    /// members, and no other group's. The others are told of it.
    pub fn started(&self, group: u64) -> Arc<AtomicU64> {
        lock(&self.shared.started).entry(group).or_default().clone()
    }

    /// The error of the rank whose end ends the run; `None` while all ranks run or have ended well.
    /// Returns at once.
    pub fn gone(&self) -> Option<Error> {
        let told = self.shared.gone.load(Ordering::Acquire);
        told.then(|| self.shared.lock().gone.clone()).flatten()
    }

    /// The error of a rank of `members` that has ended well without starting call `number` of a
    /// group; `None` if there is no such rank.
    pub fn ended_before(&self, members: &[usize], group: u64, number: u64) -> Option<Error> {
        let state = self.shared.lock();
        let early = |r: &&usize| {
            let started = state.reached[**r].get(&group).copied().unwrap_or(0);
            state.ended.get(r) == Some(&End::Done) && started <= number
        };
        let rank = members.iter().find(early)?;
        Some(Error::stopped(format!("{} has ended", self.shared.name(*rank))))
    }

    /// Why call `number` of a group of `members` did not end within `timeout`: who has not started
    /// it, or who is silent. Asks rank 0, which takes two seconds where that does not answer.
    pub fn late(&self, members: &[usize], group: u64, number: u64, timeout: Duration) -> String {
        let (shared, within) = (&self.shared, format!("within {} s", timeout.as_secs_f64()));
        let Some(report) = shared.report(group, SILENT.min(timeout / 2)) else {
            return format!("no end {within}, and {} does not answer", shared.name(0));
        };
        let others = || members.iter().copied().filter(|r| *r != shared.rank);
        let absent: Vec<usize> = others().filter(|r| report.started[*r] <= number).collect();
        if !absent.is_empty() {
            return format!("{} not come {within}", shared.names(&absent));
        }
        let silent: Vec<usize> = others().filter(|r| report.silent.contains(r)).collect();
        if !silent.is_empty() {
            return format!("no end {within}: {} become silent", shared.names(&silent));
        }
        format!("no end {within}, though all ranks have come")
    }

    /// This rank's last word: that it is done, or why it stops. Only the first counts.
    pub fn leave(&self, error: Option<&Error>) {
        let reason = |e: &Error| e.to_string().chars().take(LONGEST_REASON).collect();
        let how = match error {
            None => End::Done,
            Some(e) if e.kind() == Kind::Stopped => End::Stopped(reason(e)),
            Some(e) => End::Failed(reason(e)),
        };
        let started = self.shared.counts().into_iter().collect();
        let mut state = self.shared.lock();
        if state.ended.contains_key(&self.shared.rank) {
            return;
        }
        state.ended.insert(self.shared.rank, how.clone());
        state.news.push(ExitNotice { rank: self.shared.rank, how, started });
        state.pass_on();
        self.shared.changed.notify_all();
    }

    /// Waits until all ranks are done, at most for `time`; false if they are not, or one has ended
    /// otherwise.
    pub fn all_done(&self, time: Duration) -> bool {
        let state = self.shared.lock();
        let well = |s: &State| s.ended.values().all(|how| *how == End::Done);
        let all = |s: &State| s.ended.len() == self.shared.members.len();
        let open = |s: &mut State| well(s) && !all(s);
        let woken = self.shared.changed.wait_timeout_while(state, time, open);
        let state = woken.unwrap_or_else(PoisonError::into_inner).0;
        well(&state) && all(&state)
    }

    /// Ends the connections, as the end of the process does.
    fn cut(&self) {
        lock(&self.beat).take();
        let mut state = self.shared.lock();
        state.closing = true;
        for (_, line) in &state.lines {
            line.shut();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let panicked = std::thread::panicking().then(|| Error::internal("panicked"));
        self.leave(panicked.as_ref());
        self.cut();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a word; false if it could not be. One who does not take it is missed otherwise.
fn send(line: &Line, word: &Word) -> bool {
    line.send(word, Instant::now() + ANSWER).is_ok()
}

impl State {
    /// Tells the news to all others.
    fn pass_on(&mut self) {
        if self.news.is_empty() {
            return;
        }
        let word = Word::Ended(std::mem::take(&mut self.news));
        for (_, line) in &self.lines {
            send(line, &word);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} on {}", self.members[rank].host)
    }

    /// "rank 3 on host has", or "ranks 1 on host, 3 on host have".
    fn names(&self, ranks: &[usize]) -> String {
        let names: Vec<String> = ranks.iter().map(|r| self.name(*r)).collect();
        format!("{} {}", names.join(", "), if ranks.len() == 1 { "has" } else { "have" })
    }

    fn counts(&self) -> BTreeMap<u64, u64> {
        let started = lock(&self.started);
        started.iter().map(|(group, n)| (*group, n.load(Ordering::Relaxed))).collect()
    }

    /// Tells twice a second how far this rank is; at rank 0 only what it has to pass on.
    fn beat(&self, stop: &Receiver<()>) {
        let mut told = BTreeMap::new();
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(BEAT) {
            if self.rank == 0 {
                self.lock().pass_on();
                continue;
            }
            let counts = self.counts();
            let news = counts.iter().filter(|(group, n)| told.get(*group) != Some(*n));
            let word = Word::Started(news.map(|(group, n)| (*group, *n)).collect());
            if let Some((_, line)) = self.lock().lines.first() {
                send(line, &word);
            }
            told = counts;
        }
    }

    /// Takes what rank `other` says until its connection ends.
    fn listen(&self, other: usize, line: &Line) {
        let e = loop {
            match line.take::<Word>(LARGEST, None) {
                Ok(word) => self.hear(other, word),
                Err(e) => break e,
            }
        };
        let why = match (line.failure(), e.kind()) {
            (Some(why), _) => format!("its connection broke ({why})"),
            (None, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                "its process ended without a word".to_string()
            }
            _ => format!("its connection broke ({e})"),
        };
        if !self.lock().closing {
            self.end(ExitNotice { rank: other, how: End::Lost(why), started: vec![] });
        }
        line.shut();
    }

    fn hear(&self, other: usize, word: Word) {
        let mut state = self.lock();
        state.heard[other] = Instant::now();
        match word {
            Word::Started(counts) => state.note(other, counts),
            Word::Ended(farewells) => {
                drop(state);
                // Rank 0 speaks for all, the others for themselves.
                let known =
                    |f: &ExitNotice| f.rank < self.members.len() && (other == 0 || f.rank == other);
                farewells.into_iter().filter(known).for_each(|f| self.end(f));
            }
            Word::Ask(group, silence) => {
                let answer = Word::Answer(self.known(&state, group, silence));
                if let Some((_, line)) = state.lines.iter().find(|(r, _)| *r == other) {
                    send(line, &answer);
                }
            }
            Word::Answer(report) if report.started.len() == self.members.len() => {
                state.answer = Some(report);
                self.changed.notify_all();
            }
            Word::Answer(_) => {}
        }
    }

    /// Notes a rank's end, of which rank 0 tells the others before it acts on it itself.
    fn end(&self, notice: ExitNotice) {
        let (rank, how) = (notice.rank, notice.how.clone());
        let mut state = self.lock();
        if state.ended.contains_key(&rank) {
            return;
        }
        state.note(rank, notice.started.clone());
        state.ended.insert(rank, how.clone());
        let name = self.name(rank);
        let gone = match &how {
            End::Done => None,
            End::Stopped(line) => Some(line.clone()),
            End::Failed(why) => Some(format!("{name} has failed ({why})")),
            End::Lost(why) => Some(format!(
                "{name} is gone: {why}; the same command resumes from the last checkpoint"
            )),
        };
        let first = gone.is_some() && state.gone.is_none();
        if first {
            state.gone = gone.map(Error::stopped);
        }
        if self.rank == 0 {
            state.news.push(notice);
            if first || state.ended.len() == self.members.len() {
                state.pass_on();
            }
        }
        drop(state);
        if first && matches!(how, End::Failed(_)) {
            std::thread::sleep(GO_FIRST);
        }
        // Under the lock: whoever has looked and is about to wait is woken.
        let _state = self.lock();
        if first {
            self.gone.store(true, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// The state of a group's calls; `None` if rank 0 does not answer, or a rank's end is told
    /// meanwhile: rank 0 may have ended before it could answer.
    fn report(&self, group: u64, silence: Duration) -> Option<ProgressReport> {
        let mut state = self.lock();
        if self.rank == 0 {
            return Some(self.known(&state, group, silence));
        }
        state.answer = None;
        send(&state.lines.first()?.1, &Word::Ask(group, silence)).then_some(())?;
        let asked = Instant::now();
        let open = |s: &mut State| s.answer.is_none() && !self.gone.load(Ordering::Acquire);
        let woken = self.changed.wait_timeout_while(state, ANSWER, open);
        let answer = woken.unwrap_or_else(PoisonError::into_inner).0.answer.clone();
        // A rank 0 that was stopped until now has not read what the others told it meanwhile.
        answer.filter(|_| asked.elapsed() < ANSWER / 2)
    }

    /// The state of a group's calls, as rank 0 knows it.
    fn known(&self, state: &State, group: u64, silence: Duration) -> ProgressReport {
        let started = |r: usize| match r == self.rank {
            true => self.counts().get(&group).copied(),
            false => state.reached[r].get(&group).copied(),
        };
        let silent = |r: &usize| {
            *r != self.rank && !state.ended.contains_key(r) && state.heard[*r].elapsed() > silence
        };
        let ranks = 0..self.members.len();
        ProgressReport {
            started: ranks.clone().map(|r| started(r).unwrap_or(0)).collect(),
            silent: ranks.filter(silent).collect(),
        }
    }
}

impl State {
    fn note(&mut self, rank: usize, counts: Vec<(u64, u64)>) {
        let reached = &mut self.reached[rank];
        for (group, n) in counts {
            if reached.len() < MOST_GROUPS || reached.contains_key(&group) {
                reached.insert(group, n);
            }
        }
    }
}
