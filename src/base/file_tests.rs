use super::*;
use crate::base::Kind;
use std::os::unix::fs::symlink;

#[track_caller]
fn refused(path: &Path, part: &str) {
    let e = read_file(path, 1 << 20).unwrap_err();
    assert_eq!(e.kind(), Kind::User, "{e}");
    let line = e.to_string();
    assert!(line.contains(part) && line.contains(path.to_str().unwrap()), "{line}");
}

#[test]
fn only_regular_files_are_read_and_none_is_waited_for() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str| tmp.path().join(name);
    let pipe = at("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(&pipe, "is a pipe");
    refused(tmp.path(), "is a directory");
    refused(Path::new("/dev/zero"), "is a device");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    refused(&at("socket"), "is a socket");
    refused(&at("absent"), "No such file");
    symlink("nowhere", at("dangling")).unwrap();
    refused(&at("dangling"), "is a link to nowhere, which does not exist");
    symlink("loop", at("loop")).unwrap();
    refused(&at("loop"), "loop");
    symlink(&pipe, at("to_pipe")).unwrap();
    refused(&at("to_pipe"), "is a pipe");
    std::fs::write(at("file"), "text").unwrap();
    symlink("file", at("to_file")).unwrap();
    assert_eq!(read_text(&at("to_file"), 4).unwrap(), "text");
    let e = read_file(&at("file"), 3).unwrap_err();
    assert!(e.to_string().contains("more than 3 bytes"), "{e}");
}

#[test]
fn absent_is_what_has_no_name() {
    let tmp = tempfile::tempdir().unwrap();
    let at = |name: &str| tmp.path().join(name);
    assert_eq!(read_if_there(&at("absent"), 9).unwrap(), None);
    assert_eq!(read_if_there(&at("absent/file"), 9).unwrap(), None);
    symlink("nowhere", at("dangling")).unwrap();
    assert!(is_there(&at("dangling")).unwrap());
    assert!(read_if_there(&at("dangling"), 9).is_err());
    assert!(is_there(&at(&"x".repeat(300))).is_err());
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("file");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let file = InFile::open(&path).unwrap();
    assert_eq!(file.read_vec(5, 100).unwrap(), [7; 100]);
    File::options().write(true).open(&path).unwrap().set_len(60).unwrap();
    for e in [file.read_vec(5, 100).unwrap_err(), file.read_all(1 << 20).unwrap_err()] {
        assert_eq!(e.kind(), Kind::Resource, "{e}");
        assert!(e.to_string().contains("was cut short while it was read: it had 1048576"), "{e}");
    }
    let file = InFile::open(&path).unwrap();
    assert_eq!(file.unless_cut(Error::user("nonsense")).to_string(), "nonsense");
    std::fs::write(&path, "").unwrap();
    assert_eq!(file.unless_cut(Error::user("nonsense")).kind(), Kind::Resource);
}

#[test]
fn a_text_that_is_none_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("file");
    std::fs::write(&path, [b'a', 0xff]).unwrap();
    assert!(read_text(&path, 9).unwrap_err().to_string().contains("is not UTF-8 text"));
}
