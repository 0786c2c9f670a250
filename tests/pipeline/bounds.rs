//! Bounds of memory and time: tokenizers and templates that ask for too much, rows far longer than
//! a sequence, runs of any number of steps.

use crate::checkpoint;
use crate::place::Place;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

/// Changes the model's `tokenizer.json`.
fn tokenizer(p: &Place, change: impl Fn(&mut Value)) {
    let path = p.path("model/tokenizer.json");
    let mut whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut whole);
    std::fs::write(path, whole.to_string()).unwrap();
}

/// A replacement that makes a text as long again, so many times.
fn doubled(times: usize, kind: &str, list: &str) -> Value {
    let part = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    json!({"type": kind, list: vec![part; times]})
}

/// Runs a command in `p` that must end with one line that has all of `parts`.
#[track_caller]
fn refused(p: &Place, args: &[&str], stdin: &str, code: i32, parts: &[&str]) {
    let out = p.command(args, stdin);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|l| l.starts_with("duplex: ")).collect();
    assert!(lines.len() == 1 && parts.iter().all(|part| lines[0].contains(part)), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

const SFT: [&str; 9] = [
    "sft",
    "--config",
    "short.toml",
    "--actor-model",
    "model",
    "--data-path",
    "data.jsonl",
    "--output-dir",
    "run",
];

#[test]
fn a_tokenizer_that_asks_for_too_much_ends_in_a_line_that_names_its_file() {
    let p = Place::new("llama");
    let saved = std::fs::read(p.path("model/tokenizer.json")).unwrap();
    let named = ["tokenizer.json of model", "MiB of memory", "repair it"];
    tokenizer(&p, |t| t["normalizer"] = doubled(30, "Sequence", "normalizers"));
    refused(&p, &SFT, "", 2, &named);
    std::fs::write(p.path("model/tokenizer.json"), &saved).unwrap();
    tokenizer(&p, |t| {
        let mut list = doubled(34, "Sequence", "decoders");
        let any = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "a"});
        list["decoders"].as_array_mut().unwrap().insert(0, any);
        t["decoder"] = list;
    });
    refused(&p, &["inspect", "model"], "", 2, &named);
    std::fs::write(p.path("model/tokenizer.json"), &saved).unwrap();
    // Once while it is loaded, for the letters of an added token.
    tokenizer(&p, |t| {
        t["normalizer"] = doubled(30, "Sequence", "normalizers");
        let token = json!({"id": 299, "content": "aaa", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": false});
        t["added_tokens"].as_array_mut().unwrap().push(token);
    });
    refused(&p, &SFT, "", 2, &named);
}

#[test]
fn a_tokenizer_that_computes_without_end_is_stopped() {
    let p = Place::new("llama");
    // A text of a few MiB, gone through again and again.
    tokenizer(&p, |t| {
        let mut list = doubled(21, "Sequence", "normalizers");
        let again = json!({"type": "Replace", "pattern": {"Regex": "a(?=a)"}, "content": "a"});
        list["normalizers"].as_array_mut().unwrap().extend(vec![again; 3000]);
        t["normalizer"] = list;
    });
    refused(&p, &SFT, "", 2, &["tokenizer.json of model", "computes for more than", "repair it"]);
}

#[test]
fn ids_that_no_token_has_are_told_when_a_tokenizer_is_loaded() {
    let p = Place::new("llama");
    let saved = std::fs::read(p.path("model/tokenizer.json")).unwrap();
    let first = |id: u32| {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "Q", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"Q": {"id": "Q", "ids": [id], "tokens": ["x"]}}})
    };
    for id in [4_000_000_000, 9999] {
        tokenizer(&p, |t| t["post_processor"] = first(id));
        refused(&p, &SFT, "", 2, &["tokenizer.json of model", &id.to_string(), "no token"]);
    }
    std::fs::write(p.path("model/tokenizer.json"), &saved).unwrap();
    tokenizer(&p, |t| t["model"]["vocab"]["zz"] = json!(4_000_000_000u32));
    refused(&p, &SFT, "", 2, &["tokenizer.json of model", "4000000000"]);
}

#[test]
fn memory_that_the_system_does_not_have_ends_in_a_line_with_its_size() {
    let p = Place::new("llama");
    let file = std::fs::File::create(p.path("data.jsonl")).unwrap();
    file.set_len(4 << 30).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 2000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_duplex")]);
    let out = shell.args(SFT).current_dir(p.path("")).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("4096 MiB") && stderr.lines().count() == 1, "{stderr}");
}

/// Starts a command in `p`, told nothing and telling nothing.
fn spawn(p: &Place, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command.args(args).current_dir(p.path("")).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for a process: its exit code, and the most memory it had, in MiB.
fn memory(child: &Child) -> (i32, i64) {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: it is our child, which nobody else waits for; both places are ours to write to, and
    // zeros are a valid value of the second.
    let usage = unsafe {
        libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr());
        usage.assume_init()
    };
    (libc::WEXITSTATUS(status), usage.ru_maxrss >> 10)
}

#[test]
fn a_row_of_fifty_megabytes_takes_three_hundred_at_most() {
    let p = Place::new("llama");
    let long = "word ".repeat(10_000_000);
    let rows = |row: Value| {
        let rows = [&[row][..], &checkpoint::pairs(60)].concat();
        checkpoint::write_rows(&p.path("data.jsonl"), &rows)
    };
    let lengths = ["--max-seq-len", "64", "--max-prompt-seq-len", "40"];
    let sft = |more: &[&str]| {
        let _ = std::fs::remove_dir_all(p.path("run"));
        let (code, mib) = memory(&spawn(&p, &[&SFT[..], &lengths, more].concat()));
        assert_eq!(code, 0);
        mib
    };
    rows(json!({"prompt": "short", "chosen": "a", "rejected": "b"}));
    let least = sft(&[]);
    let told = |row: Value, more: &[&str]| {
        rows(row);
        let mib = sft(more);
        assert!(mib < least + 300, "{mib} MiB, {least} with a short row");
    };
    let cut = ["--on-long-prompt", "truncate"];
    told(json!({"prompt": long, "chosen": "a", "rejected": "b"}), &cut);
    told(json!({"prompt": long, "chosen": "a", "rejected": "b"}), &[]);
    told(json!({"prompt": "a", "chosen": long, "rejected": "b"}), &[]);
    let chat = json!([{"role": "user", "content": long}, {"role": "assistant", "content": "a"}]);
    told(json!({"messages": chat}), &cut);
}

#[test]
fn a_thousand_million_steps_take_the_memory_of_a_thousand() {
    let p = Place::new("llama");
    let stopped = |steps: &str| {
        let _ = std::fs::remove_dir_all(p.path("run"));
        let child = spawn(&p, &[&SFT[..], &["--max-steps", steps]].concat());
        let log = p.path("run/metrics.jsonl");
        let has = |word| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(word));
        while !has("\"event\":\"metrics\"") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // SAFETY: it is our child, and has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        memory(&child)
    };
    let ((few, least), (many, most)) = (stopped("1000"), stopped("1000000000"));
    assert_eq!((few, many), (75, 75));
    assert!(most < least + 20, "{most} MiB, {least} for a thousand steps");
}
