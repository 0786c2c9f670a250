//! The three steps as one run: configuration, run directory, models and data in, models out, the
//! embedded demo, and the measurement of a machine. Knows no argument parsing.

mod bench;
mod card;
mod chat;
mod chat_input;
pub mod config;
mod datasets;
pub mod demo;
mod doctor;
mod eval;
mod export;
mod generation;
mod health;
mod inspect;
mod judge;
mod offline;
mod pace;
mod plan;
mod ppo;
mod ranks;
mod reading;
mod remarks;
mod resume;
mod reward;
mod run_dir;
mod saver;
mod settings;
mod sft;
mod sources;
mod stage;
mod start;
mod stop;
mod tokens;
mod verify;
mod watchdog;

pub use bench::bench;
pub use chat::chat;
pub use doctor::{Finding, Findings, Mark, doctor};
pub use eval::eval;
pub use inspect::inspect;
pub use plan::plan;
pub use ranks::{Ranks, alike};
pub use verify::verify;

use crate::base::{DType, Error, Kind, Result};
use crate::comm::Comm;
use crate::data::Blend;
use crate::device::Device;
use crate::formats::{Input, Snapshot};
use crate::model::{Head, LoadOptions, LoraConfig, Model};
use crate::report::{Event, Reporter, cut_log};
use crate::rlhf::RewardRule;
use crate::tape::Workspace;
use config::RunConfig;
use health::Health;
use pace::Pace;
use resume::{Resumed, steps_of};
use run_dir::RunDir;
use saver::{Best, Saver};
use sources::Source;
use stage::Stage;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;
use watchdog::Watchdog;

/// A run in progress.
struct Run<'c> {
    cfg: &'c RunConfig,
    ranks: Ranks,
    comm: Comm,
    // Before the directory: what is being written ends before the lock is given up.
    saver: Saver,
    dir: RunDir,
    device: Device,
    /// The device's description, for output.
    device_name: String,
    dtype: DType,
    ws: Workspace,
    watchdog: Watchdog,
    reporter: Reporter,
    /// True if all ranks dropped the work just done.
    dropped: bool,
    /// How fast this rank is beside the others.
    pace: Pace,
    /// When it began, in seconds since 1970: the date that chat templates write.
    begun: i64,
    /// True if an iteration was done here.
    trained: Rc<Cell<bool>>,
    /// Iterations of the step under way.
    total: u64,
    /// The rows of all steps, as read before the directory was opened.
    read: Option<Blend>,
    /// The same in use.
    blend: Option<Rc<Blend>>,
    /// Scores answers for evaluation only; training never sees it.
    judge: Option<&'c dyn RewardRule>,
    /// The health of the current step.
    health: Health,
    /// The configuration as the user gave it, by key.
    keys: BTreeMap<String, String>,
    /// The data files read so far.
    data: Vec<Input>,
    /// The checkpoint that the first step to run resumes from.
    resumed: Option<Snapshot>,
    /// True if this process resumes work that an earlier process began.
    goes_on: bool,
    started: Instant,
    /// Seconds that earlier programs spent on the run.
    earlier: f64,
}

/// Runs the steps named in the configuration, one after the other; without models and data, the
/// demo's.
pub fn train(cfg: &RunConfig) -> Result<()> {
    train_as(cfg, Ranks::alone())
}

/// The same as one of several ranks. The first one writes; the others read what it reads, and say
/// nothing.
pub fn train_as(cfg: &RunConfig, ranks: Ranks) -> Result<()> {
    stop::listen();
    let keys = config::flat(config::RUN, cfg)?;
    if !cfg.is_demo() {
        return run_steps(cfg, keys, ranks, None, &|_| Ok(()));
    }
    let cfg = demo::configure(cfg);
    run_steps(&cfg, keys, ranks, Some(&demo::HiddenRule), &|dir| demo::prepare(dir, &cfg))
}

