//! Event files, read back by a parser written from the formats' descriptions alone: TFRecord
//! framing and the protocol-buffer wire format.

use super::super::EventWriter;
use super::fresh_rng;
use crate::formats::OutDir;
use std::collections::BTreeMap;
use std::fs;

/// CRC-32C bit by bit, for comparison with the crate's.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
        })
    })
}

fn unmask(masked: [u8; 4]) -> u32 {
    u32::from_le_bytes(masked).wrapping_sub(0xa282_ead8).rotate_left(15)
}

fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(unmask(file[8..12].try_into().unwrap()), crc32c(&file[..8]));
        let data = &file[12..12 + length];
        assert_eq!(unmask(file[12 + length..16 + length].try_into().unwrap()), crc32c(data));
        out.push(data.to_vec());
        file = &file[16 + length..];
    }
    out
}

fn varint(data: &mut &[u8]) -> u64 {
    let mut x = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = data.split_first().unwrap();
        *data = rest;
        x |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    x
}

/// Fields by number: the raw bytes of the value, varints as eight bytes.
fn fields(mut data: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let mut out = BTreeMap::new();
    while !data.is_empty() {
        let tag = varint(&mut data);
        let value = match tag & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            wire => {
                let n = match wire {
                    1 => 8,
                    2 => varint(&mut data) as usize,
                    5 => 4,
                    _ => panic!("wire type {wire}"),
                };
                let (head, rest) = data.split_at(n);
                data = rest;
                head.to_vec()
            }
        };
        assert!(out.insert(tag >> 3, value).is_none(), "field {} twice", tag >> 3);
    }
    out
}

#[test]
fn reference_crc_known_answer() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
}

#[test]
fn events_read_back() {
    let mut rng = fresh_rng();
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("runs/a");
    let mut writer = EventWriter::create(&OutDir::create(&logs).unwrap()).unwrap();
    let mut wanted = Vec::new();
    for i in 0..200u64 {
        let step = u64::from(rng.next_u32()) << (i % 32);
        let x = f32::from_bits(rng.next_u32());
        writer.scalar(step, "ppo/kl", x).unwrap();
        wanted.push((step, x));
    }
    writer.text(7, "sample", "**Q** wörld\nA").unwrap();
    writer.flush().unwrap();

    let name = writer.path().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("events.out.tfevents."), "{name}");
    let all = records(&fs::read(writer.path()).unwrap());
    assert_eq!(all.len(), 202);
    let first = fields(&all[0]);
    assert_eq!(first[&3], b"brain.Event:2");
    let seconds = f64::from_le_bytes(first[&1][..].try_into().unwrap());
    assert!(seconds > 1.7e9 && seconds < 1e11, "{seconds}");
    for ((step, x), record) in wanted.iter().zip(&all[1..]) {
        let event = fields(record);
        assert_eq!(event[&2], step.to_le_bytes());
        let value = fields(&fields(&event[&5])[&1]);
        assert_eq!(value[&1], b"ppo/kl");
        assert_eq!(value[&2], x.to_le_bytes());
    }
    let value = fields(&fields(&fields(&all[201])[&5])[&1]);
    assert_eq!(value[&1], b"sample");
    let tensor = fields(&value[&8]);
    assert_eq!(tensor[&1], 7u64.to_le_bytes());
    assert_eq!(fields(&fields(&tensor[&2])[&2])[&1], 1u64.to_le_bytes());
    assert_eq!(tensor[&8], "**Q** wörld\nA".as_bytes());
    assert_eq!(fields(&fields(&value[&9])[&1])[&1], b"text");

    // A second writer in the same second gets a file of its own.
    let other = EventWriter::create(&OutDir::create(&logs).unwrap()).unwrap();
    assert_ne!(other.path(), writer.path());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    super::refused(OutDir::create(&dir.path().join("file/logs")), &["file/logs"]);
}
