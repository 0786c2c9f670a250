//! The checkpoint that a run resumes from: the newest of an unfinished run of the same
//! configuration, or the one asked for. A checkpoint is refused if the run would not end as the
//! uninterrupted one.

use super::config::{RUN, RunConfig};
use super::run_dir::RunDir;
use super::saver::sorted;
use crate::algo::{meant, place};
use crate::base::{Error, Kind, Result};
use crate::config::as_now;
use crate::config::key::Effect;
use crate::formats::{Found, Input, OutDir, Snapshot, snapshots_in};
use std::collections::BTreeMap;
use std::path::Path;

/// The checkpoint to resume from, with notes on harmless differences in configuration.
pub(super) struct Resumed {
    pub(super) snapshot: Snapshot,
    /// True if the checkpoint is in this run's directory.
    pub(super) here: bool,
    pub(super) notes: Vec<String>,
}

/// Finds the checkpoint that the run in `dir` resumes from, if there is one. `all` are those of its
/// stages there, oldest first. `config` is the configuration by key.
pub(super) fn find(
    dir: &RunDir,
    all: &[Found],
    cfg: &RunConfig,
    config: &BTreeMap<String, String>,
) -> Result<Option<Resumed>> {
    if cfg.extend && cfg.resume == "auto" {
        match all.last() {
            Some(end) if is_end(end, cfg) => return extension(dir, all, cfg, config).map(Some),
            Some(_) => {}
            None => {
                let dir = dir.path().display();
                return Err(Error::user(format!("--extend: {dir} holds no run of these stages")));
            }
        }
    }
    let newest = all.last().filter(|f| !is_end(f, cfg));
    match (cfg.resume.as_str(), newest) {
        ("auto", None) => Ok(None),
        ("auto", Some(newest)) => {
            let snapshot = Snapshot::open(&newest.dir).map_err(|e| offer(&e, all))?;
            match compare(&snapshot, cfg, config) {
                Ok(notes) => Ok(Some(Resumed { snapshot, here: true, notes })),
                // Another run, which is to be replaced, or has done nothing.
                Err(_) if cfg.overwrite || newest.iteration == Some(0) => Ok(None),
                Err(e) => Err(e),
            }
        }
        ("never", Some(f)) if !cfg.overwrite && f.iteration != Some(0) => {
            Err(Error::user(format!(
                "{} is of an unfinished run; leave out --resume never to resume it, or give \
                 --overwrite to replace it",
                f.dir.display()
            )))
        }
        ("never", _) => Ok(None),
        (path, _) => {
            let snapshot = Snapshot::open(Path::new(path)).map_err(|e| e.context("--resume"))?;
            let notes = compare(&snapshot, cfg, config)?;
            let here = same_place(snapshot.dir().parent(), &dir.checkpoints());
            Ok(Some(Resumed { snapshot, here, notes }))
        }
    }
}

