//! Runs of all algorithms through the binary: log, directories, flags, a kill, ranks and
//! micro-batches.

use crate::checkpoint::fresh_rng;
use crate::place::{Place, bytes, distance, metrics, number, summary};
use duplex::algo::{ALGORITHMS, Algorithm, OF_ALL, names};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Values for a run of a few seconds. A section takes those whose keys it has. The rates are low,
/// so that rounding does not grow from step to step.
const SHORT: [(&str, &str); 11] = [
    ("max_steps", "3"),
    ("num_warmup_steps", "0"),
    ("learning_rate", "1e-4"),
    ("actor_learning_rate", "1e-4"),
    ("critic_learning_rate", "1e-4"),
    ("per_device_train_batch_size", "4"),
    ("per_device_generation_batch_size", "4"),
    ("per_device_training_batch_size", "4"),
    ("eval_interval", "2"),
    ("eval_prompts", "3"),
    ("unsupervised_data_path", "[\"text.txt\"]"),
];

/// A place with a model, data for every algorithm, and a configuration of short stages.
fn short(family: &str) -> Place {
    let p = Place::new(family);
    let text = "The sea is blue, of course. And the grass is green.\n\n".repeat(80);
    std::fs::write(p.path("text.txt"), text).unwrap();
    let mut toml = String::from(
        "dtype = \"f32\"\nquiet = true\nthreads = 2\nmax_prompt_seq_len = 40\n\
         max_answer_seq_len = 8\nactor_model = \"model\"\ndata_path = [\"data.jsonl\"]\n",
    );
    toml += &format!("stages = {:?}\n", names());
    for algorithm in ALGORITHMS {
        let defaults = algorithm.section.defaults().unwrap();
        toml += &format!("[{}]\n", algorithm.name);
        for (key, value) in SHORT {
            let keys = algorithm.section.keys(algorithm.name, 0, 0);
            let known = keys.iter().any(|k| k.path == format!("{}.{key}", algorithm.name));
            assert!(known || !defaults.contains_key(key), "{key}");
            toml += &if known { format!("{key} = {value}\n") } else { String::new() };
        }
    }
    std::fs::write(p.path("all.toml"), toml).unwrap();
    p
}

/// Runs all stages into `to`.
#[track_caller]
fn run(p: &Place, to: &str, more: &[&str]) -> PathBuf {
    p.output(&[&["train", "--config", "all.toml", "--output-dir", to], more].concat(), "");
    p.path(to)
}

/// The model directories of an algorithm in a run that keeps no average.
fn models(run: &Path, of: &Algorithm) -> Vec<PathBuf> {
    let dir = run.join(of.name);
    match of.models() {
        [] => vec![dir],
        several => several.iter().map(|m| dir.join(m)).filter(|m| m.is_dir()).collect(),
    }
}

/// The same metrics but for those of time, up to rounding, and nearly the same models.
#[track_caller]
fn near(a: &Path, b: &Path) {
    for of in ALGORITHMS {
        let (logged, others) = (metrics(a, of.name), metrics(b, of.name));
        assert_eq!((logged.len(), others.len()), (3, 3), "{}", of.name);
        for (i, (x, y)) in logged.iter().zip(&others).enumerate() {
            let names = x.as_object().unwrap().keys();
            for name in names.filter(|n| !n.contains("second") && !n.ends_with("_per_s")) {
                let (x, y) = (number(x, name), number(y, name));
                let close = (x - y).abs() <= 2e-5 * x.abs().max(1.0);
                assert!(close, "{}, iteration {}: {name} {x} and {y}", of.name, i + 1);
            }
        }
        for (x, y) in models(a, of).iter().zip(models(b, of)) {
            let far = distance(x, &y);
            assert!(far < 1e-4, "{}: {far}", x.display());
        }
    }
}

