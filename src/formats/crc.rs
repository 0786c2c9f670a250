//! The two 32-bit cyclic redundancy checks of our formats, eight bytes at a time: CRC-32 (zip) and
//! CRC-32C (TensorBoard records). Against damage only, not against forgery.

const ZIP: [[u32; 256]; 8] = tables(0xEDB8_8320);
const CASTAGNOLI: [[u32; 256]; 8] = tables(0x82F6_3B78);

/// Row `k` holds the CRC of each byte value followed by `k` zero bytes. `poly` is bit-reversed.
const fn tables(poly: u32) -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ poly } else { crc >> 1 };
            bit += 1;
        }
        t[0][i] = crc;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut i = 0;
        while i < 256 {
            t[k][i] = (t[k - 1][i] >> 8) ^ t[0][(t[k - 1][i] & 0xff) as usize];
            i += 1;
        }
        k += 1;
    }
    t
}

fn crc(t: &[[u32; 256]; 8], data: &[u8]) -> u32 {
    let (words, rest) = data.as_chunks::<8>();
    let mut crc = !0u32;
    for word in words {
        let x = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc = (0..8).fold(0, |acc, k| acc ^ t[7 - k][(x >> (8 * k)) as usize & 0xff]);
    }
    for byte in rest {
        crc = (crc >> 8) ^ t[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    !crc
}

/// CRC-32 as used by zip.
pub(super) fn crc32(data: &[u8]) -> u32 {
    crc(&ZIP, data)
}

/// CRC-32C (Castagnoli).
pub(super) fn crc32c(data: &[u8]) -> u32 {
    crc(&CASTAGNOLI, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of CRC algorithms, and of RFC 3720 for 32 zero bytes.
    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(b""), 0);
    }
}
