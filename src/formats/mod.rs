//! Files of weights and metrics: safetensors, PyTorch `.bin` (read without executing its pickle),
//! TensorBoard events, snapshots of a run, and reversible layout permutations.
//!
//! Knows bytes, shapes and names, no models. Every file read here is taken as hostile: sizes are
//! checked against the file before anything is allocated, and nothing in a file is ever executed.

mod abilities;
mod checkpoint;
mod direct_io;
mod dtype;
mod events;
mod fingerprint;
pub mod layout;
mod names;
mod out_dir;
mod pickle;
mod replace;
mod safetensors;
mod save;
mod snapshot;
#[cfg(test)]
mod tests;
mod torch;
mod weight_file;

pub use abilities::Abilities;
pub use checkpoint::Checkpoint;
pub use direct_io::DirectWriter;
pub use dtype::{SourceDType, TensorInfo};
pub use events::EventWriter;
pub use fingerprint::{Fingerprint, Sum, fingerprint};
pub use out_dir::OutDir;
pub use replace::is_hidden;
pub use safetensors::{SaveTensor, write_safetensors};
pub use save::save_sharded;
pub use snapshot::{
    Content, Copied, Found, Input, Label, Snapshot, SnapshotBuilder, Whole, list_snapshots,
    read_as_written, snapshots_in, write_snapshot,
};
