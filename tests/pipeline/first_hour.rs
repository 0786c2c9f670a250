//! The first hour of a new user: rows go where they can be used, a start that fails leaves nothing
//! behind, and a model answers one prompt.

use crate::checkpoint;
use crate::place::{Place, events};
use serde_json::json;

/// The error line of a command that must fail with exit code 2.
#[track_caller]
fn refused(p: &Place, args: &[&str]) -> String {
    let out = p.command(args, "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
    stderr.lines().last().unwrap_or_default().to_string()
}

/// The notes and warnings of a run.
fn told(run: &std::path::Path) -> String {
    let texts = events(run).into_iter().filter_map(|e| Some(e["text"].as_str()?.to_string()));
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn rows_of_every_kind_find_their_steps() {
    let p = Place::new("gpt2");
    let chats: Vec<_> = (0..30)
        .map(|i| json!({"prompt": format!("Say {i}."), "completion": format!(" It is {i}.")}))
        .collect();
    checkpoint::write_rows(&p.path("sft.jsonl"), &chats);
    let texts: Vec<_> = (0..7).map(|i| json!({"text": format!("Grass number {i}.")})).collect();
    checkpoint::write_rows(&p.path("texts.jsonl"), &texts);
    let all = ["--data-path", "data.jsonl", "sft.jsonl", "texts.jsonl", "--eval-fraction", "0"];
    let model = ["--actor-model", "model"];
    let run = p.train("all", &all);
    let notes = told(&run);
    for line in [
        "data for sft: 12 preference pairs of data.jsonl; 10 prompts with completions of \
         sft.jsonl; 7 texts of texts.jsonl",
        "data for reward: 24 preference pairs of data.jsonl\n",
        "data for ppo: 24 preference pairs of data.jsonl; 20 prompts with completions of \
         sft.jsonl\n",
    ] {
        assert!(notes.contains(line), "{line} is not in {notes}");
    }
    // A step alone takes all it can use, unless shares are given.
    let notes = told(&p.run("sft", "sft", &[&all[..], &model].concat()));
    let line =
        "60 preference pairs of data.jsonl; 30 prompts with completions of sft.jsonl; 7 texts";
    assert!(notes.contains(line), "{notes}");
    let shared = [&all[..], &model, &["--data-split", "2,4,4"]].concat();
    assert!(
        told(&p.run("sft", "shared", &shared)).contains("12 preference pairs of data.jsonl; 10")
    );
    let notes = told(&p.run("reward", "reward", &[&all[..], &model].concat()));
    assert!(notes.contains("data for reward: 60 preference pairs of data.jsonl\n"), "{notes}");
    assert!(notes.contains("30 prompts with completions of sft.jsonl left out: reward"), "{notes}");
    // A step without rows stops the run before anything is made.
    let words = ["train", "--config", "short.toml", "--actor-model", "model", "--output-dir", "no"];
    let line = refused(&p, &[&words[..], &["--data-path", "sft.jsonl", "texts.jsonl"]].concat());
    assert!(line.contains("no row for reward") && line.contains("30 prompts with"), "{line}");
    assert!(!p.path("no").exists());
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let p = Place::new("gpt2");
    checkpoint::write_rows(
        &p.path("long.jsonl"),
        &[json!({"prompt": "a ".repeat(900), "completion": "b"})],
    );
    let mut broken = p.path("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in std::fs::read_dir(p.path("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), broken.join(file.file_name())).unwrap();
    }
    broken.push("model.safetensors");
    let bytes = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::create_dir_all(p.path("here/mine")).unwrap();
    std::fs::create_dir(p.path("empty")).unwrap();
    let starts: [&[&str]; 6] = [
        &["--actor-model", "modle", "--data-path", "data.jsonl"],
        &["--actor-model", "model", "--data-path", "dta.jsonl"],
        &["--actor-model", "broken", "--data-path", "data.jsonl"],
        &["--actor-model", "model", "--data-path", "long.jsonl"],
        &[
            "--actor-model",
            "model",
            "--data-path",
            "data.jsonl",
            "--lora-dim",
            "2",
            "--lora-module-name",
            "nope",
        ],
        &["--actor-model", "model", "--data-path", "data.jsonl", "--extend"],
    ];
    for start in starts {
        for to in ["new", "a/b/c", "here/mine/run", "empty"] {
            refused(&p, &[&["sft", "--output-dir", to], start].concat());
        }
        assert!(!p.path("new").exists() && !p.path("a").exists(), "{start:?}");
        for kept in ["here/mine", "empty"] {
            assert_eq!(std::fs::read_dir(p.path(kept)).unwrap().count(), 0, "{start:?}");
        }
    }
    // Neither does the demonstration.
    let line = refused(&p, &["train", "--output-dir", "new", "--max-answer-seq-len", "9000"]);
    assert!(line.contains("9000") || line.contains("positions"), "{line}");
    assert!(!p.path("new").exists());
    // What a run has left stays as it is.
    let run = p.run("sft", "run", &["--actor-model", "model"]);
    let before = std::fs::read(run.join("config.toml")).unwrap();
    refused(
        &p,
        &[
            "sft",
            "--output-dir",
            "run",
            "--actor-model",
            "modle",
            "--data-path",
            "x",
            "--overwrite",
        ],
    );
    assert_eq!(std::fs::read(run.join("config.toml")).unwrap(), before);
    assert!(p.output(&["verify", "run"], "").contains("whole"));
    // Neither an empty directory nor a beginning is whole.
    for name in ["empty", "locked"] {
        std::fs::create_dir_all(p.path(name)).unwrap();
        assert!(refused(&p, &["verify", name]).contains("no checkpoint"));
        std::fs::write(p.path("locked").join("duplex.lock"), "").ok();
    }
}

