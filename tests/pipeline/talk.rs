//! `duplex chat` and `duplex eval`.

use crate::checkpoint;
use crate::place::Place;
use serde_json::{Value, json};

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
    assert_eq!(talk("What is blue?\n/clear\nAnd grass?\n"), format!("{one}{other}"));
    let kept = talk("What is blue?\nAnd grass?\n");
    assert!(kept.starts_with(&one) && kept != format!("{one}{other}"), "{kept:?}");
    assert_eq!(talk("What is blue?\n/quit\nAnd grass?\n"), one);
    let sampled = |seed: &str| {
        let how = ["chat", "loud", "--max-new-tokens", "8", "--seed", seed];
        p.output(&how, "What is blue?\n")
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn a_conversation_too_long_is_forgotten_from_its_beginning_and_saved_whole() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let how = [&["chat", "loud", "--system", "Be kind."], &GREEDY[..]].concat();
    let few = p.command(&how, "What is blue?\n".repeat(2));
    assert!(!String::from_utf8(few.stderr).unwrap().contains("context"));
    let lines = "What is blue?\n".repeat(30) + "/save talk.jsonl\n";
    let out = p.command(&how, &lines);
    assert_eq!(out.status.code(), Some(0));
    assert!(out.stdout.starts_with(&few.stdout) && out.stdout.len() > 30);
    let stderr = String::from_utf8(out.stderr).unwrap();
    let told: Vec<usize> = stderr
        .lines()
        .filter_map(|l| l.strip_prefix("the context is full: the model no longer sees the "))
        .map(|rest| rest.strip_suffix(" oldest messages").unwrap().parse().unwrap())
        .collect();
    assert!(told.len() > 9 && told.windows(2).all(|n| n[0] < n[1]), "{told:?}");
    assert_eq!(saved_roles(&p), [&["system"], &["user", "assistant"].repeat(30)[..]].concat());
    // The file is there now, and stays as it is.
    let before = std::fs::read(p.path("talk.jsonl")).unwrap();
    let again = p.command(&how, "What is blue?\n/save talk.jsonl\n/save other.jsonl\n");
    let stderr = String::from_utf8(again.stderr).unwrap();
    assert!(stderr.contains("talk.jsonl exists already"), "{stderr}");
    assert!(stderr.contains("saved other.jsonl") && again.status.code() == Some(0), "{stderr}");
    assert_eq!(std::fs::read(p.path("talk.jsonl")).unwrap(), before);
    // A message taken back makes room again; one that is refused takes none.
    let long = "very long words ".repeat(60);
    let one = p.output(&how, "What is blue?\nAnd grass?\n");
    assert_eq!(p.output(&how, &format!("What is blue?\n{long}\nAnd grass?\n")), one);
    let middle = "long words ".repeat(9);
    let out = p.command(&how, format!("What is blue?\n{middle}\n/undo\nAnd grass?\n"));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("no longer sees the 2 oldest messages"), "{stderr}");
    assert!(out.stdout.ends_with(one.split_inclusive('\n').next_back().unwrap().as_bytes()));
}

#[test]
fn a_message_that_is_not_utf8_is_told_of_and_the_talk_goes_on() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let how = [&["chat", "loud"], &GREEDY[..]].concat();
    let out = p.command(&how, b"caf\xe9\nWhat is blue?\n");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("the message is not UTF-8 and is ignored"), "{stderr}");
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(out.stdout, p.output(&how, "What is blue?\n").as_bytes());
    let out = p.command(&[&how[..], &["--prompt", "-"]].concat(), b"caf\xe9\n");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("--prompt -: standard input is not UTF-8 after 3 bytes"), "{stderr}");
    assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0));
}

#[test]
fn a_message_too_long_is_refused_and_the_talk_goes_on() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let talk = |lines: &str| p.command(&[&["chat", "loud"], &GREEDY[..]].concat(), lines);
    let alone = talk("What is blue?\n");
    let long = talk(&format!("{}\nWhat is blue?\n", "very long words ".repeat(60)));
    let stderr = String::from_utf8(long.stderr).unwrap();
    assert!(stderr.contains("there is room for 120; shorten it"), "{stderr}");
    assert_eq!((long.status.code(), long.stdout), (Some(0), alone.stdout));
    // More new tokens than the model has positions are as many as fit.
    let much = ["chat", "loud", "--dtype", "f32", "--max-new-tokens", "5000"];
    assert!(p.output(&much, "What is blue?\n").len() > 20);
}

