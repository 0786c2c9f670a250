//! `duplex plan`: what it tells is what a run then takes.

use crate::checkpoint;
use crate::place::Place;
use duplex::arch::Config;
use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use serde_json::{Value, json};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

/// A model whose state is most of what a run takes.
fn large(p: &Place) {
    let vocab = checkpoint::tokenizer(None).vocab_size();
    let shape = json!({"model_type": "llama", "vocab_size": vocab, "hidden_size": 384,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 1536, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false, "eos_token_id": 2});
    let config = Config::from_map(shape.as_object().unwrap().clone());
    let model = Model::random(&config, &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap();
    save_model(&model, &OutDir::create(&p.path("model")).unwrap(), &SaveAs::default(), None)
        .unwrap();
    checkpoint::tokenizer(None).save(&OutDir::create(&p.path("model")).unwrap()).unwrap();
    // Rows longer than any limit: all are cut to it.
    let words = |seed: usize| (0..200).map(|i| format!("{} ", (seed + i) % 10)).collect::<String>();
    let row =
        |i: usize| json!({"prompt": words(i), "chosen": words(i + 1), "rejected": words(i + 2)});
    checkpoint::write_rows(&p.path("data.jsonl"), &(0..200).map(row).collect::<Vec<_>>());
}

const FULL_LENGTH: [&str; 22] = [
    "--data-path",
    "data.jsonl",
    "--actor-model",
    "model",
    "--max-seq-len",
    "128",
    "--max-prompt-seq-len",
    "64",
    "--max-answer-seq-len",
    "64",
    "--min-answer-seq-len",
    "64",
    "--on-long-prompt",
    "truncate",
    "--eval-fraction",
    "0",
    "--set",
    "sft.max_steps=2",
    "--set",
    "reward.max_steps=2",
    "--set",
    "ppo.max_steps=2",
];

/// Runs to the end and returns the most bytes that were resident.
#[expect(clippy::zombie_processes, reason = "wait4 tells what it took")]
fn resident(p: &Place, args: &[&str]) -> f64 {
    let child = Command::new(env!("CARGO_BIN_EXE_duplex"))
        .args(args)
        .current_dir(p.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // SAFETY: numbers only.
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: the child is this test's own and not waited for elsewhere.
    let pid = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(
        (pid, ExitStatus::from_raw(status).code()),
        (child.id() as i32, Some(0)),
        "{args:?}"
    );
    usage.ru_maxrss as f64 * 1024.0
}

/// The plan of a published model on cards, as JSON.
fn planned(p: &Place, words: &[&str]) -> Value {
    let model = ["--actor-model", "facebook/opt-6.7b", "--reward-model", "facebook/opt-350m"];
    let short = ["--max-answer-seq-len", "16", "--json", "plan.json"];
    p.output(&[&["plan"], &model[..], &short, words].concat(), "");
    serde_json::from_slice(&std::fs::read(p.path("plan.json")).unwrap()).unwrap()
}

fn number(of: &Value) -> u64 {
    of.as_u64().unwrap_or_else(|| panic!("{of} is no number"))
}

#[test]
fn a_plan_for_cards_has_the_parts_that_ranks_keep() {
    let p = Place::new("llama3");
    let ranks = |n: &str| {
        let gpus = format!("{n}xa100-80g");
        let words = ["--step", "3", "--zero-stage", "3", "--gpus", &gpus];
        planned(&p, &[&words[..], &["--inference-tp-size", n]].concat())
    };
    let [two, eight] = ["2", "8"].map(ranks);
    let training =
        |plan: &Value| plan["steps"][0]["phases"].as_array().unwrap().last().unwrap().clone();
    for part in ["weights", "gradients", "optimizer"] {
        let [two, eight] = [&two, &eight].map(|plan| number(&training(plan)["bytes"][part]) as f64);
        assert!((two / eight / 4.0 - 1.0).abs() < 0.02, "{part}: {two} and {eight}");
    }
    // 6.7 billion parameters in f32 with two moments and a master copy, and the critic's 0.3.
    let optimizer = number(&training(&two)["bytes"]["optimizer"]) as f64;
    assert!((optimizer / (12.0 * 6.99e9 / 2.0) - 1.0).abs() < 0.02, "{optimizer}");
    // The blocks are the parts: nothing is gathered to generate.
    let phases = eight["steps"][0]["phases"].as_array().unwrap();
    let generation = phases.iter().find(|p| p["phase"] == "generation").unwrap();
    // Logits: 4 bytes of each word, for each token of each row, to 7 others.
    let logits = 16 * 16 * 50_272 / 8 * 4 * 7;
    let gathered = number(&generation["given"]["all-gather"]["bytes"]);
    assert!(gathered < logits + logits / 50, "{gathered}");
    assert!(number(&generation["given"]["all-reduce"]["bytes"]) > 0);
    assert!(generation["estimated_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn more_memory_has_room_for_larger_micro_batches_and_offloading_makes_some() {
    let p = Place::new("llama3");
    let largest = |words: &[&str]| {
        let words = [&["--step", "1", "--gradient-checkpointing", "full"], words].concat();
        number(&planned(&p, &words)["steps"][0]["largest_micro_batch"])
    };
    let [small, large] = ["a100-40g", "a100-80g"].map(|card| {
        let gpus = format!("4x{card}");
        largest(&["--gpus", &gpus, "--zero-stage", "3"])
    });
    assert!(0 < small && 2 * small < large, "{small} and {large}");
    let away = largest(&["--gpus", "4xa100-40g", "--zero-stage", "3", "--offload"]);
    assert!(away > small, "{away}");
    assert_eq!(largest(&["--gpus", "a100-40g"]), 0);
}

#[test]
fn what_cannot_be_planned_is_one_line() {
    let p = Place::new("llama3");
    for (words, line) in [
        (&["--gpus", "8xa100-80g"][..], "no model to plan for; name one with --actor-model"),
        (
            &["--actor-model", "opt-9b", "--gpus", "8xa100-80g"],
            "opt-9b: neither a directory nor a model",
        ),
        (
            &["--actor-model", "opt-13b", "--gpus", "8xa100"],
            "--gpus \"8xa100\" is no number of GPUs; write 8xa100-80g, say",
        ),
        (
            &["--actor-model", "opt-13b", "--gpus", "12xa100-80g"],
            "--gpus asks for 12 GPUs; use up to 8, or a multiple of 8",
        ),
        (
            &[
                "--actor-model",
                "opt-13b",
                "--gpus",
                "8xa100-80g",
                "--zero-stage",
                "3",
                "--inference-tp-size",
                "3",
            ],
            "8 ranks cannot be divided into 3 tensor-parallel shards; use a divisor of 8",
        ),
        (
            &["--actor-model", "opt-13b", "--step", "3", "--max-answer-seq-len", "2000"],
            "--max-prompt-seq-len and --max-answer-seq-len ask for sequences of 2256 tokens",
        ),
    ] {
        let out = p.command(&[&["plan"], words].concat(), "");
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(
            stderr.starts_with(&format!("duplex: {line}")) && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

#[test]
fn the_published_tables_stand_beside_estimates() {
    let p = Place::new("llama3");
    let text = p.output(&["plan", "--published"], "");
    for row in
        ["Table 1: 8 x a100-80g", "Table 2: 64 x a100-80g", "Table 3: the largest actor on one GPU"]
    {
        assert!(text.contains(row), "{text}");
    }
    // Published hours and dollars, then ours.
    let line = text.lines().find(|l| l.starts_with("opt-66b") && l.contains("$1620")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells[1..4], ["50.4", "h", "$1620"], "{line}");
    let hours: f64 = cells[4].parse().unwrap();
    assert!((5.0..500.0).contains(&hours), "{line}");
    assert!(text.contains("estimates were not"), "{text}");
}

#[test]
fn a_plan_tells_the_memory_that_a_run_then_takes() {
    let p = Place::new("llama3");
    large(&p);
    let configurations: [&[&str]; 6] = [
        &["--step", "1", "--dtype", "f32", "--save-every", "9"],
        &["--save-every", "9"],
        &["--save-every", "9", "--optimizer-state", "compact", "--gradient-checkpointing", "full"],
        &[
            "--step",
            "3",
            "--actor-lora-dim",
            "16",
            "--reward-rule",
            "brevity",
            "--enable-ema",
            "--save-every",
            "1",
        ],
        &[
            "--num-gpus",
            "2",
            "--zero-stage",
            "3",
            "--gradient-checkpointing",
            "cheap",
            "--save-every",
            "9",
        ],
        &["--num-gpus", "4", "--zero-stage", "2", "--save-every", "2"],
    ];
    for (i, words) in configurations.into_iter().enumerate() {
        let (json, to) = (format!("plan-{i}.json"), format!("run-{i}"));
        p.output(&[&["plan", "--json", &json], &FULL_LENGTH[..], words].concat(), "");
        let told: Value = serde_json::from_slice(&std::fs::read(p.path(&json)).unwrap()).unwrap();
        let told = told["process_bytes"].as_f64().unwrap();
        let taken = resident(
            &p,
            &[&["train", "--output-dir", &to, "--quiet"], &FULL_LENGTH[..], words].concat(),
        );
        assert!((told / taken - 1.0).abs() < 0.05, "{words:?}: told {told}, taken {taken}");
    }
}
