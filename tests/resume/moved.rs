//! Directories that are moved, removed or replaced while a run writes into them, and the lock that
//! keeps two runs apart.

use crate::place::{Place, bytes};
use crate::process::{ended, spawn, until};
use std::path::Path;
use std::process::Child;

/// A run of one step, which others can tell from its seed.
fn run(p: &Place, seed: &str, steps: &str, more: &[&str]) -> Child {
    let head = ["sft", "--config", "short.toml", "--actor-model", "model", "--output-dir", "run"];
    let data = ["--data-path", "data.jsonl", "--save-every", "1", "--seed", seed];
    let words = [&head[..], &data, &["--max-steps", steps], more].concat();
    spawn(p, &words)
}

/// Waits until a run has made a checkpoint.
#[track_caller]
fn underway(child: &mut Child, dir: &Path) {
    let made = dir.join("checkpoints/sft-00000002");
    until(|| made.exists() || child.try_wait().unwrap().is_some());
    assert!(child.try_wait().unwrap().is_none(), "it ended before it was looked for");
}

/// The seeds of all checkpoints in a run's directory, and of its configuration.
fn seeds(dir: &Path) -> Vec<String> {
    let names = crate::process::checkpoints(dir);
    let manifests = names.iter().map(|name| dir.join("checkpoints").join(name));
    let text = manifests.map(|dir| std::fs::read_to_string(dir.join("manifest.json")).unwrap());
    let mut all: Vec<String> = text
        .map(|text| {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json["config"]["seed"].as_str().unwrap().to_owned()
        })
        .collect();
    let config = std::fs::read_to_string(dir.join("config.toml")).unwrap();
    let seed = config.lines().find_map(|l| l.strip_prefix("seed = ")).unwrap();
    all.push(seed.to_owned());
    all
}

#[test]
fn a_run_whose_directory_is_moved_writes_into_no_other() {
    let p = Place::new("gpt2");
    let mut first = run(&p, "1", "400", &["--sft-num-train-epochs", "400"]);
    underway(&mut first, &p.path("run"));
    std::fs::rename(p.path("run"), p.path("moved")).unwrap();
    let second = run(&p, "2", "3", &[]).wait_with_output().unwrap();
    ended(&second, 0, &[]);
    let once = bytes(&p.path("run/sft"));
    ended(&first.wait_with_output().unwrap(), 0, &[]);
    assert_eq!(bytes(&p.path("run/sft")), once, "the other run's model");
    assert!(seeds(&p.path("run")).iter().all(|seed| seed == "2"));
    assert!(seeds(&p.path("moved")).iter().all(|seed| seed == "1"));
    assert!(p.path("moved/sft/model.safetensors").exists());
}

#[test]
fn a_run_whose_directory_is_removed_ends_with_one_line() {
    let p = Place::new("gpt2");
    let mut child = run(&p, "1", "400", &["--sft-num-train-epochs", "400"]);
    underway(&mut child, &p.path("run"));
    // What is written meanwhile is removed the next time.
    while std::fs::remove_dir_all(p.path("run")).is_err() && p.path("run").exists() {}
    ended(&child.wait_with_output().unwrap(), 3, &["run/checkpoints"]);
    assert!(!p.path("run").exists());
}

#[test]
fn a_lock_that_is_removed_still_keeps_another_run_away() {
    let p = Place::new("gpt2");
    let mut child = run(&p, "1", "400", &["--sft-num-train-epochs", "400"]);
    underway(&mut child, &p.path("run"));
    std::fs::remove_file(p.path("run/duplex.lock")).unwrap();
    let other = run(&p, "2", "3", &["--overwrite", "--resume", "never"]);
    ended(&other.wait_with_output().unwrap(), 2, &["in use by another process"]);
    ended(&child.wait_with_output().unwrap(), 0, &[]);
    // The run is known as one, and another is not told to overwrite what is no run's.
    std::fs::remove_file(p.path("run/duplex.lock")).unwrap();
    let again = run(&p, "1", "400", &["--sft-num-train-epochs", "400"]);
    ended(&again.wait_with_output().unwrap(), 2, &["run/sft exists already"]);
}

#[test]
fn a_lock_that_is_none_of_ours_is_left_as_it_is() {
    let p = Place::new("gpt2");
    std::fs::create_dir(p.path("run")).unwrap();
    let (mine, lock) = (p.path("thesis.txt"), p.path("run/duplex.lock"));
    std::fs::write(&mine, "my thesis").unwrap();
    std::os::unix::fs::symlink(&mine, &lock).unwrap();
    ended(&run(&p, "1", "3", &[]).wait_with_output().unwrap(), 2, &["duplex.lock"]);
    std::fs::remove_file(&lock).unwrap();
    std::fs::hard_link(&mine, &lock).unwrap();
    ended(&run(&p, "1", "3", &[]).wait_with_output().unwrap(), 2, &["not a lock that Duplex made"]);
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), "my thesis");
}

#[test]
fn an_input_that_the_run_would_replace_is_refused() {
    let p = Place::new("gpt2");
    ended(&run(&p, "1", "3", &[]).wait_with_output().unwrap(), 0, &[]);
    std::fs::copy(p.path("data.jsonl"), p.path("run/sft/data.jsonl")).unwrap();
    let once = bytes(&p.path("run/sft"));
    for [model, data] in [["model", "run/sft/data.jsonl"], ["run/sft", "data.jsonl"]] {
        let words = ["sft", "--config", "short.toml", "--output-dir", "run", "--overwrite"];
        let inputs = ["--actor-model", model, "--data-path", data, "--resume", "never"];
        let out = spawn(&p, &[&words[..], &inputs].concat()).wait_with_output().unwrap();
        ended(&out, 2, &["is an input, and this run would replace"]);
    }
    assert_eq!(bytes(&p.path("run/sft")), once);
    assert!(p.path("run/sft/data.jsonl").exists());
}
