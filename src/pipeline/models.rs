//! The models of a run by name: those that its stages start from, and those that it makes itself.

use super::config::RunConfig;
use super::run_dir::RunDir;
use crate::algo::{ALGORITHMS, Algorithm, Start};
use crate::base::{Error, Result};
use crate::model::Head;
use std::path::Path;

/// The names that the configuration of a run gives, and the directory where it puts its models.
pub(super) struct Models<'r> {
    stages: &'r [&'static Algorithm],
    actor: Option<&'r String>,
    reward: Option<&'r String>,
    dir: &'r RunDir,
}

/// The models that a stage that samples reads beside its actor, as far as they are there before the
/// run.
pub(super) struct Beside {
    /// The model that scores, or the one that the run makes it from.
    pub(super) reward: Result<Option<String>>,
    /// True if the run makes the model that scores.
    pub(super) makes_reward: bool,
    /// True if the named model is there.
    pub(super) reward_is_there: bool,
    /// The model named for the critic, if it is there.
    pub(super) critic: Option<String>,
}

impl<'r> Models<'r> {
    pub(super) fn of(cfg: &'r RunConfig, dir: &'r RunDir) -> Models<'r> {
        let (actor, reward) = (cfg.actor_model.as_ref(), cfg.reward_model.as_ref());
        Models { stages: &cfg.stages, actor, reward, dir }
    }

    /// The actor and the reward model, where the user named them.
    pub(super) fn given(&self) -> impl Iterator<Item = &'r String> {
        self.actor.into_iter().chain(self.reward)
    }

    /// The model that a stage starts from: for one that scores the reward model, else the actor;
    /// for a policy that goes on from another one, that of the last stage before it that this run
    /// has, else the actor given, else that of the nearest stage before it in the list.
    pub(super) fn start(&self, of: &Algorithm) -> Result<String> {
        match (of.start, of.head) {
            (Start::Pretrained, Head::Lm) => self.pretrained(),
            (Start::Pretrained, Head::Score) => {
                self.reward.map_or_else(|| self.pretrained(), |given| Ok(given.clone()))
            }
            (Start::Policy, _) => match (self.actor, self.before(of)) {
                (_, Some(made)) => finished(&self.dir.model(made)).ok_or_else(|| no_actor(of)),
                (Some(given), None) => Ok(given.clone()),
                (None, None) => {
                    let there = policies(of).find_map(|a| finished(&self.dir.model(a)));
                    there.ok_or_else(|| no_actor(of))
                }
            },
        }
    }

    fn pretrained(&self) -> Result<String> {
        let none = || Error::user("no model given; name one with --actor-model");
        self.actor.cloned().ok_or_else(none)
    }

    /// The stage of this run that makes the policy `of` starts from.
    fn before(&self, of: &Algorithm) -> Option<&'static Algorithm> {
        policies(of).find(|a| self.stages.contains(a))
    }

    /// The model whose tokens a stage has, as far as it is there before the run.
    pub(super) fn base(&self, of: &Algorithm) -> Result<String> {
        match self.before(of).filter(|_| of.start == Start::Policy) {
            Some(made) => self.base(made),
            None => self.start(of),
        }
    }

    /// The stage that makes a model that scores, if the run has one.
    fn scoring(&self) -> Option<&'static Algorithm> {
        self.stages.iter().copied().find(|a| a.head == Head::Score)
    }

    /// The reward model of a stage that samples: the one given where this run makes none, else the
    /// one that is there.
    pub(super) fn scorer(&self) -> Option<String> {
        match self.reward {
            Some(given) if self.scoring().is_none() => Some(given.clone()),
            _ => ALGORITHMS
                .iter()
                .filter(|a| a.head == Head::Score)
                .find_map(|a| finished(&self.dir.model(a))),
        }
    }

    /// The models beside the actor of a stage that samples. `critic` is the one named for the
    /// critic.
    pub(super) fn beside(&self, critic: Option<String>) -> Beside {
        let made = self.scoring().map(|stage| self.start(stage)).transpose();
        let reward = made.map(|made| made.or_else(|| self.scorer()));
        let named = reward.as_ref().ok().and_then(Option::as_ref);
        Beside {
            makes_reward: self.scoring().is_some(),
            reward_is_there: named.is_some_and(|name| !self.is_to_come(name)),
            critic: critic.filter(|name| !self.is_to_come(name)),
            reward,
        }
    }

    /// True if an earlier stage of the run makes the model of this name, or the demonstration may.
    pub(super) fn is_to_come(&self, name: &str) -> bool {
        let path = Path::new(name);
        let replaced = self.stages.iter().any(|stage| path == self.dir.model(stage));
        replaced || path.starts_with(self.dir.path()) && !path.exists()
    }
}

fn no_actor(of: &Algorithm) -> Error {
    let names: Vec<&str> = policies(of).map(|a| a.name).collect();
    Error::user(format!(
        "no actor for {}: name one with --actor-model, or run stage {} here first",
        of.name,
        names.join(" or ")
    ))
}

/// The error of a stage that samples without a reward.
pub(super) fn no_reward(of: &Algorithm) -> Error {
    Error::user(format!(
        "stage {} needs a reward: run stage reward first, or give --reward-model or --reward-rule",
        of.name
    ))
}

/// The algorithms before `of` that train a policy, the nearest first.
fn policies(of: &Algorithm) -> impl Iterator<Item = &'static Algorithm> {
    let before = ALGORITHMS.iter().copied().take_while(move |a| *a != of);
    let before: Vec<_> = before.filter(|a| a.head == Head::Lm).collect();
    before.into_iter().rev()
}

/// `dir` as a model's name, if a model was saved there.
fn finished(dir: &Path) -> Option<String> {
    dir.join("config.json").exists().then(|| dir.display().to_string())
}
