//! Round trips and refusals of single safetensors files.

use super::super::{Checkpoint, SaveTensor, SourceDType, write_safetensors};
use super::{any, fresh_rng, from_map, random_data, refused};
use crate::base::{DType, Kind, bf16};
use crate::formats::OutDir;
use SourceDType::*;
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

/// The file that tests write.
const NAME: &str = "a.safetensors";

/// A file of `header` and `data` bytes, as the format lays them out.
pub(super) fn craft(dir: &Path, header: &str, data: usize) -> PathBuf {
    let path = dir.join("model.safetensors");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    fs::write(&path, file).unwrap();
    path
}

#[track_caller]
fn header_refused(header: &str, data: usize, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = craft(dir.path(), header, data);
    let parts = [&["model.safetensors"], parts].concat();
    refused(Checkpoint::open_file(&path), &parts);
}

#[test]
fn round_trip_of_random_tensors() {
    let mut rng = fresh_rng();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let dtypes = [F32, F16, Bf16, F64, I64, I32, I16, I8, U8, Bool];
    let tensors: Vec<SaveTensor> = (0..60)
        .map(|i| {
            let shape: Vec<usize> = (0..rng.below(5)).map(|_| rng.below(6) as usize).collect();
            any(format!("layers.{i}.\"ü\".weight"), dtypes[i % 10], &shape)
        })
        .collect();
    let data = random_data(&mut rng, &tensors);
    write_safetensors(
        &OutDir::open(dir.path()).unwrap(),
        NAME,
        &tensors,
        Some(("format", "pt")),
        &mut from_map(&data),
    )
    .unwrap();

    let open = Checkpoint::open_file(&path).unwrap();
    assert_eq!(open.names().count(), tensors.len());
    assert_eq!(open.files().collect::<Vec<_>>(), [path.as_path()]);
    for tensor in &tensors {
        assert_eq!(open.info(&tensor.name), Some(&tensor.info));
        assert_eq!(open.read_raw(&tensor.name).unwrap(), data[&tensor.name]);
        let floats = open.read_f32(&tensor.name);
        assert_eq!(floats.is_ok(), tensor.info.dtype.is_float());
    }
    refused(open.read_raw("nope"), &["nope", NAME]);
    let ints = tensors.iter().find(|t| t.info.dtype == I64).unwrap();
    refused(open.read_f32(&ints.name), &[NAME, "I64"]);

    // The format's own reader finds the same.
    let file = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.len(), tensors.len());
    for tensor in &tensors {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.info.shape);
        assert_eq!(view.dtype().to_string(), tensor.info.dtype.to_string());
        assert_eq!(view.data(), data[&tensor.name]);
    }

    // What transformers reads: the format key, and data aligned for its dtype.
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    assert_eq!(header["__metadata__"]["format"], "pt");
    for tensor in &tensors {
        let begin = header[&tensor.name]["data_offsets"][0].as_u64().unwrap() as usize;
        assert_eq!(begin % tensor.info.dtype.size(), 0, "{tensor:?}");
    }
}

/// Resuming compares files, so a header never changes by a byte.
#[test]
fn the_bytes_of_a_file_are_these() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let tensors = [
        SaveTensor::new("z", U8, &[3]),
        SaveTensor::new("b\"ü\n/", F32, &[1, 2]),
        SaveTensor::new("a", Bf16, &[]),
    ];
    let fill = |t: &SaveTensor| vec![t.name.as_bytes()[0]; t.info.checked_bytes().unwrap()];
    for (metadata, wanted) in [
        (Some(("format", "pt")), r#"{"__metadata__":{"format":"pt"},TENSORS}      "#),
        (None, r#"{TENSORS}     "#),
    ] {
        write_safetensors(&OutDir::open(dir.path()).unwrap(), NAME, &tensors, metadata, &mut |t| {
            Ok(fill(t).into())
        })
        .unwrap();
        let entries = concat!(
            r#""b\"ü\n/":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
            r#""a":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"#,
            r#""z":{"dtype":"U8","shape":[3],"data_offsets":[10,13]}"#,
        );
        let header = wanted.replace("TENSORS", entries);
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend_from_slice(header.as_bytes());
        whole.extend_from_slice(b"bbbbbbbbaazzz");
        let written = fs::read(&path).unwrap();
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&whole));
    }
}

