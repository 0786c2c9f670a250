//! The three steps, together and one by one, for every family.

use crate::checkpoint;
use crate::place::{MODELS, Place, all_bytes, bytes, events, metrics, number, summary};
use duplex::base::DType;
use duplex::data::Tokenizer;
use duplex::model::{Head, LoadOptions, Model};
use serde_json::json;
use std::path::Path;

/// Loads a saved model as any checkpoint and checks what it says of itself.
fn check_model(dir: &Path, head: Head) {
    let model = Model::load(dir, &LoadOptions::frozen(head, DType::F32)).unwrap();
    assert!(model.notes.is_empty(), "{:?}", model.notes);
    Tokenizer::load(dir).unwrap().check_vocab(model.arch.vocab).unwrap();
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let class = if head == Head::Lm { "LM" } else { "ForSequenceClassification" };
    assert!(config.contains(class) && config.contains("\"float32\""), "{config}");
}

#[test]
fn every_family_goes_through_all_steps() {
    for family in ["opt", "gpt2", "llama"] {
        let p = Place::new(family);
        let run = p.train("run", &[]);
        for (name, head) in MODELS.iter().zip([Head::Lm, Head::Score, Head::Lm, Head::Score]) {
            check_model(&run.join(name), head);
        }
        for file in ["config.toml", "metrics.jsonl", "report.html"] {
            assert!(std::fs::metadata(run.join(file)).unwrap().len() > 100, "{file}");
        }
        let html = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(html.contains("Reward model") && html.contains("<svg"));
        let mut boards = std::fs::read_dir(run.join("tensorboard")).unwrap();
        let board = boards.next().unwrap().unwrap();
        assert!(board.file_name().to_string_lossy().contains("tfevents"));
        assert!(board.metadata().unwrap().len() > 1000);
        check_metrics(&run);
    }
}

fn check_metrics(run: &Path) {
    assert_eq!(events(run)[0]["event"], "run_start");
    assert_eq!(events(run).last().unwrap()["event"], "run_end");
    for step in ["sft", "reward", "ppo"] {
        let rows = metrics(run, step);
        assert_eq!(rows.len(), 2, "{step}");
        for (name, value) in rows.iter().flat_map(|r| r.as_object().unwrap()) {
            assert!(value.as_f64().is_some_and(f64::is_finite), "{step} {name}: {value}");
        }
    }
    for row in metrics(run, "ppo") {
        assert_eq!(number(&row, "first_ratio_deviation"), 0.0);
        // Close to a uniform choice out of the vocabulary.
        assert!((4.0..5.8).contains(&number(&row, "entropy")), "{row}");
        assert!((1.0..=8.0).contains(&number(&row, "completions/mean_length")), "{row}");
    }
    // The reference is the actor until the first update, and not after.
    let kl: Vec<f64> = metrics(run, "ppo").iter().map(|m| number(m, "kl")).collect();
    assert!(kl[0] == 0.0 && kl[1] != 0.0, "{kl:?}");
    assert!(number(&summary(run, "sft"), "loss_last") < number(&summary(run, "sft"), "loss_first"));
    for name in ["eval_accuracy_before", "eval_accuracy_after"] {
        assert!((0.0..=1.0).contains(&number(&summary(run, "reward"), name)));
    }
    number(&summary(run, "ppo"), "score_after");
}

