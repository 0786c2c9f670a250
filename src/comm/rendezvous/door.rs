//! The door of the rendezvous: where callers prove that they are of the run. Everybody may call,
//! so callers get little: a bounded number of connections, no thread, and a few seconds each. The
//! oldest gives way to a new one, so strangers lock nobody out; a rank that had to go calls again.

use super::messages::{HANDSHAKE, Hello, LARGEST};
use crate::base::{Error, Result};
use crate::comm::noise::{GREETING, Key, NO, answer};
use crate::comm::wire::{Line, fill};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Callers at a time.
const CALLERS: usize = 256;
/// Callers let in before those who are in are looked at again: less than `CALLERS`, so that none
/// goes before it could speak.
const AT_A_TIME: usize = 64;
/// Connections that the system keeps ready for us, where its own limit is not lower.
const BACKLOG: i32 = 4096;
/// How long nobody is let in where the process has no more files for connections.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Door {
    listener: TcpListener,
    key: Key,
    callers: VecDeque<Caller>,
    /// Until when nobody is let in, and the error because of which.
    closed: Option<(Instant, std::io::Error)>,
}

/// One who has not yet proved to be of the run and told which rank it is.
struct Caller {
    until: Instant,
    stage: Stage,
}

enum Stage {
    /// Bytes of its greeting.
    Greeting(TcpStream, Vec<u8>),
    /// It has shaken hands; its message has not come whole.
    Hello(Line),
}

/// How far a caller has come.
enum Step {
    Waits(Stage),
    Came(Hello, Line),
    Gone,
}

impl Door {
    pub(super) fn open(listener: TcpListener, key: Key) -> Result<Door> {
        let failed = |e: std::io::Error| Error::resource(format!("rendezvous: {e}"));
        listener.set_nonblocking(true).map_err(failed)?;
        rustix::net::listen(&listener, BACKLOG).map_err(|e| failed(e.into()))?;
        Ok(Door { listener, key, callers: VecDeque::new(), closed: None })
    }

    /// The descriptors to wait for: the listener and all callers, in order.
    pub(super) fn waits_for(&self) -> Vec<PollFd<'_>> {
        let open = if self.closed_until().is_none() { PollFlags::IN } else { PollFlags::empty() };
        let callers = self.callers.iter().map(|caller| match &caller.stage {
            Stage::Greeting(stream, _) => stream.as_fd(),
            Stage::Hello(line) => line.stream().as_fd(),
        });
        let callers = callers.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        std::iter::once(PollFd::from_borrowed_fd(self.listener.as_fd(), open))
            .chain(callers)
            .collect()
    }

    /// When to look again even if nobody comes or speaks.
    pub(super) fn next(&self) -> Option<Instant> {
        let oldest = self.callers.iter().map(|caller| caller.until).min();
        oldest.into_iter().chain(self.closed_until()).min()
    }

    /// Why the last one that called could not be let in.
    pub(super) fn trouble(&self) -> Option<&std::io::Error> {
        self.closed.as_ref().map(|(_, e)| e)
    }

    fn closed_until(&self) -> Option<Instant> {
        self.closed.as_ref().map(|(until, _)| *until).filter(|until| *until > Instant::now())
    }

    /// Listens to those who are `ready`, as [`Self::waits_for`] names them, and lets new ones in.
    /// Returns who has come.
    pub(super) fn step(&mut self, ready: &[bool]) -> Result<Vec<(Hello, Line)>> {
        let mut came = vec![];
        for (caller, ready) in std::mem::take(&mut self.callers).into_iter().zip(&ready[1..]) {
            self.hear(caller, *ready, &mut came)?;
        }
        // One who has proved that it knows the secret goes after those who have not.
        for _ in 0..AT_A_TIME {
            if self.closed_until().is_some() {
                break;
            }
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.closed = None;
                    if self.callers.len() >= CALLERS {
                        self.drop_oldest();
                    }
                    if stream.set_nonblocking(true).and(stream.set_nodelay(true)).is_ok() {
                        let stage = Stage::Greeting(stream, vec![]);
                        let until = Instant::now() + HANDSHAKE;
                        self.hear(Caller { until, stage }, true, &mut came)?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // It has gone again.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // No more files, or no memory. Without callers only time helps.
                Err(e) => {
                    if !self.drop_oldest() {
                        self.closed = Some((Instant::now() + PAUSE, e));
                    }
                }
            }
        }
        Ok(came)
    }

    /// Drops the caller that came first, of those that have not shaken hands if there are any.
    fn drop_oldest(&mut self) -> bool {
        let silent = |caller: &Caller| matches!(caller.stage, Stage::Greeting(..));
        let oldest = self.callers.iter().position(silent).unwrap_or(0);
        self.callers.remove(oldest).is_some()
    }

    /// Listens to a caller if it is `ready`, and keeps it if its time is not over.
    fn hear(&mut self, caller: Caller, ready: bool, came: &mut Vec<(Hello, Line)>) -> Result<()> {
        let Caller { until, stage } = caller;
        let step = if ready { advance(stage, &self.key)? } else { Step::Waits(stage) };
        match step {
            Step::Came(hello, line) => came.push((hello, line)),
            Step::Waits(stage) if until > Instant::now() => {
                self.callers.push_back(Caller { until, stage });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Takes what a caller has sent.
fn advance(stage: Stage, key: &Key) -> Result<Step> {
    let line = match stage {
        Stage::Hello(line) => line,
        Stage::Greeting(stream, mut bytes) => {
            match fill(&stream, &mut bytes, GREETING, None) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Ok(Step::Waits(Stage::Greeting(stream, bytes)));
                }
                Err(_) => return Ok(Step::Gone),
            }
            let mut greeting = NO;
            greeting.copy_from_slice(&bytes);
            let Some((noise, answered)) = answer(key, &greeting)? else {
                // It is told at once that it has another secret, if it has one.
                let _ = (&stream).write(&NO);
                return Ok(Step::Gone);
            };
            // There is room for so little.
            if !matches!((&stream).write(&answered), Ok(GREETING)) {
                return Ok(Step::Gone);
            }
            Line::new(stream, noise)
        }
    };
    match line.take(LARGEST, None) {
        Ok(hello) => Ok(Step::Came(hello, line)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Step::Waits(Stage::Hello(line))),
        Err(_) => Ok(Step::Gone),
    }
}

/// Waits until one of `all` is ready, at most until `end`; returns which are.
pub(super) fn wait(mut all: Vec<PollFd<'_>>, end: Instant) -> Result<Vec<bool>> {
    // A little longer than to the end, so that it is over afterwards.
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_micros(100);
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut all, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(Error::resource(format!("rendezvous: {e}"))),
    }
    Ok(all.iter().map(|fd| !fd.revents().is_empty()).collect())
}