/// Runs the steps in the run directory, which `prepare` may fill first. `keys` is the configuration
/// as the user gave it.
fn run_steps(
    cfg: &RunConfig,
    keys: BTreeMap<String, String>,
    ranks: Ranks,
    judge: Option<&dyn RewardRule>,
    prepare: &dyn Fn(&Path) -> Result<()>,
) -> Result<()> {
    let begins = Begins { at: Instant::now(), seconds: start::time()?, trained: Rc::default() };
    ranks::same_settings(&ranks.comm, &keys)?;
    let first = ranks.comm.rank() == 0;
    // Model and data of the demonstration are made in the run directory.
    let read = match judge {
        Some(_) => None,
        None => {
            let dir = RunDir::unopened(&cfg.output_dir);
            dir.check_free(cfg.overwrite)?;
            let steps = start::check(cfg, &dir, ranks.comm.size())?;
            let blend = datasets::read(cfg)?;
            // The first step meets its own rows at once, and spoils nothing unless it replaces
            // something.
            let first = if cfg.overwrite { None } else { cfg.step.iter().min() };
            let later: Vec<_> = steps.into_iter().filter(|(s, _)| Some(s) != first).collect();
            datasets::check(cfg, &blend, &later)?;
            Some(blend)
        }
    };
    if !first {
        ranks.comm.barrier()?;
    }
    let dir = match first {
        true => RunDir::open(&cfg.output_dir, cfg.overwrite)?,
        false => RunDir::beside(&cfg.output_dir)?,
    };
    let traces = dir.traces();
    let done = run_in(dir, cfg, keys, ranks, (judge, prepare), read, &begins);
    let failed = |e: &Error| matches!(e.kind(), Kind::User | Kind::Resource);
    if first && !begins.trained.get() && done.as_ref().is_err_and(failed) {
        traces.remove();
    }
    done
}

/// The beginning of this program's part of a run.
struct Begins {
    at: Instant,
    /// In seconds since 1970.
    seconds: i64,
    /// True if an iteration was done.
    trained: Rc<Cell<bool>>,
}

/// Knows the demonstration's answers, and makes its files.
type Demonstration<'d> = (Option<&'d dyn RewardRule>, &'d dyn Fn(&Path) -> Result<()>);

/// Runs the steps in a directory that is opened.
fn run_in(
    dir: RunDir,
    cfg: &RunConfig,
    keys: BTreeMap<String, String>,
    ranks: Ranks,
    (judge, prepare): Demonstration<'_>,
    read: Option<Blend>,
    begins: &Begins,
) -> Result<()> {
    let device = ranks.card.map_or(cfg.device, config::DeviceChoice::On);
    let (device, device_name) = device.open()?;
    let comm = ranks.comm.clone();
    let first = comm.rank() == 0;
    let resumed = resume::find(&dir, cfg, &keys)?;
    if first {
        if !resumed.as_ref().is_some_and(|r| r.here) {
            dir.claim(&cfg.step, cfg.overwrite)?;
        }
        dir.write_config(&config::to_toml(config::RUN, cfg)?)?;
        prepare(dir.path())?;
        if let Some(from) = resumed.as_ref().filter(|r| r.here) {
            cut_log(&dir.metrics(), from.snapshot.get("log_bytes")?)?;
        }
        comm.barrier()?;
    }
    let begun = match &resumed {
        Some(from) => from.snapshot.find("begun")?.unwrap_or(begins.seconds),
        None => begins.seconds,
    };
    let begun = comm.concat(&[begun as u64])?[0] as i64;
    let resumed = resumed.filter(|r| !r.snapshot.label().is_beginning());
    let moment = resumed.as_ref().map(|r| format!("{:?}", r.snapshot.label()));
    ranks::same(&comm, "checkpoints", moment.unwrap_or_default().as_bytes())?;
    let ws = Workspace::new(device, memory_limit(cfg))?;
    // Past the reporter, which the thread that may be stuck holds.
    let who = if comm.size() > 1 { format!("rank {}: ", comm.rank()) } else { String::new() };
    let tell = move |line: &str| drop(writeln!(std::io::stderr(), "warning: {who}{line}"));
    let mut run = Run {
        cfg,
        watchdog: Watchdog::start(cfg.stuck_after()?, ws.position(), tell)?,
        ws,
        device,
        device_name,
        dtype: cfg.dtype.dtype(),
        reporter: match first {
            true => Reporter::open(dir.path(), cfg.quiet, cfg.tensorboard)?,
            false => Reporter::silent(),
        },
        dropped: false,
        begun,
        trained: begins.trained.clone(),
        total: 0,
        read,
        pace: Pace::new(&comm)?,
        saver: saver(cfg, &dir, &comm)?,
        comm,
        ranks,
        dir,
        blend: None,
        judge,
        health: Health::default(),
        keys,
        data: vec![],
        resumed: None,
        goes_on: false,
        started: begins.at,
        earlier: 0.0,
    };
    run.begin(resumed)?;
    for step in steps_of(cfg) {
        if run.resumed.as_ref().is_some_and(|s| stage::is_behind(s.label(), step)) {
            continue;
        }
        run.stop_before(step)?;
        if !run.resumed.as_ref().is_some_and(|s| stage::is_within(s.label(), step)) {
            run.reporter.repeat(false);
        }
        let (stage, iterations) = match step {
            "sft" => sft::run(&mut run)?,
            "reward" => reward::run(&mut run)?,
            _ => ppo::run(&mut run)?,
        };
        if step == resume::last_step(cfg) {
            run.point_at_results();
            run.reporter.emit(Event::RunEnd { seconds: run.seconds() });
        }
        // Last: what comes before it is done again where this is not reached.
        run.mark_finished(&stage, iterations)?;
    }
    Ok(())
}

