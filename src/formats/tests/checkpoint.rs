//! Model directories: what is found, sharding both ways, and indexes that lie.

use super::super::{Checkpoint, SaveTensor, SourceDType::*, save_sharded, write_safetensors};
use super::torch_file::{PyTensor, write_torch};
use super::{any, fresh_rng, from_map, random_data, refused};
use crate::base::{Error, Kind};
use crate::formats::OutDir;
use std::borrow::Cow;
use std::fs;
use std::path::Path;

fn files(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One safetensors file holding F32 tensors of one element.
fn shard(dir: &Path, file: &str, names: &[&str]) {
    let tensors: Vec<_> = names.iter().map(|n| SaveTensor::new(*n, F32, &[1])).collect();
    let one = &mut |_: &SaveTensor| Ok(Cow::Owned(vec![0; 4]));
    let (inside, file) = file.rsplit_once('/').unwrap_or(("", file));
    let dir = OutDir::create(&dir.join(inside)).unwrap();
    write_safetensors(&dir, file, &tensors, Some(("format", "pt")), one).unwrap();
}

fn index(dir: &Path, map: &str) {
    let text = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#);
    fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}

#[test]
fn saves_at_any_shard_size_and_reads_back() {
    let mut rng = fresh_rng();
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<SaveTensor> = (0..23)
        .map(|i| {
            let dtype = [Bf16, F32, U8][rng.below(3) as usize];
            any(format!("h.{i}.w"), dtype, &[1 + rng.below(30) as usize, 7])
        })
        .collect();
    let data = random_data(&mut rng, &tensors);
    let total: usize = data.values().map(Vec::len).sum();
    // One directory throughout: each save replaces the other's files, whatever their number.
    for max in [total, 500, 1, usize::MAX, 1000, total - 1, 0] {
        let written =
            save_sharded(&OutDir::open(dir.path()).unwrap(), &tensors, max, &mut from_map(&data))
                .unwrap();
        let open = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(open.names().count(), tensors.len());
        assert_eq!(open.files().collect::<Vec<_>>(), written);
        for tensor in &tensors {
            assert_eq!(open.info(&tensor.name), Some(&tensor.info));
            assert_eq!(open.read_raw(&tensor.name).unwrap(), data[&tensor.name]);
        }
        let n = written.len();
        assert_eq!(files(dir.path()).len(), if n == 1 { 1 } else { n + 1 }, "stale files");
        assert_eq!(n == 1, max >= total);
        if n > 1 {
            assert!(written[0].ends_with(format!("model-00001-of-{n:05}.safetensors")));
            let text = fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(json["metadata"]["total_size"], total);
        }
        for path in written {
            let file = Checkpoint::open_file(&path).unwrap();
            let held: usize = file.names().map(|n| file.read_raw(n).unwrap().len()).sum();
            assert!(held <= max || file.names().count() == 1, "{held} bytes for {max}");
        }
    }
}

#[test]
fn a_failed_save_never_leaves_a_mixture_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..4).map(|i| SaveTensor::new(format!("t{i}"), U8, &[10])).collect();
    let fill = |x: u8| move |_: &SaveTensor| Ok(Cow::Owned(vec![x; 10]));
    save_sharded(&OutDir::open(dir.path()).unwrap(), &tensors, 10, &mut fill(1)).unwrap();
    let mut calls = 0;
    let failed = save_sharded(&OutDir::open(dir.path()).unwrap(), &tensors, 10, &mut |_| {
        calls += 1;
        if calls == 3 { Err(Error::resource("disk full")) } else { Ok(Cow::Owned(vec![2; 10])) }
    });
    assert_eq!(failed.unwrap_err().kind(), Kind::Resource);
    refused(Checkpoint::open(dir.path()), &["no weights"]);
    // A whole older file stays in force until the new index is complete.
    save_sharded(&OutDir::open(dir.path()).unwrap(), &tensors, 100, &mut fill(3)).unwrap();
    let _ = save_sharded(&OutDir::open(dir.path()).unwrap(), &tensors, 10, &mut |_| {
        Err(Error::resource("disk full"))
    });
    assert_eq!(Checkpoint::open(dir.path()).unwrap().read_raw("t0").unwrap(), vec![3; 10]);
}

