//! Files of an exported directory beside weights, and what `inspect` and `verify` say of it.

use crate::checkpoint;
use crate::data::{chat, chatml_model};
use crate::place::Place;
use serde_json::{Value, json};
use std::path::Path;

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn chats(p: &Place) {
    let rows: Vec<Value> =
        (0..30).map(|i| json!({"messages": chat(&format!("Say {i}."), "1 1.")})).collect();
    checkpoint::write_rows(&p.path("chat.jsonl"), &rows);
}

#[test]
fn an_export_stops_where_it_was_trained_to_stop() {
    let p = Place::new("gpt2");
    chatml_model(&p);
    chats(&p);
    let base = p.path("chatml");
    let settings = json!({"temperature": 0.7, "top_p": 0.8, "do_sample": true, "eos_token_id": 0});
    std::fs::write(base.join("generation_config.json"), settings.to_string()).unwrap();
    // Beside files of templates, `transformers` does not look at the key.
    let template = json_of(&base.join("tokenizer_config.json"))["chat_template"].clone();
    std::fs::write(base.join("chat_template.jinja"), template.as_str().unwrap()).unwrap();
    std::fs::create_dir(base.join("additional_chat_templates")).unwrap();
    std::fs::write(base.join("additional_chat_templates/rag.jinja"), "{{ documents }}").unwrap();
    std::fs::write(base.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let goes_on = "chatml: note, generation_config.json: eos_token_id does not hold \"<|im_end|>\" \
                   (2), which ends a turn: `generate` of transformers continues after it";
    let told = p.output(&["verify", "chatml"], "");
    assert!(told.starts_with("chatml: whole, gpt2, ") && told.contains(goes_on), "{told}");
    let more = ["--actor-model", "chatml", "--data-path", "chat.jsonl", "--actor-lora-dim", "2"];
    let run = p.run("sft", "run", &more);
    for dir in ["sft", "sft/adapter"].map(|d| run.join(d)) {
        let made = json_of(&dir.join("generation_config.json"));
        let want = json!({"temperature": 0.7, "top_p": 0.8, "do_sample": true,
            "eos_token_id": [0, 2], "pad_token_id": 0});
        assert_eq!(made, want);
        for file in [
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "additional_chat_templates/rag.jinja",
        ] {
            assert_eq!(
                std::fs::read(dir.join(file)).unwrap(),
                std::fs::read(base.join(file)).unwrap(),
                "{file}"
            );
        }
        let card = std::fs::read_to_string(dir.join("README.md")).unwrap();
        assert!(card.contains("\nlicense: mit\n") && card.contains("`chat.jsonl`"), "{card}");
    }
    assert_eq!(json_of(&run.join("sft/config.json"))["eos_token_id"], json!([0, 2]));
    let told = p.output(&["verify", "run"], "");
    assert!(told.contains("run/sft: whole") && told.contains("run/sft/adapter: whole"), "{told}");
    assert!(!told.contains("note") && !told.contains("DAMAGED"), "{told}");
    let told = p.output(&["inspect", "run/sft/adapter"], "");
    for part in [
        "LORA of rank 2, alpha 16",
        "eos \"<|end|>\" (0)",
        "turn end       \"<|im_end|>\" (2)",
        "stop ids       \"<|end|>\" (0), \"<|im_end|>\" (2)",
        "renders \"<|im_start|>user\\nHello!<|im_end|>\\n<|im_start|>assistant\\n\"",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}

#[test]
fn a_directory_without_a_model_is_none() {
    let p = Place::new("opt");
    std::fs::create_dir(p.path("data")).unwrap();
    std::fs::write(p.path("data/config.json"), "{\"builder\": \"json\"}").unwrap();
    let out = p.command(&["verify", "data"], "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("data: no checkpoint, no run and no model"), "{stderr}");
    // A model without a tokenizer is whole and of no use: no run takes it.
    std::fs::remove_file(p.path("model/tokenizer.json")).unwrap();
    let out = p.command(&["verify", "model"], "");
    assert_eq!(out.status.code(), Some(2));
    let told = String::from_utf8(out.stdout).unwrap();
    assert!(told.contains("model: NOT USABLE, no tokenizer.json in model"), "{told}");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("1 of 1 cannot be used"), "{stderr}");
    // Neither is an adapter of a kind that is not supported damaged.
    std::fs::create_dir(p.path("dora")).unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"],
        "use_dora": true, "base_model_name_or_path": "model"});
    std::fs::write(p.path("dora/adapter_config.json"), config.to_string()).unwrap();
    let told = String::from_utf8(p.command(&["verify", "dora"], "").stdout).unwrap();
    assert!(told.starts_with("dora: NOT USABLE, ") && told.contains("use_dora"), "{told}");
}

#[test]
fn data_of_another_format_is_named() {
    let p = Place::new("opt");
    std::fs::create_dir_all(p.path("hub/data")).unwrap();
    std::fs::write(p.path("hub/data/train-00000-of-00001.parquet"), b"PAR1....PAR1").unwrap();
    for (path, part) in [
        ("hub/data/train-00000-of-00001.parquet", "is a parquet file, which Duplex does not read"),
        ("hub", "hub holds data/train-00000-of-00001.parquet, which Duplex does not read"),
        ("acme/prefs", "hf download --repo-type dataset acme/prefs --local-dir prefs"),
        ("absent.jsonl", "cannot open absent.jsonl: No such file"),
    ] {
        let args = ["sft", "--actor-model", "model", "--data-path", path, "--output-dir", "run"];
        let out = p.command(&args, "");
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(2) && stderr.contains(part), "{path}: {stderr}");
        assert!(!stderr.contains("--on-bad-row"), "{stderr}");
    }
    // A data set in the local cache, as the hub lays it out.
    let repo = p.path("hf/hub/datasets--acme--prefs");
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::create_dir_all(repo.join("snapshots/0a1b/data")).unwrap();
    std::fs::write(repo.join("refs/main"), "0a1b").unwrap();
    let shard = repo.join("snapshots/0a1b/data/train-00000-of-00001.jsonl");
    checkpoint::write_rows(&shard, &checkpoint::pairs(30));
    p.run("sft", "run", &["--actor-model", "model", "--data-path", "acme/prefs"]);
}