/// Answers to equal prompts are shown beside those that the same prompts had before.
#[test]
fn answers_to_equal_prompts_are_told_apart() {
    let p = Place::new("llama");
    p.loud("loud");
    let rows = vec![r#"{"prompt": "Say it: "}"#; 60];
    std::fs::write(p.path("asked.jsonl"), rows.join("\n")).unwrap();
    let words = ["--actor-model", "loud", "--reward-rule", "brevity", "--max-steps", "1"];
    let words = [&words[..], &["--data-path", "asked.jsonl", "--eval-fraction", "0.2"]].concat();
    let run = p.run("ppo", "run", &words);
    let told = events(&run);
    let before: Vec<&str> = told.iter().filter_map(|e| e["baseline"].as_str()).collect();
    assert!(before.len() > 3 && before.iter().any(|b| *b != before[0]), "{before:?}");
}

/// Keys of a stage that does not run neither refuse a run nor its resuming.
#[test]
fn keys_of_stages_that_do_not_run_change_nothing() {
    let p = Place::new("llama");
    let rlhf = ["--rloo-max-steps", "2", "--set", "rloo.per_device_training_batch_size=4"];
    let base = ["--stages", "rloo", "--rloo-reward-rule", "brevity"];
    let words = [&base[..], &rlhf, &["--save-every", "1"]].concat();
    let run = p.train("run", &words);
    std::fs::remove_dir_all(run.join("checkpoints/rloo-finished")).unwrap();
    let other = ["--ppo-kl-coef", "0.3", "--dpo-beta", "0.7", "--ppo-reward-rule", "brevity"];
    p.train("run", &[&words[..], &other].concat());
    let out = p.command(
        &[
            &[
                "train",
                "--config",
                "short.toml",
                "--data-path",
                "data.jsonl",
                "--output-dir",
                "run",
            ],
            &words[..],
            &["--rloo-beta", "0.7"],
        ]
        .concat(),
        "",
    );
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn step_by_step_gives_the_same_bytes() {
    let p = Place::new("llama");
    let whole = p.train("whole", &[]);
    // A step alone would take all rows it can use.
    let split = ["--data-split", "2,4,4"];
    let model = ["--actor-model", "model", "--data-split", "2,4,4"];
    let run = p.run("sft", "single", &model);
    p.run("reward", "single", &model);
    // Step 3 finds both models in the directory. No model named must not mean the demo's settings.
    p.run("ppo", "single", &split);
    assert_eq!(all_bytes(&whole), all_bytes(&run));
    for step in ["sft", "reward", "ppo"] {
        assert_eq!(metrics(&run, step).len(), 2);
    }
}

#[test]
fn a_rule_needs_no_second_step() {
    let p = Place::new("gpt2");
    let run = p.train("run", &["--step", "1", "3", "--reward-rule", "no_repetition"]);
    assert!(!run.join("reward").exists());
    check_model(&run.join("ppo/actor"), Head::Lm);
    for row in metrics(&run, "ppo") {
        assert!((0.0..=1.0).contains(&number(&row, "reward")), "{row}");
    }
    // The third step alone, on the model as it came.
    let alone = p.train("alone", &["--step", "3", "--reward-rule", "no_repetition"]);
    assert!(!alone.join("sft").exists());
    assert_ne!(bytes(&alone.join("ppo/actor")), bytes(&p.path("model")));
    assert_ne!(bytes(&alone.join("ppo/actor")), bytes(&run.join("ppo/actor")));
}

#[test]
fn nothing_held_out_means_nothing_evaluated() {
    let p = Place::new("llama");
    let run = p.train("run", &["--eval-fraction", "0"]);
    // The start of a step declares metrics; here are those that have values.
    let values = events(&run).into_iter().filter(|e| e["event"] != "step_start");
    let text: String = values.map(|e| e.to_string()).collect();
    for name in ["eval_loss", "eval_accuracy", "score_before", "kl_after"] {
        assert!(!text.contains(name), "{name}");
    }
    assert!(text.contains("loss_last"));
    // Held-out rows are there by default.
    let run = p.train("held_out", &["--sft-eval-interval", "1", "--reward-eval-interval", "2"]);
    let evaluated = |step: &str, name: &str| {
        let has: Vec<bool> = metrics(&run, step).iter().map(|m| m.get(name).is_some()).collect();
        has
    };
    assert_eq!(evaluated("sft", "eval_loss"), [true, true]);
    assert_eq!(evaluated("reward", "eval_loss"), [false, true]);
    assert_eq!(evaluated("reward", "eval_accuracy"), [false, true]);
}

#[test]
fn what_would_stop_a_later_step_is_found_before_the_first() {
    let p = Place::new("opt");
    let refused = |more: &[&str], parts: &[&str]| {
        let args = ["train", "--config", "short.toml", "--actor-model", "model", "--data-path"];
        let out =
            p.command(&[&args[..], &["data.jsonl", "--output-dir", "run"], more].concat(), "");
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
        assert!(!p.path("run/sft").exists(), "{more:?} was found too late");
    };
    refused(&["--reward-rule", "nope"], &["\"nope\"", "no_repetition"]);
    refused(&["--step", "1", "3"], &["stage ppo needs a reward"]);
    refused(&["--max-answer-seq-len", "100"], &["140 tokens", "128 positions"]);
    refused(&["--critic-model", "absent/critic/model"], &["absent/critic/model"]);
    refused(&["--unsupervised-data-path", "absent.txt"], &["absent.txt"]);
    // Each of these is met by the last step alone.
    checkpoint::write_with(&p.path("other"), "gpt2", 290);
    refused(&["--critic-model", "other"], &["other have different tokenizers"]);
    refused(&["--step", "1", "3", "--reward-model", "model"], &["has no score head"]);
    std::fs::write(p.path("short.txt"), "A few words.").unwrap();
    refused(&["--unsupervised-data-path", "short.txt"], &["less than one block of 48"]);
    checkpoint::write_rows(&p.path("rows.jsonl"), &checkpoint::pairs(3));
    refused(&["--unsupervised-data-path", "rows.jsonl"], &[": the mixture loss needs"]);
    checkpoint::write(&p.path("llama"), "llama");
    let modules = ["--critic-model", "llama", "--critic-lora-dim", "2"];
    refused(&[&modules[..], &["--lora-module-name", "c_attn"]].concat(), &["c_attn"]);
    let tensor = ["--num-gpus", "2", "--zero-stage", "3", "--inference-tp-size", "3"];
    refused(&tensor, &["2 ranks cannot be divided into 3"]);
    let long = json!({"prompt": "long ".repeat(200), "chosen": "a"});
    std::fs::rename(p.path("data.jsonl"), p.path("sft.jsonl")).unwrap();
    checkpoint::write_rows(&p.path("data.jsonl"), &[long]);
    let alone = ["--step", "1", "3", "--reward-rule", "no_repetition"];
    let rows = ["--data-split", "0,0,1", "--sft-only-data-path", "sft.jsonl"];
    refused(&[&alone[..], &rows].concat(), &["no row is left for ppo"]);
}

#[test]
fn a_start_that_fails_spoils_nothing_that_it_was_to_replace() {
    let p = Place::new("gpt2");
    let run = p.train("run", &[]);
    let before = all_bytes(&run);
    let long = json!({"prompt": "long ".repeat(200), "chosen": "a", "rejected": "b"});
    checkpoint::write_rows(&p.path("long.jsonl"), &[long]);
    let mut start = vec!["train", "--output-dir", "run", "--overwrite"];
    start.extend(["--actor-model", "model", "--data-path", "long.jsonl"]);
    assert_eq!(p.command(&start, "").status.code(), Some(2));
    assert_eq!(all_bytes(&run), before);
    assert_eq!(metrics(&run, "ppo").len(), 2);
    assert!(p.output(&["verify", "run"], "").contains("whole"));
}

#[test]
fn a_run_that_replaces_another_leaves_nothing_of_it() {
    let p = Place::new("gpt2");
    let first = p.train("run", &["--enable-ema", "--actor-lora-dim", "2"]);
    assert!(first.join("ppo/actor_ema").is_dir() && first.join("sft/adapter").is_dir());
    let again = p.train("run", &["--overwrite"]);
    assert!(!again.join("ppo/actor_ema").exists() && !again.join("sft/adapter").exists());
    assert_eq!(all_bytes(&again), all_bytes(&p.train("fresh", &[])));
    assert_eq!(metrics(&again, "ppo").len(), 2);
}

/// The cache as Hugging Face's tools lay it out: snapshots are links to blobs.
#[test]
fn a_name_is_found_in_the_hugging_face_cache() {
    let p = Place::new("opt");
    let repo = p.path("hf/hub/models--acme--tiny");
    let snapshot = repo.join("snapshots/0123abcd");
    for dir in [repo.join("refs"), repo.join("blobs"), snapshot.clone()] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(repo.join("refs/main"), "0123abcd").unwrap();
    for (i, file) in std::fs::read_dir(p.path("model")).unwrap().enumerate() {
        let file = file.unwrap();
        std::fs::copy(file.path(), repo.join(format!("blobs/{i}"))).unwrap();
        let link = format!("../../blobs/{i}");
        std::os::unix::fs::symlink(link, snapshot.join(file.file_name())).unwrap();
    }
    let named = p.run("sft", "named", &["--actor-model", "acme/tiny"]);
    let given = p.run("sft", "given", &["--actor-model", "model"]);
    assert_eq!(bytes(&named.join("sft")), bytes(&given.join("sft")));
}

/// Answers of the actor go to a reward model of another family with another tokenizer as text.
#[test]
fn actor_and_reward_may_differ_in_family_and_tokenizer() {
    let p = Place::new("gpt_neox");
    checkpoint::write_with(&p.path("other"), "opt", 280);
    let more = ["--reward-model", "other", "--ppo-eval-interval", "1"];
    let run = p.train("run", &more);
    for (name, family) in [("sft", "gpt_neox"), ("reward", "opt"), ("ppo/critic", "gpt_neox")] {
        let config = std::fs::read_to_string(run.join(name).join("config.json")).unwrap();
        assert!(config.contains(&format!("\"model_type\": \"{family}\"")), "{name}: {config}");
    }
    let notes = events(&run);
    let said = |e: &serde_json::Value| {
        e["text"].as_str().is_some_and(|t| t.contains("has a tokenizer of its own"))
    };
    assert!(notes.iter().any(said));
    let iterations = metrics(&run, "ppo");
    assert_eq!(iterations.len(), 2);
    assert!(iterations.iter().all(|m| number(m, "first_ratio_deviation") == 0.0));
    let judged =
        ["eval", "run/ppo/actor", "--reward-model", "run/reward", "--data-path", "data.jsonl"];
    let length = ["--max-prompt-seq-len", "40", "--max-new-tokens", "8", "--prompts", "5"];
    assert!(p.output(&[&judged[..], &length[..]].concat(), "").contains("mean reward"));
}

#[test]
fn inspect_tells_what_a_model_is() {
    for (family, expected) in [
        ("opt", "opt (OPTForCausalLM)"),
        ("gpt_neox", "attention and MLP in parallel"),
        ("llama", "rotary on 8 of 8 dims of a head"),
    ] {
        let p = Place::new(family);
        let text = p.output(&["inspect", "model"], "");
        for part in [
            expected,
            "parameters",
            "f32 in 1 file",
            "lora modules",
            "generation in",
            "training in",
            "\"<|end|>\" (0)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
    let p = Place::new("llama");
    let refused = p.command(&["inspect", "absent"], "");
    assert_eq!(refused.status.code(), Some(2));
}
