//! The handshake by which two processes prove to each other that they know the run's secret, and
//! agree on keys for everything after it: `NNpsk0` of the Noise protocol framework. The one that
//! calls sends 48 bytes, the other answers with 48: no lengths, and nothing of the run. The
//! secret is never sent. Both sides draw fresh keys, so old messages are of no use to anybody.

use crate::base::{Error, Result};
use snow::{Builder, HandshakeState, TransportState};

/// The protocol: Diffie-Hellman on Curve25519, ChaCha20-Poly1305 and BLAKE2s.
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Both sides must have the same: the second protocol by which ranks meet.
const PROLOGUE: &[u8] = b"duplex rendezvous 2";
/// Bytes of either message: a public key, and the tag of an empty text.
pub(super) const GREETING: usize = 48;
/// A message of the handshake.
pub(super) type Greeting = [u8; GREETING];
/// The answer to one whose call does not show that it knows the secret. It is authentic to nobody.
pub(super) const NO: Greeting = [0; GREETING];

/// The key that the processes of a run share.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The key that comes from the run's secret.
    pub(super) fn of(secret: &str) -> Key {
        Key(blake3::derive_key(
            "duplex rendezvous 2: the pre-shared key of Noise",
            secret.as_bytes(),
        ))
    }

    fn builder(&self) -> std::result::Result<Builder<'_>, snow::Error> {
        Builder::new(PATTERN.parse()?).prologue(PROLOGUE)?.psk(0, &self.0)
    }
}

/// Only without random numbers, or by a mistake of ours.
fn failed(e: snow::Error) -> Error {
    match e {
        snow::Error::Rng => Error::resource("the system gives no random numbers"),
        e => Error::internal(format!("handshake: {e}")),
    }
}

/// Begins a handshake; returns what to send.
pub(super) fn call(key: &Key) -> Result<(HandshakeState, Greeting)> {
    let mut state = key.builder().and_then(Builder::build_initiator).map_err(failed)?;
    let mut greeting = NO;
    state.write_message(&[], &mut greeting).map_err(failed)?;
    Ok((state, greeting))
}

/// Answers a call; `None` if the caller does not know the secret. One who repeats what another has
/// sent gets an answer too, of which it can make nothing.
pub(super) fn answer(key: &Key, called: &Greeting) -> Result<Option<(TransportState, Greeting)>> {
    let mut state = key.builder().and_then(Builder::build_responder).map_err(failed)?;
    if state.read_message(called, &mut []).is_err() {
        return Ok(None);
    }
    let mut greeting = NO;
    state.write_message(&[], &mut greeting).map_err(failed)?;
    Ok(Some((state.into_transport_mode().map_err(failed)?, greeting)))
}

/// Takes the answer; `None` if the other side does not know the secret.
pub(super) fn complete(
    mut state: HandshakeState,
    answer: &Greeting,
) -> Result<Option<TransportState>> {
    match state.read_message(answer, &mut []) {
        Ok(_) => state.into_transport_mode().map(Some).map_err(failed),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_who_know_the_secret_agree_and_no_one_else() {
        let (key, other) = (Key::of("a secret"), Key::of("another"));
        let (state, called) = call(&key).unwrap();
        assert!(answer(&other, &called).unwrap().is_none());
        let (mut host, answered) = answer(&key, &called).unwrap().unwrap();
        let mut guest = complete(state, &answered).unwrap().unwrap();
        let (mut sealed, mut text) = ([0; 21], [0; 5]);
        guest.write_message(b"hello", &mut sealed).unwrap();
        assert_eq!(host.read_message(&sealed, &mut text), Ok(5));
        assert_eq!(&text, b"hello");
        // The same again, and what it said itself.
        assert!(host.read_message(&sealed, &mut text).is_err());
        guest.write_message(b"hello", &mut sealed).unwrap();
        assert!(guest.read_message(&sealed, &mut text).is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_handshake_is_noticed() {
        let key = Key::of("a secret");
        for bit in 0..8 * GREETING {
            let (state, mut called) = call(&key).unwrap();
            let (_, mut answered) = answer(&key, &called).unwrap().unwrap();
            called[bit / 8] ^= 1 << (bit % 8);
            answered[bit / 8] ^= 1 << (bit % 8);
            assert!(answer(&key, &called).unwrap().is_none());
            assert!(complete(state, &answered).unwrap().is_none());
        }
        assert!(complete(call(&key).unwrap().0, &NO).unwrap().is_none());
    }
}
