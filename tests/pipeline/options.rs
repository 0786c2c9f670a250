//! Options of step 3 and of saving that change what comes out.

use crate::checkpoint;
use crate::place::{Place, all_bytes, bytes, distance, events, metrics, number, summary, values};
use duplex::arch::Config;
use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use duplex::pool::ParamId;
use serde_json::{Value, json};

#[test]
fn the_moving_average_is_one() {
    let p = Place::new("opt");
    let run = p.train("run", &["--enable-ema", "--ema-decay", "0.75", "--ppo-max-steps", "1"]);
    let [start, end, average] =
        ["sft", "ppo/actor", "ppo/actor_ema"].map(|name| values(&run.join(name)));
    assert_ne!(start, end);
    for ((start, end), average) in start.iter().zip(&end).zip(&average) {
        let expected = 0.75 * start + 0.25 * end;
        assert!((average - expected).abs() <= 1e-6 * expected.abs().max(0.1));
    }
}

#[test]
fn mixture_loss_learns_the_text() {
    let p = Place::new("llama");
    let paragraph = "The sea is blue, of course. And the grass is green. Take care! ".repeat(12);
    std::fs::write(p.path("sea.txt"), format!("{paragraph}\n\n{paragraph}\n")).unwrap();
    let without = p.train("without", &[]);
    assert!(metrics(&without, "ppo").iter().all(|m| m.get("ptx_loss").is_none()));
    let settings = ["--unsupervised-data-path", "sea.txt", "--ppo-max-steps", "6"];
    let run = p.train("run", &settings);
    let losses: Vec<f64> = metrics(&run, "ppo").iter().map(|m| number(m, "ptx_loss")).collect();
    assert!(losses.len() == 6 && losses[5] < 0.97 * losses[0], "{losses:?}");
    assert_eq!(bytes(&without.join("reward")), bytes(&run.join("reward")));
}

#[test]
fn the_adaptive_coefficient_moves() {
    let p = Place::new("gpt2");
    let run = p.train("run", &["--kl-controller", "adaptive", "--kl-horizon", "10"]);
    let coefs: Vec<f64> = metrics(&run, "ppo").iter().map(|m| number(m, "kl_coef")).collect();
    // Four episodes far below the target, twice: the error is clipped at -0.2.
    for (i, coef) in coefs.iter().enumerate() {
        let expected = 0.1 * (1.0f64 - 0.2 * 4.0 / 10.0).powi(i as i32 + 1);
        assert!((coef - expected).abs() < 1e-6, "{coefs:?}");
    }
}

#[test]
fn a_cut_answer_costs_its_penalty() {
    let p = Place::new("llama");
    // An answer cannot end before it is cut.
    let length = ["--min-answer-seq-len", "8", "--ppo-max-steps", "1"];
    let free = p.train("free", &length);
    let fined = p.train("fined", &[&length[..], &["--missing-eos-penalty", "3"]].concat());
    let loss = |run| number(&metrics(run, "ppo")[0], "value_loss");
    assert_eq!(number(&metrics(&free, "ppo")[0], "eos_rate"), 0.0);
    assert!(loss(&fined) > loss(&free) + 0.5, "{} {}", loss(&fined), loss(&free));
    // What is reported is the score itself.
    let reward = |run| number(&metrics(run, "ppo")[0], "reward");
    assert_eq!(reward(&fined), reward(&free));
}

#[test]
fn bf16_is_as_exact_in_its_first_ratio() {
    for family in ["opt", "llama"] {
        let p = Place::new(family);
        let run = p.train("run", &["--dtype", "bf16"]);
        for row in metrics(&run, "ppo") {
            assert_eq!(number(&row, "first_ratio_deviation"), 0.0);
        }
        assert_eq!(number(&metrics(&run, "ppo")[0], "kl"), 0.0);
        for name in crate::place::MODELS {
            let raw = bytes(&run.join(name));
            let n = 8 + u64::from_le_bytes(raw[..8].try_into().unwrap()) as usize;
            let header = String::from_utf8(raw[8..n].to_vec()).unwrap();
            assert!(header.contains("\"BF16\"") && !header.contains("\"F32\""), "{header}");
            let config = std::fs::read_to_string(run.join(name).join("config.json")).unwrap();
            assert!(config.contains("\"bfloat16\""), "{config}");
        }
    }
}

