//! The checks made before the run directory exists, so that a mistake costs nothing and leaves
//! nothing behind.

use super::config::RunConfig;
use super::datasets::{Staged, check_examples, read_rows};
use super::limits::Lengths;
use super::models::{Beside, Models, no_reward};
use super::ranks::check_blocks;
use super::run_dir::RunDir;
use super::settings::Unloaded;
use super::sources::{Opened, Source, critic_source};
use crate::algo::{ALGORITHMS, Algorithm, built_in_rule};
use crate::base::{Error, Result};
use crate::data::Blend;
use crate::model::{base_dir, resolve_model};
use std::path::Path;

/// Checks models and data of a run that is to write to `dir`. Returns its rows.
pub(super) fn check_run(cfg: &RunConfig, dir: &RunDir, ranks: usize) -> Result<Blend> {
    let stages = check_models(cfg, dir, ranks)?;
    let blend = read_rows(cfg)?;
    // The first stage meets its own rows at once, and spoils nothing unless it replaces something.
    let first = if cfg.overwrite { None } else { cfg.stages.first() };
    let later: Vec<_> = stages.into_iter().filter(|s| Some(&s.of) != first).collect();
    check_examples(cfg, &blend, &later)?;
    Ok(blend)
}

/// Finds before the first stage what would stop it or a later one, hours away: models that cannot
/// be found or loaded, or do not go together. Returns the stages whose model is there, with it.
pub(super) fn check_models(cfg: &RunConfig, dir: &RunDir, ranks: usize) -> Result<Vec<Staged>> {
    let (unloaded, lengths) = (Unloaded::of(cfg), Lengths::of(cfg)?);
    let models = Models::of(cfg, dir);
    let critics = ALGORITHMS.iter().map(|of| critic_model(cfg, of));
    let critics: Vec<_> = critics.collect::<Result<_>>()?;
    let named = models.given().chain(critics.iter().flatten());
    for name in named.filter(|name| !models.is_to_come(name)) {
        let model = resolve_model(name)?;
        check_stays(cfg, dir, &model)?;
        check_stays(cfg, dir, &base_dir(&model)?)?;
    }
    // The first stage starts from it, whatever a stage of the run will put in its place.
    if let Some(actor) = cfg.actor_model.as_ref().and_then(|name| resolve_model(name).ok()) {
        check_stays(cfg, dir, &actor)?;
    }
    for of in &cfg.stages {
        let texts = if of.samples() { cfg.unsupervised_sources(of)? } else { vec![] };
        let all = [cfg.data_sources()?, cfg.sft_only_sources()?, texts].concat();
        all.iter().try_for_each(|source| check_stays(cfg, dir, &source.path))?;
    }
    let mut opened = Opened::default();
    let mut found = vec![];
    for &of in &cfg.stages {
        let options = unloaded.trained(of.head);
        let name = models.base(of)?;
        if models.is_to_come(&name) {
            continue;
        }
        let beside = match of.samples() {
            true => Some(models.beside(critic_model(cfg, of)?)),
            false => None,
        };
        let source = opened.get(&name)?;
        let limits = lengths.of_stage(of, &source);
        let limits = match beside {
            Some(beside) => {
                let limits = limits?;
                check_sampling(cfg, of, beside, &unloaded, &source, &mut opened)?;
                limits
            }
            None => {
                source.check_loads(options)?;
                limits?
            }
        };
        found.push(Staged { of, source, limits });
    }
    if cfg.stages.iter().any(|a| a.samples()) {
        check_blocks(cfg, ranks)?;
    }
    Ok(found)
}

/// Refuses an input that the run would replace by its results.
fn check_stays(cfg: &RunConfig, dir: &RunDir, input: &Path) -> Result<()> {
    // What is not there is told of elsewhere.
    let Ok(input) = input.canonicalize() else { return Ok(()) };
    let replaced = cfg.stages.iter().filter_map(|of| dir.stage(of).canonicalize().ok());
    match replaced.into_iter().find(|stage| input.starts_with(stage)) {
        None => Ok(()),
        Some(stage) => Err(Error::user(format!(
            "{} is an input, and this run would replace {}; move the input, or choose another \
             --output-dir",
            input.display(),
            stage.display()
        ))),
    }
}

/// The model named for the critic of a stage, where it has one.
fn critic_model(cfg: &RunConfig, of: &Algorithm) -> Result<Option<String>> {
    Ok(cfg.critic(of)?.and_then(|critic| critic.critic_model))
}

/// Checks the models of a stage that samples, whose actor is or starts from `source`.
fn check_sampling(
    cfg: &RunConfig,
    of: &Algorithm,
    beside: Beside,
    unloaded: &Unloaded,
    source: &Source,
    opened: &mut Opened,
) -> Result<()> {
    if let Some(missing) = cfg.unsupervised_sources(of)?.iter().find(|s| !s.path.exists()) {
        return Err(Error::user(format!(
            "--unsupervised-data-path {}: no such file",
            missing.path.display()
        )));
    }
    source.check_loads(&unloaded.policy)?;
    let rule = cfg.online(of)?.reward_rule;
    let reward = match (&rule, beside.reward?) {
        (Some(rule), name) => built_in_rule(rule).map(|_| name)?,
        (None, Some(name)) => Some(name),
        (None, None) => return Err(no_reward(of)),
    };
    let asked = cfg.reads_reward_model(of)?;
    let reward = reward.filter(|_| beside.reward_is_there && asked);
    let reward = reward.map(|name| opened.get(&name)).transpose()?;
    if let Some(reward) = &reward
        && rule.is_none()
        && !beside.makes_reward
    {
        reward.check_loads(&unloaded.reward)?;
    }
    if !of.has_critic() {
        return Ok(());
    }
    let critic = beside.critic.map(|name| opened.get(&name)).transpose()?;
    let critic = critic_source(source, reward.as_deref(), critic.as_deref())?;
    critic.check_loads(&unloaded.score)
}