/// Most bytes of activations.
fn memory_limit(cfg: &RunConfig) -> usize {
    match cfg.memory_limit {
        0 => usize::MAX,
        mib => mib << 20,
    }
}

fn saver(cfg: &RunConfig, dir: &RunDir, comm: &Comm) -> Result<Saver> {
    let best = match &cfg.keep_best {
        Some(metric) => {
            let lower = config::lower_is_better(metric)?;
            Some(Best { metric: metric.clone(), lower, found: vec![] })
        }
        None => None,
    };
    let (root, steps) = (dir.checkpoints(), steps_of(cfg));
    Ok(Saver::new(root, steps, cfg.save_every()?, cfg.keep_checkpoints, best, comm.clone()))
}

impl Run<'_> {
    /// Begins the run, or takes over where another program has left it.
    fn begin(&mut self, resumed: Option<Resumed>) -> Result<()> {
        let (root, steps) = (self.dir.checkpoints(), steps_of(self.cfg));
        let log = self.log_bytes();
        self.goes_on = resumed.is_some();
        self.reporter.repeat(resumed.as_ref().is_some_and(|r| r.here));
        self.announce();
        if self.judge.is_some() {
            start::check(self.cfg, &self.dir, self.comm.size())?;
        }
        let Some(Resumed { snapshot, here, notes }) = resumed else {
            datasets::blend(self)?;
            // Of another run, which this one replaces from here on.
            if self.comm.rank() == 0 {
                resume::forget(&root, &steps, None)?;
            }
            return self.mark_beginning(steps[0], log);
        };
        let from = snapshot.dir().display();
        self.reporter.emit(Event::note(format!("goes on from the checkpoint {from}")));
        if !notes.is_empty() {
            let changed = notes.join(", ");
            self.reporter
                .emit(Event::note(format!("changed since, which does not matter: {changed}")));
        }
        self.take_over(&snapshot)?;
        datasets::blend(self)?;
        if self.comm.rank() == 0 {
            resume::forget(&root, &steps, Some(&snapshot).filter(|_| here))?;
        }
        self.resumed = Some(snapshot);
        Ok(())
    }

    /// Seconds spent on the run.
    fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    /// Options for a model from `source` that is only asked, and does not generate.
    fn frozen(&self, source: &Source, head: Head) -> Result<LoadOptions> {
        let strict = self.cfg.strict_weights;
        let partition = self.partition(&source.arch, head, false, false)?;
        let options = LoadOptions::frozen(head, self.dtype).on(self.device);
        Ok(LoadOptions { strict, partition, offload: self.cfg.offload, ..options })
    }

    /// Options for a model to be trained; `generates`: with tensor parallelism, if the run says so.
    fn trained(
        &self,
        source: &Source,
        head: Head,
        lora: Option<LoraConfig>,
        generates: bool,
    ) -> Result<LoadOptions> {
        let (grads, seed) = (self.cfg.optimizer_state.adamw().grads(), self.cfg.seed);
        let partition = self.partition(&source.arch, head, true, generates)?;
        let strict = self.cfg.strict_weights;
        let options = LoadOptions::frozen(head, self.dtype).on(self.device);
        Ok(LoadOptions { train: true, grads, lora, seed, strict, partition, ..options })
    }

    /// Says where to look next.
    fn point_at_results(&mut self) {
        let dir = self.dir.path();
        let mut notes = vec![format!("report: {}", dir.join("report.html").display())];
        let talks = self.cfg.step.iter().rev().find(|s| **s != 2);
        if let Some(step) = talks {
            let model = if *step == 3 { self.dir.ppo("actor") } else { self.dir.sft() };
            notes.push(format!("talk to it: duplex chat {}", model.display()));
        }
        notes.into_iter().for_each(|n| self.reporter.emit(Event::note(n)));
    }

    fn announce(&mut self) {
        let cfg = self.cfg;
        let summary = [
            ("actor model", cfg.actor_model.clone().unwrap_or_default()),
            ("device", self.device_name.clone()),
            ("dtype", self.dtype.to_string()),
            ("seed", cfg.seed.to_string()),
        ];
        let ranks = (self.comm.size() > 1).then(|| ("ranks", self.comm.size().to_string()));
        let run_dir = self.dir.path().to_path_buf();
        let name = run_dir.file_name().map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let summary = summary.into_iter().chain(ranks).map(|(k, v)| (k.to_string(), v)).collect();
        self.reporter.emit(Event::RunStart { name, run_dir, summary });
    }

    /// Resolves a model of the run and loads its tokenizer, as of the time when the run began.
    fn source(&self, name: &str) -> Result<Source> {
        Source::open_at(name, self.begun)
    }

    fn describe(&mut self, what: &str, model: &Model) {
        self.reporter.emit(Event::note(format!(
            "{what}: {} with {:.1} M parameters, {:.1} M trained{}",
            model.arch.family.model_type,
            model.num_params() as f64 / 1e6,
            model.num_trained() as f64 / 1e6,
            if model.score_is_random { ", with a new score head" } else { "" }
        )));
    }

    /// Tells of optimizer steps that were skipped in an iteration, and stops the run when there are
    /// too many; returns their number so far as a metric.
    fn skipped(&mut self, step: &str, why: &[String]) -> Result<Option<(&'static str, f64)>> {
        if let Some(warning) = self.health.count(step, why)? {
            self.reporter.emit(Event::warning(warning));
        }
        Ok(self.health.skipped_steps())
    }

    fn finish(&mut self, stage: &Stage, summary: &[(&str, f64)], dir: &Path, memory: [usize; 4]) {
        self.watchdog.rest();
        let step = stage.step;
        let mib = |bytes: usize| bytes >> 20;
        let [weights, grads, optimizer, _] = memory;
        let activations = self.ws.programs().iter().map(|p| p.1).max().unwrap_or(0);
        self.reporter.emit(Event::note(format!(
            "{step}: saved {}; weights {} MiB, gradients {} MiB, optimizer {} MiB, activations {} MiB, \
             copy for checkpoints {} MiB",
            dir.display(),
            mib(weights),
            mib(grads),
            mib(optimizer),
            mib(activations),
            mib(self.saver.bytes())
        )));
        self.reporter.emit(Event::step_end(step, stage.seconds(), summary));
    }
}

/// Writes `text` to a file that the user named.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}

/// Writes to standard output at once.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    done.map_err(|e| Error::io("write", "standard output".as_ref(), &e))
}

/// True if an evaluation is due after `done` batches: every `interval` batches, or if that is 0,
/// after each epoch.
fn evaluates(interval: usize, done: usize, ends_epoch: bool) -> bool {
    if interval == 0 { ends_epoch } else { done.is_multiple_of(interval) }
}
