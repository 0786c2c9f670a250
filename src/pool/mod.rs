//! Ownership of memory over time: the static plan of an activation arena, and the parameter store.
//! Knows devices and tensors' sizes, not operators or models.

mod copies;
mod cut;
mod exchange;
mod grads;
mod host;
mod lane;
mod partition;
mod plan;
mod store;
mod whole;

pub use cut::{Cut, Group};
pub use exchange::Gather;
pub use grads::Grads;
pub use partition::{Partition, Zero};
pub use plan::{ArenaPlan, Life};
pub use store::{Flat, Param, ParamId, ParamSpec, Portion, Store};
pub use whole::Layer;
