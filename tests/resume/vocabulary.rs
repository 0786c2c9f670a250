//! Rows of random unequal length under the vocabulary of a real model: what is planned after a
//! resume is planned for other rows than before, and the result is the same.

use crate::place::Place;
use crate::process::{ended, same, spawn, stop_after};

#[test]
fn a_stopped_run_under_a_large_vocabulary_ends_as_if_it_were_not() {
    let p = Place::large("gpt2", 49_411, 300);
    let steps = ["--sft-max-steps", "5", "--reward-max-steps", "2", "--ppo-max-steps", "5"];
    let steps = [&steps[..], &["--micro-batch-tokens", "900"]].concat();
    let whole = p.train("whole", &steps);
    let head = ["train", "--config", "short.toml", "--actor-model", "model"];
    let data = ["--data-path", "data.jsonl", "--output-dir", "stopped", "--save-every", "1"];
    let words = [&head[..], &data, &steps].concat();
    for after in ["sft-00000002", "ppo-00000001"] {
        stop_after(&p, &words, after);
    }
    ended(&spawn(&p, &words).wait_with_output().unwrap(), 0, &[]);
    same(&whole, &p.path("stopped"));
}
