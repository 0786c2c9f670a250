//! Where the processes of a run meet before there is a network between them: rank 0 listens, the
//! others come to it over TCP. They learn who takes part, get what rank 0 has for them (NCCL's id),
//! and find out at once if they are not of one run. Both sides prove that they know the run's
//! secret, which is never sent. The connections remain, as the run's [`Monitor`](super::Monitor).

use super::member::{Lines, Member};
use super::monitor::Monitor;
use super::wire::{SILENCE, Sealed, fill, opened, random, seal, send, take};
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Where and how the ranks meet.
#[derive(Clone, Debug)]
pub struct RendezvousConfig {
    /// Host and port that rank 0 listens at, as the others see it.
    pub address: String,
    /// The secret that only the processes of the run know.
    pub secret: String,
    /// How long to wait for the others.
    pub timeout: Duration,
}

/// The result of a rendezvous.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Met {
    /// All ranks, in order.
    pub members: Vec<Member>,
    /// The bytes that rank 0 gave to all.
    pub gift: Vec<u8>,
}

/// Largest message: of a configuration and a thousand members there is room.
const LARGEST: usize = 1 << 20;
/// How much later others may come to a meeting that is none.
const LATE: Duration = Duration::from_secs(2);
/// Callers that are listened to at a time; others are turned away, and may call again.
const CALLERS: usize = 1024;

/// Meets the other ranks; `gift` is rank 0's for all.
///
/// # Errors
/// Not all come in time, or they are not of one run: each gets the line that names who differs, and
/// in what.
pub fn rendezvous(
    me: &Member,
    place: &RendezvousConfig,
    gift: &[u8],
) -> Result<(Met, Arc<Monitor>)> {
    let (met, lines) = meet(me, place, gift)?;
    let monitor = Monitor::new(me.rank, &met.members, lines)?;
    Ok((met, monitor))
}

fn meet(me: &Member, place: &RendezvousConfig, gift: &[u8]) -> Result<(Met, Lines)> {
    if me.rank > 0 {
        return join(me, place);
    }
    serve(me, place, gift, bind(&place.address)?)
}

/// Listens for the others, who come to `address`.
pub(super) fn bind(address: &str) -> Result<TcpListener> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let Some(port) = port else {
        return Err(Error::user(format!("{address:?} is no host and port to meet at")));
    };
    TcpListener::bind(("0.0.0.0", port)).map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => Error::user(format!(
            "port {port} of this machine is taken by another program; choose another (MASTER_PORT)"
        )),
        _ => Error::user(format!("cannot listen on port {port}: {e}")),
    })
}

/// The message of a rank that joins, in answer to rank 0's random number.
#[derive(Serialize, Deserialize)]
struct Hello {
    nonce: [u8; 32],
    member: Member,
}

/// The host's answer: the meeting, or the reason why there is none.
#[derive(Serialize, Deserialize)]
enum Answer {
    Met(Met),
    Refused(String),
}

/// One who has proved that it is of the run, and its own random number.
type Guest = (Member, [u8; 32], TcpStream);

/// Rank 0's side.
pub(super) fn serve(
    me: &Member,
    place: &RendezvousConfig,
    gift: &[u8],
    listener: TcpListener,
) -> Result<(Met, Lines)> {
    let end = Instant::now() + place.timeout;
    let failed = |e: std::io::Error| Error::resource(format!("rendezvous: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let ((accepted, guests), ended) = (channel::<Guest>(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let listen = || listen(&listener, place, end, &accepted, &ended);
        std::thread::Builder::new().spawn_scoped(scope, listen).map_err(failed)?;
        let mut here = vec![];
        let checked = gather(me, place, end, &guests, &mut here);
        if checked.is_err() {
            drain(me, end, &guests, &mut here);
        }
        ended.store(true, Ordering::SeqCst);
        let answer = match &checked {
            Ok(members) => Answer::Met(Met { members: members.clone(), gift: gift.to_vec() }),
            Err(e) => Answer::Refused(e.to_string()),
        };
        for (_, nonce, stream) in &mut here {
            let sent = seal(&place.secret, "host", nonce, &answer)?;
            // Who has gone meanwhile is missed by the next who waits for it.
            let _ = stream.set_write_timeout(Some(SILENCE)).and_then(|()| send(stream, &sent));
        }
        let met = Met { members: checked?, gift: gift.to_vec() };
        Ok((met, here.into_iter().map(|(member, _, stream)| (member.rank, stream)).collect()))
    })
}