#[test]
fn commands_have_a_slash_and_words_are_said() {
    let p = Place::new("gpt2");
    p.loud("loud");
    let talk = |lines: &str| p.output(&[&["chat", "loud"], &GREEDY[..]].concat(), lines);
    let one = talk("What is blue?\n");
    for word in ["quit", "exit", "clear"] {
        let said = talk(&format!("{word}\n"));
        assert!(said.len() > 1 && talk(&format!("{word}\nWhat is blue?\n")).starts_with(&said));
    }
    assert_eq!(talk("//help\n"), talk("\"\"\"/help\"\"\"\n"));
    assert_eq!(talk("And grass?\n/undo\nWhat is blue?\n").matches(one.as_str()).count(), 1);
    // Greedy, the answer is the same again.
    assert_eq!(talk("What is blue?\n/retry\n"), format!("{one}{one}"));
    assert_ne!(talk("/system Be kind.\nWhat is blue?\n"), one);
    assert_eq!(talk("/system Be kind.\n/system\nWhat is blue?\n"), one);
    assert_eq!(talk("/help\n/retry\n/nonsense\n"), "");
    talk("/system Be kind.\nWhat is blue?\n/save talk.jsonl\n");
    assert_eq!(saved_roles(&p), ["system", "user", "assistant"]);
}

/// The roles of the conversation in `talk.jsonl`.
fn saved_roles(p: &Place) -> Vec<String> {
    let text = std::fs::read_to_string(p.path("talk.jsonl")).unwrap();
    let saved: Value = serde_json::from_str(&text).unwrap();
    let role = |m: &Value| m["role"].as_str().unwrap().to_string();
    saved["messages"].as_array().unwrap().iter().map(role).collect()
}

/// A chat at a terminal of its own: what is typed, and what it shows.
struct Terminal {
    child: std::process::Child,
    file: std::fs::File,
}

impl Terminal {
    fn open(p: &Place, args: &[&str]) -> Terminal {
        use std::os::fd::{FromRawFd, OwnedFd};
        use std::os::unix::process::CommandExt;
        let (mut main, mut side) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: two numbers to write to; the rest may be null.
        let done = unsafe { libc::openpty(&mut main, &mut side, null, null as _, null as _) };
        assert_eq!(done, 0);
        // SAFETY: both are open and belong to nobody else.
        let (main, side) =
            unsafe { (std::fs::File::from_raw_fd(main), OwnedFd::from_raw_fd(side)) };
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_duplex"));
        command.args(args).current_dir(p.path("")).stdin(side.try_clone().unwrap());
        command.stdout(side.try_clone().unwrap()).stderr(side);
        // SAFETY: system calls alone. The terminal becomes that of a session of its own.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY as _, 0);
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        Terminal { child, file: main }
    }

    fn type_in(&mut self, text: &str) {
        std::io::Write::write_all(&mut self.file, text.as_bytes()).unwrap();
    }

    /// Reads until `n` times `what` has been shown.
    #[track_caller]
    fn shows(&mut self, what: &str, n: usize) {
        let (mut all, mut part) = (String::new(), [0; 256]);
        while all.matches(what).count() < n {
            let read = std::io::Read::read(&mut self.file, &mut part).unwrap_or(0);
            assert!(read > 0, "{what:?} is not in {all:?}");
            all.push_str(&String::from_utf8_lossy(&part[..read]));
        }
    }
}

