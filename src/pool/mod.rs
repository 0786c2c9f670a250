//! Who owns which bytes, and when: the static plan of an activation arena, and the parameter store.
//! Knows devices and tensors' sizes, not operators or models.

mod grads;
mod plan;
mod store;

pub use grads::Grads;
pub use plan::{ArenaPlan, Life};
pub use store::{Cut, Flat, Param, ParamId, ParamSpec, Store};
