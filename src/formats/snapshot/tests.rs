//! Snapshots round trip, are refused after any damage, and come and go as a whole.

use super::super::Sum;
use super::super::tests::{fresh_rng, random_bytes};
use super::write::write_in_shards;
use super::*;
use crate::base::{DType, Kind, Rng};
use crate::device::{Buffer, Device};
use crate::formats::OutDir;
use std::path::Path;

fn label(iteration: u64) -> Label {
    let fingerprint = super::super::Fingerprint { bytes: 3, checksum: Sum::of(b"abc") };
    Label {
        step: "sft".into(),
        iteration,
        finished: false,
        config: BTreeMap::from([("sft.learning_rate".into(), "1e-5".into())]),
        inputs: vec![Input { path: "a \"b\".jsonl".into(), data: true, fingerprint }],
    }
}

fn builder(rng: &mut Rng) -> SnapshotBuilder<'static> {
    let mut builder = SnapshotBuilder::default();
    // Random bytes are.
    builder.allow_any_value(true);
    let mut add = |name: &str, dtype: DType, shape: &[usize]| {
        let n = shape.iter().product::<usize>() * dtype.size();
        let bytes = random_bytes(rng, n);
        builder.tensor(name.into(), dtype, shape, move |to| {
            to.copy_from_slice(&bytes);
            Ok(())
        });
    };
    add("model/weight/a", DType::Bf16, &[3, 5]);
    add("model/m/a", DType::F32, &[3, 5]);
    add("model/codes/a", DType::U8, &[7]);
    add("model/empty", DType::F32, &[0, 4]);
    builder.set("steps", 17u64);
    builder.set("a text", "one\ntwo \u{1} \"three\"");
    builder
}

/// A snapshot of one kilobyte or so in `root`.
fn written(root: &Path) -> PathBuf {
    write_snapshot(&OutDir::create(root).unwrap(), &label(7), &builder(&mut fresh_rng())).unwrap()
}

#[track_caller]
fn refused(dir: &Path, parts: &[&str]) {
    let e = Snapshot::open(dir).err().expect("an error");
    assert_eq!(e.kind(), Kind::User, "{e}");
    assert!(parts.iter().all(|p| e.to_string().contains(p)), "{parts:?} are not in: {e}");
}

#[test]
fn everything_reads_back_from_one_shard_and_from_many() {
    let tmp = tempfile::tempdir().unwrap();
    let mut rng = fresh_rng();
    let mut builder = self::builder(&mut rng);
    let numbers: Vec<f64> = (0..50)
        .map(|_| f64::from_bits(u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32())))
        .collect();
    let numbers = [numbers, vec![f64::NAN, f64::INFINITY, -0.0, 1e-320, 0.1]].concat();
    numbers.iter().enumerate().for_each(|(i, x)| builder.set(&format!("x{i}"), x));
    builder.set("y", 0.1f32);
    let bytes: Vec<Vec<u8>> = (0..4).map(|t| builder.read(t).unwrap().into_owned()).collect();
    let size = builder.bytes().unwrap();
    let small = Buffer::zeroed(Device::Cpu, size - 1).unwrap();
    assert!(self::builder(&mut rng).copied(small).is_err());
    let tensors = builder.content().tensors.clone();
    let written = |i: u64, max, from: &dyn Whole| {
        write_in_shards(&OutDir::open(tmp.path()).unwrap(), &label(i), from, max).unwrap()
    };
    let mut dirs = vec![written(0, 1_000_000, &builder), written(1, 16, &builder)];
    // Memory that is larger, and holds something else.
    let memory = Buffer::zeroed(Device::Cpu, size + 9).unwrap();
    memory.write(0, &vec![77; size + 9]).unwrap();
    dirs.push(written(2, 16, &builder.copied(memory).unwrap()));
    for (i, dir) in dirs.into_iter().enumerate() {
        let open = Snapshot::open(&dir).unwrap();
        assert_eq!((open.dir(), open.label()), (dir.as_path(), &label(i as u64)));
        assert_eq!(open.tensors().count(), 4);
        for (t, bytes) in tensors.iter().zip(&bytes) {
            let got = open.tensor(&t.name, t.info.dtype, &t.info.shape).unwrap();
            assert_eq!(got, *bytes, "{}", t.name);
        }
        assert_eq!(open.get::<u64>("steps").unwrap(), 17);
        assert_eq!(open.get::<f32>("y").unwrap(), 0.1);
        assert_eq!(open.get::<String>("a text").unwrap(), "one\ntwo \u{1} \"three\"");
        assert_eq!(open.find::<u64>("nothing").unwrap(), None);
        for (i, x) in numbers.iter().enumerate() {
            let back: f64 = open.get(&format!("x{i}")).unwrap();
            assert!(back.to_bits() == x.to_bits() || back.is_nan() && x.is_nan(), "{x} {back}");
        }
        let e = open.tensor("model/m/a", DType::F32, &[5, 3]).unwrap_err();
        assert!(e.to_string().contains("F32 [3, 5], but F32 [5, 3]"), "{e}");
        assert!(
            open.tensor("model/v/a", DType::F32, &[1]).is_err() && open.get::<u64>("y").is_err()
        );
    }
    let shards = std::fs::read_dir(tmp.path().join("sft-00000001")).unwrap().count() - 1;
    assert!(shards > 1, "{shards}");
}

