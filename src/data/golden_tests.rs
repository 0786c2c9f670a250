//! Token ids and loss masks against `transformers`, made by `tools/token_goldens.py`.

use super::*;
use serde_json::{Value, json};
use std::path::Path;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// The tokenizer of the goldens with one of the popular templates.
fn tokenizer(template: &str, now: i64) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let inner = Path::new(GOLDENS).join("tokens/tokenizer.json");
    std::fs::copy(inner, dir.path().join("tokenizer.json")).unwrap();
    let popular = Path::new(GOLDENS).join("templates/popular").join(template);
    let source = std::fs::read_to_string(popular).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": source});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load_at(dir.path(), now).unwrap()
}

/// The only row of a file that holds `row`.
fn row(row: &Value) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    read_rows(&path, OnBadRow::Error).unwrap().0.remove(0)
}

fn example(row: &Row, tok: &Tokenizer, all_turns: bool, allow_special: bool) -> SftExample {
    let limits = Limits {
        max_prompt_len: 5000,
        max_seq_len: 6000,
        on_long_prompt: OnLongPrompt::Skip,
        chat: ChatFormat::Template,
        allow_special,
        all_turns,
    };
    sft_example(row, tok, &limits).unwrap().unwrap()
}

/// Runs of learned tokens, as [first, one behind the last].
fn learned(example: &SftExample) -> Vec<[usize; 2]> {
    let mut runs: Vec<[usize; 2]> = vec![];
    for t in (0..example.ids.len()).filter(|&t| example.weight(t) > 0.0) {
        match runs.last_mut().filter(|run| run[1] == t) {
            Some(run) => run[1] = t + 1,
            None => runs.push([t, t + 1]),
        }
    }
    runs
}

fn check(example: &SftExample, golden: &Value, last_only: bool, place: &str) {
    let ids: Vec<i32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    assert_eq!(example.ids, ids, "{place}");
    let mut runs: Vec<[usize; 2]> = serde_json::from_value(golden["learned"].clone()).unwrap();
    if last_only {
        runs.drain(..runs.len() - 1);
    }
    assert_eq!(learned(example), runs, "{place}, last turn only: {last_only}");
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    let text = std::fs::read_to_string(Path::new(GOLDENS).join("tokens/goldens.json")).unwrap();
    let goldens: Value = serde_json::from_str(&text).unwrap();
    let now = goldens["now"].as_i64().unwrap();
    let (mut compared, mut refused) = (0, 0);
    for case in goldens["cases"].as_array().unwrap() {
        let (template, name) =
            (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let place = format!("{template}, {name}");
        let tok = tokenizer(template, now);
        let row = row(&goldens["conversations"][name]);
        // What such a template leaves out would not be learned.
        let calls = name == "tools" && !tok.template().unwrap().source().contains("tool_calls");
        if case.get("error").is_some() || calls {
            let limits = Limits {
                max_prompt_len: 9,
                max_seq_len: 99,
                on_long_prompt: OnLongPrompt::Skip,
                chat: ChatFormat::Template,
                allow_special: false,
                all_turns: false,
            };
            assert!(sft_example(&row, &tok, &limits).is_err(), "{place}");
            refused += 1;
            continue;
        }
        for last_only in [true, false] {
            // Control tokens in messages count, as in transformers.
            check(&example(&row, &tok, !last_only, true), case, last_only, &place);
            // They are text.
            let golden = case.get("guarded").unwrap_or(case);
            check(&example(&row, &tok, !last_only, false), golden, last_only, &place);
        }
        compared += 1;
    }
    assert!(compared >= 95 && refused > 0, "{compared} {refused}");
}
