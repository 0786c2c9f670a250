use super::super::testing::{connect, free, member, place};
use super::*;
use crate::base::Kind;
use std::net::TcpStream;
use std::process::Command;

/// This test itself, as the process of a rank 0 with few files: it says how it fared.
const FEW: &str = "DUPLEX_TEST_FEW_FILES";

#[test]
fn a_host_without_files_for_more_drops_strangers_or_says_so() {
    let child = |address: &str, what: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "comm::rendezvous::files_tests::host_with_few_files"])
            .args(["--ignored", "--nocapture"])
            .env(FEW, format!("{address} {what}"))
            .output()
    };
    let address = &free();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| child(address, "few").unwrap());
        let _strangers: Vec<TcpStream> = (0..100).map(|_| connect(address)).collect();
        join(&member(1, 2), &place(address, 20_000)).unwrap();
        let out = host.join().unwrap();
        assert!(out.status.success(), "{out:?}");
    });
    let address = &free();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| child(address, "none").unwrap());
        let _caller = connect(address);
        let out = host.join().unwrap();
        assert!(out.status.success(), "{out:?}");
    });
}

#[test]
#[ignore = "run by a_host_without_files_for_more_drops_strangers_or_says_so"]
fn host_with_few_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let given = std::env::var(FEW).unwrap();
    let (address, what) = given.split_once(' ').unwrap();
    let limit = Rlimit { current: Some(40), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    if what == "few" {
        serve(&member(0, 2), &place(address, 20_000), &[], bind(address).unwrap()).unwrap();
        return;
    }
    let listener = bind(address).unwrap();
    let opened = || std::fs::File::open("/dev/null");
    let held: Vec<_> = std::iter::from_fn(|| opened().ok()).collect();
    let e = serve(&member(0, 2), &place(address, 1000), &[], listener).unwrap_err();
    assert_eq!(e.kind(), Kind::Resource);
    assert!(e.to_string().contains("rank 0 cannot take more connections: Too many"), "{e}");
    // It waits and does not try without end: nanoseconds of the processor.
    drop(held);
    let used = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let used: u64 = used.split(' ').next().unwrap().parse().unwrap();
    assert!(used < 500_000_000, "{used} ns");
}