#[test]
fn any_flipped_bit_and_any_cut_is_found() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = written(tmp.path());
    let mut rng = fresh_rng();
    for file in ["manifest.json", "state-00001.safetensors"] {
        let path = dir.join(file);
        let good = std::fs::read(&path).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1 << rng.below(8);
            std::fs::write(&path, &bad).unwrap();
            assert!(Snapshot::open(&dir).is_err(), "{file} byte {i}");
        }
        for keep in [0, 1, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..keep]).unwrap();
            refused(&dir, &[file]);
        }
        std::fs::write(&path, [&good[..], b" "].concat()).unwrap();
        refused(&dir, &[file]);
        std::fs::write(&path, &good).unwrap();
        Snapshot::open(&dir).unwrap();
    }
}

#[test]
fn the_damaged_tensor_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = written(tmp.path());
    let path = dir.join("state-00001.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // Wide elements come first, bytes last.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    refused(&dir, &["state-00001.safetensors", "model/codes/a"]);
    std::fs::remove_file(&path).unwrap();
    refused(&dir, &["state-00001.safetensors is missing"]);
    refused(&tmp.path().join("absent"), &["absent", "no checkpoint"]);
}

/// A manifest with its checksum put right after an edit, as an attacker would.
fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    let (head, rest) = text.split_once(',').unwrap();
    let rest = rest.replace(from, to);
    let head = head.replace(&head[13..29], &Sum::of(rest.as_bytes()).to_string());
    std::fs::write(path, format!("{head},{rest}")).unwrap();
}

#[test]
fn names_that_lead_outside_and_links_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let file = "state-00001.safetensors";
    for name in ["../secret", "/etc/passwd", "a/b", "..", "."] {
        let dir = written(tmp.path());
        edit_manifest(&dir, file, name);
        refused(&dir, &["not a file beside it"]);
    }
    let dir = written(tmp.path());
    let outside = tmp.path().join("outside");
    std::fs::rename(dir.join(file), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join(file)).unwrap();
    refused(&dir, &[file, "not a regular file"]);
    let dir = written(tmp.path());
    std::fs::write(dir.join("more.safetensors"), "x").unwrap();
    refused(&dir, &["more.safetensors"]);
}

/// Random edits of a manifest and of a shard, with the manifest's checksum put right.
#[test]
fn nonsense_with_a_right_checksum_ends_in_an_error_or_a_checked_success() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = written(tmp.path());
    let mut rng = fresh_rng();
    let files = ["manifest.json", "state-00001.safetensors"].map(|name| dir.join(name));
    let good = files.each_ref().map(|path| std::fs::read(path).unwrap());
    for round in 0..400 {
        let i = usize::from(round % 4 == 3);
        let mut bytes = good[i].clone();
        for _ in 0..1 + rng.below(4) {
            let at = 40 + rng.below(bytes.len() as u32 - 60) as usize;
            match rng.below(4) {
                0 => bytes[at] = rng.next_u32() as u8,
                1 => bytes.insert(at, b"0123456789\",:{}[]"[rng.below(17) as usize]),
                2 => drop(bytes.drain(at..at + rng.below(12) as usize)),
                _ => bytes.extend_from_within(at..at + rng.below(12) as usize),
            }
        }
        if i == 0 {
            let sum = Sum::of(&bytes[31..]).to_string();
            bytes[13..29].copy_from_slice(sum.as_bytes());
        }
        std::fs::write(&files[i], &bytes).unwrap();
        if let Ok(open) = Snapshot::open(&dir) {
            assert!(open.tensors().all(|(name, t)| open.tensor(name, t.dtype, &t.shape).is_ok()));
        }
        std::fs::write(&files[i], &good[i]).unwrap();
    }
    Snapshot::open(&dir).unwrap();
}

#[test]
fn a_newer_version_is_named_with_ours() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = written(tmp.path());
    edit_manifest(&dir, "\"format_version\": 1", "\"format_version\": 7");
    refused(&dir, &["version 7", "version 1"]);
    // Also where only the number was edited.
    let path = dir.join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap().replace(": 7,", ": 8,");
    std::fs::write(&path, text).unwrap();
    refused(&dir, &["version 8", "version 1"]);
}

#[test]
fn snapshots_come_and_go_whole() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("run/checkpoints");
    assert!(list_snapshots(&root).unwrap().is_empty());
    let held = OutDir::create(&root).unwrap();
    let builder = builder(&mut fresh_rng());
    let first = write_snapshot(&held, &label(7), &builder).unwrap();
    // Again at the same place, as by a run that was set back.
    assert_eq!(write_snapshot(&held, &label(7), &SnapshotBuilder::default()).unwrap(), first);
    assert_eq!(Snapshot::open(&first).unwrap().tensors().count(), 0);
    let end = Label { finished: true, ..label(9) };
    let end = write_snapshot(&held, &end, &SnapshotBuilder::default()).unwrap();
    for junk in [".tmp-sft-00000008", ".tmp-old-x", "notes-1", "sft-x"] {
        std::fs::create_dir_all(root.join(junk).join("inner")).unwrap();
    }
    let mut found = list_snapshots(&root).unwrap();
    found.sort_by_key(|f| f.iteration);
    let of = |iteration, dir: &PathBuf| Found { step: "sft".into(), iteration, dir: dir.clone() };
    assert_eq!(found, [of(None, &end), of(Some(7), &first)]);
    assert_eq!(snapshots_in(&held).unwrap().len(), 2);
    held.remove_leftovers().unwrap();
    held.take_away("sft-00000007").unwrap();
    held.take_away("sft-00000007").unwrap();
    assert!(!first.exists() && !root.join(".tmp-old-x").exists() && root.join("notes-1").exists());
}

#[test]
fn a_snapshot_that_cannot_be_written_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut builder = builder(&mut fresh_rng());
    // An error in the middle of the shard.
    builder.tensor("model/zz".into(), DType::U8, &[9], |_| Err(Error::user("no such tensor")));
    assert!(write_snapshot(&OutDir::open(tmp.path()).unwrap(), &label(7), &builder).is_err());
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}
