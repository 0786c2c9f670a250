//! A run from its beginning, or from where another program has left it, to its last step.

use super::begin::{Begins, begin};
use super::config::{RUN, RunConfig};
use super::ranks::{self, Ranks};
use super::run::Run;
use super::run_dir::RunDir;
use super::start::check_run;
use super::{demo, offline, online, stage};
use crate::algo::{Algorithm, Learns, RewardRule};
use crate::base::{Error, Kind, Result, finish_for_good};
use crate::config::flat;
use crate::model::Head;
use crate::report::Event;
use std::collections::BTreeMap;

/// Runs the stages named in the configuration, one after the other, as one of `ranks`; without
/// models and data, the demo's. The first rank writes; the others read what it reads, and say
/// nothing.
pub fn train(cfg: &RunConfig, ranks: Ranks) -> Result<()> {
    let keys = flat(&RUN, cfg)?;
    let demo = cfg.is_demo().then(|| demo::configure(cfg));
    let rule: Option<&dyn RewardRule> = if demo.is_some() { Some(&demo::HiddenRule) } else { None };
    run_stages(demo.as_ref().unwrap_or(cfg), keys, ranks, rule)
}

/// Checks the run, opens its directory, begins it there and runs its stages. `keys` is the
/// configuration as the user gave it. `rule` knows the demonstration's answers.
fn run_stages(
    cfg: &RunConfig,
    keys: BTreeMap<String, String>,
    ranks: Ranks,
    rule: Option<&dyn RewardRule>,
) -> Result<()> {
    let begins = Begins::now()?;
    ranks::same_settings(&ranks.comm, &keys)?;
    let first = ranks.comm.rank() == 0;
    let dir = RunDir::at(&cfg.output_dir, cfg.overwrite);
    // Model and data of the demonstration are made in the run directory.
    let read = match rule {
        Some(_) => None,
        None => {
            dir.check_free()?;
            Some(check_run(cfg, &dir, ranks.comm.size())?)
        }
    };
    if !first {
        ranks.comm.barrier()?;
    }
    let dir = if first { dir.open()? } else { dir.beside()? };
    let (traces, out) = dir.traces();
    let run = begin(cfg, keys, ranks, dir, rule, read, &begins);
    let done = run.and_then(|mut run| run.stages());
    let failed = |e: &Error| matches!(e.kind(), Kind::User | Kind::Resource);
    if first && !begins.trained.get() && done.as_ref().is_err_and(failed) {
        traces.remove(out.as_ref());
    }
    done
}

impl Run<'_> {
    /// Runs the stages that are not complete.
    fn stages(&mut self) -> Result<()> {
        for &of in &self.cfg.stages {
            if self.resumed.as_ref().is_some_and(|s| stage::is_complete(s.label(), of)) {
                continue;
            }
            self.stop_before(of)?;
            if !self.resumed.as_ref().is_some_and(|s| stage::in_progress(s.label(), of)) {
                self.reporter.repeat(false);
            }
            let (stage, iterations) = self.stage(of).map_err(|e| e.diverged_in(of.name))?;
            if of == self.cfg.last_stage() {
                self.point_at_results();
                self.reporter.emit(Event::RunEnd { seconds: self.seconds() });
            }
            // Last: what comes before it is done again where this is not reached.
            self.mark_finished(&stage, iterations)?;
            if of == self.cfg.last_stage() {
                finish_for_good();
            }
        }
        Ok(())
    }

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
            Learns::Prompts(from) => online::run(self, of, from),
        }
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
}