#[test]
fn what_was_looked_for_is_said_and_its_order_kept() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let looked = ["model.safetensors.index.json", "pytorch_model.bin", at];
    refused(Checkpoint::open(dir.path()), &looked);
    refused(Checkpoint::open(&dir.path().join("no")), &looked);

    let bin = |name| vec![PyTensor::new(name, F32, &[2], vec![0; 8])];
    write_torch(&dir.path().join("pytorch_model-00001-of-00001.bin"), &bin("bin shard"));
    let map = r#"{"weight_map":{"bin shard":"pytorch_model-00001-of-00001.bin"}}"#;
    fs::write(dir.path().join("pytorch_model.bin.index.json"), map).unwrap();
    let first = |dir: &Path| Checkpoint::open(dir).unwrap().names().next().unwrap().to_owned();
    assert_eq!(first(dir.path()), "bin shard");
    write_torch(&dir.path().join("pytorch_model.bin"), &bin("bin"));
    assert_eq!(first(dir.path()), "bin");
    shard(dir.path(), "s.safetensors", &["sharded"]);
    index(dir.path(), r#"{"sharded":"s.safetensors"}"#);
    assert_eq!(first(dir.path()), "sharded");
    shard(dir.path(), "model.safetensors", &["whole"]);
    assert_eq!(first(dir.path()), "whole");
}

#[test]
fn a_lying_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    shard(d, "a.safetensors", &["x"]);
    shard(d, "b.safetensors", &["y"]);
    let lies: [(&str, &[&str]); 7] = [
        (r#"{"z":"gone.safetensors"}"#, &["gone.safetensors", "missing"]),
        (r#"{"x":"b.safetensors","y":"a.safetensors"}"#, &["b.safetensors", "a.safetensors"]),
        (r#"{"x":"a.safetensors","x":"b.safetensors"}"#, &["\"x\"", "a.safetensors", "b.safe"]),
        (r#"{"x":7}"#, &["7"]),
        (r#"{}"#, &["no tensors"]),
        (r#"[]"#, &["a map from tensor to shard"]),
        (r#"{"x":"a.safetensors""#, &["line 1"]),
    ];
    for (map, parts) in lies {
        index(d, map);
        refused(Checkpoint::open(d), &[&["model.safetensors.index.json"], parts].concat());
    }
    fs::write(d.join("model.safetensors.index.json"), "{}").unwrap();
    refused(Checkpoint::open(d), &["index.json", "weight_map"]);

    shard(d, "b.safetensors", &["x", "y"]);
    index(d, r#"{"x":"a.safetensors","y":"b.safetensors"}"#);
    refused(Checkpoint::open(d), &["\"x\"", "a.safetensors", "b.safetensors"]);
}

#[test]
fn an_index_may_name_more_than_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    shard(d, "a.safetensors", &["x", "not in the index"]);
    index(d, r#"{"x":"a.safetensors","y":"a.safetensors","z":"gone.safetensors"}"#);
    let checkpoint = Checkpoint::open(d).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["not in the index", "x"]);
    let absent: Vec<_> = checkpoint.absent().collect();
    assert_eq!(absent, [("y", "a.safetensors"), ("z", "gone.safetensors")]);
}

#[test]
fn weights_of_other_kinds_are_named() {
    for (file, said) in [
        ("model-q4.gguf", "GGUF"),
        ("consolidated.00.pth", "Hugging Face version"),
        ("flax_model.msgpack", "Flax"),
        ("zero_to_fp32.py", "zero_to_fp32.py first"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file), "").unwrap();
        refused(Checkpoint::open(dir.path()), &["model.safetensors", said]);
    }
}

#[test]
fn shard_names_leading_elsewhere_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    fs::create_dir_all(dir.join("sub")).unwrap();
    shard(outer.path(), "x.safetensors", &["x"]);
    shard(&dir, "sub/x.safetensors", &["x"]);
    let absolute = outer.path().join("x.safetensors");
    for name in [
        "../x.safetensors",
        absolute.to_str().unwrap(),
        "sub/../../x.safetensors",
        "sub/x.safetensors",
        "./x.safetensors",
        "sub/",
        "..",
        ".",
        "",
        "..\\\\x.safetensors",
        "x\\u0000.safetensors",
    ] {
        index(&dir, &format!(r#"{{"x":"{name}"}}"#));
        refused(Checkpoint::open(&dir), &["index.json", "refused"]);
    }
}

/// The cache of the Hugging Face hub: files are links to blobs in another directory.
#[test]
fn links_made_by_the_user_are_followed() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("snapshot");
    fs::create_dir(&dir).unwrap();
    shard(outer.path(), "blob", &["x"]);
    std::os::unix::fs::symlink("../blob", dir.join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().read_f32("x").unwrap(), [0.0]);
}
