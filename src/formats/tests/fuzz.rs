//! Damaged and nonsense files must end in an error or a checked success, never in a panic.

use super::super::Checkpoint;
use super::super::SourceDType::*;
use super::super::pickle::read_state_dict;
use super::torch_file::{PyTensor, archive, pickle, zip_of};
use proptest::prelude::*;
use std::fs;

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
    "b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#;

fn safetensors() -> Vec<u8> {
    let length = (HEADER.len() as u64).to_le_bytes();
    [&length[..], HEADER.as_bytes(), &[7; 14]].concat()
}

fn tensors() -> Vec<PyTensor> {
    let mut a = PyTensor::new("a", F32, &[2, 3], vec![1; 24]);
    (a.shape, a.stride, a.parameter) = (vec![3, 2], vec![1, 3], true);
    vec![a, PyTensor::new("b", I64, &[1], vec![2; 8])]
}

/// Opens the bytes and reads all that opens.
fn exercise(name: &str, file: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, file).unwrap();
    if let Ok(open) = Checkpoint::open_file(&path) {
        for name in open.names() {
            let size = open.info(name).unwrap().checked_bytes().unwrap();
            if let Ok(raw) = open.read_raw(name) {
                assert_eq!(raw.len(), size);
                assert!(size <= file.len());
            }
            let _ = open.read_f32(name);
        }
    }
}

/// Random edits of a file: bytes set or inserted, ranges cut or repeated, an end cut off.
fn edits() -> impl Strategy<Value = Vec<(u8, prop::sample::Index, u8)>> {
    prop::collection::vec((0u8..5, any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn edit(mut file: Vec<u8>, edits: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    for &(kind, at, byte) in edits {
        if file.is_empty() {
            break;
        }
        let at = at.index(file.len());
        let end = file.len().min(at + usize::from(byte % 16));
        match kind {
            0 => file[at] = byte,
            1 => file[at] ^= 1 << (byte % 8),
            2 => file.insert(at, byte),
            3 => drop(file.drain(at..end)),
            _ if byte < 32 => file.truncate(at),
            _ => file.extend_from_within(at..end),
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn safetensors_never_panic(edits in edits()) {
        exercise("m.safetensors", &edit(safetensors(), &edits));
    }

    #[test]
    fn headers_of_any_bytes_never_panic(header in prop::collection::vec(any::<u8>(), 0..200)) {
        let length = (header.len() as u64).to_le_bytes();
        exercise("m.safetensors", &[&length[..], &header].concat());
    }

    /// The archive is made after the damage, so that its checksums hide nothing.
    #[test]
    fn pickles_never_panic(edits in edits(), protocol in prop::sample::select(vec![2u8, 4])) {
        let pickle = edit(pickle(&tensors(), protocol), &edits);
        let _ = read_state_dict(&pickle);
        exercise("m.bin", &archive(&pickle, &tensors()));
    }

    #[test]
    fn pickles_of_any_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise("m.bin", &zip_of(&[("a/data.pkl", &body)]));
    }

    #[test]
    fn archives_never_panic(edits in edits()) {
        exercise("m.bin", &edit(archive(&pickle(&tensors(), 2), &tensors()), &edits));
    }
}

/// Sequences of valid opcodes reach deeper than random bytes.
#[test]
fn random_opcodes_never_panic() {
    let mut rng = super::fresh_rng();
    let ops: Vec<&[u8]> = vec![
        b"(",
        b")",
        b"}",
        b"]",
        b"N",
        b"K\x01",
        b"K\x02",
        b"M\x01\x01",
        b"J\xff\xff\xff\xff",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"Q",
        b"q\x00",
        b"h\x00",
        b"\x94",
        b"X\x07\0\0\0storage",
        b"X\x03\0\0\0cpu",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"\x93",
        b"\x8a\x01\x80",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"\x89",
        b"G\0\0\0\0\0\0\0\0",
    ];
    for _ in 0..20_000 {
        let mut pickle = vec![0x80, 2];
        for _ in 0..rng.below(40) {
            pickle.extend_from_slice(ops[rng.below(ops.len() as u32) as usize]);
        }
        pickle.push(b'.');
        let _ = read_state_dict(&pickle);
    }
}