#[test]
fn a_compact_optimizer_state_trains_every_step() {
    let p = Place::new("llama");
    let weights = |folder: &std::path::Path| -> Vec<f32> {
        let model = Model::load(folder, &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap();
        let all = (0..model.store.params().len()).map(ParamId);
        all.flat_map(|id| model.store.read_f32(id).unwrap()).collect()
    };
    let apart = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let settings = ["--dtype", "bf16", "--optimizer-state", "compact"];
    let lora = ["--actor-lora-dim", "4", "--critic-lora-dim", "4"];
    for (name, more) in [("whole", &[][..]), ("adapters", &lora)] {
        let full = p.train(&format!("{name}_full"), &[&settings[..2], more].concat());
        let run = p.train(name, &[&settings[..], more].concat());
        let one =
            p.train(&format!("{name}_one"), &[&settings[..], more, &["--threads", "1"]].concat());
        assert_eq!(all_bytes(&run), all_bytes(&one), "{name} on one thread");
        // Near to what the full state gives, and not the same.
        let [start, full, compact] =
            [p.path("model"), full.join("sft"), run.join("sft")].map(|f| weights(&f));
        let (far, moved) = (apart(&compact, &full), apart(&start, &full));
        assert!(0.0 < far && far < 0.2 * moved, "{name} {far} {moved}");
        for row in metrics(&run, "ppo") {
            assert_eq!(number(&row, "first_ratio_deviation"), 0.0);
        }
    }
}

#[test]
fn shards_load_again() {
    let p = Place::new("llama");
    let tokenizer = checkpoint::tokenizer(None);
    let mut fields = checkpoint::config("llama", tokenizer.vocab_size());
    fields["hidden_size"] = json!(128);
    fields["intermediate_size"] = json!(320);
    let config = Config::from_map(fields.as_object().unwrap().clone());
    let wide = Model::random(
        &config,
        &LoadOptions { seed: 5, ..LoadOptions::frozen(Head::Lm, DType::F32) },
    )
    .unwrap();
    save_model(&wide, &OutDir::create(&p.path("wide")).unwrap(), &SaveAs::default(), None).unwrap();
    tokenizer.save(&OutDir::create(&p.path("wide")).unwrap()).unwrap();
    let whole = p.run("sft", "whole", &["--actor-model", "wide"]);
    let cut = p.run("sft", "cut", &["--actor-model", "wide", "--max-shard-size", "1MB"]);
    assert!(!cut.join("sft/model.safetensors").exists());
    let text = std::fs::read_to_string(cut.join("sft/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    let mut files: Vec<&str> =
        index["weight_map"].as_object().unwrap().values().map(|f| f.as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    assert!(files.len() > 1, "{files:?}");
    for file in files {
        assert!(std::fs::metadata(cut.join("sft").join(file)).unwrap().len() < 1_050_000);
    }
    // What is loaded from the shards and saved in one file is what one file held.
    let options = LoadOptions::frozen(Head::Lm, DType::F32);
    let again = Model::load(&cut.join("sft"), &options).unwrap();
    save_model(&again, &OutDir::create(&p.path("again")).unwrap(), &SaveAs::default(), None)
        .unwrap();
    assert_eq!(bytes(&p.path("again")), bytes(&whole.join("sft")));
    assert!(distance(&p.path("again"), &p.path("wide")) > 1e-4);
    p.run("reward", "cut", &["--actor-model", "cut/sft", "--max-shard-size", "1MB"]);
    p.run("ppo", "cut", &["--max-shard-size", "1MB"]);
    assert!(p.path("cut/ppo/actor/model.safetensors.index.json").is_file());
}

#[test]
fn samples_are_kept_and_can_be_left_out() {
    let p = Place::new("gpt2");
    let samples = |run: &std::path::Path| {
        let samples = events(run).into_iter().filter(|e| e["event"] == "sample");
        samples.filter(|s| s["baseline"].is_null()).count()
    };
    // After the first of two iterations.
    assert_eq!(samples(&p.train("some", &["--print-samples", "3"])), 3);
    let none = p.train("none", &["--print-samples", "0", "--tensorboard", "false"]);
    assert_eq!(samples(&none), 0);
    assert!(!none.join("tensorboard").exists());
}

#[test]
fn a_rule_reads_the_columns_of_the_rows() {
    let p = Place::new("llama");
    p.loud("loud");
    // Any answer holds an empty place between words, as good as none the word "xylophone".
    let row = |i: usize| match i % 4 {
        0 => json!({"prompt": format!("Say {i}: "), "answer": "xylophone"}),
        1 => json!({"prompt": format!("Say {i}: "), "note": "no answer is known"}),
        _ => json!({"prompt": format!("Say {i}: "), "answer": "e"}),
    };
    let rows: Vec<String> = (0..80).map(|i| row(i).to_string()).collect();
    std::fs::write(p.path("asked.jsonl"), rows.join("\n")).unwrap();
    let words = ["--actor-model", "loud", "--reward-rule", "contains_answer", "--max-steps", "5"];
    let words = [&words[..], &["--data-path", "asked.jsonl"]].concat();
    let run = p.run("ppo", "run", &words);
    let logged = metrics(&run, "ppo");
    let unjudged: Vec<f64> = logged.iter().map(|m| number(m, "unjudged_rate")).collect();
    assert!(unjudged.iter().any(|u| *u > 0.0) && unjudged.iter().all(|u| *u < 1.0), "{unjudged:?}");
    assert!(logged.iter().all(|m| (0.0..=1.0).contains(&number(m, "reward"))));
    let table = p.output(
        &["eval", "loud", "--reward-rule", "contains_answer", "--data-path", "asked.jsonl"],
        "",
    );
    assert!(table.contains("not judged"), "{table}");
    // The memory of a plan does not depend on what a rule would say of no text.
    let plan = |rule: &str| {
        let words = ["plan", "--actor-model", "loud", "--config", "short.toml", "--stages", "ppo"];
        let words = [&words[..], &["--ppo-reward-rule", rule, "--json", "plan.json"]].concat();
        p.output(&words, "");
        let plan: Value =
            serde_json::from_slice(&std::fs::read(p.path("plan.json")).unwrap()).unwrap();
        plan["steps"][0]["phases"].clone()
    };
    assert!(plan("brevity").as_array().is_some_and(|phases| phases.len() > 2));
    assert_eq!(plan("contains_answer"), plan("brevity"));
    // Where nothing can be judged, nothing is told as if it were.
    std::fs::write(p.path("bare.jsonl"), rows[1].clone()).unwrap();
    let words = ["eval", "loud", "--reward-rule", "contains_answer", "--data-path", "bare.jsonl"];
    let out = p.command(&words, "");
    let told = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{told}");
    assert!(told.contains("judges none of the 1 answers"), "{told}");
    // A rule that reads none of them leaves what is unknown named.
    let words = ["--actor-model", "loud", "--reward-rule", "brevity", "--max-steps", "1"];
    let args = ["ppo", "--config", "short.toml", "--output-dir", "other", "--data-path"];
    let out = p.command(&[&args[..], &["asked.jsonl"], &words].concat(), "");
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && told.contains("note"), "{told}");
}

#[test]
fn without_a_penalty_nothing_is_told_of_a_reference() {
    let p = Place::new("llama");
    let words = ["--stages", "rloo", "--rloo-reward-rule", "brevity", "--rloo-max-steps", "2"];
    let more = ["--rloo-eval-interval", "1", "--data-split", "0,0,1", "--eval-fraction", "0.2"];
    for (beta, compares) in [("0", false), ("0.05", true)] {
        let run = p.train(beta, &[&words[..], &more, &["--rloo-beta", beta]].concat());
        for values in metrics(&run, "rloo") {
            assert!(values.get("eval_score").is_some(), "{values}");
            for name in ["kl", "eval_kl", "kl_coef"] {
                assert_eq!(values.get(name).is_some(), compares, "{name}: {values}");
            }
        }
        let end = summary(&run, "rloo");
        assert!(end.get("score_after").is_some(), "{end}");
        assert_eq!(end.get("kl_after").is_some(), compares, "{end}");
    }
}
