//! The frozen model with which a policy is compared.

use crate::base::Result;
use crate::engine::Engine;

/// The frozen start of the policy.
#[derive(Debug)]
pub enum Reference {
    /// A model of its own.
    Model(Box<Engine>),
    /// The policy with its adapters off.
    Adapters,
    /// There is none: nothing compares.
    None,
}

impl Reference {
    /// A frozen model.
    pub fn model(engine: Engine) -> Reference {
        Reference::Model(Box::new(engine))
    }

    /// The reference of an algorithm that asks for one: the policy without its adapters where it
    /// has some, else the model that `load` loads.
    pub fn asked(
        asked: bool,
        has_adapters: bool,
        load: impl FnOnce() -> Result<Engine>,
    ) -> Result<Reference> {
        match (asked, has_adapters) {
            (false, _) => Ok(Reference::None),
            (true, true) => Ok(Reference::Adapters),
            (true, false) => load().map(Reference::model),
        }
    }

    /// The engine that computes the reference's log-probs, and true if its adapters are on.
    pub(super) fn of<'e>(&'e self, policy: &'e Engine) -> Option<(&'e Engine, bool)> {
        match self {
            Reference::Model(engine) => Some((engine, true)),
            Reference::Adapters => Some((policy, false)),
            Reference::None => None,
        }
    }

    /// The model of its own, where it is one.
    pub fn engine(&self) -> Option<&Engine> {
        match self {
            Reference::Model(engine) => Some(engine),
            Reference::Adapters | Reference::None => None,
        }
    }
}