/// The last state of a finished run that is to be trained further.
fn extension(
    dir: &RunDir,
    all: &[Found],
    cfg: &RunConfig,
    config: &BTreeMap<String, String>,
) -> Result<Resumed> {
    let last = cfg.last_stage().name;
    let state = |f: &&Found| f.step == last && f.iteration.is_some_and(|n| n > 0);
    let Some(found) = all.iter().rev().find(state) else {
        return Err(Error::user(format!(
            "--extend: no checkpoint of {last} is left in {}, so its optimizer state is gone; \
             train it again with --overwrite, or give its model to a run in another --output-dir",
            dir.checkpoints().display()
        )));
    };
    let snapshot = Snapshot::open(&found.dir)?;
    let notes = compare(&snapshot, cfg, config)?;
    let number = |of: &BTreeMap<String, String>, key: &str| -> u64 {
        of.get(&format!("{last}.{key}")).and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    let then = |key| number(&snapshot.label().config, key);
    let (steps, epochs) = (number(config, "max_steps"), number(config, "num_train_epochs"));
    let done = snapshot.label().iteration;
    if steps > 0 && steps <= done {
        return Err(Error::user(format!(
            "--extend: {last} has done {done} iterations already; give a larger --max-steps than \
             {steps}"
        )));
    }
    if steps == 0 && then("max_steps") == 0 && epochs <= then("num_train_epochs") {
        return Err(Error::user(format!(
            "--extend: {last} has done {} epochs already; give a larger --num-train-epochs than \
             {epochs}",
            then("num_train_epochs")
        )));
    }
    Ok(Resumed { snapshot, here: true, notes })
}

/// Keys that may grow where a run is trained further: those of its last step.
fn grows(cfg: &RunConfig, key: &str) -> bool {
    let rest = key.strip_prefix(cfg.last_stage().name).and_then(|k| k.strip_prefix('.'));
    cfg.extend && matches!(rest, Some("num_train_epochs" | "max_steps"))
}

/// True if no work follows `found`.
fn is_end(found: &Found, cfg: &RunConfig) -> bool {
    found.iteration.is_none() && found.step == cfg.last_stage().name
}

fn same_place(a: Option<&Path>, b: &Path) -> bool {
    let real = |p: &Path| p.canonicalize().ok();
    a.and_then(real).is_some_and(|a| Some(a) == real(b))
}

/// The error of a damaged checkpoint, with the newest whole one before it. One that could not be
/// read may be whole.
fn offer(e: &Error, all: &[Found]) -> Error {
    if e.kind() != Kind::User {
        return e.clone();
    }
    let whole = all.iter().rev().skip(1).find(|f| Snapshot::open(&f.dir).is_ok());
    Error::user(match whole {
        Some(found) => {
            let before = found.dir.display();
            format!("{e}; the checkpoint before it is whole: --resume {before} continues from it")
        }
        None => {
            format!("{e}; no checkpoint before it is left: --overwrite --resume never starts over")
        }
    })
}

/// Refuses a snapshot of a run that would have ended otherwise; returns notes on what differs, but
/// does not matter.
fn compare(
    snapshot: &Snapshot,
    cfg: &RunConfig,
    config: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let label = snapshot.label();
    if !cfg.stage_names().contains(&label.step.as_str()) {
        return Err(Error::user(format!(
            "{} is of stage {}, which is not to be run",
            snapshot.dir().display(),
            label.step
        )));
    }
    let last_begun = place(&label.step);
    // Stages that neither run now nor ran before change nothing.
    let written = label.config.get("stages").or(label.config.get("step"));
    let ran = |name: &str| {
        let words = |text: &String| {
            let mut words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            words.any(|word| meant(word) == Some(name))
        };
        cfg.stage_names().contains(&name) || written.is_none_or(words)
    };
    let begun = |key: &str| {
        let section = key.split('.').next().unwrap_or(key);
        let stage = place(section);
        stage.is_none() || stage <= last_begun && ran(section)
    };
    let (mut matter, mut harmless) = (vec![], vec![]);
    for key in RUN.iter() {
        let Some(now) = config.get(key.path) else { continue };
        let written = [Some(key.path), key.former].into_iter().flatten();
        // A key that the writer did not have.
        let Some(then) = written.into_iter().find_map(|name| label.config.get(name)) else {
            continue;
        };
        let then = &as_now(key, then);
        if then == now {
            continue;
        }
        let free = key.effect == Effect::Nothing
            || !begun(key.path)
            || grows(cfg, key.path)
            || cfg.allow_changed_data && key.effect == Effect::Data;
        let key = key.path;
        let told = format!("{key} ({}, now {})", shown(then), shown(now));
        let list = if free { &mut harmless } else { &mut matter };
        list.push(told);
    }
    if !matter.is_empty() {
        return Err(Error::user(format!(
            "{} is of a run with another configuration: {}; give the same, another --output-dir, \
             or --overwrite to begin anew",
            snapshot.dir().display(),
            matter.join(", ")
        )));
    }
    harmless.retain(|told| !told.starts_with("resume (") && !told.starts_with("overwrite ("));
    Ok(harmless)
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "not set" } else { value }
}

/// Refuses files that are not those the run has read before.
pub(super) fn same_inputs(snapshot: &Snapshot, now: &[Input], allow_data: bool) -> Result<()> {
    let allowed = |then: &Input| allow_data && then.data || now.contains(then);
    let Some(first) = snapshot.label().inputs.iter().find(|then| !allowed(then)) else {
        return Ok(());
    };
    let way_out = match first.data {
        true => "give --allow-changed-data to resume anyway",
        false => {
            "put back the files the run began with, or start over with --overwrite --resume never"
        }
    };
    Err(Error::user(format!(
        "{} is not what it was when the run in {} began; {way_out}",
        first.path,
        snapshot.dir().display()
    )))
}

/// Removes the checkpoints of these steps that come after `snapshot`, or all.
pub(super) fn prune(root: &OutDir, steps: &[&str], after: Option<&Snapshot>) -> Result<()> {
    let mut all = sorted(snapshots_in(root)?, steps);
    let kept = after.and_then(|s| all.iter().position(|f| same_place(Some(&f.dir), s.dir())));
    all.drain(..kept.map_or(0, |i| i + 1));
    all.iter().rev().try_for_each(|found| root.take_away(found.name()))
}
