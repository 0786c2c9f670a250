//! Ownership of memory over time: the static plan of an activation arena, and the parameter store.
//! Knows devices and tensors' sizes, not operators or models.

mod collectives;
mod full_params;
mod grads;
mod host;
mod partition;
mod plan;
mod replicas;
mod shard_spec;
mod store;
mod tp_shard;

pub use collectives::Gather;
pub use full_params::BucketView;
pub use grads::Grads;
pub use partition::{Partition, Zero};
pub use plan::{ArenaPlan, Life};
pub use shard_spec::{Group, ShardSpec};
pub use store::{FlatBucket, Param, ParamId, ParamSpec, Portion, Store};