#[test]
fn floats_widen_to_their_values() {
    let mut rng = fresh_rng();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let xs: Vec<f32> = (0..500).map(|_| rng.normal() * 100.0).collect();
    let tensors = [
        SaveTensor::new("f32", DType::F32, &[5, 100]),
        SaveTensor::new("bf16", DType::Bf16, &[500]),
        SaveTensor::new("f16", F16, &[500]),
        SaveTensor::new("f64", F64, &[500]),
        // Puts the half-width tensors at odd places were they not sorted.
        SaveTensor::new("odd", U8, &[3]),
    ];
    write_safetensors(&OutDir::open(dir.path()).unwrap(), NAME, &tensors, None, &mut |tensor| {
        Ok(Cow::Owned(match tensor.info.dtype {
            F32 => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Bf16 => xs.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            F16 => xs.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            F64 => xs.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
            _ => vec![1, 2, 3],
        }))
    })
    .unwrap();
    let open = Checkpoint::open_file(&path).unwrap();
    assert_eq!(open.read_f32("f32").unwrap(), xs);
    assert_eq!(open.read_f32("f64").unwrap(), xs);
    for (name, bound) in [("bf16", 1.0 / 256.0), ("f16", 1.0 / 2048.0)] {
        for (a, b) in open.read_f32(name).unwrap().iter().zip(&xs) {
            assert!((a - b).abs() <= b.abs() * bound, "{name} {a} {b}");
        }
    }
}

#[test]
fn values_that_are_not_finite_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let held = OutDir::open(dir.path()).unwrap();
    let write = |tensor: SaveTensor, bytes: &[u8]| {
        write_safetensors(&held, NAME, &[tensor], None, &mut |_| Ok(Cow::Owned(bytes.to_vec())))
    };
    let one = |dtype| SaveTensor::new("a", dtype, &[2]);
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -1e-40] {
        let f16 = half::f16::from_f32(x).to_le_bytes();
        for (dtype, bytes, finite) in [
            (F32, x.to_le_bytes().to_vec(), x.is_finite()),
            (F64, f64::from(x).to_le_bytes().to_vec(), x.is_finite()),
            // These round the largest f32 to infinity.
            (Bf16, bf16::from_f32(x).to_le_bytes().to_vec(), x.abs() < 1.0),
            (F16, f16.to_vec(), x.abs() < 1.0),
            (I32, x.to_le_bytes().to_vec(), true),
        ] {
            let bytes = [vec![0; bytes.len()], bytes].concat();
            let done = write(one(dtype), &bytes);
            assert_eq!(done.is_ok(), finite, "{x} {dtype}");
            if let Err(e) = done {
                assert_eq!(e.kind(), Kind::Diverged);
                assert!(e.to_string().contains("1 of 2 values of \"a\" are not finite"), "{e}");
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{e}");
            }
            write(any("a".into(), dtype, &[2]), &bytes).unwrap();
            fs::remove_file(dir.path().join(NAME)).unwrap();
        }
    }
}

#[test]
fn writer_refuses_its_callers_mistakes_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let a = SaveTensor::new("a", F32, &[2]);
    let once = std::slice::from_ref(&a);
    let short =
        write_safetensors(&OutDir::open(dir.path()).unwrap(), NAME, once, None, &mut |_| {
            Ok(Cow::Owned(vec![0; 7]))
        });
    assert_eq!(short.unwrap_err().kind(), Kind::Internal);
    let twice = [a.clone(), a];
    let twice =
        write_safetensors(&OutDir::open(dir.path()).unwrap(), NAME, &twice, None, &mut |_| {
            Ok(Cow::Owned(vec![0; 8]))
        });
    assert_eq!(twice.unwrap_err().kind(), Kind::Internal);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn no_tensors_at_all_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    write_safetensors(&OutDir::open(dir.path()).unwrap(), NAME, &[], None, &mut |_| unreachable!())
        .unwrap();
    assert_eq!(Checkpoint::open_file(&path).unwrap().names().count(), 0);
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "b":{"dtype":"U8","shape":[2,2],"data_offsets":[8,12]}}"#;