#[test]
fn each_logs_what_it_declares_and_leaves_models_that_verify() {
    let p = short("llama");
    let run = run(&p, "run", &[]);
    for of in ALGORITHMS {
        let logged = metrics(&run, of.name);
        // What sums the stage up may be known only before and after it.
        let end = summary(&run, of.name);
        let has = |name: &str| {
            logged.iter().any(|values| values.get(name).is_some())
                || end.get(format!("{name}_before")).is_some()
        };
        for metric in of.metrics() {
            assert!(has(metric.name), "{}: {} is declared and not logged", of.name, metric.name);
        }
        for name in logged.iter().flat_map(|values| values.as_object().unwrap().keys()) {
            let declared = of.metric(name).is_some() || OF_ALL.iter().any(|m| m.name == name);
            assert!(declared, "{}: {name} is logged and not declared", of.name);
        }
        assert!(!models(&run, of).is_empty());
        for model in models(&run, of) {
            let inspected = p.output(&["inspect", model.to_str().unwrap()], "");
            assert!(inspected.contains("llama"), "{inspected}");
            let card = std::fs::read_to_string(model.join("README.md")).unwrap();
            assert!(card.contains(of.tag), "{card}");
        }
        let report = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(report.contains(of.title), "{} is not in the report", of.title);
    }
    p.output(&["verify", "run"], "");
}

#[test]
fn the_ratio_of_what_is_sampled_is_exactly_one_at_first() {
    let p = short("gpt2");
    for dtype in ["f32", "bf16"] {
        let run = run(&p, dtype, &["--dtype", dtype]);
        for of in ALGORITHMS.iter().filter(|a| a.samples()) {
            for values in metrics(&run, of.name) {
                assert_eq!(number(&values, "first_ratio_deviation"), 0.0, "{}", of.name);
            }
        }
    }
}

#[test]
fn each_has_a_command_and_flags_for_its_keys() {
    let p = short("llama");
    for of in ALGORITHMS {
        let help = p.output(&[of.name, "--help"], "");
        assert!(help.contains(of.about), "{help}");
        for key in of.section.keys(of.name, 0, 0) {
            let leaf = key.path.strip_prefix(of.name).unwrap()[1..].replace('_', "-");
            assert!(help.contains(&format!("--{leaf}")), "{}: no --{leaf}", of.name);
        }
        let path = format!("{}.no_such_key=1", of.name);
        let args = ["train", "--config", "all.toml", "--output-dir", "x", "--set", &path];
        let out = p.command(&args, "");
        assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_killed_run_of_each_ends_in_the_same_bytes() {
    let p = short("llama");
    let started = Instant::now();
    let whole = run(&p, "whole", &[]);
    let (whole_time, mut rng) = (started.elapsed(), fresh_rng());
    for _ in 0..5 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_duplex"))
            .args(["train", "--config", "all.toml", "--output-dir", "killed", "--save-every", "1"])
            .current_dir(p.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole_time.mul_f32(0.5 * rng.uniform()) + Duration::from_millis(1));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
    }
    let killed = p.path("killed");
    let last = names().last().copied().unwrap();
    if !killed.join(format!("checkpoints/{last}-finished")).exists() {
        run(&p, "killed", &["--save-every", "1"]);
    }
    for of in ALGORITHMS {
        for model in models(&whole, of) {
            let other = killed.join(model.strip_prefix(&whole).unwrap());
            assert!(bytes(&model) == bytes(&other), "{} differs", model.display());
        }
    }
}

#[test]
fn ranks_compute_what_one_does() {
    let p = short("llama");
    let one = run(&p, "one", &[]);
    for (ranks, stage) in [("2", "1"), ("3", "3")] {
        let to = format!("ranks-{ranks}");
        near(&one, &run(&p, &to, &["--num-gpus", ranks, "--zero-stage", stage]));
    }
}

#[test]
fn the_split_into_micro_batches_does_not_matter() {
    let p = short("gpt2");
    let one = run(&p, "one", &[]);
    let tokens = (30 + fresh_rng().below(60)).to_string();
    println!("micro-batches of {tokens} tokens");
    near(&one, &run(&p, "many", &["--micro-batch-tokens", &tokens]));
}
