//! A run from its beginning, or from where another program has left it, to its last step.

use super::config::{self, RunConfig};
use super::health::Health;
use super::pace::Pace;
use super::ranks::{self, Ranks};
use super::resume::{Resumed, steps_of};
use super::run::Run;
use super::run_dir::RunDir;
use super::saver::{Best, Saver};
use super::settings::memory_limit;
use super::watchdog::Watchdog;
use super::{datasets, demo, ppo, resume, reward, sft, stage, start, stop};
use crate::base::{Error, Kind, Result};
use crate::comm::Comm;
use crate::data::Blend;
use crate::report::{Event, Reporter, cut_log};
use crate::rlhf::RewardRule;
use crate::tape::Workspace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

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
}
