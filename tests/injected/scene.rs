//! A directory in memory with models, data and runs, and commands that run in it with faults.

use crate::checkpoint;
use crate::faults::Fault;
use crate::process::{self, Outcome};
use crate::trace::Call;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A run may not take longer; undisturbed it takes a fifth of a second.
const LONGEST: Duration = Duration::from_secs(20);

/// A chat template of its own; without it the rows have other tokens.
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

/// Two checkpoints and more of each stage, of which one is kept; evaluations; all reports.
pub(crate) const SETTINGS: &str = r#"
dtype = "f32"
threads = 2
save_every = "2"
keep_checkpoints = 1
max_seq_len = 64
max_prompt_seq_len = 40
max_answer_seq_len = 6
[sft]
max_steps = 5
learning_rate = 1e-2
eval_interval = 2
per_device_train_batch_size = 2
[reward]
max_steps = 5
learning_rate = 1e-2
eval_interval = 2
per_device_train_batch_size = 2
[ppo]
max_steps = 5
num_warmup_steps = 0
actor_learning_rate = 1e-3
eval_interval = 2
eval_prompts = 2
enable_ema = true
per_device_generation_batch_size = 2
per_device_training_batch_size = 2
[dpo]
max_steps = 2
"#;

/// A folder in memory, where that is possible.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Writes settings, a model with every file that says something of its tokenizer, and
/// conversations, whose tokens depend on the chat template.
pub(crate) fn inputs(to: &Path) {
    let model = checkpoint::write(&to.join("model"), "llama");
    std::fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
    std::fs::write(model.join("special_tokens_map.json"), r#"{"eos_token": "<|end|>"}"#).unwrap();
    let numbers: Vec<String> = (0..40).map(|i| format!("Say {i}.")).collect();
    let rows = numbers.iter().map(|text| {
        json!({"prompt": [{"role": "user", "content": text}], "chosen": text, "rejected": "Go!"})
    });
    checkpoint::write_rows(&to.join("data.jsonl"), &rows.collect::<Vec<_>>());
    std::fs::write(to.join("short.toml"), SETTINGS).unwrap();
}

/// Copies a directory with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// The start of the runs of one stage. Files here are the same for all of them.
pub(crate) struct Scene {
    tmp: tempfile::TempDir,
    stage: String,
    /// Words that each run of the stage has.
    more: Vec<String>,
    /// The run that those under test go on with, if they do not begin one.
    begun: Option<PathBuf>,
}

impl Scene {
    pub(crate) fn new(stage: &str, more: &[&str]) -> Scene {
        let more = more.iter().map(|word| word.to_string()).collect();
        let scene = Scene { tmp: folder(), stage: stage.into(), more, begun: None };
        inputs(&scene.path(""));
        if stage == "ppo" {
            let out = scene.run(&scene.words("reward", "judge"), "judge", None);
            assert_eq!(out.code(), Some(0), "{}", out.stderr);
        }
        scene
    }

    /// Has a run begun that stops when it has saved something; the others then go on with it.
    pub(crate) fn begin(&mut self) {
        let out = self.train("begun", Some(&Fault("rename:*:5:term".into())));
        assert_eq!(out.code(), Some(75), "{}", out.stderr);
        self.begun = Some(self.path("begun/run"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn words(&self, stage: &str, dir: &str) -> Vec<String> {
        let text = |name: &str| self.path(name).display().to_string();
        let mut words = vec![stage.to_string()];
        let mut add = |flag: &str, value: String| words.extend([flag.to_string(), value]);
        add("--config", text("short.toml"));
        add("--actor-model", text("model"));
        add("--data-path", text("data.jsonl"));
        add("--output-dir", self.path(dir).join("run").display().to_string());
        if stage == "ppo" {
            add("--reward-model", text("judge/run/reward"));
        }
        words
    }

    /// Runs the stage in the folder `dir`, with `fault`.
    pub(crate) fn train(&self, dir: &str, fault: Option<&Fault>) -> Outcome {
        let run = self.path(dir).join("run");
        if let Some(begun) = self.begun.as_ref().filter(|_| !run.exists()) {
            copy(begun, &run);
        }
        let words = [self.words(&self.stage, dir), self.more.clone()].concat();
        self.run(&words, dir, fault)
    }

    /// Trains the finished run in the folder `dir` for one more iteration.
    pub(crate) fn train_further(&self, dir: &str) -> Outcome {
        let further = ["--extend", "--max-steps", "6"].map(String::from);
        let words = [self.words(&self.stage, dir), self.more.clone(), further.to_vec()].concat();
        self.run(&words, dir, None)
    }

    /// Runs the stage in the folder `dir` and returns the calls that it makes.
    pub(crate) fn record(&self, dir: &str) -> Vec<Call> {
        let out = self.train(dir, None);
        assert_eq!(out.code(), Some(0), "{}", out.stderr);
        out.struck
    }

    fn run(&self, words: &[String], dir: &str, fault: Option<&Fault>) -> Outcome {
        process::run(words, &self.path(dir), fault.map(|f| f.0.as_str()), LONGEST)
    }
}
