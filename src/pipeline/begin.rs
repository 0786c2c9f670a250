//! The beginning of a run in its opened directory: which checkpoint it resumes from, what it makes
//! and removes there, and what its stages share.

use super::config::{DeviceChoice, RUN, RunConfig};
use super::health::Health;
use super::ranks::{self, Ranks};
use super::resume::{self, Resumed};
use super::run::Run;
use super::run_dir::{METRICS, RunDir};
use super::saver::{Best, Saver};
use super::start::check_models;
use super::straggler::StragglerDetector;
use super::watchdog::Watchdog;
use super::{datasets, demo};
use crate::algo::RewardRule;
use crate::base::{Error, Result, warn};
use crate::config::to_toml;
use crate::data::{Blend, now};
use crate::report::{Event, Reporter, cut_log};
use crate::tape::Workspace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// The moment at which this program's part of a run begins.
pub(super) struct Begins {
    at: Instant,
    /// In seconds since 1970.
    seconds: i64,
    /// True if an iteration was done.
    pub(super) trained: Rc<Cell<bool>>,
}

impl Begins {
    /// Now. `SOURCE_DATE_EPOCH` goes before the clock, in seconds since 1970 (UTC).
    pub(super) fn now() -> Result<Begins> {
        let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) if text.parse::<i64>().is_err() => {
                return Err(Error::user(format!(
                    "SOURCE_DATE_EPOCH is {text:?}, which is no number of seconds since 1970"
                )));
            }
            _ => now(),
        };
        Ok(Begins { at: Instant::now(), seconds, trained: Rc::default() })
    }
}

/// Begins the run in the opened directory `dir`, or takes over where another program has left it.
/// `keys` is the configuration as the user gave it. `rule` is given for the demonstration, whose
/// model and data are made here; of another run, `read` are the rows.
pub(super) fn begin<'c>(
    cfg: &'c RunConfig,
    keys: BTreeMap<String, String>,
    ranks: Ranks,
    dir: RunDir,
    rule: Option<&'c dyn RewardRule>,
    read: Option<Blend>,
    begins: &Begins,
) -> Result<Run<'c>> {
    let device = ranks.card.map_or(cfg.device, DeviceChoice::On);
    let (device, device_name) = device.open()?;
    let comm = ranks.comm.clone();
    let first = comm.rank() == 0;
    let best = cfg.keep_best.as_deref().map(Best::of).transpose()?;
    let (root, every) = (dir.checkpoints(), cfg.save_every()?);
    let steps = cfg.stage_names();
    let root = (root, dir.checkpoints_out()?);
    let saver = Saver::new(root, steps, every, cfg.keep_checkpoints, best, comm.clone());
    let resumed = resume::find(&dir, &saver.found()?, cfg, &keys)?;
    if first {
        if !resumed.as_ref().is_some_and(|r| r.here) {
            dir.claim(&cfg.stages)?;
        }
        dir.write_config(&to_toml(&RUN, cfg)?)?;
        if rule.is_some() {
            demo::prepare(dir.out()?, &cfg.stages, cfg.seed, cfg.dtype.dtype())?;
        }
        if let Some(from) = resumed.as_ref().filter(|r| r.here) {
            cut_log(dir.out()?, METRICS, from.snapshot.get("log_bytes")?)?;
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
    let ws = Workspace::new(device, cfg.memory_limit_bytes())?;
    // Past the reporter, which the thread that may be stuck holds.
    let who = if comm.size() > 1 { format!("rank {}: ", comm.rank()) } else { String::new() };
    let tell = move |line: &str| warn(&format!("{who}{line}"));
    let mut run = Run {
        cfg,
        watchdog: Watchdog::start(cfg.stuck_after()?, ws.progress(), tell)?,
        ws,
        device,
        device_name,
        dtype: cfg.dtype.dtype(),
        reporter: match first {
            true => Reporter::open(dir.out()?, cfg.quiet, cfg.tensorboard)?,
            false => Reporter::silent(),
        },
        dropped: false,
        begun,
        trained: begins.trained.clone(),
        total: 0,
        read,
        straggler: StragglerDetector::new(&comm)?,
        saver,
        comm,
        ranks,
        dir,
        blend: None,
        rule,
        health: Health::default(),
        keys,
        data: vec![],
        resumed: None,
        goes_on: false,
        started: begins.at,
        earlier: 0.0,
    };
    run.begin(resumed)?;
    Ok(run)
}

impl Run<'_> {
    /// Begins the run, or takes over where another program has left it.
    fn begin(&mut self, resumed: Option<Resumed>) -> Result<()> {
        let (root, steps) = (self.dir.checkpoints_out()?, self.cfg.stage_names());
        let log = self.dir.log_bytes()?;
        self.goes_on = resumed.is_some();
        self.reporter.repeat(resumed.as_ref().is_some_and(|r| r.here));
        self.announce();
        if self.rule.is_some() {
            check_models(self.cfg, &self.dir, self.comm.size())?;
        }
        let Some(Resumed { snapshot, here, notes }) = resumed else {
            datasets::blend(self)?;
            // Of another run, which this one replaces from here on.
            if let Some(root) = &root {
                resume::prune(root, &steps, None)?;
            }
            return self.mark_beginning(self.cfg.stages[0], log);
        };
        let from = snapshot.dir().display();
        self.reporter.emit(Event::note(format!("resumes from the checkpoint {from}")));
        if !notes.is_empty() {
            let changed = notes.join(", ");
            self.reporter
                .emit(Event::note(format!("changed since, which does not matter: {changed}")));
        }
        self.take_over(&snapshot)?;
        datasets::blend(self)?;
        if let Some(root) = &root {
            resume::prune(root, &steps, Some(&snapshot).filter(|_| here))?;
        }
        self.resumed = Some(snapshot);
        Ok(())
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
