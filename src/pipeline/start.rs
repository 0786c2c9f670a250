//! The start of a run: the models that its stages begin with, and the checks made before the run
//! directory exists, so that a mistake costs nothing and leaves nothing behind.

use super::config::RunConfig;
use super::run_dir::RunDir;
use super::sources::{Source, Staged};
use super::{datasets, ranks, settings};
use crate::algo::{ALGORITHMS, Algorithm, Start, built_in_rule};
use crate::base::{Error, Result};
use crate::data::{Use, now};
use crate::model::{Head, LoadOptions, resolve_model};
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

/// The model that a stage starts from, by name: for one that scores the reward model, else the
/// actor; for a policy that goes on from another one, that of the last stage before it that this
/// run has, else the actor given, else the newest that is there.
pub(super) fn model(cfg: &RunConfig, dir: &RunDir, of: &Algorithm) -> Result<String> {
    match (of.start, of.head) {
        (Start::Pretrained, Head::Lm) => pretrained(cfg),
        (Start::Pretrained, Head::Score) => {
            cfg.reward_model.clone().map_or_else(|| pretrained(cfg), Ok)
        }
        (Start::Policy, _) => match (&cfg.actor_model, before(cfg, of)) {
            (_, Some(made)) => finished(&dir.model(made)).ok_or_else(|| no_actor(of)),
            (Some(given), None) => Ok(given.clone()),
            (None, None) => {
                let there = policies(of).find_map(|a| finished(&dir.model(a)));
                there.ok_or_else(|| no_actor(of))
            }
        },
    }
}

fn pretrained(cfg: &RunConfig) -> Result<String> {
    let given = cfg.actor_model.clone();
    given.ok_or_else(|| Error::user("no model given; name one with --actor-model"))
}

fn no_actor(of: &Algorithm) -> Error {
    let names: Vec<&str> = policies(of).map(|a| a.name).collect();
    Error::user(format!(
        "no actor for {}: name one with --actor-model, or run stage {} here first",
        of.name,
        names.join(" or ")
    ))
}

/// The algorithms before `of` that train a policy, the nearest first.
fn policies(of: &Algorithm) -> impl Iterator<Item = &'static Algorithm> {
    let before = ALGORITHMS.iter().copied().take_while(move |a| *a != of);
    let before: Vec<_> = before.filter(|a| a.head == Head::Lm).collect();
    before.into_iter().rev()
}

/// The stage of this run that makes the policy `of` starts from.
fn before(cfg: &RunConfig, of: &Algorithm) -> Option<&'static Algorithm> {
    policies(of).find(|a| cfg.runs(a))
}

/// The stage that makes a model that scores, if the run has one.
fn scoring(cfg: &RunConfig) -> Option<&'static Algorithm> {
    cfg.stages.iter().copied().find(|a| a.head == Head::Score)
}

/// The reward model of a stage that samples: the one given where this run makes none, else the one
/// that is there.
pub(super) fn scorer(cfg: &RunConfig, dir: &RunDir) -> Option<String> {
    match &cfg.reward_model {
        Some(given) if scoring(cfg).is_none() => Some(given.clone()),
        _ => ALGORITHMS
            .iter()
            .filter(|a| a.head == Head::Score)
            .find_map(|a| finished(&dir.model(a))),
    }
}

/// The error of a stage that samples without a reward.
pub(super) fn no_reward(of: &Algorithm) -> Error {
    Error::user(format!(
        "stage {} needs a reward: run stage reward first, or give --reward-model or --reward-rule",
        of.name
    ))
}

