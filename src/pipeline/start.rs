//! The start of a run: the models that its steps begin with, and the checks made before the run
//! directory exists, so that a mistake costs nothing and leaves nothing behind.

use super::config::RunConfig;
use super::run_dir::RunDir;
use super::sources::Source;
use super::{datasets, ranks, settings};
use crate::base::{Error, Result};
use crate::data::now;
use crate::model::{Head, LoadOptions, resolve_model};
use crate::rlhf::built_in_rule;
use std::path::Path;
use std::rc::Rc;

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

/// The model whose tokens step 3 answers in, as far as it is there before the run.
fn ppo_base(cfg: &RunConfig, dir: &RunDir) -> Result<String> {
    if cfg.step.contains(&1) { sft(cfg) } else { ppo_actor(cfg, dir) }
}

/// The model that the critic starts from: the one given, else the reward model, else the actor.
///
/// # Errors
/// Its tokens are not the actor's: values are per token of the actor.
pub(super) fn critic<'s>(
    actor: &'s Source,
    reward: Option<&'s Source>,
    given: Option<&'s Source>,
) -> Result<&'s Source> {
    let same = reward.filter(|reward| actor.has_tokens_of(reward));
    let found = given.or(same).unwrap_or(actor);
    actor.same_tokens(found)?;
    Ok(found)
}

/// Models that the run begins with, by name. Each is opened once.
#[derive(Default)]
pub(super) struct Opened(Vec<(String, Rc<Source>)>);

impl Opened {
    fn get(&mut self, name: &str) -> Result<Rc<Source>> {
        if let Some((_, source)) = self.0.iter().find(|(known, _)| known == name) {
            return Ok(source.clone());
        }
        let source = Rc::new(Source::open(name)?);
        self.0.push((name.to_string(), source.clone()));
        Ok(source)
    }
}

/// True if an earlier step of the run makes the model of this name, or the demonstration may.
fn is_to_come(cfg: &RunConfig, dir: &RunDir, name: &str) -> bool {
    let path = Path::new(name);
    let made = [(1, dir.sft()), (2, dir.reward())];
    let replaced = made.iter().any(|(step, model)| cfg.step.contains(step) && path == model);
    replaced || path.starts_with(dir.path()) && !path.exists()
}

/// Finds before the first step what would stop it or a later one, hours away: models that cannot be
/// found or loaded, or do not go together. Returns the steps whose model is there, with it.
pub(super) fn check(cfg: &RunConfig, dir: &RunDir, ranks: usize) -> Result<Vec<(u32, Rc<Source>)>> {
    let named = [&cfg.actor_model, &cfg.reward_model, &cfg.ppo.critic_model];
    for name in named.into_iter().flatten().filter(|name| !is_to_come(cfg, dir, name)) {
        resolve_model(name)?;
    }
    let mut opened = Opened::default();
    let mut found = vec![];
    for step in [1, 2, 3].into_iter().filter(|step| cfg.step.contains(step)) {
        let name = match step {
            1 => sft(cfg)?,
            2 => reward(cfg)?,
            _ => ppo_base(cfg, dir)?,
        };
        if is_to_come(cfg, dir, &name) {
            continue;
        }
        let source = opened.get(&name)?;
        if step == 3 {
            check_ppo(cfg, dir, &source, &mut opened)?;
        } else {
            trains(cfg, &source, if step == 1 { Head::Lm } else { Head::Score })?;
            datasets::training_limits(cfg, &source)?;
        }
        found.push((step, source));
    }
    if cfg.step.contains(&3) {
        ranks::check_blocks(cfg, ranks)?;
    }
    Ok(found)
}

/// Finds what would keep a model from being trained with a head.
fn trains(cfg: &RunConfig, source: &Source, head: Head) -> Result<()> {
    let lora = match head {
        Head::Lm => settings::actor_lora(cfg),
        Head::Score => settings::critic_lora(cfg),
    };
    let options = LoadOptions::frozen(head, cfg.dtype.dtype());
    source.check(&LoadOptions { train: true, lora, ..options })
}

/// The same of the models of step 3, whose actor is or starts from `source`.
fn check_ppo(cfg: &RunConfig, dir: &RunDir, source: &Source, opened: &mut Opened) -> Result<()> {
    datasets::rollout_limits(cfg, source)?;
    if let Some(missing) = cfg.unsupervised_sources()?.iter().find(|s| !s.path.exists()) {
        return Err(Error::user(format!(
            "--unsupervised-data-path {}: no such file",
            missing.path.display()
        )));
    }
    trains(cfg, source, Head::Lm)?;
    // Step 2 makes the reward model from this one.
    let made = if cfg.step.contains(&2) { Some(reward(cfg)?) } else { None };
    let scores = match (&cfg.ppo.reward_rule, made.or_else(|| ppo_reward(cfg, dir))) {
        (Some(rule), name) => built_in_rule(rule).map(|_| name)?,
        (None, Some(name)) => Some(name),
        (None, None) => return Err(no_reward()),
    };
    let there = scores.filter(|name| !is_to_come(cfg, dir, name));
    let reward = there.map(|name| opened.get(&name)).transpose()?;
    if let Some(reward) = &reward
        && cfg.ppo.reward_rule.is_none()
        && !cfg.step.contains(&2)
    {
        reward.check(&LoadOptions::frozen(Head::Score, cfg.dtype.dtype()))?;
    }
    let given = cfg.ppo.critic_model.as_ref().filter(|name| !is_to_come(cfg, dir, name));
    let given = given.map(|name| opened.get(name)).transpose()?;
    trains(cfg, critic(source, reward.as_deref(), given.as_deref())?, Head::Score)
}

/// `dir` as a model's name, if a model was saved there.
fn finished(dir: &Path) -> Option<String> {
    dir.join("config.json").is_file().then(|| dir.display().to_string())
}
