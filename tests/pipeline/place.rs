//! A directory with a tiny model, preference data and a configuration of short steps, and what a
//! test asks of a run: its weights, its metrics.

use crate::checkpoint;
use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use duplex::pool::ParamId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Every step is two optimizer steps long, with rates high enough to move a tiny model. No
/// `max_seq_len`: its default is above what the model has. No `critic_learning_rate`: its default
/// is not the demo's.
const SHORT: &str = r#"
dtype = "f32"
quiet = true
max_prompt_seq_len = 40
max_answer_seq_len = 8
[sft]
max_steps = 2
learning_rate = 1e-2
per_device_train_batch_size = 4
[reward]
max_steps = 2
learning_rate = 1e-2
per_device_train_batch_size = 4
[ppo]
max_steps = 2
num_warmup_steps = 0
actor_learning_rate = 1e-3
per_device_generation_batch_size = 4
per_device_training_batch_size = 4
"#;

/// The models a whole run leaves.
pub const MODELS: [&str; 4] = ["sft", "reward", "ppo/actor", "ppo/critic"];

pub struct Place {
    tmp: tempfile::TempDir,
}

impl Place {
    /// With a model of `family` in `model`, pairs in `data.jsonl` and settings in `short.toml`.
    pub fn new(family: &str) -> Place {
        let p = Place { tmp: tempfile::tempdir().unwrap() };
        checkpoint::write(&p.path("model"), family);
        checkpoint::write_rows(&p.path("data.jsonl"), &checkpoint::pairs(60));
        std::fs::write(p.path("short.toml"), SHORT).unwrap();
        p
    }

    /// With a model of another vocabulary, and pairs of random unequal length, up to `longest`
    /// tokens a text.
    pub fn large(family: &str, vocab: usize, longest: u32) -> Place {
        let p = Place { tmp: tempfile::tempdir().unwrap() };
        checkpoint::write_large(&p.path("model"), family, vocab);
        let rows = checkpoint::uneven_pairs(&mut checkpoint::fresh_rng(), 90, longest);
        checkpoint::write_rows(&p.path("data.jsonl"), &rows);
        let lengths = format!("max_prompt_seq_len = {longest}\nmax_answer_seq_len = 8");
        let short = SHORT.replace("max_prompt_seq_len = 40\nmax_answer_seq_len = 8", &lengths);
        std::fs::write(p.path("short.toml"), short).unwrap();
        p
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A copy of the model with weights large enough for its words to depend on what came before.
    pub fn loud(&self, to: &str) {
        let options = LoadOptions::frozen(Head::Lm, DType::F32);
        let model = Model::load(&self.path("model"), &options).unwrap();
        for (i, p) in model.store.params().iter().enumerate() {
            let mut values = model.store.read_f32(ParamId(i)).unwrap();
            if p.spec.shape.len() > 1 {
                values.iter_mut().for_each(|w| *w *= 10.0);
            }
            model.store.write_f32(ParamId(i), &values).unwrap();
        }
        save_model(&model, &OutDir::create(&self.path(to)).unwrap(), &SaveAs::default(), None)
            .unwrap();
        checkpoint::tokenizer(None).save(&OutDir::create(&self.path(to)).unwrap()).unwrap();
    }

    /// A command as given; names of files are relative to this place.
    pub fn command(&self, args: &[&str], stdin: impl AsRef<[u8]>) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_duplex"))
            .args(args)
            .current_dir(self.tmp.path())
            .env_remove("HF_HUB_CACHE")
            .env("HF_HOME", self.path("hf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that leaves early closes its input.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_ref());
        child.wait_with_output().unwrap()
    }

    /// The standard output of a command that must succeed.
    #[track_caller]
    pub fn output(&self, args: &[&str], stdin: &str) -> String {
        let out = self.command(args, stdin);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{args:?}: {stderr}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs `command` in short steps into the directory `to`; `more` comes after and wins.
    #[track_caller]
    pub fn run(&self, command: &str, to: &str, more: &[&str]) -> PathBuf {
        let args = [command, "--config", "short.toml", "--data-path", "data.jsonl"];
        // A list given twice has both values.
        let args = if more.contains(&"--data-path") { &args[..3] } else { &args[..] };
        self.output(&[args, &["--output-dir", to], more].concat(), "");
        self.path(to)
    }

    /// All three steps from `model` into the directory `to`.
    #[track_caller]
    pub fn train(&self, to: &str, more: &[&str]) -> PathBuf {
        self.run("train", to, &[&["--actor-model", "model"], more].concat())
    }
}

/// The bytes of a saved model.
pub fn bytes(model: &Path) -> Vec<u8> {
    std::fs::read(model.join("model.safetensors")).unwrap()
}

/// The bytes of all models of a run.
pub fn all_bytes(run: &Path) -> Vec<Vec<u8>> {
    MODELS.iter().map(|m| bytes(&run.join(m))).collect()
}

/// The values of all f32 tensors in a safetensors file.
pub fn tensors(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let raw = std::fs::read(file).unwrap();
    let n = 8 + u64::from_le_bytes(raw[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&raw[8..n]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let read = |info: &Value| {
        assert_eq!(info["dtype"], "F32");
        let number = |v: &Value| v.as_u64().unwrap() as usize;
        let at = |i: usize| n + number(&info["data_offsets"][i]);
        let values = raw[at(0)..at(1)].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (info["shape"].as_array().unwrap().iter().map(number).collect(), values.collect())
    };
    tensors.map(|(name, info)| (name, read(&info))).collect()
}

/// The values of a saved model, in one row.
pub fn values(model: &Path) -> Vec<f32> {
    tensors(&model.join("model.safetensors")).into_values().flat_map(|(_, v)| v).collect()
}

/// The largest difference of two saved models.
#[track_caller]
pub fn distance(a: &Path, b: &Path) -> f32 {
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// All events of a run; every line must be one.
pub fn events(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The numbers of each iteration of a step.
pub fn metrics(run: &Path, step: &str) -> Vec<Value> {
    let of_step = |e: &Value| e["event"] == "metrics" && e["step"] == step;
    events(run).into_iter().filter(of_step).map(|e| e["values"].clone()).collect()
}

/// The summary of a step.
pub fn summary(run: &Path, step: &str) -> Value {
    let end = events(run).into_iter().find(|e| e["event"] == "step_end" && e["step"] == step);
    end.unwrap()["summary"].clone()
}

/// A number of a metrics or summary object.
#[track_caller]
pub fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_else(|| panic!("no {name} in {of}"))
}
