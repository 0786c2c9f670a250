//! Messages of limited size between the processes of a run. A [`Line`] is a connection whose two
//! sides have shaken hands (`noise.rs`): everything on it is encrypted and authentic. Bytes that
//! were forged, changed, repeated, reordered or left out end it.
//!
//! A message of Noise holds at most 65,535 bytes, so a message here is one or more pieces. A piece
//! is two bytes of length, most significant first, and a message of Noise, whose text begins with
//! a byte: 1 if more pieces of the same message follow, which is a full piece, else 0.

use crate::base::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snow::TransportState;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Text of a full piece: what a message of Noise holds, without its tag and the first byte.
const PIECE: usize = 65_535 - TAG - 1;
const TAG: usize = 16;

/// Bytes that nobody can guess.
pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::io("read", "/dev/urandom".as_ref(), &e))?;
    Ok(bytes)
}

/// A secret for a run, drawn anew.
pub fn secret() -> Result<String> {
    Ok(random()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// One side of a connection between two processes that have proved that they are of one run.
/// Threads may send and take at the same time.
pub(super) struct Line {
    stream: TcpStream,
    noise: Mutex<TransportState>,
    taken: Mutex<Taken>,
    /// Held from the sealing of a message to its last byte: they go in the order of their numbers.
    sending: Mutex<()>,
    failure: OnceLock<String>,
}

/// The parts that have come of a piece and of its message.
#[derive(Default)]
struct Taken {
    piece: Vec<u8>,
    message: Vec<u8>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a line over {:?}", self.stream)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad(what: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, what)
}

impl Line {
    /// A connection whose handshake has ended in `noise`.
    pub(super) fn new(stream: TcpStream, noise: TransportState) -> Line {
        Line {
            stream,
            noise: Mutex::new(noise),
            taken: Mutex::default(),
            sending: Mutex::default(),
            failure: OnceLock::new(),
        }
    }

    /// The connection itself, to wait for it.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// From now on calls wait for the other side, where the stream was made not to wait.
    pub(super) fn wait_for_bytes(&self) -> std::io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(None)
    }

    /// Ends the connection in both directions.
    pub(super) fn shut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Why this side has ended the connection, if it has.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// True if the other side is there and has sent nothing. For streams that do not wait.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.stream.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
    }

    /// The bytes of the message `what`, which must be sent next.
    pub(super) fn seal(&self, what: &impl Serialize) -> std::io::Result<Vec<u8>> {
        let text = serde_json::to_vec(what)?;
        let mut noise = lock(&self.noise);
        let mut sealed = vec![];
        let mut pieces = text.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            let more = u8::from(pieces.peek().is_some());
            let plain = [&[more], piece].concat();
            let at = sealed.len() + 2;
            sealed.extend(((plain.len() + TAG) as u16).to_be_bytes());
            sealed.resize(at + plain.len() + TAG, 0);
            let written = noise.write_message(&plain, &mut sealed[at..]);
            written.map_err(|e| std::io::Error::other(e.to_string()))?;
        }
        Ok(sealed)
    }

    /// Sends a message until `end`. One that is not sent whole ends the connection: nothing after
    /// it could be understood.
    pub(super) fn send(&self, what: &impl Serialize, end: Instant) -> std::io::Result<()> {
        let _one = lock(&self.sending);
        let sealed = self.seal(what)?;
        let sent = write(&self.stream, &sealed, end);
        if sent.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut) {
            let _ = self.failure.set("it took no more bytes".into());
            self.shut();
        }
        sent
    }

    /// Sends as much of `sealed` as goes without waiting, and takes it off; true if that is all.
    pub(super) fn push(&self, sealed: &mut Vec<u8>) -> std::io::Result<bool> {
        while !sealed.is_empty() {
            match (&self.stream).write(sealed) {
                Ok(n) => drop(sealed.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Takes a message of at most `most` bytes, until `end` if there is one. On a stream that does
    /// not wait `WouldBlock` says that it has not come whole; the next call goes on.
    pub(super) fn take<T: DeserializeOwned>(
        &self,
        most: usize,
        end: Option<Instant>,
    ) -> std::io::Result<T> {
        let mut taken = lock(&self.taken);
        loop {
            self.fill_piece(&mut taken.piece, end)?;
            let piece = std::mem::take(&mut taken.piece);
            let mut plain = vec![0; piece.len()];
            let opened = lock(&self.noise).read_message(&piece[2..], &mut plain);
            let n = opened.map_err(|_| bad("bytes came that are not the other side's"))?;
            let Some((more, text)) = plain[..n].split_first() else {
                return Err(bad("a piece of nothing"));
            };
            if taken.message.len() + text.len() > most {
                return Err(bad("a message that is too long"));
            }
            taken.message.extend_from_slice(text);
            match (more, text.len()) {
                (0, _) => {
                    let text = std::mem::take(&mut taken.message);
                    return serde_json::from_slice(&text).map_err(|_| bad("a message of nonsense"));
                }
                (1, PIECE) => {}
                _ => return Err(bad("a piece of another kind")),
            }
        }
    }

    /// Reads until `piece` is whole with its length.
    fn fill_piece(&self, piece: &mut Vec<u8>, end: Option<Instant>) -> std::io::Result<()> {
        loop {
            let whole = match piece[..] {
                [high, low, ..] => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => 2,
            };
            if whole > 2 && piece.len() == whole {
                return Ok(());
            }
            // A length of nothing.
            if piece.len() == whole {
                return Err(bad("bytes came that are not the other side's"));
            }
            fill(&self.stream, piece, whole, end)?;
        }
    }
}

/// Reads on until there are `whole` bytes, until `end` if there is one, however slowly they come.
pub(super) fn fill(
    mut from: &TcpStream,
    bytes: &mut Vec<u8>,
    whole: usize,
    end: Option<Instant>,
) -> std::io::Result<()> {
    while bytes.len() < whole {
        if let Some(end) = end {
            from.set_read_timeout(Some(left(end)?))?;
        }
        let at = bytes.len();
        bytes.resize(whole, 0);
        let read = from.read(&mut bytes[at..]);
        bytes.truncate(at + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // So a time-out is told.
            Err(e) if e.kind() == ErrorKind::WouldBlock && end.is_some() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes `bytes` until `end`, however slowly they are taken.
pub(super) fn write(mut to: &TcpStream, mut bytes: &[u8], end: Instant) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.set_write_timeout(Some(left(end)?))?;
        match to.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if [ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&e.kind()) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The time until `end`; an error if there is none.
fn left(end: Instant) -> std::io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pair;
    use super::*;

    #[test]
    fn messages_of_all_sizes_come_whole_and_too_long_ones_do_not() {
        let soon = || Instant::now() + Duration::from_secs(20);
        for n in [0, 1, 65_515, 65_516, 65_517, 65_518, 200_000, (1 << 20) - 2] {
            let (guest, host) = pair();
            let text = "x".repeat(n);
            std::thread::scope(|scope| {
                scope.spawn(|| guest.send(&text, soon()).unwrap());
                assert_eq!(host.take::<String>(1 << 20, Some(soon())).unwrap(), text);
                scope.spawn(|| host.send(&text, soon()).unwrap());
                assert_eq!(guest.take::<String>(1 << 20, Some(soon())).unwrap(), text);
                scope.spawn(|| drop(guest.send(&format!("{text}yy"), soon())));
                let most = (n + 3).min(1 << 20);
                assert!(host.take::<String>(most, Some(soon())).is_err());
                host.shut();
            });
        }
    }
}