/// Lets in who comes until the meeting has `ended`, each on a thread of its own: one that keeps
/// silent keeps nobody waiting, not even at the end.
fn listen(
    listener: &TcpListener,
    place: &RendezvousConfig,
    end: Instant,
    accepted: &Sender<Guest>,
    ended: &AtomicBool,
) {
    let open = Arc::new(AtomicUsize::new(0));
    while !ended.load(Ordering::SeqCst) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= CALLERS {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (accepted, open, place) = (accepted.clone(), open.clone(), place.clone());
        std::thread::spawn(move || {
            if let Some(hello) = greet(&mut stream, &place, end) {
                let _ = accepted.send((hello.member, hello.nonce, stream));
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Asks one who has connected who it is; `None` for one who is not of the run.
fn greet(stream: &mut TcpStream, place: &RendezvousConfig, end: Instant) -> Option<Hello> {
    let nonce = random().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_write_timeout(Some(SILENCE)).ok()?;
    stream.write_all(&nonce).ok()?;
    let sealed: Sealed = take(stream, LARGEST, end.min(Instant::now() + SILENCE)).ok()?;
    opened(&sealed, &place.secret, "guest", &nonce)
}

/// Waits for all ranks and checks that they are of one run. `here` are those that wait for an
/// answer.
fn gather(
    me: &Member,
    place: &RendezvousConfig,
    end: Instant,
    guests: &Receiver<Guest>,
    here: &mut Vec<Guest>,
) -> Result<Vec<Member>> {
    let mut members: BTreeMap<usize, Member> = BTreeMap::from([(me.rank, me.clone())]);
    while members.len() < me.size {
        match guests.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(guest) => {
                let member = guest.0.clone();
                here.push(guest);
                compare(me, &member)?;
                if let Some(other) = members.insert(member.rank, member.clone()) {
                    return Err(Error::user(format!(
                        "rank {} came twice, from {} and from {}; start every rank once",
                        member.rank, other.host, member.host
                    )));
                }
            }
            Err(_) => {
                let missing = (0..me.size).filter(|r| !members.contains_key(r));
                let missing: Vec<String> = missing.map(|r| r.to_string()).collect();
                return Err(Error::user(format!(
                    "of {} ranks, {} did not come to {} within {} s; start all with the same \
                     MASTER_ADDR, MASTER_PORT, WORLD_SIZE and secret",
                    me.size,
                    missing.join(", "),
                    place.address,
                    place.timeout.as_secs_f64()
                )));
            }
        }
    }
    Ok(members.into_values().collect())
}

/// Lets those come who are on their way, so that they too are told why there is no meeting.
fn drain(me: &Member, end: Instant, guests: &Receiver<Guest>, here: &mut Vec<Guest>) {
    let end = end.min(Instant::now() + LATE);
    while here.len() + 1 < me.size {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(guest) = guests.recv_timeout(left) else { return };
        here.push(guest);
    }
}

/// Refuses a member of another run than rank 0's.
fn compare(me: &Member, other: &Member) -> Result<()> {
    let (rank, host) = (other.rank, &other.host);
    if other.size != me.size || rank >= me.size {
        return Err(Error::user(format!(
            "rank {rank} on {host} was started as one of {}, rank 0 on {} as one of {}",
            other.size, me.host, me.size
        )));
    }
    let keys = me.alike.keys().chain(other.alike.keys());
    let mut differing = keys.filter(|k| me.alike.get(*k) != other.alike.get(*k));
    let Some(key) = differing.next() else { return Ok(()) };
    let value = |member: &Member| member.alike.get(key).map_or("nothing".into(), String::clone);
    Err(Error::user(format!(
        "rank {rank} on {host} has {} for {key}, rank 0 on {} has {}; start all ranks with the \
         same program, flags and data",
        value(other),
        me.host,
        value(me)
    )))
}

/// The side of the others.
pub(super) fn join(me: &Member, place: &RendezvousConfig) -> Result<(Met, Lines)> {
    let end = Instant::now() + place.timeout;
    let mut stream = connect(me, place, end)?;
    let lost = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Error::user(format!(
                "who listens at {} did not let rank {} in: it has another secret, or is another \
                 program; check MASTER_ADDR, MASTER_PORT and the secret",
                place.address, me.rank
            ))
        }
        _ => Error::user(format!(
            "who listens at {} did not answer rank {} within {} s: {e}",
            place.address,
            me.rank,
            place.timeout.as_secs_f64()
        )),
    };
    let mut nonce = [0; 32];
    fill(&mut stream, &mut nonce, end).map_err(lost)?;
    let hello = Hello { nonce: random()?, member: me.clone() };
    let sealed = seal(&place.secret, "guest", &nonce, &hello)?;
    send(&mut stream, &sealed).map_err(lost)?;
    // The host may wait for others as long as we; its answer needs a little more.
    let sealed: Sealed = take(&mut stream, LARGEST, end + SILENCE).map_err(lost)?;
    match opened(&sealed, &place.secret, "host", &hello.nonce) {
        Some(Answer::Met(met)) => Ok((met, vec![(0, stream)])),
        Some(Answer::Refused(why)) => Err(Error::user(why)),
        None => Err(lost(ErrorKind::UnexpectedEof.into())),
    }
}

/// Connects to rank 0, which may not listen yet.
fn connect(me: &Member, place: &RendezvousConfig, end: Instant) -> Result<TcpStream> {
    loop {
        let tried = place.address.to_socket_addrs().and_then(|mut all| {
            let address = all.next().ok_or(ErrorKind::AddrNotAvailable)?;
            let left = end.saturating_duration_since(Instant::now());
            TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1)))
        });
        match tried {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= end || e.kind() == ErrorKind::InvalidInput => {
                return Err(Error::user(format!(
                    "rank {} cannot reach rank 0 at {} within {} s: {e}; check MASTER_ADDR and \
                     MASTER_PORT",
                    me.rank,
                    place.address,
                    place.timeout.as_secs_f64()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;

    fn member(rank: usize, size: usize) -> Member {
        let alike = BTreeMap::from([("version".to_string(), "1".to_string())]);
        Member { rank, size, host: format!("host-{rank}"), alike }
    }

    /// A place on this machine that was free a moment ago.
    fn place(millis: u64) -> RendezvousConfig {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let timeout = Duration::from_millis(millis);
        RendezvousConfig { address: free.to_string(), secret: "a secret".into(), timeout }
    }

    /// Has all members meet, with what each says.
    fn meet_all(members: &[Member], place: &RendezvousConfig) -> Vec<Result<Met>> {
        std::thread::scope(|scope| {
            let one = |m| scope.spawn(move || meet(m, place, b"for all").map(|(met, _)| met));
            let all: Vec<_> = members.iter().map(one).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn lines(met: &[Result<Met>]) -> Vec<String> {
        let line = |m: &Result<Met>| m.as_ref().unwrap_err().to_string();
        met.iter().map(line).collect()
    }

    #[test]
    fn all_ranks_meet_and_get_what_the_first_gives() {
        for size in [1, 2, 5] {
            let members: Vec<Member> = (0..size).map(|r| member(r, size)).collect();
            for met in meet_all(&members, &place(20_000)) {
                assert_eq!(
                    met.unwrap(),
                    Met { members: members.clone(), gift: b"for all".to_vec() }
                );
            }
        }
    }

    #[test]
    fn strangers_are_not_let_in_and_keep_nobody_waiting() {
        let place = place(20_000);
        let members = [member(0, 2), member(1, 2)];
        let started = Instant::now();
        std::thread::scope(|scope| {
            let host = scope.spawn(|| meet(&members[0], &place, &[]));
            let mut callers = vec![];
            for i in 0..20 {
                let mut stream = loop {
                    match TcpStream::connect(&place.address) {
                        Ok(stream) => break stream,
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                };
                // Some send junk, some a length without end, some nothing.
                let junk = [&b"GET / HTTP/1.1\r\n\r\n"[..], &u32::MAX.to_le_bytes(), &[]];
                let _ = stream.write_all(junk[i % 3]);
                callers.push(stream);
            }
            let other = RendezvousConfig { secret: "another".into(), ..place.clone() };
            let e = meet(&members[1], &other, &[]).unwrap_err();
            assert!(e.to_string().contains("did not let rank 1 in: it has another secret"), "{e}");
            meet(&members[1], &place, &[]).unwrap();
            host.join().unwrap().unwrap();
        });
        assert!(started.elapsed() < SILENCE / 2);
    }

    #[test]
    fn a_rank_that_is_missing_or_there_twice_is_named() {
        for e in lines(&meet_all(&[member(0, 4), member(2, 4)], &place(300))) {
            assert!(e.starts_with("of 4 ranks, 1, 3 did not come to 127.0.0.1:"), "{e}");
            assert!(e.contains("within 0.3 s"), "{e}");
        }
        let met = meet_all(&[member(0, 3), member(1, 3), member(1, 3)], &place(20_000));
        for e in lines(&met) {
            assert!(e.starts_with("rank 1 came twice, from host-1 and from host-1"), "{e}");
        }
        let place = place(200);
        let e = meet(&member(1, 2), &place, &[]).unwrap_err();
        assert_eq!(e.kind(), Kind::User);
        assert!(e.to_string().contains("rank 1 cannot reach rank 0 at 127.0.0.1:"), "{e}");
    }

    #[test]
    fn ranks_of_different_runs_are_told_what_differs() {
        let met = meet_all(&[member(0, 2), member(1, 3)], &place(20_000));
        for e in lines(&met) {
            assert_eq!(e, "rank 1 on host-1 was started as one of 3, rank 0 on host-0 as one of 2");
        }
        let mut other = member(1, 2);
        other.alike.insert("dtype".into(), "f32".into());
        for e in lines(&meet_all(&[member(0, 2), other], &place(20_000))) {
            assert!(e.contains("rank 1 on host-1 has f32 for dtype, rank 0 on host-0 has nothing"));
        }
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
        let place = RendezvousConfig { address, ..place(1000) };
        let e = meet(&member(0, 2), &place, &[]).unwrap_err().to_string();
        assert!(e.contains("is taken by another program; choose another (MASTER_PORT)"), "{e}");
        let place = RendezvousConfig { address: "nowhere".into(), ..place };
        assert!(meet(&member(0, 2), &place, &[]).is_err());
    }
}
