//! Whole runs through the binary, which starts its ranks itself, or finds itself started as one of
//! several.

use crate::checkpoint::fresh_rng;
use crate::fake;
use crate::near::{near, of_steps, on};
use crate::place::{Place, metrics, number};
use crate::process::{ended, same, signal, until};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn command(p: &Place, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command.args(words).args(["--device", "emulated"]).current_dir(p.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a run on emulated devices. `folder`: its ranks are processes, whose messages go there;
/// else threads.
fn start(p: &Place, folder: Option<&TempDir>, words: &[&str]) -> Child {
    let mut command = command(p, words);
    if let Some(folder) = folder {
        command.envs(fake::environment(folder));
    }
    command.spawn().unwrap()
}

#[track_caller]
fn whole(p: &Place, folder: Option<&TempDir>, words: &[&str]) {
    ended(&start(p, folder, words).wait_with_output().unwrap(), 0, &[]);
}

/// Checks that there is one line of ours.
#[track_caller]
fn one_line(out: &Output) -> String {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().filter(|l| l.starts_with("duplex: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].into()
}

/// The ratio of the first minibatch of every iteration is exactly 1, though ranks generate together
/// and train apart.
#[track_caller]
fn first_ratios_are_one(run: &Path) {
    let all = metrics(run, "ppo");
    assert!(all.len() > 1);
    for values in all {
        assert_eq!(number(&values, "first_ratio_deviation"), 0.0);
    }
}

/// The ranks of a run that `parent` has started, as (rank, process).
fn ranks(parent: &Child) -> Vec<(usize, i32)> {
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut words = status.rsplit_once(") ")?.1.split(' ');
        let alive = words.next()? != "Z" && words.next()?.parse() == Ok(parent.id());
        let variables = std::fs::read(entry.path().join("environ")).ok()?;
        let mut variables = variables.split(|b| *b == 0);
        let rank = variables.find_map(|v| v.strip_prefix(b"DUPLEX_RANK="))?;
        alive.then_some((std::str::from_utf8(rank).ok()?.parse().ok()?, pid))
    };
    let mut all: Vec<_> = std::fs::read_dir("/proc").unwrap().filter_map(|e| of(e.ok()?)).collect();
    all.sort_unstable();
    all
}

/// Waits until a run has made its first steps.
fn begun(run: &Path, child: &mut Child) {
    let log = run.join("metrics.jsonl");
    until(|| {
        let steps = std::fs::read_to_string(&log).is_ok_and(|t| t.contains("grad_norm"));
        steps || child.try_wait().unwrap().is_some()
    });
}

#[test]
fn ranks_with_a_card_each_do_what_one_does() {
    let (p, folder) = (Place::new("llama"), fake::folder());
    whole(&p, None, &on("one", "1", &[]));
    for (ranks, stage, tensor) in [("2", "1", "1"), ("2", "3", "2"), ("4", "3", "2")] {
        let (processes, threads) = (format!("on-{ranks}-{stage}"), format!("as-{ranks}-{stage}"));
        let more = ["--zero-stage", stage, "--inference-tp-size", tensor];
        whole(&p, Some(&folder), &on(&processes, ranks, &more));
        near(&p.path("one"), &p.path(&processes));
        first_ratios_are_one(&p.path(&processes));
        // Whatever connects the ranks, they compute the same.
        whole(&p, None, &on(&threads, ranks, &more));
        same(&p.path(&threads), &p.path(&processes));
    }
}

/// One step of each kind: the kernels are slow here.
#[test]
fn ranks_with_a_card_each_take_a_large_vocabulary() {
    let (p, folder) = (Place::large("llama", 150_001, 9), fake::folder());
    let sizes = ["--sft-per-device-train-batch-size", "2", "--max-answer-seq-len", "3"];
    let reward = ["--reward-per-device-train-batch-size", "2"];
    let ppo = ["--per-device-generation-batch-size", "2", "--per-device-training-batch-size", "2"];
    let more = [&sizes[..], &reward, &ppo, &["--zero-stage", "2"]].concat();
    let words = of_steps(["1", "1", "1"], "run", "2", &more);
    whole(&p, Some(&folder), &words);
    assert_eq!(number(&metrics(&p.path("run"), "ppo")[0], "first_ratio_deviation"), 0.0);
}

#[test]
fn first_ratios_are_one_in_bf16_too() {
    let (p, folder) = (Place::new("llama"), fake::folder());
    let more = ["--dtype", "bf16", "--zero-stage", "3", "--step", "3", "--reward-rule", "brevity"];
    whole(&p, Some(&folder), &on("run", "4", &more));
    first_ratios_are_one(&p.path("run"));
}

#[test]
fn a_launcher_starts_ranks_with_cards() {
    let (p, folder) = (Place::new("opt"), fake::folder());
    let words = on("run", "1", &["--zero-stage", "2"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: &str, address: Option<&str>| {
        let mut command = command(&p, &words);
        let slurm =
            [("SLURM_PROCID", rank), ("SLURM_LOCALID", rank), ("SLURM_STEP_NUM_TASKS", "2")];
        command.envs(slurm).env("MASTER_PORT", port.to_string());
        command.envs(address.map(|a| ("MASTER_ADDR", a))).envs(fake::environment(&folder));
        command.spawn().unwrap()
    };
    let out = start("0", None).wait_with_output().unwrap();
    ended(&out, 2, &["srun started 2 ranks", "MASTER_ADDR is not set"]);
    let all = ["0", "1"].map(|rank| start(rank, Some("127.0.0.1")));
    all.into_iter().for_each(|child| ended(&child.wait_with_output().unwrap(), 0, &[]));
    whole(&p, None, &on("threads", "2", &["--zero-stage", "2"]));
    same(&p.path("threads"), &p.path("run"));
}

#[test]
fn a_missing_library_is_one_line_and_exit_code_3() {
    let p = Place::new("opt");
    let words = on("run", "2", &[]);
    let out = command(&p, &words).env("DUPLEX_NCCL", "/nowhere/libnccl.so").output().unwrap();
    ended(&out, 3, &["NCCL", "/nowhere/libnccl.so", "DUPLEX_NCCL"]);
    one_line(&out);
    assert!(!p.path("run").exists());
}

#[test]
fn more_cards_than_there_are_is_one_line() {
    let p = Place::new("opt");
    let run = |device: &str| {
        let out = p.command(&[&on("run", "1024", &[])[..], &["--device", device]].concat(), "");
        let line = one_line(&out);
        assert!(!p.path("run").exists());
        (out.status.code(), line)
    };
    let (code, line) = run("cuda");
    match code {
        Some(2) => assert!(line.contains("--num-gpus 1024 asks for more GPUs"), "{line}"),
        code => assert!(code == Some(3) && line.contains("--device cuda: "), "{line}"),
    }
    let (code, line) = run("cuda:3");
    assert!(code == Some(2) && line.contains("--device cuda:3 names one GPU"), "{line}");
}

#[test]
fn a_mistake_of_all_ranks_is_told_once() {
    let (p, folder) = (Place::new("opt"), fake::folder());
    std::fs::write(p.path("data.jsonl"), "{\"prompt\": 3}\n").unwrap();
    let out = start(&p, Some(&folder), &on("run", "3", &[])).wait_with_output().unwrap();
    ended(&out, 2, &["data.jsonl"]);
    one_line(&out);
}

/// Kills one rank at a random moment again and again; each time the others end and one line says
/// which is gone, and the same command goes on.
#[test]
fn a_rank_with_a_card_that_is_killed_ends_the_run_and_the_run_goes_on() {
    let (p, mut rng) = (Place::new("llama"), fresh_rng());
    let words = on("run", "4", &["--zero-stage", "3", "--rank-timeout", "20s"]);
    whole(&p, None, &on("one", "1", &[]));
    for dead in [0, 1 + rng.below(3) as usize] {
        let folder = fake::folder();
        let mut child = start(&p, Some(&folder), &words);
        begun(&p.path("run"), &mut child);
        // The log of the run before is there at once, its ranks are not.
        let is_there = |child: &Child| ranks(child).iter().any(|(rank, _)| *rank == dead);
        until(|| is_there(&child) || child.try_wait().unwrap().is_some());
        std::thread::sleep(Duration::from_secs_f32(0.3 * rng.uniform()));
        let victim = ranks(&child).into_iter().find(|(rank, _)| *rank == dead);
        let (_, pid) = victim.expect("a run of several seconds");
        // SAFETY: a process of this test's own run.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        let clock = Instant::now();
        let out = child.wait_with_output().unwrap();
        assert!(clock.elapsed() < Duration::from_secs(15), "{:?}", clock.elapsed());
        ended(&out, 75, &[&format!("rank {dead} on "), "is gone", "the same command resumes"]);
        one_line(&out);
    }
    whole(&p, Some(&fake::folder()), &words);
    near(&p.path("one"), &p.path("run"));
}

#[test]
fn a_rank_with_a_card_that_hangs_is_named() {
    let (p, folder) = (Place::new("llama"), fake::folder());
    let words = on("run", "3", &["--zero-stage", "2", "--rank-timeout", "5s"]);
    let mut child = start(&p, Some(&folder), &words);
    begun(&p.path("run"), &mut child);
    let (_, pid) = ranks(&child)[1];
    // SAFETY: a process of this test's own run.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    // The others end; the one that is stopped would stay until it is killed for that.
    until(|| ranks(&child).len() == 1);
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let out = child.wait_with_output().unwrap();
    ended(&out, 75, &["rank 1 on ", "5 s", "the same command resumes"]);
    one_line(&out);
}

#[test]
fn signals_reach_the_ranks_and_none_outlives_the_run() {
    let (p, folder) = (Place::new("llama"), fake::folder());
    let words = on("run", "2", &["--zero-stage", "3"]);
    whole(&p, Some(&folder), &on("once", "2", &["--zero-stage", "3"]));
    let mut child = start(&p, Some(&folder), &words);
    begun(&p.path("run"), &mut child);
    signal(&child, libc::SIGTERM);
    let out = child.wait_with_output().unwrap();
    ended(&out, 75, &["SIGTERM", "the same command resumes"]);
    one_line(&out);

    let mut child = start(&p, Some(&folder), &words);
    until(|| ranks(&child).len() == 2);
    std::thread::sleep(Duration::from_millis(300));
    let all = ranks(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    // They are gone, or others have their numbers.
    let there = |pid: i32| {
        let words = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        words.windows(12).any(|w| w == b"DUPLEX_RANK=")
    };
    until(|| all.iter().all(|(_, pid)| !there(*pid)));

    whole(&p, Some(&folder), &words);
    same(&p.path("once"), &p.path("run"));
}
