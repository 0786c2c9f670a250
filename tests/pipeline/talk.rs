//! `duplex chat` and `duplex eval`.

use crate::place::Place;

const GREEDY: [&str; 6] = ["--temperature", "0", "--dtype", "f32", "--max-new-tokens", "8"];

#[test]
fn chat_answers_line_by_line() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let talk = |lines: &str| p.output(&[&["chat", "loud"], &GREEDY[..]].concat(), lines);
    let [one, other] = ["What is blue?\n", "And grass?\n"].map(talk);
    assert!(one.len() > 1 && one.ends_with('\n') && one != other, "{one:?} {other:?}");
    assert_eq!(talk("\n  \n"), "");
    // Cleared, the second message is the first again; otherwise it is a second one.
    assert_eq!(talk("What is blue?\nclear\nAnd grass?\n"), format!("{one}{other}"));
    let kept = talk("What is blue?\nAnd grass?\n");
    assert!(kept.starts_with(&one) && kept != format!("{one}{other}"), "{kept:?}");
    assert_eq!(talk("What is blue?\nquit\nAnd grass?\n"), one);
    // A conversation longer than the model forgets its beginning.
    let long = talk(&"What is blue?\n".repeat(30));
    assert!(long.len() > 30 && long.starts_with(&one), "{long:?}");
    let sampled = |seed: &str| {
        let how = ["chat", "loud", "--max-new-tokens", "8", "--seed", seed];
        p.output(&how, "What is blue?\n")
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn a_message_too_long_is_refused() {
    let p = Place::new("llama");
    let lines = format!("{}\n", "very long words ".repeat(60));
    let out = p.command(&["chat", "model", "--max-new-tokens", "8"], &lines);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(2) && stderr.contains("--max-new-tokens"), "{stderr}");
}

/// The number after `label` in the table.
#[track_caller]
fn field(table: &str, label: &str) -> f64 {
    let line = table.lines().find_map(|l| l.strip_prefix(label));
    let line = line.unwrap_or_else(|| panic!("no {label} in {table}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn eval_compares_two_models() {
    let p = Place::new("llama");
    let run = ["--sft-max-steps", "6", "--reward-max-steps", "6"];
    p.train("run", &run);
    let length = ["--max-prompt-seq-len", "40", "--max-new-tokens", "8"];
    let what = [&["--data-path", "data.jsonl", "--prompts", "12"], &length[..]].concat();
    let eval = |model: &str, more: &[&str]| {
        p.output(&[&["eval", model], &what[..], &["--dtype", "f32"], more].concat(), "")
    };
    let judged = ["--reward-model", "run/reward", "--print-samples", "2"];
    let table = eval("run/sft", &[&judged[..], &["--baseline", "model"]].concat());
    assert_eq!(field(&table, "prompts"), 12.0);
    assert_eq!(table.matches("mean reward ").count(), 2);
    assert_eq!(table.matches("prompt    ").count(), 2);
    // Seen from the other side, wins are losses.
    let (rate, swapped) = (
        field(&table, "win rate"),
        eval("model", &[&judged[..], &["--baseline", "run/sft"]].concat()),
    );
    assert!((rate + field(&swapped, "win rate") - 1.0).abs() < 2e-3, "{table}{swapped}");
    let same = eval("run/sft", &[&judged[..], &["--baseline", "run/sft"]].concat());
    assert!(same.contains("(0 wins, 12 ties, 0 losses)"), "{same}");
    let alone = eval("run/ppo/actor", &["--reward-rule", "no_repetition"]);
    assert!((0.0..=1.0).contains(&field(&alone, "mean reward")), "{alone}");
    assert!(!alone.contains("win rate"));
}
