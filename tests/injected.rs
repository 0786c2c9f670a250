//! Whole runs in which one call of the system fails, is cut short, or tells another time: every
//! call that Duplex makes after `main` begins, in its turn.
//!
//! A library put before libc (`tests/injected/inject.c`) numbers the calls. A run is recorded once;
//! its calls are then failed one at a time, at the first, second, middle and last time that each
//! call site makes them. Each failed run must end with 0, 2, 3 or 75, with one true line, and the
//! same command without a fault must then leave the bytes of a run that nothing happened to.
//!
//! `cargo test` takes a fixed sample of the faults, `tools/faults` more of them, all, or one by its
//! name. `DUPLEX_BINARY` has another binary tested.
#![cfg(target_os = "linux")]

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "injected/faults.rs"]
mod faults;
#[path = "injected/judge.rs"]
mod judge;
#[path = "injected/library.rs"]
mod library;
#[path = "injected/order.rs"]
mod order;
#[path = "injected/process.rs"]
mod process;
#[path = "injected/replaced.rs"]
mod replaced;
#[path = "injected/scene.rs"]
mod scene;
#[path = "injected/sweep.rs"]
mod sweep;
#[path = "injected/trace.rs"]
mod trace;

#[test]
fn supervised_finetuning_survives_every_failing_call() {
    sweep::sweep("sft", "sft", &[]);
}

#[test]
fn training_a_reward_model_survives_every_failing_call() {
    sweep::sweep("reward", "reward", &[]);
}

#[test]
fn ppo_survives_every_failing_call() {
    sweep::sweep("ppo", "ppo", &[]);
}

const RANKS: [&str; 4] = ["--num-gpus", "3", "--zero-stage", "3"];

#[test]
fn three_ranks_survive_every_failing_call_in_supervised_finetuning() {
    sweep::sweep("sft-ranks", "sft", &RANKS);
}

#[test]
fn three_ranks_survive_every_failing_call_in_ppo() {
    sweep::sweep("ppo-ranks", "ppo", &RANKS);
}

#[test]
fn a_run_that_goes_on_survives_every_failing_call() {
    sweep::sweep_resumed("resumed", "sft");
}
