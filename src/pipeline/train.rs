//! A run from its beginning, or from where another program has left it, to its last step.

use super::config::{DeviceChoice, RUN, RunConfig};
use super::health::Health;
use super::pace::Pace;
use super::ranks::{self, Ranks};
use super::resume::{Resumed, names_of};
use super::run::Run;
use super::run_dir::RunDir;
use super::saver::{Best, Saver};
use super::settings::memory_limit;
use super::watchdog::Watchdog;
use super::{datasets, demo, offline, online, resume, stage, start, stop};
use crate::algo::{Algorithm, Learns, RewardRule, lower_is_better};
use crate::base::{Error, Kind, Result};
use crate::comm::Comm;
use crate::config::{flat, to_toml};
use crate::data::Blend;
use crate::model::Head;
use crate::report::{Event, Reporter, cut_log};
use crate::tape::Workspace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// Runs the stages named in the configuration, one after the other, as one of `ranks`; without
/// models and data, the demo's. The first rank writes; the others read what it reads, and say
/// nothing.
pub fn train(cfg: &RunConfig, ranks: Ranks) -> Result<()> {
    stop::listen();
    let keys = flat(&RUN, cfg)?;
    if !cfg.is_demo() {
        return run_stages(cfg, keys, ranks, None, &|_| Ok(()));
    }
    let cfg = demo::configure(cfg);
    run_stages(&cfg, keys, ranks, Some(&demo::HiddenRule), &|dir| demo::prepare(dir, &cfg))
}

/// Runs the steps in the run directory, which `prepare` may fill first. `keys` is the configuration
/// as the user gave it.
fn run_stages(
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
            let stages = start::check(cfg, &dir, ranks.comm.size())?;
            let blend = datasets::read(cfg)?;
            // The first stage meets its own rows at once, and spoils nothing unless it replaces
            // something.
            let first = if cfg.overwrite { None } else { cfg.stages.first() };
            let later: Vec<_> = stages.into_iter().filter(|(s, _)| Some(s) != first).collect();
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
    let device = ranks.card.map_or(cfg.device, DeviceChoice::On);
    let (device, device_name) = device.open()?;
    let comm = ranks.comm.clone();
    let first = comm.rank() == 0;
    let resumed = resume::find(&dir, cfg, &keys)?;
    if first {
        if !resumed.as_ref().is_some_and(|r| r.here) {
            dir.claim(&cfg.stages, cfg.overwrite)?;
        }
        dir.write_config(&to_toml(&RUN, cfg)?)?;
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
    for &of in &cfg.stages {
        if run.resumed.as_ref().is_some_and(|s| stage::is_behind(s.label(), of)) {
            continue;
        }
        run.stop_before(of)?;
        if !run.resumed.as_ref().is_some_and(|s| stage::is_within(s.label(), of)) {
            run.reporter.repeat(false);
        }
        let (stage, iterations) = run.stage(of)?;
        if of == cfg.last_stage() {
            run.point_at_results();
            run.reporter.emit(Event::RunEnd { seconds: run.seconds() });
        }
        // Last: what comes before it is done again where this is not reached.
        run.mark_finished(&stage, iterations)?;
    }
    Ok(())
}

fn saver(cfg: &RunConfig, dir: &RunDir, comm: &Comm) -> Result<Saver> {
    let best = match &cfg.keep_best {
        Some(metric) => {
            let lower = lower_is_better(metric)?;
            Some(Best { metric: metric.clone(), lower, found: vec![] })
        }
        None => None,
    };
    let (root, steps) = (dir.checkpoints(), names_of(cfg));
    Ok(Saver::new(root, steps, cfg.save_every()?, cfg.keep_checkpoints, best, comm.clone()))
}

impl Run<'_> {
    /// Runs a stage. Returns it with its number of iterations.
    fn stage(&mut self, of: &'static Algorithm) -> Result<(stage::Stage, u64)> {
        let cfg = self.cfg;
        match &of.learns {
            Learns::Texts(rows, _) => {
                offline::run(self, offline::Setting::new(cfg, of, rows.objective)?)
            }
            Learns::Pairs(rows) => {
                offline::run(self, offline::Setting::new(cfg, of, rows.objective)?)
            }
            Learns::Prompts => online::run(self, of),
        }
    }

    /// Begins the run, or takes over where another program has left it.
    fn begin(&mut self, resumed: Option<Resumed>) -> Result<()> {
        let (root, steps) = (self.dir.checkpoints(), names_of(self.cfg));
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
            return self.mark_beginning(self.cfg.stages[0], log);
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

    /// Says where to look next.
    fn point_at_results(&mut self) {
        let dir = self.dir.path();
        let mut notes = vec![format!("report: {}", dir.join("report.html").display())];
        if let Some(stage) = self.cfg.stages.iter().rev().find(|s| s.head == Head::Lm) {
            let model = self.dir.model(stage);
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
}
