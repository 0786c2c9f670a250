//! `duplex bench`: what it counts is exact, what it times is positive, mistakes are one line.

use crate::place::{Place, number};
use serde_json::Value;

/// Lengths that take milliseconds.
const SHORT: [&str; 8] =
    ["--prompt-tokens", "6", "--new-tokens", "5", "--train-sequences", "3", "--json", "bench.json"];

/// Runs the command, which prints a table with a line for each case, and reads its file.
fn bench(p: &Place, more: &[&str]) -> Value {
    let table = p.output(&[&["bench"], &SHORT[..], more].concat(), "");
    let text = std::fs::read_to_string(p.path("bench.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    for case in report["cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        assert!(table.lines().any(|l| l.split(' ').next() == Some(name)), "{name}: {table}");
    }
    report
}

/// Median, smallest and largest are in order and above 0.
fn median(seconds: &Value) -> f64 {
    let [min, median, max] = ["min", "median", "max"].map(|name| number(seconds, name));
    assert!(0.0 < min && min <= median && median <= max, "{seconds}");
    median
}

/// Checks all that follows from the counts, and returns the cases.
fn checked(report: &Value, names: [&str; 3]) -> Vec<Value> {
    let machine = ["read_bytes_per_s", "matmul_flop_per_s"].map(|n| number(&report["machine"], n));
    assert!(machine.iter().all(|rate| *rate > 1e3), "{machine:?}");
    let cases = report["cases"].as_array().unwrap().clone();
    let found: Vec<&str> = cases.iter().map(|c| c["case"].as_str().unwrap()).collect();
    assert_eq!(found, names);
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} and {b}");
    for case in &cases {
        let seconds = median(&case["seconds"]);
        near(number(case, "tokens_per_s"), number(case, "tokens") / seconds);
        near(number(case, "flop_per_s"), number(case, "flops") / seconds);
        near(number(case, "matmul_share"), number(case, "flop_per_s") / machine[1]);
        if let Some(phases) = case["phases"].as_object() {
            phases
                .values()
                .for_each(|p| assert!(median(&p["seconds"]) <= number(&case["seconds"], "max")));
            near(phases.values().map(|p| number(p, "flops")).sum(), number(case, "flops"));
        }
        if cfg!(target_os = "linux") {
            assert!(number(case, "peak_bytes") > 1e6);
        }
    }
    cases
}

#[test]
fn three_kinds_of_work_are_measured_and_counted() {
    let p = Place::new("gpt2");
    let words = ["--device", "cpu", "--shape", "tiny", "--repeat", "2", "--dtype", "f32"];
    let report = bench(&p, &[&words[..], &["--case", "generate-2,train-7", "ppo-4"]].concat());
    let [generate, train, ppo] =
        checked(&report, ["generate-2", "train-7", "ppo-4"]).try_into().unwrap();
    let tokens = [&generate, &train, &ppo].map(|c| number(c, "tokens"));
    assert_eq!(tokens, [2.0 * 5.0, 3.0 * 7.0, 4.0 * 5.0]);

    // The tied embedding is read as the head; all of the model is.
    let parameters = number(&report, "parameters");
    let decode = &generate["decode"];
    assert_eq!((number(decode, "steps"), number(decode, "weight_bytes")), (4.0, 4.0 * parameters));
    let step = number(decode, "step_ms") * 1e-3;
    assert!((4.0 * step / median(&generate["phases"]["decode"]["seconds"]) - 1.0).abs() < 1e-9);
    assert!((number(decode, "read_bytes_per_s") * step / (4.0 * parameters) - 1.0).abs() < 1e-9);

    // Two layers of width 32 with 4 heads of 8, two of them for keys; MLP 48; 256 words.
    let matrices = 2.0 * (32.0 * (32.0 + 16.0 + 16.0 + 32.0) + 3.0 * 32.0 * 48.0);
    let (head, attention) = (256.0 * 32.0, 4.0 * 2.0 * 32.0);
    let forward = 2.0 * (7.0 * matrices + 6.0 * head) + attention * 28.0;
    assert_eq!(number(&train, "flops"), 3.0 * 3.0 * forward);
    let phases = ppo["phases"].as_object().unwrap();
    assert_eq!(phases.keys().collect::<Vec<_>>(), ["generate", "score", "train"]);
}

#[test]
fn a_model_of_ones_own_is_measured() {
    let p = Place::new("llama");
    let words = ["--model", "model", "--repeat", "1", "--case", "ppo-2,train-9,generate-1"];
    let report = bench(&p, &[&words[..], &["--optimizer-state", "compact"]].concat());
    assert_eq!(report["optimizer_state"], "compact");
    assert_eq!((&report["model"], &report["dtype"]), (&"model".into(), &"bf16".into()));
    let cases = checked(&report, ["ppo-2", "train-9", "generate-1"]);
    let bytes = number(&cases[2]["decode"], "weight_bytes");
    assert_eq!(bytes, 2.0 * number(&report, "parameters"));
}

#[cfg(feature = "emulator")]
#[test]
fn kernels_are_measured_on_the_emulated_device() {
    let p = Place::new("gpt2");
    let words = ["--device", "emulated", "--shape", "tiny", "--repeat", "1"];
    let report = bench(&p, &[&words[..], &["--case", "generate-2,train-7", "ppo-2"]].concat());
    assert_eq!(report["device"], "emulated");
    let cases = checked(&report, ["generate-2", "train-7", "ppo-2"]);
    assert_eq!(number(&cases[0], "tokens"), 10.0);
}

#[test]
fn mistakes_are_one_line() {
    let p = Place::new("gpt2");
    let cases = [
        (&["--model", "nowhere/at/all"][..], "nowhere/at/all: no such model directory"),
        (
            &["--shape", "tiny", "--case", "train-2000"],
            "--case train-2000 has sequences of 2000 tokens, tiny has 1024",
        ),
        (
            &["--shape", "tiny", "--new-tokens", "1020", "--case", "ppo"],
            "--case ppo-8 has sequences of 1084 tokens",
        ),
        (
            &["--dtype", "f32", "--optimizer-state", "compact"],
            "\"optimizer_state\" compact is for bf16 weights",
        ),
        (&["--shape", "tiny", "--json", "no/such/folder"], "cannot write no/such/folder"),
    ];
    for (words, expected) in cases {
        let out = p.command(&[&["bench", "--device", "cpu"], words].concat(), "");
        let stderr = String::from_utf8(out.stderr).unwrap();
        let last = stderr.lines().last().unwrap();
        assert_eq!(out.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(last.starts_with(&format!("duplex: {expected}")), "{words:?}: {stderr}");
        assert!(out.stdout.is_empty());
    }
}
