//! Ranks as processes of this test, which starts itself: every call, and what the others do where
//! one is gone.

use crate::calls::{every_call, go_on, sums};
use crate::fake;
use duplex::base::{Error, Rng};
use duplex::comm::nccl::{self, Setting};
use duplex::comm::{Comm, launched, run_ranks};
use duplex::device::{Buffer, Device};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const SOON: Duration = Duration::from_secs(60);
/// Environment variables: the ranks' task, and the directory where they record how they ended.
const WHAT: &str = "DUPLEX_TEST_RANKS";
const WHERE: &str = "DUPLEX_TEST_RANKS_DIR";
const CARD: Device = Device::Emulated;

/// Some seed that is another every time.
fn fresh() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_nanos() as u64 >> 8
}

fn folder() -> PathBuf {
    std::env::var(WHERE).unwrap().into()
}

/// This process as one of the ranks.
fn start(
    timeout: Duration,
    alike: &[(&str, &str)],
    setting: &Setting,
) -> duplex::base::Result<Comm> {
    let launch = launched(|name| std::env::var(name).ok())?;
    let alike =
        alike.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>();
    nccl::start_with(CARD, &launch, timeout, &alike, setting)
}

/// One rank's part. Not a test: the tests start it.
#[test]
#[ignore = "started by the tests"]
fn rank() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let number = |i: usize| words[i].parse::<u64>().unwrap();
    let rank: usize = std::env::var("RANK").unwrap().parse().unwrap();
    let usual = Setting::default();
    let done = match words[0] {
        // Seed, bytes that a reduction holds.
        "calls" => {
            let setting = Setting { held: Some(number(2) as usize), ..usual };
            start(SOON, &[], &setting).and_then(|comm| {
                let seen = every_call(CARD, &comm, number(1))?;
                let expected =
                    run_ranks(RANKS, SOON, |comm| every_call(Device::Cpu, &comm, number(1)))?;
                assert!(seen.0.len() > 100);
                for (i, (a, b)) in seen.0.iter().zip(&expected[rank].0).enumerate() {
                    assert!(a == b, "rank {rank}, call {i}");
                }
                assert!(seen == expected[rank], "rank {rank} counted otherwise");
                Ok(())
            })
        }
        "far" => {
            let machine = Some(format!("node-{}", rank / 2));
            start(SOON, &[], &Setting { machine, ..usual }).and_then(|comm| {
                let expected = |comm: &Comm| {
                    let all = run_ranks(comm.size(), SOON, |comm| sums(Device::Cpu, &comm))?;
                    Ok::<_, Error>(all[comm.rank()].clone())
                };
                let (got, all) = (sums(CARD, &comm)?, expected(&comm)?);
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
                assert!(got.iter().zip(&all).all(near));
                // By the library itself, which adds in another order.
                assert!(got != all);
                // Ranks of one machine among them have every bit.
                let pair = comm.split(rank / 2)?;
                assert!(sums(CARD, &pair)? == expected(&pair)?);
                Ok(())
            })
        }
        "differ" => {
            let value = if rank == 2 { "f32" } else { "bf16" };
            start(SOON, &[("dtype", value)], &usual).map(drop)
        }
        // Signal, rank, after how many microseconds, time-out in ms.
        "end" => start(Duration::from_millis(number(4)), &[], &usual).and_then(|comm| {
            let signal = number(1) as i32;
            comm.barrier()?;
            if rank as u64 == number(2) {
                let after = Duration::from_micros(number(3));
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    // SAFETY: a signal for this process.
                    unsafe { libc::kill(libc::getpid(), signal) };
                });
            }
            go_on(CARD, &comm)
        }),
        // A rank that only computes finds out too, before it could write anything.
        "away" => start(SOON, &[], &usual).and_then(|comm| {
            let card = Buffer::zeroed(CARD, 64)?;
            comm.barrier()?;
            if rank == 2 {
                std::process::exit(9);
            }
            loop {
                card.read(0, &mut [0; 64])?;
            }
        }),
        // A rank that never gets as far as the others' first call of NCCL.
        "late" => start(Duration::from_millis(number(1)), &[], &usual).and_then(|comm| {
            if rank == 1 {
                std::thread::sleep(Duration::from_secs(8));
            }
            comm.barrier()
        }),
        "fail" => start(SOON, &[], &usual).and_then(|comm| {
            comm.barrier()?;
            if rank == 1 {
                let e = Error::user("row 7 is bad");
                comm.leave(Some(&e));
                return Err(e);
            }
            go_on(CARD, &comm)
        }),
        // A rank that ends well while others need it.
        "part" => start(SOON, &[], &usual).and_then(|comm| {
            // Groups of all ranks, of some, of one.
            let groups = [7, rank / 2, rank].map(|color| comm.split(color));
            drop(groups);
            comm.barrier()?;
            if rank == 3 { Ok(()) } else { comm.barrier() }
        }),
        other => panic!("{other}?"),
    };
    let (code, line) = match &done {
        Ok(()) => (0, String::new()),
        Err(e) => (e.exit_code().into(), e.to_string()),
    };
    std::fs::write(folder().join(format!("line-{rank}")), line).unwrap();
    std::process::exit(code);
}

