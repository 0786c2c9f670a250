//! For tests: connections whose two sides have shaken hands, and a relay that changes what goes
//! through it.

use super::member::Member;
use super::noise::{GREETING, Greeting, Key, answer, call, complete};
use super::rendezvous::RendezvousConfig;
use super::wire::Line;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const SECRET: &str = "a secret";

pub(super) fn member(rank: usize, size: usize) -> Member {
    let alike = BTreeMap::from([("version".to_string(), "1".to_string())]);
    Member { rank, size, host: format!("host-{rank}"), alike }
}

/// A meeting at `address` that lasts so many milliseconds from now.
pub(super) fn place(address: &str, millis: u64) -> RendezvousConfig {
    RendezvousConfig {
        addresses: vec![address.into()],
        secret: SECRET.into(),
        since: Instant::now(),
        timeout: Duration::from_millis(millis),
        advice: "look again",
    }
}

pub(super) fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An address of this machine that was free a moment ago.
pub(super) fn free() -> String {
    listener().1
}

/// A connection to who listens at `address`, or soon will.
pub(super) fn connect(address: &str) -> TcpStream {
    let clock = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(e) => assert!(clock.elapsed() < Duration::from_secs(20), "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn greeting(mut from: &TcpStream) -> Greeting {
    let mut greeting = [0; GREETING];
    from.read_exact(&mut greeting).unwrap();
    greeting
}

/// Shakes hands as one that calls.
pub(super) fn shake(mut stream: TcpStream) -> Line {
    let (state, called) = call(&Key::of(SECRET)).unwrap();
    stream.write_all(&called).unwrap();
    Line::new(stream.try_clone().unwrap(), complete(state, &greeting(&stream)).unwrap().unwrap())
}

/// Shakes hands as the one that is called.
pub(super) fn shaken(mut stream: TcpStream) -> Line {
    let (noise, answered) = answer(&Key::of(SECRET), &greeting(&stream)).unwrap().unwrap();
    stream.write_all(&answered).unwrap();
    Line::new(stream, noise)
}

/// Both sides of a connection.
pub(super) fn pair() -> (Line, Line) {
    let (listener, address) = listener();
    std::thread::scope(|threads| {
        let called = threads.spawn(|| shaken(listener.accept().unwrap().0));
        (shake(connect(&address)), called.join().unwrap())
    })
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToHost,
    ToGuest,
}

/// The bytes that a relay sends on in place of the last of `parts`, which all went this way of a
/// connection: the greeting, then pieces of messages. Nothing ends the connection.
pub(super) type Change = dyn Fn(Way, &[Vec<u8>]) -> Option<Vec<u8>> + Send + Sync;

/// A relay to `address` for any number of connections; returns its own address.
pub(super) fn relay(address: &str, change: Arc<Change>) -> String {
    let ((listener, own), to) = (listener(), address.to_string());
    std::thread::spawn(move || {
        for guest in listener.incoming() {
            let (guest, host) = (guest.unwrap(), connect(&to));
            let ways = [(Way::ToHost, &guest, &host), (Way::ToGuest, &host, &guest)];
            for (way, from, to) in ways {
                let change = change.clone();
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || {
                    pass(way, &from, &to, &*change);
                    let _ = to.shutdown(Shutdown::Both);
                    let _ = from.shutdown(Shutdown::Both);
                });
            }
        }
    });
    own
}

fn pass(way: Way, from: &TcpStream, mut to: &TcpStream, change: &Change) {
    let mut parts = vec![];
    while let Some(part) = part(from, parts.is_empty()) {
        parts.push(part);
        let Some(bytes) = change(way, &parts) else { return };
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn part(mut from: &TcpStream, first: bool) -> Option<Vec<u8>> {
    let mut part = vec![0; if first { GREETING } else { 2 }];
    from.read_exact(&mut part).ok()?;
    if !first {
        part.resize(2 + usize::from(u16::from_be_bytes([part[0], part[1]])), 0);
        from.read_exact(&mut part[2..]).ok()?;
    }
    Some(part)
}