/// The model whose tokens a stage has, as far as it is there before the run.
fn base(cfg: &RunConfig, dir: &RunDir, of: &Algorithm) -> Result<String> {
    match before(cfg, of).filter(|_| of.start == Start::Policy) {
        Some(made) => base(cfg, dir, made),
        None => model(cfg, dir, of),
    }
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

/// True if an earlier stage of the run makes the model of this name, or the demonstration may.
fn is_to_come(cfg: &RunConfig, dir: &RunDir, name: &str) -> bool {
    let path = Path::new(name);
    let replaced = cfg.stages.iter().any(|stage| path == dir.model(stage));
    replaced || path.starts_with(dir.path()) && !path.exists()
}

/// Finds before the first stage what would stop it or a later one, hours away: models that cannot
/// be found or loaded, or do not go together. Returns the stages whose model is there, with it.
pub(super) fn check(cfg: &RunConfig, dir: &RunDir, ranks: usize) -> Result<Vec<Staged>> {
    let critics = ALGORITHMS.iter().filter(|a| a.samples()).map(|a| cfg.online(a));
    let critics: Vec<_> = critics.map(|p| Ok(p?.critic_model)).collect::<Result<_>>()?;
    let named = [&cfg.actor_model, &cfg.reward_model].into_iter().chain(&critics);
    for name in named.flatten().filter(|name| !is_to_come(cfg, dir, name)) {
        resolve_model(name)?;
    }
    let mut opened = Opened::default();
    let mut found = vec![];
    for &of in &cfg.stages {
        let name = base(cfg, dir, of)?;
        if is_to_come(cfg, dir, &name) {
            continue;
        }
        let source = opened.get(&name)?;
        match of.learns.rows() {
            Use::Prompts => check_sampling(cfg, dir, of, &source, &mut opened)?,
            Use::Texts | Use::Pairs => {
                trains(cfg, &source, of.head)?;
                datasets::training_limits(cfg, &source)?;
            }
        }
        found.push((of, source));
    }
    if cfg.stages.iter().any(|a| a.samples()) {
        ranks::check_blocks(cfg, ranks)?;
    }
    Ok(found)
}

/// Finds what would keep a model from being trained with a head.
fn trains(cfg: &RunConfig, source: &Source, head: Head) -> Result<()> {
    let lora = settings::lora_of(cfg, head);
    let options = LoadOptions::frozen(head, cfg.dtype.dtype());
    source.check(&LoadOptions { train: true, lora, ..options })
}

/// The same of the models of a stage that samples, whose actor is or starts from `source`.
fn check_sampling(
    cfg: &RunConfig,
    dir: &RunDir,
    of: &Algorithm,
    source: &Source,
    opened: &mut Opened,
) -> Result<()> {
    datasets::rollout_limits(cfg, source)?;
    if let Some(missing) = cfg.unsupervised_sources(of)?.iter().find(|s| !s.path.exists()) {
        return Err(Error::user(format!(
            "--unsupervised-data-path {}: no such file",
            missing.path.display()
        )));
    }
    trains(cfg, source, Head::Lm)?;
    let p = cfg.online(of)?;
    // An earlier stage makes the reward model from this one.
    let made = scoring(cfg).map(|stage| model(cfg, dir, stage)).transpose()?;
    let scores = match (&p.reward_rule, made.or_else(|| scorer(cfg, dir))) {
        (Some(rule), name) => built_in_rule(rule).map(|_| name)?,
        (None, Some(name)) => Some(name),
        (None, None) => return Err(no_reward(of)),
    };
    let there = scores.filter(|name| !is_to_come(cfg, dir, name));
    let reward = there.map(|name| opened.get(&name)).transpose()?;
    if let Some(reward) = &reward
        && p.reward_rule.is_none()
        && scoring(cfg).is_none()
    {
        reward.check(&LoadOptions::frozen(Head::Score, cfg.dtype.dtype()))?;
    }
    let given = p.critic_model.as_ref().filter(|name| !is_to_come(cfg, dir, name));
    let given = given.map(|name| opened.get(name)).transpose()?;
    trains(cfg, critic(source, reward.as_deref(), given.as_deref())?, Head::Score)
}

/// `dir` as a model's name, if a model was saved there.
fn finished(dir: &Path) -> Option<String> {
    dir.join("config.json").is_file().then(|| dir.display().to_string())
}
