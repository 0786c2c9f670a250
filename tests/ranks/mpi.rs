//! Ranks that are processes, connected by MPI: what one rank does, and what is done when one is
//! gone.

use crate::checkpoint::fresh_rng;
use crate::near::{near, of_steps, on, whole};
use crate::place::{Place, events};
use crate::process::until;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Kills of the test that kills ranks; `tools/two-hosts` asks for more.
fn kills() -> usize {
    std::env::var("DUPLEX_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}

/// The flags of mpirun; `DUPLEX_MPIRUN` has others, which name hosts.
fn mpirun(ranks: usize) -> Vec<String> {
    let given = std::env::var("DUPLEX_MPIRUN").unwrap_or_default();
    let flags = "mpirun --quiet --allow-run-as-root --oversubscribe";
    let flags = flags.split(' ').chain(given.split_whitespace()).map(String::from);
    flags.chain(["-np".into(), ranks.to_string()]).collect()
}

/// Starts `ranks` ranks with the same words.
fn start(p: &Place, ranks: usize, words: &[&str]) -> Child {
    let flags = mpirun(ranks);
    Command::new(&flags[0])
        .args(&flags[1..])
        .arg(env!("CARGO_BIN_EXE_duplex"))
        .args(words)
        .current_dir(p.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the end; exit code and standard error.
fn end(child: Child) -> (Option<i32>, String) {
    let out = child.wait_with_output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// The processes of the run into `run`, which all have its name among their words.
fn processes(run: &str) -> Vec<i32> {
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
        let ours = words[0].ends_with(b"duplex") && words.contains(&run.as_bytes());
        ours.then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|e| of(e.ok()?)).collect()
}

fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: a process of this test's own run.
    unsafe { libc::kill(pid, signal) };
}

#[test]
fn processes_do_what_one_rank_does() {
    let p = Place::new("llama");
    whole(&p, &on("one", "1", &[]));
    let all = (2..=4).flat_map(|ranks| ["0", "1", "2", "3"].map(|stage| (ranks, stage)));
    for (ranks, stage) in all.chain([(1, "3")]) {
        let to = format!("on-{ranks}-{stage}");
        let (code, stderr) = end(start(&p, ranks, &on(&to, "1", &["--zero-stage", stage])));
        assert_eq!(code, Some(0), "{stderr}");
        near(&p.path("one"), &p.path(&to));
    }
}

/// Rows of random unequal length: each rank plans for those it has.
#[test]
fn processes_do_what_one_rank_does_under_a_large_vocabulary() {
    let p = Place::large("llama", 49_159, 200);
    whole(&p, &of_steps(["3", "2", "2"], "one", "1", &[]));
    let (code, stderr) =
        end(start(&p, 2, &of_steps(["3", "2", "2"], "two", "1", &["--zero-stage", "2"])));
    assert_eq!(code, Some(0), "{stderr}");
    near(&p.path("one"), &p.path("two"));
}

/// With `tools/two-hosts` two ranks on each of two hosts.
#[test]
fn four_processes_with_a_slice_of_the_weights_each() {
    let p = Place::new("gpt2");
    whole(&p, &on("one", "1", &[]));
    for tensor in ["4", "2"] {
        let to = format!("by-{tensor}");
        let more = ["--zero-stage", "3", "--inference-tp-size", tensor];
        let (code, stderr) = end(start(&p, 4, &on(&to, "1", &more)));
        assert_eq!(code, Some(0), "{stderr}");
        near(&p.path("one"), &p.path(&to));
    }
}

/// Takes the link between two hosts down for good; `tools/two-hosts` says how that is done.
#[test]
fn a_network_that_is_cut_ends_the_run_within_the_time_out() {
    let Ok(link) = std::env::var("DUPLEX_CUT") else { return };
    let set = |state: &str| {
        let words: Vec<&str> = link.split(' ').chain([state]).collect();
        assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    };
    let p = Place::new("llama");
    let run = p.path("cut").display().to_string();
    let words = on(&run, "1", &["--zero-stage", "3", "--rank-timeout", "6s"]);
    let mut child = start(&p, 4, &words);
    let log = Path::new(&run).join("metrics.jsonl");
    until(|| {
        let begun = std::fs::read_to_string(&log).is_ok_and(|t| t.contains("grad_norm"));
        begun || child.try_wait().unwrap().is_some()
    });
    set("down");
    let clock = std::time::Instant::now();
    until(|| processes(&run).is_empty());
    assert!(clock.elapsed() < Duration::from_secs(20), "{:?}", clock.elapsed());
    set("up");
    let _ = child.kill();
    let (_, stderr) = end(child);
    assert!(stderr.lines().any(|l| l.contains("rank ")), "{stderr}");
    let (code, stderr) = end(start(&p, 4, &words));
    assert_eq!(code, Some(0), "{stderr}");
}

/// Kills one rank at a random moment again and again; each time the others end and say which is
/// gone, and the same command goes on.
#[test]
fn a_rank_that_is_killed_ends_the_run_and_the_run_goes_on() {
    let p = Place::new("llama");
    let run = p.path("killed").display().to_string();
    let more = ["--zero-stage", "3", "--rank-timeout", "20s"];
    whole(&p, &on("one", "1", &[]));
    let mut rng = fresh_rng();
    let mut hit = 0;
    while hit < kills() {
        // Who holds the directory: another process, once the ranks have met.
        let holder = || std::fs::read_to_string(Path::new(&run).join("duplex.lock")).ok();
        let before = holder();
        let mut child = start(&p, 4, &on(&run, "1", &more));
        until(|| processes(&run).len() == 4 || child.try_wait().unwrap().is_some());
        std::thread::sleep(Duration::from_secs_f32(3.0 * rng.uniform()));
        let all = processes(&run);
        if all.len() == 4 {
            signal(all[rng.below(4) as usize], libc::SIGKILL);
        }
        let clock = std::time::Instant::now();
        let (code, stderr) = end(child);
        if Path::new(&run).join("checkpoints/ppo-finished").exists() {
            // It came through: the rank was killed at its end, or not at all.
            near(&p.path("one"), Path::new(&run));
            std::fs::remove_dir_all(&run).unwrap();
            continue;
        }
        hit += 1;
        assert!(clock.elapsed() < Duration::from_secs(20), "{:?}", clock.elapsed());
        assert!(matches!(code, Some(75 | 137)), "{code:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{stderr}");
        let named = stderr.lines().any(|l| l.contains("rank") && l.contains("gone"));
        assert!(named || holder() == before, "{stderr}");
    }
    let (code, stderr) = end(start(&p, 4, &on(&run, "1", &more)));
    assert_eq!(code, Some(0), "{stderr}");
    near(&p.path("one"), Path::new(&run));
}

#[test]
fn a_rank_that_hangs_is_named_and_one_that_is_slow_is_told_of() {
    let p = Place::new("llama");
    let run = p.path("hung").display().to_string();
    // So many iterations that the signal, which comes after the first, meets one of them.
    let more = |timeout| ["--zero-stage", "2", "--rank-timeout", timeout];
    let words = |timeout| of_steps(["80", "2", "2"], &run, "1", &more(timeout));
    let stop = |timeout, seconds: Option<u64>| {
        let mut child = start(&p, 3, &words(timeout));
        let begun = || std::fs::read_to_string(Path::new(&run).join("metrics.jsonl"));
        until(|| {
            let log = begun().unwrap_or_default();
            log.contains("\"event\":\"metrics\"") || child.try_wait().unwrap().is_some()
        });
        let pid = *processes(&run).last().unwrap();
        signal(pid, libc::SIGSTOP);
        if let Some(seconds) = seconds {
            std::thread::sleep(Duration::from_secs(seconds));
            signal(pid, libc::SIGCONT);
        }
        let ended = end(child);
        signal(pid, libc::SIGKILL);
        ended
    };
    let (code, stderr) = stop("60s", Some(8));
    assert_eq!(code, Some(0), "{stderr}");
    let told = |e: &serde_json::Value| e["text"].as_str().is_some_and(|t| t.contains("is slow"));
    assert!(events(Path::new(&run)).iter().any(told));
    std::fs::remove_dir_all(&run).unwrap();
    let (code, stderr) = stop("6s", None);
    assert!(matches!(code, Some(75 | 137)), "{code:?}: {stderr}");
    let named = |l: &str| l.contains("rank ") && l.contains(" s");
    assert!(stderr.lines().any(named), "{stderr}");
    let (code, stderr) = end(start(&p, 3, &words("60s")));
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn ranks_started_differently_are_refused() {
    let p = Place::new("opt");
    let flags = mpirun(1);
    let words = on("run", "1", &[]);
    let duplex = env!("CARGO_BIN_EXE_duplex");
    let mut command = Command::new(&flags[0]);
    command.args(&flags[1..]).arg(duplex).args(&words).args([":", "-np", "1", duplex]).args(&words);
    let out = command.args(["--seed", "5"]).current_dir(p.path("")).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("seed") && stderr.contains("rank 1"), "{stderr}");
}