#[test]
fn truncated_files_are_named_with_their_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = craft(dir.path(), TWO, 12);
    let whole = fs::read(&path).unwrap();
    Checkpoint::open_file(&path).unwrap();
    for keep in 0..whole.len() {
        fs::write(&path, &whole[..keep]).unwrap();
        let tensor = match whole.len() - keep {
            1..=4 => "tensor \"b\"",
            5..=12 => "tensor \"a\"",
            _ => "",
        };
        refused(Checkpoint::open_file(&path), &["model.safetensors", tensor]);
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    refused(Checkpoint::open_file(&path), &["1 bytes after the last tensor"]);
}

#[test]
fn hostile_headers_are_refused() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    header_refused(&one("F8_E4M3", "[2]", "[0,2]"), 2, &["\"a\"", "F8_E4M3"]);
    header_refused(&one("F32", "[2]", "[8,0]"), 8, &["\"a\"", "negative size"]);
    header_refused(&one("F32", "[2]", "[-8,0]"), 8, &["\"a\"", "-8"]);
    header_refused(&one("F32", "[-2]", "[0,8]"), 8, &["\"a\"", "-2"]);
    header_refused(&one("F32", "[3]", "[0,8]"), 8, &["\"a\"", "[3] of F32"]);
    header_refused(&one("F32", "[4294967296,4294967296,4]", "[0,0]"), 0, &["\"a\""]);
    header_refused(&one("F32", "[1e3]", "[0,4000]"), 4000, &["\"a\""]);
    header_refused(&one("F32", "[18446744073709551616]", "[0,8]"), 8, &["\"a\""]);
    header_refused(&one("F32", "[2]", "[4,12]"), 12, &["\"a\"", "hole"]);
    header_refused(&one("F32", "[2]", "[0,8,8]"), 8, &["\"a\""]);
    let far = "[18446744073709551607,18446744073709551615]";
    header_refused(&one("F32", "[2]", far), 8, &["\"a\"", "cut short"]);
    header_refused(r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8, &["\"a\"", "data_offsets"]);
    let more = one("F32", "[2]", r#"[0,8],"stride":[1]"#);
    header_refused(&more, 8, &["\"a\"", "unknown field `stride`"]);
    header_refused(&one("F99", "[2]", "[0,8]"), 8, &["\"a\"", "F99"]);
    header_refused(r#"{"a":7}"#, 8, &["\"a\""]);
    header_refused("[]", 0, &["header"]);
    header_refused("{", 0, &["header"]);
    let overlap = TWO.replace("[8,12]", "[6,10]");
    header_refused(&overlap, 12, &["\"b\" overlaps \"a\""]);
    let again = TWO.replace("\"b\"", "\"a\"");
    header_refused(&again, 12, &["\"a\" appears twice"]);
}

#[test]
fn huge_deep_and_long_headers_are_bounded() {
    let deep = "[".repeat(1_000_000);
    header_refused(&format!("{{\"a\":{deep}"), 0, &["\"a\""]);
    header_refused(&format!("{{\"__metadata__\":{deep}"), 0, &["header"]);
    let long = "n".repeat(1_000_000);
    header_refused(&format!("{{\"{long}\":{{\"dtype\":\"{long}\"}}}}"), 0, &["nnn..."]);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for length in [u64::MAX, 1 << 63, 100_000_001, 9] {
        fs::write(&path, [&length.to_le_bytes()[..], b"{}      "].concat()).unwrap();
        refused(Checkpoint::open_file(&path), &["model.safetensors", &length.to_string()]);
    }
}

#[test]
fn what_is_no_weight_file_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    refused(Checkpoint::open_file(&path), &["cannot open", "model.safetensors"]);
    fs::write(&path, "").unwrap();
    refused(Checkpoint::open_file(&path), &["empty"]);
    fs::write(&path, "version https://git-lfs.example/spec/v1\noid sha256:0\n").unwrap();
    refused(Checkpoint::open_file(&path), &["git lfs pull"]);
    refused(Checkpoint::open_file(dir.path()), &["is a directory"]);
}
