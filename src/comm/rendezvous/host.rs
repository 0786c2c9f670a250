//! Rank 0's side of the rendezvous.

use super::door::{Door, wait};
use super::messages::{Answer, GRACE, Hello, Met, RendezvousConfig};
use crate::base::{Error, Result};
use crate::comm::member::{Lines, Member};
use crate::comm::noise::Key;
use crate::comm::wire::Line;
use rustix::event::{PollFd, PollFlags};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much later others may come to a meeting that is none.
const LATE: Duration = Duration::from_secs(2);
/// How long all together may take to take the answer.
const ANSWERS: Duration = Duration::from_secs(5);

/// Listens for the others, who come to `address`.
pub(in crate::comm) fn bind(address: &str) -> Result<TcpListener> {
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

/// Those of the run that wait at rank 0 for the others.
struct Host<'a> {
    me: &'a Member,
    place: &'a RendezvousConfig,
    door: Door,
    guests: Vec<(Hello, Line)>,
    /// Ranks whose connection has ended.
    left: BTreeSet<usize>,
}

/// Meets the others, who come to `listener`.
pub(in crate::comm) fn serve(
    me: &Member,
    place: &RendezvousConfig,
    gift: &[u8],
    listener: TcpListener,
) -> Result<(Met, Lines)> {
    let door = Door::open(listener, Key::of(&place.secret))?;
    let mut host = Host { me, place, door, guests: vec![], left: BTreeSet::new() };
    let checked = host.gather();
    if checked.is_err() {
        host.drain();
    }
    let answer = match &checked {
        Ok(members) => Answer::Met(Met { members: members.clone(), gift: gift.to_vec() }),
        Err(e) => Answer::Refused(e.to_string()),
    };
    tell(&host.guests, &answer, (Instant::now() + ANSWERS).min(place.end() + GRACE))?;
    let met = Met { members: checked?, gift: gift.to_vec() };
    let lines = host.guests.into_iter();
    Ok((met, lines.map(|(hello, line)| (hello.member.rank, Arc::new(line))).collect()))
}

impl Host<'_> {
    /// Waits for all ranks and checks that they are of one run.
    fn gather(&mut self) -> Result<Vec<Member>> {
        let end = self.place.end();
        while self.guests.len() + 1 < self.me.size {
            if Instant::now() >= end {
                return Err(self.missing());
            }
            for guest in self.step(end)? {
                let rank = guest.0.member.rank;
                self.guests.push(guest);
                self.left.remove(&rank);
                self.check_last()?;
            }
        }
        let guests = self.guests.iter().map(|(hello, _)| &hello.member);
        let mut members: Vec<Member> = std::iter::once(self.me).chain(guests).cloned().collect();
        members.sort_by_key(|member| member.rank);
        Ok(members)
    }

    /// Waits until somebody comes, goes or speaks, at most until `end`; returns who has come.
    fn step(&mut self, end: Instant) -> Result<Vec<(Hello, Line)>> {
        let mut all = self.door.waits_for();
        let callers = all.len();
        let guests = self.guests.iter().map(|(_, line)| line.stream());
        all.extend(guests.map(|stream| PollFd::new(stream, PollFlags::IN)));
        let end = self.door.next().map_or(end, |next| next.min(end));
        let ready = wait(all, end)?;
        // They have nothing to say until they are answered. One whose connection broke comes again.
        let mut spoke = ready[callers..].iter();
        self.guests.retain(|(hello, line)| {
            let stays = !spoke.next().is_some_and(|spoke| *spoke) || line.is_quiet();
            if !stays {
                self.left.insert(hello.member.rank);
            }
            stays
        });
        self.door.step(&ready[..callers])
    }

    /// Checks the guest that came last.
    fn check_last(&mut self) -> Result<()> {
        let Some(((new, _), others)) = self.guests.split_last() else { return Ok(()) };
        compare(self.me, &new.member)?;
        let rank = new.member.rank;
        let before = others.iter().position(|(hello, _)| hello.member.rank == rank);
        let other = before.map_or(self.me, |i| &others[i].0.member);
        match before {
            None if rank != self.me.rank => Ok(()),
            // The earlier connection has ended, which the process may know before us.
            Some(i) if others[i].0.process == new.process || !others[i].1.is_quiet() => {
                self.guests.swap_remove(i);
                Ok(())
            }
            _ => Err(Error::user(format!(
                "rank {rank} came twice, from {} and from {}; start every rank once",
                other.host, new.member.host
            ))),
        }
    }

    /// The error that names those who are not here.
    fn missing(&self) -> Error {
        let list = |ranks: &mut dyn Iterator<Item = usize>| {
            ranks.map(|r| r.to_string()).collect::<Vec<_>>().join(", ")
        };
        let here = |r: &usize| self.guests.iter().any(|(hello, _)| hello.member.rank == *r);
        let absent: Vec<usize> = (1..self.me.size).filter(|r| !here(r)).collect();
        let (size, place) = (self.me.size, self.place);
        let mut never = absent.iter().copied().filter(|r| !self.left.contains(r));
        let mut line = match list(&mut never) {
            none if none.is_empty() => format!("not all of {size} ranks met at {}", place.told()),
            never => format!("of {size} ranks, {never} did not come to {}", place.told()),
        };
        let mut left = absent.iter().copied().filter(|r| self.left.contains(r));
        let left = list(&mut left);
        if !left.is_empty() {
            line += &format!("; the connection of rank {left} ended before");
        }
        if let Some(e) = self.door.trouble() {
            return Error::resource(format!("{line}; rank 0 cannot take more connections: {e}"));
        }
        Error::user(format!("{line}; {}", place.advice))
    }

    /// Lets those come who are on their way, so that they too are told why there is no meeting.
    fn drain(&mut self) {
        let end = self.place.end().min(Instant::now() + LATE);
        while self.guests.len() + 1 < self.me.size && Instant::now() < end {
            let Ok(came) = self.step(end) else { return };
            self.guests.extend(came);
        }
    }
}

/// Answers all until `end`, each as fast as it takes the answer. One that does not is missed by
/// the next who waits for it.
fn tell(guests: &[(Hello, Line)], answer: &Answer, end: Instant) -> Result<()> {
    let failed = |e: std::io::Error| Error::internal(format!("rendezvous: {e}"));
    let mut open: Vec<(&Line, Vec<u8>)> = vec![];
    for (_, line) in guests {
        open.push((line, line.seal(answer).map_err(failed)?));
    }
    loop {
        open.retain_mut(|(line, rest)| match line.push(rest) {
            Ok(all) => !all,
            Err(_) => false,
        });
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            break;
        }
        let all = open.iter().map(|(line, _)| PollFd::new(line.stream(), PollFlags::OUT));
        wait(all.collect(), end)?;
    }
    // With half an answer nothing more can be said.
    open.iter().for_each(|(line, _)| line.shut());
    Ok(())
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
