//! Text of others: no file, model or template sends a terminal anything that it obeys.

use crate::place::Place;
use serde_json::{Value, json};
use std::path::Path;

/// Sets a window's title, clears the screen, turns the writing around; twice in one character.
const DRIVES: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}\u{9b}31m\r";
/// How its beginning is shown.
const SHOWN: &str = r"\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}\u{9b}31m";

/// The same where it is written as TOML.
const IN_TOML: &str = r"\u001B]0;owned\u0007\u001B[2J\u{202e}\u{9b}31m";

fn change(file: &Path, by: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    by(&mut value);
    std::fs::write(file, value.to_string()).unwrap();
}

/// Runs a command; what it says must hold the text, and nothing that drives a terminal.
#[track_caller]
fn harmless(p: &Place, words: &[&str], input: &str) {
    let out = p.command(words, input);
    for said in [&out.stdout, &out.stderr] {
        let text = std::str::from_utf8(said).unwrap();
        let driven = |c: char| c.is_control() && c != '\n' && c != '\t' || c == '\u{202e}';
        assert!(!text.contains(driven), "{words:?}: {text:?}");
    }
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    assert!(text.contains(SHOWN) || text.contains(IN_TOML), "{words:?}: {text}");
}

#[test]
fn answers_of_a_model_do_not_drive_the_terminal() {
    let p = Place::new("gpt2");
    change(&p.path("model/tokenizer.json"), |tokenizer| {
        let all = json!({"Regex": "(?s)^.+$"});
        tokenizer["decoder"] = json!({"type": "Replace", "pattern": all, "content": DRIVES});
    });
    harmless(&p, &["chat", "model", "--max-new-tokens", "5", "--temperature", "0"], "hello\n");
    let eval = ["eval", "model", "--reward-rule", "brevity", "--prompts", "1"];
    let shows = ["--max-new-tokens", "6", "--max-prompt-seq-len", "60", "--print-samples", "1"];
    harmless(&p, &[&eval[..], &shows].concat(), "");
}

#[test]
fn names_and_messages_of_others_do_not_drive_the_terminal() {
    let p = Place::new("gpt2");
    let sft = |more: &[&'static str]| {
        let words = ["sft", "--config", "short.toml", "--actor-model", "model"];
        [&words[..], &["--data-path", "data.jsonl", "--output-dir"], more].concat()
    };
    harmless(
        &p,
        &sft(&["run", concat!("--\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}\u{9b}31m\r", "x")]),
        "",
    );
    harmless(&p, &["inspect", DRIVES], "");
    harmless(&p, &["chat", DRIVES, "--print-config"], "");
    let template = format!("{{{{ raise_exception('{DRIVES}') }}}}");
    change(&p.path("model/tokenizer_config.json"), |c| c["chat_template"] = template.into());
    harmless(&p, &["chat", "model"], "hello\n");
    std::fs::create_dir(p.path("adapter")).unwrap();
    let adapter = json!({"peft_type": "LORA", "r": 4, "base_model_name_or_path": DRIVES});
    std::fs::write(p.path("adapter/adapter_config.json"), adapter.to_string()).unwrap();
    harmless(&p, &["inspect", "adapter"], "");
    std::fs::remove_file(p.path("model/model.safetensors")).unwrap();
    let index = json!({"weight_map": {"w": format!("{DRIVES}.safetensors")}});
    std::fs::write(p.path("model/model.safetensors.index.json"), index.to_string()).unwrap();
    harmless(&p, &["inspect", "model"], "");
    harmless(&p, &["verify", "model"], "");
}

#[test]
fn more_threads_than_cores_are_warned_of() {
    let p = Place::new("gpt2");
    let said = |threads: usize| {
        let words = ["chat", "model", "--prompt", "hello", "--max-new-tokens", "1", "--threads"];
        let out = p.command(&[&words[..], &[&threads.to_string()]].concat(), "");
        String::from_utf8(out.stderr).unwrap()
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    let line = said(cores + 1);
    assert!(line.contains(&format!("--threads {}: ", cores + 1)), "{line}");
    assert!(line.contains(&format!("may use {cores} core")), "{line}");
    assert!(!said(cores).contains("--threads"));
}

#[test]
fn a_lock_of_another_does_not_drive_the_terminal() {
    let p = Place::new("gpt2");
    std::fs::create_dir(p.path("run")).unwrap();
    std::fs::write(p.path("run/duplex.lock"), format!("process 7 on {DRIVES}\n")).unwrap();
    let lock = std::fs::File::open(p.path("run/duplex.lock")).unwrap();
    lock.lock().unwrap();
    let words = ["sft", "--actor-model", "model", "--data-path", "data.jsonl"];
    harmless(&p, &[&words[..], &["--max-seq-len", "60", "--output-dir", "run"]].concat(), "");
}
