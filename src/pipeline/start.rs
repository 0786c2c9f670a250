//! The start of a run: the models that its steps begin with, and the checks made before the run
//! directory exists, so that a mistake costs nothing and leaves nothing behind.

use super::config::RunConfig;
use super::datasets;
use super::run_dir::RunDir;
use super::sources::Source;
use crate::base::{Error, Result};
use crate::data::now;
use crate::model::resolve_model;
use crate::rlhf::built_in_rule;
use std::path::Path;

/// The time at which a run begins, in seconds since 1970 (UTC): `SOURCE_DATE_EPOCH`, else the
/// clock.
pub(super) fn time() -> Result<i64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if text.parse::<i64>().is_err() => Err(Error::user(format!(
            "SOURCE_DATE_EPOCH is {text:?}, which is no number of seconds since 1970"
        ))),
        _ => Ok(now()),
    }
}

/// The model that step 1 starts from.
pub(super) fn sft(cfg: &RunConfig) -> Result<String> {
    let given = cfg.actor_model.clone();
    given.ok_or_else(|| Error::user("no model given; name one with --actor-model"))
}

/// The model that step 2 starts from.
pub(super) fn reward(cfg: &RunConfig) -> Result<String> {
    cfg.reward_model.clone().map_or_else(|| sft(cfg), Ok)
}

/// The actor of step 3: step 1's if this run makes it, else the one given, else step 1's from
/// before.
pub(super) fn ppo_actor(cfg: &RunConfig, dir: &RunDir) -> Result<String> {
    match &cfg.actor_model {
        Some(given) if !cfg.step.contains(&1) => Ok(given.clone()),
        _ => finished(&dir.sft()).ok_or_else(|| {
            Error::user("no actor: name one with --actor-model, or run step 1 here first")
        }),
    }
}

/// The reward model of step 3, found likewise.
pub(super) fn ppo_reward(cfg: &RunConfig, dir: &RunDir) -> Option<String> {
    match &cfg.reward_model {
        Some(given) if !cfg.step.contains(&2) => Some(given.clone()),
        _ => finished(&dir.reward()),
    }
}

/// The error of step 3 without a reward.
pub(super) fn no_reward() -> Error {
    Error::user("step 3 needs a reward: run step 2 first, or give --reward-model or --reward-rule")
}

/// Finds before the first step what would stop it or a later one, hours away.
pub(super) fn check(cfg: &RunConfig, dir: &RunDir) -> Result<()> {
    // A model in the run directory may be yet to come.
    let comes = |name: &str| Path::new(name).starts_with(dir.path());
    let named = [&cfg.actor_model, &cfg.reward_model, &cfg.ppo.critic_model];
    for name in named.into_iter().flatten().filter(|name| !comes(name)) {
        resolve_model(name)?;
    }
    let mut starts = vec![];
    if cfg.step.contains(&1) {
        starts.push(sft(cfg)?);
    }
    if cfg.step.contains(&2) {
        starts.push(reward(cfg)?);
    }
    starts.dedup();
    let mut opened = vec![];
    for name in starts.into_iter().filter(|name| Path::new(name).exists() || !comes(name)) {
        let source = Source::open(&name)?;
        datasets::training_limits(cfg, &source)?;
        opened.push((name, source));
    }
    if cfg.step.contains(&3) { check_ppo(cfg, dir, opened) } else { Ok(()) }
}

/// The same of step 3. `opened` are models of earlier steps by name, often its actor among them.
fn check_ppo(cfg: &RunConfig, dir: &RunDir, opened: Vec<(String, Source)>) -> Result<()> {
    let actor = if cfg.step.contains(&1) { sft(cfg)? } else { ppo_actor(cfg, dir)? };
    let found = opened.into_iter().find(|(name, _)| *name == actor);
    let source = found.map_or_else(|| Source::open(&actor), |(_, source)| Ok(source))?;
    datasets::rollout_limits(cfg, &source)?;
    if let Some(missing) = cfg.unsupervised_sources()?.iter().find(|s| !s.path.exists()) {
        return Err(Error::user(format!(
            "--unsupervised-data-path {}: no such file",
            missing.path.display()
        )));
    }
    match &cfg.ppo.reward_rule {
        Some(rule) => built_in_rule(rule).map(|_| ()),
        None if cfg.step.contains(&2) || ppo_reward(cfg, dir).is_some() => Ok(()),
        None => Err(no_reward()),
    }
}

/// `dir` as a model's name, if a model was saved there.
fn finished(dir: &Path) -> Option<String> {
    dir.join("config.json").is_file().then(|| dir.display().to_string())
}