#[test]
fn a_list_before_the_model_leaves_it_alone() {
    let p = Place::new("gpt2");
    let rest = [
        "--reward-rule",
        "no_repetition",
        "--prompts",
        "3",
        "--max-new-tokens",
        "4",
        "--max-prompt-seq-len",
        "60",
    ];
    let first =
        p.output(&[&["eval", "model", "--data-path", "data.jsonl"], &rest[..]].concat(), "");
    let last = p.output(&[&["eval", "--data-path", "data.jsonl", "model"], &rest[..]].concat(), "");
    assert_eq!(first, last);
    let end =
        p.output(&[&["eval"], &rest[..], &["--data-path", "data.jsonl", "model"]].concat(), "");
    assert_eq!(first, end);
    let line = refused(&p, &[&["eval", "--data-path", "data.jsonl", "modle"], &rest[..]].concat());
    assert!(line.contains("no model given") && line.contains("--data-path"), "{line}");
}

#[test]
fn one_prompt_is_answered_on_standard_output_alone() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let how = ["chat", "loud", "--temperature", "0", "--dtype", "f32", "--max-new-tokens", "8"];
    let talk = p.output(&how, "What is blue?\n");
    assert_eq!(p.output(&[&how[..], &["--prompt", "What is blue?"]].concat(), ""), talk);
    assert_eq!(p.output(&[&how[..], &["--prompt", "-"]].concat(), "What is blue?\n"), talk);
    let block = p.output(&how, "\"\"\"\nWhat is\nblue?\n\"\"\"\n");
    assert_eq!(p.output(&[&how[..], &["--prompt", "What is\nblue?"]].concat(), ""), block);
    // Without a template the model is warned of; as it is, the text is another one.
    let out = p.command(&[&how[..], &["--prompt", "What is blue?"]].concat(), "");
    assert!(String::from_utf8(out.stderr).unwrap().contains("has no chat template"));
    let raw = p.command(&[&how[..], &["--raw", "--prompt", "What is blue?"]].concat(), "");
    assert!(raw.stderr.is_empty() && raw.status.code() == Some(0));
    assert_ne!(raw.stdout, talk.as_bytes());
    // Raw text keeps its end, from standard input too.
    let raw = [&how[..], &["--raw", "--prompt"]].concat();
    let [whole, cut] = ["What is blue?\n", "What is blue?"].map(|text| {
        let given = p.output(&[&raw[..], &[text]].concat(), "");
        assert_eq!(p.output(&[&raw[..], &["-"]].concat(), text), given);
        given
    });
    assert_ne!(whole, cut);
    let line = refused(&p, &[&how[..], &["--prompt", &"very long words ".repeat(60)]].concat());
    assert!(line.contains("there is room for 120"), "{line}");
}
