//! `kill -9` at random moments of every step, and inside the writing of checkpoints.

use crate::checkpoint::fresh_rng;
use crate::place::{Place, all_bytes, bytes};
use crate::process::{checkpoints, same, spawn, words};
use std::path::Path;
use std::time::{Duration, Instant};

/// Kills of each run; `tools/kill-resume` asks for more.
fn kills() -> usize {
    std::env::var("DUPLEX_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5)
}

/// Has a run made that nothing happens to, and one that is killed again and again, at moments
/// spread over the time that the first one took; both must leave the same.
fn survives(p: &Place, more: &[&str]) {
    let started = Instant::now();
    let whole = spawn(p, &words("whole", more)).wait_with_output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let whole = started.elapsed();
    let more = [more, &["--save-every", "1"]].concat();
    let (run, mut rng) = (p.path("killed"), fresh_rng());
    for _ in 0..kills() {
        let mut child = spawn(p, &words("killed", &more));
        std::thread::sleep(whole.mul_f32(0.8 * rng.uniform()));
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() || out.status.code().is_none(), "{stderr}");
        let made = if run.join("checkpoints").is_dir() { checkpoints(&run) } else { vec![] };
        println!("killed with {made:?}");
        if made.contains(&"ppo-finished".to_string()) {
            // It came through. With many kills another one is begun.
            same(&p.path("whole"), &run);
            std::fs::remove_dir_all(&run).unwrap();
        }
    }
    let end = spawn(p, &words("killed", &more)).wait_with_output().unwrap();
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    same(&p.path("whole"), &run);
}

#[test]
fn a_killed_run_in_f32_ends_as_if_it_were_not() {
    let p = Place::new("llama");
    // With what else has a state: EMA, text, running statistics, an adaptive coefficient,
    // evaluations.
    let text = "The sea is blue, of course. And the grass is green.\n\n".repeat(80);
    std::fs::write(p.path("sea.txt"), text).unwrap();
    let mut more = vec!["--enable-ema", "--reward-scaling", "running", "--ppo-eval-interval", "2"];
    more.extend(["--kl-controller", "adaptive", "--kl-horizon", "10", "--eval-prompts", "3"]);
    more.extend(["--unsupervised-data-path", "sea.txt", "--sft-eval-interval", "2"]);
    survives(&p, &more);
    let [a, b] = ["whole", "killed"].map(|r| bytes(&p.path(r).join("ppo/actor_ema")));
    assert_eq!(a, b);
}

#[test]
fn a_killed_run_in_bf16_ends_as_if_it_were_not() {
    survives(&Place::new("gpt2"), &["--dtype", "bf16"]);
}

#[test]
fn a_killed_run_with_compact_state_ends_as_if_it_were_not() {
    survives(&Place::new("opt"), &["--dtype", "bf16", "--optimizer-state", "compact"]);
}

#[test]
fn a_killed_run_of_adapters_ends_as_if_it_were_not() {
    let lora = ["--actor-lora-dim", "4", "--critic-lora-dim", "4", "--lora-dropout", "0.1"];
    survives(&Place::new("llama"), &lora);
}

/// True if a checkpoint is being written in `run`.
fn is_writing(run: &Path) -> bool {
    let Ok(all) = std::fs::read_dir(run.join("checkpoints")) else { return false };
    all.flatten().any(|e| e.file_name().to_string_lossy().starts_with(".tmp-"))
}

#[test]
fn a_kill_inside_the_writing_of_a_checkpoint_costs_that_one_only() {
    let p = Place::new("llama");
    let whole = p.train("whole", &crate::process::STEPS);
    let run = p.path("killed");
    let more = ["--save-every", "1"];
    let mut rng = fresh_rng();
    let mut inside = 0;
    for _ in 0..12 {
        let mut child = spawn(&p, &words("killed", &more));
        // What the one before left is removed at the start.
        while is_writing(&run) && child.try_wait().unwrap().is_none() {}
        let wait = Duration::from_millis(u64::from(rng.below(60)));
        std::thread::sleep(wait);
        while !is_writing(&run) && child.try_wait().unwrap().is_none() {}
        std::thread::sleep(Duration::from_micros(u64::from(rng.below(3000))));
        child.kill().unwrap();
        child.wait().unwrap();
        inside += usize::from(is_writing(&run));
        if run.join("checkpoints/ppo-finished").exists() {
            break;
        }
    }
    println!("{inside} kills left something half written");
    if !run.join("checkpoints/ppo-finished").exists() {
        let end = spawn(&p, &words("killed", &more)).wait_with_output().unwrap();
        assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    }
    assert!(inside > 0 && !is_writing(&run));
    assert_eq!(all_bytes(&whole), all_bytes(&run));
}