/// How the ranks ended: each one's code and line, by rank.
struct Ended {
    codes: Vec<Option<i32>>,
    lines: Vec<String>,
    said: Vec<String>,
    took: Duration,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.codes, self.lines, self.said)
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts the ranks and waits for their ends. `stopped` is killed once all others have ended.
fn ranks(what: &str, stopped: Option<usize>) -> Ended {
    let (messages, dir) = (fake::folder(), tempfile::tempdir().unwrap());
    let port = free_port().to_string();
    let clock = Instant::now();
    let one = |rank: usize| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "groups::rank", "--ignored", "--nocapture"])
            .envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string())])
            .env("WORLD_SIZE", RANKS.to_string())
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)])
            .env(nccl::SECRET, "of this test")
            .envs(fake::environment(&messages))
            .env(WHAT, what)
            .env(WHERE, dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut all: Vec<(usize, Child)> = (0..RANKS).map(|r| (r, one(r))).collect();
    // Last, where it has to be killed.
    all.sort_by_key(|(r, _)| Some(*r) == stopped);
    let (mut codes, mut said) = (vec![None; RANKS], vec![String::new(); RANKS]);
    let mut took = Duration::ZERO;
    for (rank, mut child) in all {
        if Some(rank) == stopped {
            took = clock.elapsed();
            let _ = child.kill();
        }
        let out = child.wait_with_output().unwrap();
        codes[rank] = out.status.code();
        said[rank] = String::from_utf8_lossy(&out.stderr).into_owned();
    }
    took = if stopped.is_some() { took } else { clock.elapsed() };
    let line = |r| std::fs::read_to_string(Path::join(dir.path(), format!("line-{r}")));
    Ended { codes, lines: (0..RANKS).map(|r| line(r).unwrap_or_default()).collect(), said, took }
}

#[test]
fn every_call_gives_the_bits_of_ranks_in_one_process() {
    for held in [20_000, 64 << 20] {
        let ended = ranks(&format!("calls {} {held}", fresh()), None);
        assert_eq!(ended.codes, [Some(0); RANKS], "{ended:?}");
    }
}

#[test]
fn sums_between_machines_are_the_librarys_own() {
    let ended = ranks("far", None);
    assert_eq!(ended.codes, [Some(0); RANKS], "{ended:?}");
}

#[test]
fn a_rank_that_is_killed_at_any_moment_is_named_by_all_others() {
    let mut rng = Rng::new(fresh(), 0);
    for _ in 0..5 {
        let (dead, after) = (rng.below(RANKS as u32) as usize, rng.below(400_000));
        let ended = ranks(&format!("end {} {dead} {after} 20000", libc::SIGKILL), None);
        for r in (0..RANKS).filter(|r| *r != dead) {
            let line = &ended.lines[r];
            assert!(line.contains(&format!("rank {dead} on ")), "rank {r}: {ended:?}");
            assert!(line.contains("is gone: its process ended without a word"), "{line}");
            assert_eq!(ended.codes[r], Some(75), "{ended:?}");
        }
        assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
    }
}

#[test]
fn ranks_that_only_wait_for_their_cards_notice_too() {
    let ended = ranks("away", None);
    for r in [0, 1, 3] {
        assert!(ended.lines[r].contains("rank 2 on "), "{ended:?}");
        assert_eq!(ended.codes[r], Some(75), "{ended:?}");
    }
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

#[test]
fn a_rank_that_is_stopped_is_named_after_the_time_out() {
    for (dead, after) in [(2, 300_000), (0, 100_000)] {
        let ended = ranks(&format!("end {} {dead} {after} 4000", libc::SIGSTOP), Some(dead));
        for r in (0..RANKS).filter(|r| *r != dead) {
            let line = &ended.lines[r];
            assert!(line.contains(&format!("rank {dead} on ")), "rank {r}: {ended:?}");
            assert!(line.contains("4 s"), "{line}");
            assert_eq!(ended.codes[r], Some(75), "{ended:?}");
        }
        assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    }
}

#[test]
fn a_rank_that_does_not_come_fails_or_ends_early_is_told() {
    let ended = ranks("late 3000", None);
    for r in [0, 2, 3] {
        let line = &ended.lines[r];
        assert!(line.contains("rank 1 on ") && line.contains("not come within 3 s"), "{ended:?}");
        assert!(line.starts_with("barrier number 1: "), "{line}");
        assert_eq!(ended.codes[r], Some(75));
    }

    let ended = ranks("fail", None);
    for r in [0, 2, 3] {
        assert!(ended.lines[r].contains("has failed (row 7 is bad)"), "{ended:?}");
    }
    assert_eq!(ended.codes[1], Some(2), "{ended:?}");

    let ended = ranks("part", None);
    for r in 0..3 {
        assert!(ended.lines[r].contains("rank 3 on "), "{ended:?}");
        assert!(ended.lines[r].ends_with(" has ended"), "{ended:?}");
        assert_eq!(ended.codes[r], Some(75));
    }
}

#[test]
fn ranks_of_different_runs_do_not_start() {
    let ended = ranks("differ", None);
    for r in 0..RANKS {
        assert!(ended.lines[r].contains("has f32 for dtype"), "{ended:?}");
        assert_eq!(ended.codes[r], Some(2));
    }
}
