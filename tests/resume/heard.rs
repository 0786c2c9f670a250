//! The voice of a run where nobody listens, and the signals that it hears at any time.

use crate::place::Place;
use crate::process::{checkpoints, ended, signal, spawn, until, words};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// More steps than any test waits for.
const LONG: &str = "100000";

/// Starts a run of so many steps with the standard error given, behind `shell`, the beginning of a
/// script.
fn start(p: &Place, to: &str, steps: &str, shell: &str, stderr: Stdio) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_duplex")])
        .args(["sft", "--config", "short.toml", "--set", "quiet=false", "--actor-model", "model"])
        .args(["--data-path", "data.jsonl", "--output-dir", to, "--max-steps", steps])
        .current_dir(p.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// A terminal, as the side that shows it and the side that programs write to.
fn terminal() -> (File, OwnedFd) {
    let (mut shows, mut takes) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: fills two descriptors that nobody else has; name, settings and size are left out.
    unsafe {
        assert_eq!(libc::openpty(&mut shows, &mut takes, none, none.cast(), none.cast()), 0);
        (File::from_raw_fd(shows), OwnedFd::from_raw_fd(takes))
    }
}

/// Does what Ctrl-S (`TCOOFF`) or Ctrl-Q (`TCOON`) does.
fn flow(terminal: &OwnedFd, what: libc::c_int) {
    // SAFETY: a terminal that is open.
    assert_eq!(unsafe { libc::tcflow(terminal.as_raw_fd(), what) }, 0);
}

/// Waits for the end of a run, which must come within `limit`.
#[track_caller]
fn code_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let since = Instant::now();
    until(|| child.try_wait().unwrap().is_some());
    assert!(since.elapsed() < limit, "it took {:?}", since.elapsed());
    child.wait().unwrap().code()
}

/// Waits until the run's log tells of `n` iterations.
#[track_caller]
fn iterations(p: &Place, to: &str, n: usize, child: &mut Child) {
    let log = p.path(to).join("metrics.jsonl");
    let done = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.matches("\"event\":\"metrics\"").count() >= n
    };
    until(|| done() || child.try_wait().unwrap().is_some());
}

#[test]
fn a_terminal_that_was_stopped_holds_nothing_up() {
    let p = Place::new("llama");
    let (_shows, takes) = terminal();
    flow(&takes, libc::TCOOFF);
    let stderr = || Stdio::from(takes.try_clone().unwrap());
    let mut run = start(&p, "ends", "6", "", stderr());
    assert_eq!(code_within(&mut run, Duration::from_secs(25)), Some(0));
    assert!(p.path("ends/sft/model.safetensors").exists());
    let mut run = start(&p, "stops", LONG, "", stderr());
    iterations(&p, "stops", 3, &mut run);
    signal(&run, libc::SIGTERM);
    assert_eq!(code_within(&mut run, Duration::from_secs(3)), Some(75));
    assert!(!checkpoints(&p.path("stops")).is_empty());
}

#[test]
fn a_terminal_that_goes_on_shows_all_in_its_order() {
    let p = Place::new("llama");
    let (mut shows, takes) = terminal();
    flow(&takes, libc::TCOOFF);
    let mut run = start(&p, "run", LONG, "", takes.try_clone().unwrap().into());
    iterations(&p, "run", 3, &mut run);
    flow(&takes, libc::TCOON);
    signal(&run, libc::SIGTERM);
    drop(takes);
    let mut text = vec![];
    // Once nobody writes any more, reading fails.
    let _ = shows.read_to_end(&mut text);
    assert_eq!(run.wait().unwrap().code(), Some(75));
    let text = String::from_utf8_lossy(&text);
    let parts = ["actor model", "data for sft", "Supervised", "stopped by SIGTERM"];
    let places: Vec<Option<usize>> = parts.iter().map(|part| text.find(part)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {text}");
    assert!(!text.contains("left out"), "{text}");
}

#[test]
fn a_terminal_that_is_gone_stops_the_run_unless_hangups_are_ignored() {
    let p = Place::new("llama");
    let mut run = start(&p, "run", LONG, "", Stdio::piped());
    iterations(&p, "run", 2, &mut run);
    signal(&run, libc::SIGHUP);
    ended(&run.wait_with_output().unwrap(), 75, &["SIGHUP", "the same command resumes"]);
    assert!(!checkpoints(&p.path("run")).is_empty());
    // As under nohup.
    let mut run = start(&p, "stays", LONG, "trap '' HUP;", Stdio::piped());
    iterations(&p, "stays", 2, &mut run);
    signal(&run, libc::SIGHUP);
    let log = std::fs::read_to_string(p.path("stays/metrics.jsonl")).unwrap();
    iterations(&p, "stays", log.matches("\"event\":\"metrics\"").count() + 3, &mut run);
    signal(&run, libc::SIGTERM);
    ended(&run.wait_with_output().unwrap(), 75, &["SIGTERM", "the same command resumes"]);
}

#[test]
fn a_limit_of_file_sizes_is_told_with_the_path() {
    let p = Place::new("llama");
    let run = start(&p, "run", "6", "ulimit -f 32;", Stdio::piped());
    ended(&run.wait_with_output().unwrap(), 3, &["run/", "File too large"]);
}

/// Waits until the process listens to SIGTERM.
#[track_caller]
fn listens(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    let mask = || {
        let text = std::fs::read_to_string(&status).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    until(|| mask() & 1 << (libc::SIGTERM - 1) != 0);
}

#[test]
fn a_signal_stops_the_reading_of_data_at_once() {
    let p = Place::new("llama");
    let rows = std::fs::read_to_string(p.path("data.jsonl")).unwrap();
    let times = (24 << 20) / rows.len();
    std::fs::write(p.path("data.jsonl"), rows.repeat(times)).unwrap();
    // In the first rows, and among the rows that follow.
    for wait in [0, 300] {
        let child = spawn(&p, &words("run", &[]));
        listens(&child);
        std::thread::sleep(Duration::from_millis(wait));
        signal(&child, libc::SIGTERM);
        let since = Instant::now();
        let out = child.wait_with_output().unwrap();
        assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
        ended(&out, 75, &["SIGTERM during preparation", "the same command"]);
    }
}