#[test]
fn ctrl_c_stops_the_answer_alone_and_gives_a_hint_at_the_prompt() {
    let p = Place::new("gpt2");
    p.loud("loud");
    // Of all cases one in which it answers to the end of its positions.
    let args = ["chat", "loud", "--raw", "--dtype", "f32", "--max-new-tokens", "64"];
    let mut t = Terminal::open(&p, &args);
    t.shows("> ", 1);
    for _ in 0..3 {
        // Whether it comes before, during or after the answer, the talk goes on.
        t.type_in("What is blue?\n\u{3}");
        std::thread::sleep(std::time::Duration::from_millis(50));
        t.type_in("/nonsense\n");
        t.shows("says /nonsense\r\n> ", 1);
    }
    t.type_in("\u{3}");
    t.shows("/quit, Ctrl-D or Ctrl-C again ends the chat\r\n> ", 1);
    t.type_in("\"\"\"one\n");
    t.shows("... ", 1);
    t.type_in("\u{3}");
    t.shows("ends the message, Ctrl-C again ends the chat\r\n... ", 1);
    t.type_in("two\"\"\"\n/nonsense\n");
    t.shows("says /nonsense\r\n> ", 1);
    // After a line in between it is a hint again; twice in a row is the end.
    t.type_in("\u{3}");
    t.shows("Ctrl-C again ends the chat\r\n> ", 1);
    t.type_in("\u{3}");
    assert_eq!(t.child.wait().unwrap().code(), Some(130));
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

#[test]
fn eval_tells_of_its_rows_as_training_does() {
    let p = Place::new("gpt2");
    crate::data::chatml_model(&p);
    let row = |i: usize| {
        let prompt = format!("<|im_start|>user\nSay {i}.<|im_end|>\n<|im_start|>assistant\n");
        json!({"prompt": prompt, "flavour": i})
    };
    checkpoint::write_rows(&p.path("rendered.jsonl"), &[row(1), row(2)]);
    let eval = ["eval", "chatml", "--data-path", "rendered.jsonl", "--reward-rule", "brevity"];
    let length = ["--max-prompt-seq-len", "56", "--max-new-tokens", "4", "--dtype", "f32"];
    let told = |more: &[&str]| {
        let out = p.command(&[&eval[..], &length, more].concat(), "");
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{stderr}");
        stderr
    };
    let line = "warning: 2 rows of the evaluation hold the text of control tokens, which is taken \
                as plain text; --pre-rendered makes control tokens of it, first: ";
    let plain = told(&[]);
    assert!(plain.contains(line) && plain.contains("\"flavour\" (2 rows)"), "{plain}");
    let rendered = told(&["--pre-rendered"]);
    assert!(!rendered.contains("control tokens"), "{rendered}");
}

/// Exit code 2 and one line with all of `parts`, and no run left behind that looks finished.
#[track_caller]
fn refused(p: &Place, args: &[&str], parts: &[&str]) {
    let out = p.command(args, "hello\n");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
}

#[test]
fn only_reward_models_score() {
    let p = Place::new("opt");
    let data = ["--data-path", "data.jsonl", "--max-prompt-seq-len", "40", "--max-new-tokens", "8"];
    let eval = [&["eval", "model", "--reward-model", "model"], &data[..]].concat();
    refused(&p, &eval, &["model: has no score head", "duplex reward"]);
    let ppo = ["ppo", "--config", "short.toml", "--data-path", "data.jsonl", "--output-dir", "run"];
    let models = ["--actor-model", "model", "--reward-model", "model"];
    refused(&p, &[&ppo[..], &models].concat(), &["model: has no score head"]);
}

/// A tokenizer with one more token than the model knows.
fn enlarge_tokenizer(model: &std::path::Path) {
    let file = model.join("tokenizer.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let id = checkpoint::tokenizer(None).vocab_size();
    let token = json!({"id": id, "content": "hello", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false});
    value["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(file, value.to_string()).unwrap();
}

#[test]
fn foreign_tokenizers_are_refused() {
    let p = Place::new("opt");
    p.loud("other");
    enlarge_tokenizer(&p.path("other"));
    refused(&p, &["chat", "other", "--max-new-tokens", "8"], &["other", "tokens", "rows"]);
    let eval = ["eval", "model", "--baseline", "other", "--reward-rule", "brevity", "--data-path"];
    let length = ["data.jsonl", "--max-prompt-seq-len", "40", "--max-new-tokens", "8"];
    refused(&p, &[&eval[..], &length].concat(), &["model and other have different tokenizers"]);
}

#[test]
fn a_reader_that_leaves_is_no_error_of_ours() {
    let p = Place::new("llama");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_duplex"))
        .args(["chat", "model", "--max-new-tokens", "4"])
        .current_dir(p.path("."))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"one\ntwo\nthree\n");
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(
        stderr.lines().all(|l| l.starts_with("warning: model has no chat template")),
        "{stderr}"
    );
    assert_ne!(out.status.code(), Some(1));
}
