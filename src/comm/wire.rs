//! Messages of limited size between the processes of a run, over TCP. A sealed message proves that
//! its sender knows the run's secret, which is never sent. The proof is a hash of the message and
//! of the receiver's fresh random number, keyed with the secret. The rendezvous and the monitor
//! decide which messages are sent, and when.

use crate::base::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long one who has connected may keep silent.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// A message with the proof that its sender knows the secret.
#[derive(Serialize, Deserialize)]
pub(super) struct Sealed {
    body: String,
    proof: [u8; 32],
}

/// The keyed hash of what `who` says to one who sent `nonce`.
fn proof(secret: &str, who: &str, nonce: &[u8; 32], body: &str) -> blake3::Hash {
    let key = blake3::derive_key("duplex rendezvous: the secret of a run", secret.as_bytes());
    blake3::keyed_hash(&key, &[who.as_bytes(), nonce, body.as_bytes()].concat())
}

/// Seals the message `what` of `who` to the sender of `nonce`.
pub(super) fn seal(
    secret: &str,
    who: &str,
    nonce: &[u8; 32],
    what: &impl Serialize,
) -> Result<Sealed> {
    let body = serde_json::to_string(what).map_err(|e| Error::internal(e.to_string()))?;
    let proof = *proof(secret, who, nonce, &body).as_bytes();
    Ok(Sealed { body, proof })
}

/// The message in `sealed`; `None` if its sender does not know the secret. The comparison takes the
/// same time for all.
pub(super) fn opened<T: DeserializeOwned>(
    sealed: &Sealed,
    secret: &str,
    who: &str,
    nonce: &[u8; 32],
) -> Option<T> {
    let knows = proof(secret, who, nonce, &sealed.body) == sealed.proof;
    knows.then(|| serde_json::from_str(&sealed.body).ok()).flatten()
}

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

/// Sends a message.
pub(super) fn send(to: &mut TcpStream, what: &impl Serialize) -> std::io::Result<()> {
    let text = serde_json::to_vec(what)?;
    // In one packet: the second of two would wait until the first is known to have come.
    to.write_all(&[&(text.len() as u32).to_le_bytes()[..], &text].concat())
}

/// Takes a message of at most `most` bytes until `end`.
pub(super) fn take<T: DeserializeOwned>(
    from: &mut TcpStream,
    most: usize,
    end: Instant,
) -> std::io::Result<T> {
    let mut length = [0; 4];
    fill(from, &mut length, end)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    fill(from, &mut text, end)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Fills `bytes` until `end`, however slowly they come.
pub(super) fn fill(
    from: &mut TcpStream,
    mut bytes: &mut [u8],
    end: Instant,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        from.set_read_timeout(Some(left))?;
        match from.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes = &mut bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
