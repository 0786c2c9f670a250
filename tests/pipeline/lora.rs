//! Adapters: saved alone in PEFT's format and merged, and of use both ways.

use crate::place::{Place, bytes, distance, metrics, number, tensors};
use serde_json::Value;
use std::path::Path;

const ADAPTERS: [&str; 12] = [
    "--actor-lora-dim",
    "4",
    "--critic-lora-dim",
    "3",
    "--lora-alpha",
    "8",
    "--actor-lora-learning-rate",
    "3e-2",
    "--critic-lora-learning-rate",
    "1e-2",
    "--lora-module-name",
    "q_proj",
];

const GREEDY: [&str; 6] = ["--temperature", "0", "--dtype", "f32", "--max-new-tokens", "12"];

/// `merged` is `base` plus scale B A in the adapted modules, and `base` in all else.
fn check_merged(merged: &Path, base: &Path, rank: usize, scale: f32) {
    let adapter = merged.join("adapter");
    let text = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&"LORA".into(), &rank.into()));
    let named = Path::new(config["base_model_name_or_path"].as_str().unwrap());
    assert_eq!(named.canonicalize().unwrap(), base.canonicalize().unwrap());
    let (mut parts, old) = (
        tensors(&adapter.join("adapter_model.safetensors")),
        tensors(&base.join("model.safetensors")),
    );
    let mut adapted = 0;
    for (name, (shape, new)) in tensors(&merged.join("model.safetensors")) {
        let Some((_, old)) = old.get(&name) else {
            // The head of a reward model made from a language model.
            assert_eq!(name, "score.weight");
            assert_eq!(new, parts.remove("base_model.model.score.weight").unwrap().1);
            continue;
        };
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let mut part =
            |p: &str| parts.remove(&format!("base_model.model.{module}.lora_{p}.weight"));
        let (Some((_, a)), Some((b_shape, b))) = (part("A"), part("B")) else {
            assert_eq!(&new, old, "{name}");
            continue;
        };
        adapted += 1;
        assert_eq!(b_shape, [shape[0], rank]);
        assert!(b.iter().any(|x| *x != 0.0), "{name} was not trained");
        for (i, new) in new.iter().enumerate() {
            let (row, column) = (i / shape[1], i % shape[1]);
            let ba: f32 = (0..rank).map(|r| b[row * rank + r] * a[r * shape[1] + column]).sum();
            assert!((new - (old[i] + scale * ba)).abs() < 1e-6, "{name}");
        }
    }
    assert!(parts.is_empty(), "{:?}", parts.keys());
    assert_eq!(adapted, 4, "2 layers, 2 modules");
}

#[test]
fn adapters_are_saved_alone_and_merged() {
    let p = Place::new("llama");
    let run = p.train("run", &[&ADAPTERS[..], &["down_proj"]].concat());
    check_merged(&run.join("sft"), &p.path("model"), 4, 2.0);
    check_merged(&run.join("reward"), &p.path("model"), 3, 8.0 / 3.0);
    check_merged(&run.join("ppo/actor"), &run.join("sft"), 4, 2.0);
    assert!(run.join("ppo/critic/adapter/adapter_model.safetensors").is_file());
}

#[test]
fn merged_and_adapted_models_answer_alike() {
    for family in ["opt", "gpt2"] {
        let p = Place::new(family);
        let all = [&ADAPTERS[..11], &["all", "--sft-max-steps", "8"]].concat();
        let run = p.train("run", &all);
        for name in ["sft", "ppo/actor"] {
            let (merged, adapter) = (format!("run/{name}"), format!("run/{name}/adapter"));
            let talk = |model: &str| {
                let lines = "Say the number 3, please.\n/clear\nGrass is green.\n";
                p.output(&[&["chat", model], &GREEDY[..]].concat(), lines)
            };
            assert_eq!(talk(&merged), talk(&adapter), "{family}");
            assert_ne!(talk(&merged), talk("model"), "{family}");
            let more = ["--reward-model", "run/reward/adapter", "--data-path", "data.jsonl"];
            let length = ["--max-prompt-seq-len", "40"];
            let eval = ["eval", &merged, "--baseline", &adapter, "--prompts", "8"];
            let table = p.output(&[&eval[..], &more, &length, &GREEDY].concat(), "");
            assert!(table.contains("0 wins, 8 ties, 0 losses"), "{table}");
        }
        assert!(run.join("ppo/critic/adapter").is_dir());
    }
}

#[test]
fn training_goes_on_from_adapters() {
    let p = Place::new("llama");
    let run = p.train("run", &[&ADAPTERS[..], &["down_proj"]].concat());
    let on = p.run("sft", "on", &["--actor-model", "run/sft/adapter"]);
    // Their base is still the model without any.
    check_merged(&on.join("sft"), &p.path("model"), 4, 2.0);
    assert!(distance(&on.join("sft"), &run.join("sft")) > 1e-4);
    let models = ["--actor-model", "run/sft/adapter", "--reward-model", "run/reward/adapter"];
    let ppo = p.run("ppo", "ppo", &models);
    check_merged(&ppo.join("ppo/actor"), &p.path("model"), 4, 2.0);
    // The start is the merged model, whichever way it was given.
    assert_eq!(number(&metrics(&ppo, "ppo")[0], "first_ratio_deviation"), 0.0);
    assert!(number(&metrics(&ppo, "ppo")[0], "kl").abs() < 1e-5);
}

#[test]
fn an_unknown_module_is_refused_with_the_names_there_are() {
    let p = Place::new("gpt2");
    let args = ["train", "--config", "short.toml", "--actor-model", "model", "--data-path"];
    let lora = ["data.jsonl", "--output-dir", "run", "--actor-lora-dim", "4"];
    let out = p.command(&[&args[..], &lora, &["--lora-module-name", "q_proj"]].concat(), "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    for part in ["\"q_proj\"", "c_attn", "c_fc", "c_proj", "\"all\""] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

/// The average of the adapters is what is merged: a slow one stays at the start.
#[test]
fn a_moving_average_of_adapters_is_merged() {
    let p = Place::new("llama");
    let settings = [&ADAPTERS[..], &["--enable-ema", "--ema-decay"]].concat();
    let slow = p.train("slow", &[&settings[..], &["0.999"]].concat());
    let (actor, average) = (slow.join("ppo/actor"), slow.join("ppo/actor_ema"));
    let moved = distance(&actor, &slow.join("sft"));
    let averaged = distance(&average, &slow.join("sft"));
    assert!(averaged > 0.0 && averaged < 0.05 * moved, "{averaged} {moved}");
    let none = p.train("none", &[&settings[..], &["0"]].concat());
    assert_eq!(bytes(&none.join("ppo/actor_ema")), bytes(&none.join("ppo/actor")));
}
