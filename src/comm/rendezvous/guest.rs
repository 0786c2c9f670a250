//! The side of the ranks that come to rank 0. Whatever goes wrong on the way, a rank calls again
//! until its time is over: it may have been too early, or rank 0 may have dropped it for another.

use super::messages::{Answer, GRACE, HANDSHAKE, Hello, LARGEST, Met, RendezvousConfig};
use crate::base::{Error, Result};
use crate::comm::member::{Lines, Member};
use crate::comm::noise::{GREETING, Key, NO, call, complete};
use crate::comm::wire::{Line, fill, random, write};
use std::io::{Error as IoError, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// How long to try to connect before trying anew.
const TRY: Duration = Duration::from_secs(2);
/// How long to wait between two calls.
const RETRY: Duration = Duration::from_millis(50);
/// How often all that answer must have shown that they have another secret, until that is told.
/// Once may be an accident of the network.
const REFUSALS: usize = 3;

/// Why a call did not end in an answer. A later one tells more.
enum Trouble {
    Unreachable(IoError),
    /// The listener does not know the secret.
    Stranger,
    /// It has not proved that it knows the secret, and not shown that it does not.
    Unproven(IoError),
    /// It has, but has not answered.
    Unanswered(IoError),
    /// Nothing that another call could change.
    Ours(Error),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble::Ours(e)
    }
}

/// Goes to rank 0 and waits there until all have come.
pub(in crate::comm) fn join(me: &Member, place: &RendezvousConfig) -> Result<(Met, Lines)> {
    let (end, key) = (place.end(), Key::of(&place.secret));
    let hello = Hello { process: random()?, member: me.clone() };
    let mut refusals = 0;
    loop {
        let trouble = match round(place, &key, &hello)? {
            Ok((Answer::Met(met), line)) => return Ok((met, vec![(0, Arc::new(line))])),
            Ok((Answer::Refused(why), _)) => return Err(Error::user(why)),
            Err(trouble) => trouble,
        };
        refusals = if matches!(trouble, Trouble::Stranger) { refusals + 1 } else { 0 };
        if refusals == REFUSALS || Instant::now() + RETRY >= end {
            return Err(line(me, place, trouble));
        }
        std::thread::sleep(RETRY);
    }
}

/// Calls at each address until one answers; of the troubles it returns the one that tells most.
fn round(
    place: &RendezvousConfig,
    key: &Key,
    hello: &Hello,
) -> Result<std::result::Result<(Answer, Line), Trouble>> {
    let mut worst = Trouble::Unreachable(ErrorKind::AddrNotAvailable.into());
    let mut all_strangers = true;
    for name in &place.addresses {
        let addresses = match resolve(name, place.end())? {
            Ok(addresses) => addresses,
            Err(e) => {
                (worst, all_strangers) = (Trouble::Unreachable(e), false);
                continue;
            }
        };
        for address in addresses {
            match attempt(&address, place, key, hello) {
                Ok(answered) => return Ok(Ok(answered)),
                Err(Trouble::Ours(e)) => return Err(e),
                Err(trouble) => {
                    all_strangers &= matches!(trouble, Trouble::Stranger);
                    if rank_of(&trouble) >= rank_of(&worst) {
                        worst = trouble;
                    }
                }
            }
        }
    }
    // Rank 0 may be at another address, and not there yet.
    match worst {
        Trouble::Stranger if !all_strangers => {
            Ok(Err(Trouble::Unproven(IoError::other("another program listens there"))))
        }
        worst => Ok(Err(worst)),
    }
}

fn rank_of(trouble: &Trouble) -> usize {
    match trouble {
        Trouble::Unreachable(_) => 0,
        Trouble::Stranger => 1,
        Trouble::Unproven(_) => 2,
        Trouble::Unanswered(_) | Trouble::Ours(_) => 3,
    }
}

/// The addresses that a name stands for. The system may take longer to say so than there is time,
/// so it is asked on a thread of its own.
fn resolve(name: &str, end: Instant) -> Result<std::io::Result<Vec<SocketAddr>>> {
    if let Ok(address) = name.parse() {
        return Ok(Ok(vec![address]));
    }
    let ((tell, told), asked) = (channel(), name.to_string());
    let ask = move || tell.send(asked.to_socket_addrs().map(Iterator::collect));
    let thread = std::thread::Builder::new().name("resolve".into()).spawn(ask);
    thread.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?;
    let said = told.recv_timeout(end.saturating_duration_since(Instant::now()));
    Ok(said.unwrap_or_else(|_| Err(IoError::other("no name service answers"))))
}

/// Calls at `address` once.
fn attempt(
    address: &SocketAddr,
    place: &RendezvousConfig,
    key: &Key,
    hello: &Hello,
) -> std::result::Result<(Answer, Line), Trouble> {
    let (end, clock) = (place.end(), Instant::now());
    let time = TRY.min(end.saturating_duration_since(clock)).max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(address, time).map_err(Trouble::Unreachable)?;
    let (state, greeting) = call(key)?;
    let (soon, mut bytes, mut answered) = (end.min(clock + HANDSHAKE), vec![], NO);
    stream
        .set_nodelay(true)
        .and_then(|()| write(&stream, &greeting, soon))
        .and_then(|()| fill(&stream, &mut bytes, GREETING, Some(soon)))
        .map_err(Trouble::Unproven)?;
    answered.copy_from_slice(&bytes);
    let noise = complete(state, &answered)?.ok_or(Trouble::Stranger)?;
    let line = Line::new(stream, noise);
    line.send(hello, end).map_err(Trouble::Unanswered)?;
    let answer = line.take(LARGEST, Some(end + GRACE)).map_err(Trouble::Unanswered)?;
    Ok((answer, line))
}

/// The line for the user.
fn line(me: &Member, place: &RendezvousConfig, trouble: Trouble) -> Error {
    let (rank, told, advice) = (me.rank, place.told(), place.advice);
    Error::user(match trouble {
        Trouble::Ours(e) => return e,
        Trouble::Unreachable(e) => {
            format!("rank {rank} cannot reach rank 0 at {told}: {e}; {advice}")
        }
        Trouble::Stranger => format!(
            "who listens at {} does not know the secret of rank {rank}: it has another one, or is \
             another program; {advice}",
            place.addresses.join(", ")
        ),
        Trouble::Unproven(e) => format!(
            "who listens for rank {rank} at {told} has not proved to be rank 0: {e}; {advice}"
        ),
        Trouble::Unanswered(e) if e.kind() == ErrorKind::TimedOut => {
            format!("rank {rank} has reached rank 0, but not all ranks came to {told}; {advice}")
        }
        Trouble::Unanswered(e) => {
            format!("rank {rank} has lost rank 0 before all ranks came to {told}: {e}; {advice}")
        }
    })
}
