//! A directory in memory with models, data and runs, and commands that run in it with faults.

use crate::checkpoint;
use crate::faults::Fault;
use crate::library::library;
use crate::trace::{self, Call};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A run may not take longer; undisturbed it takes a fifth of a second.
const LONGEST: Duration = Duration::from_secs(20);

/// Two checkpoints and more of each stage, of which one is kept; evaluations; all reports.
const SETTINGS: &str = r#"
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
"#;

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("DUPLEX_BINARY").unwrap_or(env!("CARGO_BIN_EXE_duplex").into()).into()
}

/// How a command ended.
pub(crate) struct Outcome {
    /// None if it did not end in time.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stderr: String,
    /// The calls that failed.
    pub(crate) struck: Vec<Call>,
}

impl Outcome {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }
}

/// What the runs of one stage start from. Files here are the same for all of them.
pub(crate) struct Scene {
    tmp: tempfile::TempDir,
    stage: String,
}

impl Scene {
    pub(crate) fn new(stage: &str) -> Scene {
        let memory = Path::new("/dev/shm");
        let tmp = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let scene = Scene { tmp: tmp.unwrap(), stage: stage.into() };
        checkpoint::write(&scene.path("model"), "llama");
        checkpoint::write_rows(&scene.path("data.jsonl"), &checkpoint::pairs(40));
        std::fs::write(scene.path("short.toml"), SETTINGS).unwrap();
        if stage == "ppo" {
            let out = scene.run(&scene.words("reward", "judge"), "judge", &[]);
            assert_eq!(out.code(), Some(0), "{}", out.stderr);
        }
        scene
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
        let fault: Vec<_> = fault.iter().map(|f| ("FAULT", f.0.clone())).collect();
        self.run(&self.words(&self.stage, dir), dir, &fault)
    }

    /// Runs the stage in the folder `dir` and returns the calls that it makes.
    pub(crate) fn record(&self, dir: &str) -> Vec<Call> {
        let out = self.train(dir, None);
        assert_eq!(out.code(), Some(0), "{}", out.stderr);
        out.struck
    }

    /// Runs a command in the folder `dir`; without a fault among the `variables`, all of its calls
    /// are written down.
    fn run(&self, words: &[String], dir: &str, variables: &[(&str, String)]) -> Outcome {
        let dir = self.path(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let [log, stdout, stderr] = ["calls", "stdout", "stderr"].map(|name| dir.join(name));
        let _ = std::fs::remove_file(&log);
        let mut child = Command::new(binary())
            .args(words)
            .current_dir(&dir)
            .env("LD_PRELOAD", library())
            .env("FAULT_LOG", &log)
            .env("FAULT_WITHIN", &dir)
            .envs(variables.iter().map(|(k, v)| (*k, v)))
            .stdin(Stdio::null())
            .stdout(File::create(stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() > LONGEST {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let stderr = String::from_utf8_lossy(&std::fs::read(stderr).unwrap()).into_owned();
        Outcome { status, stderr, struck: trace::read(&log) }
    }
}
