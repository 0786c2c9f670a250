//! The surroundings of a run: constant memory use, a clock that jumps, a machine that is too small.

use crate::checkpoint;
use crate::place::{Place, bytes, events};
use crate::process::{ended, spawn};
use std::path::Path;
use std::process::{Command, Output};

const DUPLEX: &str = env!("CARGO_BIN_EXE_duplex");

/// Words of step 1 into `to`.
fn sft<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let head = ["sft", "--config", "short.toml", "--actor-model", "model"];
    [&head[..], &["--data-path", "data.jsonl", "--output-dir", to], more].concat()
}

fn output(mut command: Command, p: &Place) -> Output {
    command.current_dir(p.path("")).output().unwrap()
}

/// The most memory that a process has had at once, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn two_thousand_steps_need_no_more_memory_than_five_hundred() {
    let p = Place::new("llama");
    let more = ["--max-steps", "2000", "--num-train-epochs", "1000", "--save-every", "50"];
    let mut child = spawn(&p, &sft("run", &more));
    let log = p.path("run/metrics.jsonl");
    let (mut early, mut late) = (None, None);
    while child.try_wait().unwrap().is_none() {
        let steps = std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        if steps > 500 {
            let now = peak(child.id());
            early = early.or(now);
            late = now.or(late);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    ended(&child.wait_with_output().unwrap(), 0, &[]);
    assert_eq!(crate::place::metrics(&p.path("run"), "sft").len(), 2000);
    let (Some(early), Some(late)) = (early, late) else {
        println!("skipped: no /proc");
        return;
    };
    // What the report shows of the steps is kept, some hundred bytes of each.
    assert!(late < early + 2048, "{early} KiB after 500 steps, {late} KiB after 2000");
}

/// A library whose clock of the day goes back by an hour every time it is asked.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec* at) {
  static int (*real)(clockid_t, struct timespec*);
  static long hours;
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(clock, at);
  if (clock == CLOCK_REALTIME) at->tv_sec -= 3600 * __sync_fetch_and_add(&hours, 1);
  return done;
}
"#;

#[test]
fn a_clock_that_jumps_changes_dates_only() {
    let p = Place::new("llama");
    std::fs::write(p.path("clock.c"), CLOCK).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"]).current_dir(p.path(""));
    if !cfg!(target_os = "linux") || !cc.status().is_ok_and(|s| s.success()) {
        println!("skipped: there is no C compiler");
        return;
    }
    let run = |to, clock: Option<&Path>| {
        let mut duplex = Command::new(DUPLEX);
        duplex.args(sft(to, &["--save-every", "1s", "--max-steps", "5"]));
        if let Some(so) = clock {
            duplex.env("LD_PRELOAD", so);
        }
        ended(&output(duplex, &p), 0, &[]);
        p.path(to)
    };
    let (plain, jumped) = (run("plain", None), run("jumped", Some(&p.path("clock.so"))));
    assert_eq!(bytes(&plain.join("sft")), bytes(&jumped.join("sft")));
    let events = events(&jumped);
    let dates: Vec<f64> = events.iter().map(|e| e["time"].as_f64().unwrap()).collect();
    assert!(dates.windows(2).any(|d| d[1] < d[0] - 3000.0), "the clock did not jump: {dates:?}");
    for event in &events {
        let durations = [&event["seconds"], &event["values"]["tokens_per_s"]];
        let mut numbers = durations.into_iter().filter_map(|v| v.as_f64());
        assert!(numbers.all(|s| (0.0..1e7).contains(&s)), "{event}");
    }
}

#[test]
fn a_model_too_large_for_the_memory_is_named_with_its_size() {
    let p = Place::new("llama");
    checkpoint::write_wide(&p.path("model"), 1024, 2816, 4);
    let mut shell = Command::new("sh");
    // Room for the file's 180 MB, but not for gradients and optimizer state too.
    shell.args(["-c", "ulimit -v 700000; exec \"$@\"", "sh", DUPLEX]);
    shell.args(sft("run", &["--threads", "1"]));
    ended(&output(shell, &p), 3, &["out of memory", "MiB", "use a smaller model"]);
}
