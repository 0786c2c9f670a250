use super::*;
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn what_is_written_goes_into_the_directory_that_is_held() {
    let tmp = tempfile::tempdir().unwrap();
    let (first, moved) = (tmp.path().join("run"), tmp.path().join("moved"));
    let dir = OutDir::create(&first).unwrap();
    assert!(dir.is_at_its_path().unwrap());
    fs::rename(&first, &moved).unwrap();
    assert!(!dir.is_at_its_path().unwrap());
    fs::create_dir(&first).unwrap();
    assert!(!dir.is_at_its_path().unwrap());
    dir.write_bytes("a.json", b"1").unwrap();
    dir.sub("sub").unwrap().write_bytes("b.json", b"2").unwrap();
    dir.replace("model", |new| new.write_bytes("c.json", b"3")).unwrap();
    assert_eq!(fs::read_dir(&first).unwrap().count(), 0);
    assert_eq!(dir.names().unwrap(), ["a.json", "model", "sub"]);
    assert_eq!(fs::read(moved.join("model/c.json")).unwrap(), b"3");
    assert_eq!(fs::read(moved.join("sub/b.json")).unwrap(), b"2");
    fs::remove_dir_all(&moved).unwrap();
    let e = dir.write_bytes("a.json", b"1").unwrap_err();
    assert!(e.to_string().contains("run/a.json"), "{e}");
}

#[test]
fn links_are_neither_followed_nor_emptied() {
    let tmp = tempfile::tempdir().unwrap();
    let outside = tmp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    let dir = OutDir::create(&tmp.path().join("run")).unwrap();
    symlink(&outside, dir.path().join("sub")).unwrap();
    symlink(outside.join("mine"), dir.path().join("file")).unwrap();
    assert!(dir.sub("sub").is_err() && dir.find("sub").is_err() && dir.file("file").is_err());
    dir.remove("sub").unwrap();
    dir.write_bytes("file", b"ours").unwrap();
    assert_eq!(fs::read(outside.join("mine")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"ours");
}

#[test]
fn one_descriptor_locks_a_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (OutDir::open(tmp.path()).unwrap(), OutDir::open(tmp.path()).unwrap());
    assert!(a.lock() && a.clone().lock() && !b.lock());
    drop(a);
    assert!(b.lock());
}
