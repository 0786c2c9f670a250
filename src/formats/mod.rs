//! Files of weights and metrics: safetensors, PyTorch `.bin` (read without executing its pickle),
//! TensorBoard events, snapshots of a run, and reversible layout permutations.
//!
//! Knows bytes, shapes and names, no models. Every file read here is taken as hostile: sizes are
//! checked against the file before anything is allocated, and nothing in a file is ever executed.

mod atomic;
mod checkpoint;
mod dtype;
mod events;
pub mod layout;
mod map;
mod names;
mod pickle;
mod safetensors;
mod save;
mod snapshot;
mod stamp;
mod steady;
#[cfg(test)]
mod tests;
mod torch;

pub use atomic::{sync_dir, write_atomic};
pub use checkpoint::Checkpoint;
pub use dtype::{SourceDType, TensorInfo};
pub use events::EventWriter;
pub use safetensors::{SaveTensor, write_safetensors};
pub use save::save_sharded;
pub use snapshot::{
    Content, Copied, Draft, Found, Input, Label, Snapshot, Whole, list_snapshots, read_as_written,
    remove_leftovers, remove_snapshot, write_snapshot,
};
pub use stamp::{Stamp, Sum, stamp};
pub use steady::Steady;
