//! A run as a process that can be killed, and what it leaves behind.

use crate::place::Place;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Iterations of every step.
pub const ITERATIONS: usize = 6;

/// A run of all steps, each of six iterations.
pub const STEPS: [&str; 6] =
    ["--sft-max-steps", "6", "--reward-max-steps", "6", "--ppo-max-steps", "6"];

/// The words of a run of all steps into `to`.
pub fn words<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let head = ["train", "--config", "short.toml", "--actor-model", "model"];
    let data = ["--data-path", "data.jsonl", "--output-dir", to];
    [&head[..], &data, &STEPS, more].concat()
}

/// Starts the program in `p`.
pub fn spawn(p: &Place, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_duplex"))
        .args(words)
        .current_dir(p.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends a signal.
pub fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: it is our child, and has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// Waits until `true`; the test fails after half a minute.
#[track_caller]
pub fn until(mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Stops a run by SIGTERM once it has made the checkpoint `name`.
#[track_caller]
pub fn stop_after(p: &Place, words: &[&str], name: &str) -> PathBuf {
    let dir = p.path(words[words.iter().position(|w| *w == "--output-dir").unwrap() + 1]);
    let mut child = spawn(p, words);
    let made = dir.join("checkpoints").join(name);
    until(|| made.exists() || child.try_wait().unwrap().is_some());
    signal(&child, libc::SIGTERM);
    let out = child.wait_with_output().unwrap();
    ended(&out, 75, &["SIGTERM", "the same command resumes"]);
    dir
}

/// Checks the exit code and that the last line on standard error has all of `parts`.
#[track_caller]
pub fn ended(out: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(parts.iter().all(|part| last.contains(part)), "{parts:?} are not in: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{stderr}");
}

/// The names of a run's checkpoints, sorted.
pub fn checkpoints(run: &Path) -> Vec<String> {
    let all = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The log of a run without what depends on the clock and on the folder.
pub fn log(run: &Path) -> Vec<Value> {
    let mut events = crate::place::events(run);
    for event in &mut events {
        let event = event.as_object_mut().unwrap();
        ["time", "seconds", "name", "run_dir"].iter().for_each(|k| drop(event.remove(*k)));
        if let Some(text) = event.get("text").and_then(Value::as_str).map(String::from) {
            let folder = run.file_name().unwrap().to_str().unwrap();
            // The memory told of is that of the program that reached the end of the step.
            let text = text.replace(folder, "RUN");
            let text = text.split("; weights").next().unwrap();
            event.insert("text".into(), text.into());
        }
        if let Some(values) = event.get_mut("values").and_then(Value::as_object_mut) {
            let of_time = ["tokens_per_s", "seconds", "generate_seconds"];
            of_time.iter().for_each(|k| drop(values.remove(*k)));
        }
    }
    events
}

/// Checks that two runs have left the same.
#[track_caller]
pub fn same(a: &Path, b: &Path) {
    assert_eq!(crate::place::all_bytes(a), crate::place::all_bytes(b), "weights");
    let (a, b) = (log(a), log(b));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_eq!(a, b, "line {} of the logs", i + 1);
    }
    assert_eq!(a.len(), b.len(), "lines of the logs");
}
