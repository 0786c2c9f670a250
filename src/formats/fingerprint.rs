//! Checksums of bytes and fingerprints of files: XXH3 of 64 bits. It runs at the speed of memory,
//! so that checking a file costs no more than reading it, and misses one damage in 2^64, where a
//! CRC of 32 bits misses one in 2^32. Against damage only, not against forgery.

use crate::base::{InFile, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A checksum; in text 16 digits of lower-case hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sum(pub u64);

impl Sum {
    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> Sum {
        Sum(xxh3_64(bytes))
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> String {
        sum.to_string()
    }
}

impl TryFrom<String> for Sum {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Sum, String> {
        let sum = u64::from_str_radix(&text, 16).map(Sum).ok();
        // One spelling only: else a damaged letter could mean the same.
        sum.filter(|s| s.to_string() == text).ok_or_else(|| "a checksum is 16 digits".to_string())
    }
}

/// Size and checksum of a file, to notice a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Size in bytes.
    pub bytes: u64,
    /// Checksum of the whole content.
    pub checksum: Sum,
}

impl Fingerprint {
    /// The fingerprint of a file that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Fingerprint {
        Fingerprint { bytes: bytes.len() as u64, checksum: Sum::of(bytes) }
    }
}

/// The fingerprint of one file.
pub fn fingerprint(path: &Path) -> Result<Fingerprint> {
    let (mut bytes, mut sum) = (0, Xxh3::new());
    InFile::open(path)?.pieces(|piece| {
        bytes += piece.len() as u64;
        sum.update(piece);
    })?;
    Ok(Fingerprint { bytes, checksum: Sum(sum.digest()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_answer_for_nothing() {
        assert_eq!(Sum::of(b"").to_string(), "2d06800538d394c2");
    }

    #[test]
    fn a_fingerprint_notices_a_changed_byte_and_is_the_checksum_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut data: Vec<u8> = (0..600_000u32).map(|i| (i * 7 + i / 911) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let before = fingerprint(&path).unwrap();
        assert_eq!(before, Fingerprint { bytes: 600_000, checksum: Sum::of(&data) });
        data[432_101] ^= 4;
        std::fs::write(&path, &data).unwrap();
        assert_ne!(fingerprint(&path).unwrap(), before);
    }

    #[test]
    fn a_checksum_has_one_spelling() {
        let sum = Sum(0xab);
        assert_eq!(Sum::try_from(String::from(sum)), Ok(sum));
        for bad in ["ab", "00000000000000AB", "+0000000000000ab", ""] {
            assert!(Sum::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
