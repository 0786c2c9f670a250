use super::*;
use crate::base::Kind;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

fn at(path: &Path) -> OutDir {
    OutDir::open(path).unwrap()
}

#[test]
fn replaces_the_whole_file() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = at(tmp.path());
    for text in ["a longer text", "short"] {
        dir.write_bytes("a.json", text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(tmp.path().join("a.json")).unwrap(), text);
    }
    assert_eq!(dir.names().unwrap(), ["a.json"]);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_other() {
    let tmp = tempfile::tempdir().unwrap();
    let (dir, path) = (at(tmp.path()), tmp.path().join("a.json"));
    fs::write(&path, "old").unwrap();
    let error = dir
        .write("a.json", |out| {
            out.put(b"half").unwrap();
            // The kernel's own answer of a full disk.
            let mut full = File::options().write(true).open("/dev/full").unwrap();
            full.write_all(b"the other half").map_err(|e| Error::io("write", &path, &e))
        })
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Resource, "{error}");
    assert!(error.to_string().contains("a.json"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(dir.names().unwrap(), ["a.json"]);
}

#[test]
fn does_not_write_through_a_planted_link() {
    let tmp = tempfile::tempdir().unwrap();
    let victim = tmp.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, tmp.path().join(hidden("out"))).unwrap();
    at(tmp.path()).write_bytes("out", b"").unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
}

#[test]
fn a_directory_is_replaced_as_a_whole_or_not_at_all() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = at(tmp.path());
    let file = |name: &str| fs::read_to_string(tmp.path().join("m").join(name));
    for round in ["first", "second"] {
        dir.replace("m", |new| {
            new.write_bytes(round, b"")?;
            new.sub("adapter")?.write_bytes("text", round.as_bytes())
        })
        .unwrap();
        assert_eq!(file("adapter/text").unwrap(), round);
        assert_eq!(dir.names().unwrap(), ["m"]);
    }
    assert!(file("first").is_err());
    let failed = dir.replace("m", |new| {
        new.write_bytes("third", b"")?;
        Err(Error::resource("disk full"))
    });
    assert!(failed.is_err() && file("third").is_err() && file("second").is_ok());
    assert_eq!(dir.names().unwrap(), ["m"]);
    dir.take_away("m").unwrap();
    dir.take_away("m").unwrap();
    assert!(dir.names().unwrap().is_empty());
}

#[test]
fn what_a_crash_leaves_is_removed_or_brought_back() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = at(tmp.path());
    for name in [aside("lost"), aside("kept"), "kept".into(), hidden("new")] {
        dir.sub(&name).unwrap().write_bytes("of", name.as_bytes()).unwrap();
    }
    dir.write_bytes(&hidden("file"), b"").unwrap();
    dir.bring_back().unwrap();
    dir.remove_leftovers().unwrap();
    assert_eq!(dir.names().unwrap(), ["kept", "lost"]);
    let of = |name: &str| fs::read_to_string(tmp.path().join(name).join("of")).unwrap();
    assert_eq!((of("kept"), of("lost")), ("kept".to_string(), aside("lost")));
}
