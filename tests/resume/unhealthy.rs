//! Runs whose training goes wrong or gets stuck: what is told, and what is left.

use crate::place::{Place, events, metrics, number, values};
use crate::process::{checkpoints, ended, spawn, stop_after, words};
use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use duplex::pool::{Param, ParamId};
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// A copy of the model with finite weights so large that nothing comes out of it but NaN.
fn poisoned(p: &Place, to: &str) {
    let model = Model::load(&p.path("model"), &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap();
    // Of the first layer: behind its norm, where nothing makes them small again.
    let matrices = |p: &Param| p.spec.segment == 1 && p.spec.shape.len() > 1;
    for i in (0..model.store.params().len()).filter(|i| matrices(&model.store.params()[*i])) {
        let mut values = model.store.read_f32(ParamId(i)).unwrap();
        values.iter_mut().for_each(|w| *w *= 1e30);
        model.store.write_f32(ParamId(i), &values).unwrap();
    }
    save_model(&model, &OutDir::create(&p.path(to)).unwrap(), &SaveAs::default(), None).unwrap();
    crate::checkpoint::tokenizer(None).save(&OutDir::create(&p.path(to)).unwrap()).unwrap();
}

fn warnings(of: &[Value]) -> Vec<String> {
    let all = of.iter().filter(|e| e["event"] == "warning");
    all.map(|e| e["text"].as_str().unwrap().to_string()).collect()
}

#[test]
fn steps_that_are_all_skipped_stop_the_run_and_leave_what_was_saved() {
    let p = Place::new("llama");
    poisoned(&p, "poisoned");
    let more = ["--reward-model", "poisoned", "--save-every", "1", "--keep-checkpoints", "99"];
    let head = ["train", "--config", "short.toml", "--data-path", "data.jsonl"];
    let steps = ["--output-dir", "run", "--actor-model", "model", "--reward-max-steps", "14"];
    let words = [&head[..], &steps, &more].concat();
    let stopped = |out: &std::process::Output| {
        let parts = ["reward: steps were skipped in 10 iterations in a row", "the loss is NaN"];
        ended(out, 2, &parts);
        // Nothing comes behind the score head.
        ended(out, 2, &["the gradient of score.weight is not finite in ", "the learning rate"]);
    };
    stopped(&spawn(&p, &words).wait_with_output().unwrap());
    let run = p.path("run");
    let rows = metrics(&run, "reward");
    let counts: Vec<f64> = rows.iter().map(|m| number(m, "skipped_steps")).collect();
    assert_eq!(counts, (1..10).map(f64::from).collect::<Vec<_>>());
    assert!(metrics(&run, "sft").iter().all(|m| m.get("skipped_steps").is_none()));
    let told = warnings(&events(&run));
    let of_steps = told.iter().filter(|w| w.contains("reward: optimizer step skipped: the loss"));
    assert_eq!(of_steps.count(), 9, "{told:?}");
    // All that was saved is whole, and the weights are those of the beginning.
    p.output(&["verify", "run"], "");
    let made = checkpoints(&run);
    assert!(made.contains(&"sft-finished".to_string()), "{made:?}");
    let file = |n: usize| format!("checkpoints/reward-{n:08}/state-00001.safetensors");
    let bytes = |n| std::fs::read(run.join(file(n))).unwrap();
    assert!((2..10).all(|n| bytes(n) == bytes(1)), "{made:?}");
    // How many there were in a row is known to who goes on, too.
    stopped(&spawn(&p, &words).wait_with_output().unwrap());
    assert_eq!(metrics(&run, "reward").len(), 9);
}

/// No row reaches the position with the infinite value, so the model works.
#[test]
fn a_model_that_came_with_infinities_is_trained_and_saved() {
    let p = Place::new("gpt2");
    let file = p.path("model/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let n = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..n]).unwrap();
    let end = header["transformer.wpe.weight"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[n + end - 4..n + end].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let run = p.run("sft", "run", &["--actor-model", "model", "--save-every", "1"]);
    let told = warnings(&events(&run));
    assert!(told.iter().any(|w| w.contains("1 value is not finite in ")), "{told:?}");
    assert!(metrics(&run, "sft").iter().all(|m| m.get("skipped_steps").is_none()));
    let infinite = values(&run.join("sft")).iter().filter(|x| !x.is_finite()).count();
    assert_eq!(infinite, 1);
    let made = checkpoints(&run);
    assert_eq!(made, ["sft-00000001", "sft-00000002", "sft-finished"]);
}

#[test]
fn a_policy_that_breaks_is_warned_of_and_so_is_who_goes_on() {
    let p = Place::new("llama");
    let mut more = vec!["--step", "3", "--actor-model", "model", "--reward-rule", "full_sentences"];
    more.extend(["--kl-coef", "0", "--actor-learning-rate", "0.1", "--ppo-max-steps", "36"]);
    more.extend(["--save-every", "1", "--ppo-epochs", "2", "--print-samples", "0"]);
    more.extend(["--data-split", "2,4,4"]);
    let words = |to| {
        let head = ["train", "--config", "short.toml", "--data-path", "data.jsonl"];
        [&head[..], &["--output-dir", to], &more].concat()
    };
    let told = |to| {
        let told = warnings(&events(&p.path(to)));
        told.into_iter().filter(|w| w.starts_with("ppo: ")).collect::<Vec<_>>()
    };
    ended(&spawn(&p, &words("whole")).wait_with_output().unwrap(), 0, &[]);
    let whole = told("whole");
    println!("{whole:#?}");
    let blow_up =
        whole.iter().filter(|w| w.contains("KL blow-up: kl / completions/mean_length was "));
    let collapse = whole.iter().filter(|w| w.contains("entropy collapse: entropy was "));
    assert!(blow_up.count() >= 1 && collapse.count() >= 1, "{whole:?}");
    assert!(whole.iter().any(|w| w.contains("raise --kl-coef")));
    // Stopped where the series are half full, and after.
    for name in ["ppo-00000002", "ppo-00000010", "ppo-00000020"] {
        stop_after(&p, &words("broken"), name);
    }
    ended(&spawn(&p, &words("broken")).wait_with_output().unwrap(), 0, &[]);
    assert_eq!(whole, told("broken"));
}

#[test]
fn an_iteration_that_takes_too_long_is_told_of_with_its_place() {
    let p = Place::new("llama");
    // An iteration of thousands of optimizer steps.
    let mut more = vec!["--step", "3", "--reward-rule", "brevity", "--ppo-epochs", "1000"];
    more.extend(["--per-device-generation-batch-size", "16"]);
    more.extend(["--per-device-training-batch-size", "1"]);
    let mut child = spawn(&p, &words("run", &[&more[..], &["--stuck-after", "1s"]].concat()));
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|l| l.contains("has taken")).unwrap();
    assert!(line.starts_with("warning: ppo: iteration 1 has taken 1 s so far"), "{line}");
    assert!(line.contains("begun last: program \"") && line.contains("\""), "{line}");
    assert!(line.ends_with(" s ago"), "{line}");
    // It was told of, not stopped.
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}
