//! The three steps as one run: configuration, run directory, models and data in, models out, the
//! embedded demo. Knows no argument parsing.

mod chat;
pub mod config;
mod datasets;
pub mod demo;
mod eval;
mod judge;
mod ppo;
mod reward;
mod run_dir;
mod settings;
mod sft;
mod sources;

pub use chat::chat;
pub use eval::eval;

use crate::base::{DType, Error, Result};
use crate::model::Model;
use crate::report::{Event, Reporter};
use crate::rlhf::RewardRule;
use crate::tape::Workspace;
use config::RunConfig;
use run_dir::RunDir;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Steps skipped in a row, for gradients that are not finite, before a run stops.
const MAX_SKIPPED: usize = 10;

/// A run in progress.
struct Run<'c> {
    cfg: &'c RunConfig,
    dir: RunDir,
    dtype: DType,
    ws: Workspace,
    reporter: Reporter,
    /// Scores answers for evaluation only; training never sees it.
    judge: Option<&'c dyn RewardRule>,
    skipped: usize,
}

/// Runs the steps named in the configuration, one after the other; without a model, the demo.
pub fn train(cfg: &RunConfig, quiet: bool) -> Result<()> {
    if cfg.actor_model.is_none() {
        return demo::train(cfg, quiet);
    }
    run_steps(cfg, &cfg.step, quiet, None, &mut |_| Ok(()))
}

/// Runs `steps` in the run directory of `cfg`. `prepare` may fill the directory first.
fn run_steps(
    cfg: &RunConfig,
    steps: &[u32],
    quiet: bool,
    judge: Option<Arc<dyn RewardRule>>,
    prepare: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let started = Instant::now();
    let dir = RunDir::open(&cfg.output_dir, cfg.overwrite)?;
    dir.write_config(&config::to_toml(cfg)?)?;
    prepare(dir.path())?;
    let mut run = Run {
        cfg,
        dtype: cfg.dtype.dtype(),
        ws: Workspace::new(usize::MAX)?,
        reporter: Reporter::open(dir.path(), quiet)?,
        dir,
        judge: judge.as_deref(),
        skipped: 0,
    };
    run.announce();
    for step in steps {
        match step {
            1 => sft::run(&mut run)?,
            2 => reward::run(&mut run)?,
            3 => ppo::run(&mut run)?,
            other => return Err(Error::user(format!("step {other} is not one of 1, 2, 3"))),
        }
    }
    run.reporter.emit(Event::RunEnd { seconds: started.elapsed().as_secs_f64() });
    Ok(())
}

impl Run<'_> {
    fn announce(&mut self) {
        let cfg = self.cfg;
        let summary = [
            ("actor model", cfg.actor_model.clone().unwrap_or_default()),
            ("device", format!("CPU, {} threads", crate::device::cpu::threads())),
            ("dtype", self.dtype.to_string()),
            ("seed", cfg.seed.to_string()),
        ];
        let run_dir = self.dir.path().to_path_buf();
        let name = run_dir.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let summary = summary.map(|(k, v)| (k.to_string(), v)).to_vec();
        self.reporter.emit(Event::RunStart { name, run_dir, summary });
    }

    /// Where step 1 starts.
    fn actor_start(&self) -> String {
        self.cfg.actor_model.clone().unwrap_or_default()
    }

    /// Where step 2 starts.
    fn reward_start(&self) -> String {
        self.cfg.reward_model.clone().unwrap_or_else(|| self.actor_start())
    }

    /// The actor of step 3: this run's step 1, if it was made, else the model given.
    fn actor_for_ppo(&self) -> String {
        let own = self.dir.sft();
        if own.join("config.json").is_file() { own.display().to_string() } else { self.actor_start() }
    }

    /// The reward model of step 3: this run's step 2, if it was made, else the model given.
    fn reward_for_ppo(&self) -> Option<String> {
        let own = self.dir.reward();
        if own.join("config.json").is_file() {
            return Some(own.display().to_string());
        }
        self.cfg.reward_model.clone()
    }

    fn describe(&mut self, what: &str, model: &Model) {
        self.reporter.emit(Event::note(format!(
            "{what}: {} with {:.1} M parameters, {:.1} M trained",
            model.arch.family.model_type,
            model.num_params() as f64 / 1e6,
            model.num_trained() as f64 / 1e6
        )));
    }

    fn start(&mut self, step: &str, title: &str, total: u64, unit: &str) {
        let (step, title, unit) = (step.to_string(), title.to_string(), unit.to_string());
        self.reporter.emit(Event::StepStart { step, title, total, unit });
    }

    /// Counts steps skipped in a row and stops the run when there are too many.
    fn health(&mut self, skipped: bool, step: &str) -> Result<()> {
        self.skipped = if skipped { self.skipped + 1 } else { 0 };
        if skipped {
            self.reporter.emit(Event::warning(format!("{step}: gradients are not finite, step skipped")));
        }
        if self.skipped >= MAX_SKIPPED {
            return Err(Error::user(format!(
                "{step}: gradients were not finite in {MAX_SKIPPED} steps in a row; lower the learning rate or look for bad data"
            )));
        }
        Ok(())
    }

    fn finish(&mut self, step: &str, started: Instant, summary: &[(&str, f64)], dir: &Path, memory: [usize; 4]) {
        let mib = |bytes: usize| bytes >> 20;
        let [weights, grads, optimizer, _] = memory;
        self.reporter.emit(Event::note(format!(
            "{step}: saved {}; weights {} MiB, gradients {} MiB, optimizer {} MiB, activations {} MiB",
            dir.display(),
            mib(weights),
            mib(grads),
            mib(optimizer),
            mib(self.ws.bytes())
        )));
        self.reporter.emit(Event::step_end(step, started.elapsed().as_secs_f64(), summary));
    }
}

/// Step 1 alone.
pub fn sft(cfg: &RunConfig, quiet: bool) -> Result<()> {
    single(cfg, 1, quiet)
}

/// Step 2 alone.
pub fn reward(cfg: &RunConfig, quiet: bool) -> Result<()> {
    single(cfg, 2, quiet)
}

/// Step 3 alone.
pub fn ppo(cfg: &RunConfig, quiet: bool) -> Result<()> {
    single(cfg, 3, quiet)
}

fn single(cfg: &RunConfig, step: u32, quiet: bool) -> Result<()> {
    if cfg.actor_model.is_none() {
        return Err(Error::user("--model-name-or-path is missing; give a model directory or name (`duplex train` runs the demo)"));
    }
    run_steps(cfg, &[step], quiet, None, &mut |_| Ok(()))
}
