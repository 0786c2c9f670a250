//! The same run on another device.

use crate::place::{Place, metrics, number};
#[cfg(feature = "emulator")]
use serde_json::Value;
#[cfg(feature = "emulator")]
use std::path::Path;

#[test]
fn a_device_that_is_not_there_is_one_line_and_exit_code_3() {
    let p = Place::new("gpt2");
    // No machine has that many.
    let args =
        ["sft", "--actor-model", "model", "--data-path", "data.jsonl", "--output-dir", "run"];
    let out = p.command(&[&args[..], &["--device", "cuda:4096"]].concat(), "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("cuda:4096"), "{stderr}");
    assert!(!p.path("run").exists());
    let out = p.command(&[&args[..], &["--device", "gpu"]].concat(), "");
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn the_cpu_is_named_with_the_reason_where_nothing_better_is() {
    let p = Place::new("gpt2");
    let run = p.run("sft", "run", &["--actor-model", "model"]);
    let start = crate::place::events(&run).into_iter().find(|e| e["event"] == "run_start").unwrap();
    let device = start["summary"].to_string();
    assert!(device.contains("CPU") || device.contains("GiB"), "{device}");
    assert!(number(&metrics(&run, "sft")[0], "loss") > 0.0);
}

/// Two iterations of a step agree in everything that is a mean over many tokens.
#[cfg(feature = "emulator")]
fn agree(cpu: &Path, emulated: &Path, step: &str, names: &[&str]) {
    let (ours, theirs) = (metrics(emulated, step), metrics(cpu, step));
    assert_eq!(ours.len(), theirs.len());
    let pair = |name: &str, a: &Value, b: &Value| {
        let (a, b) = (number(a, name), number(b, name));
        assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{step} {name}: {a} on kernels, {b}");
    };
    for (a, b) in ours.iter().zip(&theirs) {
        names.iter().for_each(|name| pair(name, a, b));
    }
}

#[cfg(feature = "emulator")]
#[test]
fn all_steps_on_the_emulated_device_give_the_metrics_of_the_cpu() {
    let p = Place::new("llama");
    let run = |device: &str| p.train(device, &["--device", device]);
    let (cpu, emulated) = (run("cpu"), run("emulated"));
    agree(&cpu, &emulated, "sft", &["loss"]);
    agree(&cpu, &emulated, "reward", &["loss"]);
    agree(&cpu, &emulated, "ppo", &["reward", "kl", "policy_loss", "value_loss"]);
}

#[cfg(feature = "emulator")]
#[test]
fn rollout_and_training_agree_bit_for_bit_on_the_emulated_device() {
    let p = Place::new("opt");
    for dtype in ["f32", "bf16"] {
        let more =
            ["--actor-model", "model", "--reward-rule", "no_repetition", "--device", "emulated"];
        let run = p.run("ppo", dtype, &[&more[..], &["--dtype", dtype]].concat());
        let all = metrics(&run, "ppo");
        assert_eq!(all.len(), 2);
        for iteration in all {
            assert_eq!(number(&iteration, "first_ratio_deviation"), 0.0, "{dtype}");
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn frozen_models_of_ppo_are_the_hosts_and_say_the_same() {
    let p = Place::new("llama");
    p.run("reward", "first", &["--actor-model", "model"]);
    let run = |name: &str, more: &[&str]| {
        let models = ["--actor-model", "model", "--reward-model", "first/reward"];
        let run = p.run("ppo", name, &[&models[..], &["--device", "emulated"], more].concat());
        let notes = crate::place::events(&run).into_iter().filter(|e| e["event"] == "note");
        let stay = notes.filter(|n| n.to_string().contains("of weights stay in the host's memory"));
        (stay.count(), metrics(&run, "ppo"))
    };
    let (there, ours) = run("offload", &["--offload", "true"]);
    let (none, theirs) = run("device", &[]);
    assert_eq!((there, none), (2, 0), "reference and reward model");
    // Before the first step of the optimizer, which rounds otherwise on the host.
    for name in ["reward", "kl", "first_ratio_deviation"] {
        assert_eq!(number(&ours[0], name), number(&theirs[0], name), "{name}");
    }
    assert!(number(&ours[0], "reward") != 0.0);
}
