//! Files of weights and metrics: safetensors, PyTorch `.bin` (read without executing its pickle),
//! TensorBoard events, snapshots of a run, and reversible layout permutations.
//!
//! Knows bytes, shapes and names, no models. Every file read here is taken as hostile: sizes are
//! checked against the file before anything is allocated, and nothing in a file is ever executed.

mod atomic;
mod checkpoint;
mod crc;
mod dtype;
mod events;
pub mod layout;
mod map;
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
use safetensors::safetensors_order;
pub use safetensors::{SaveTensor, write_safetensors};
pub use save::save_sharded;
pub use snapshot::{
    Content, Copied, Draft, Found, Input, Label, Snapshot, Whole, list_snapshots, read_as_written,
    remove_leftovers, remove_snapshot, write_snapshot,
};
pub use stamp::{Stamp, Sum, stamp};
pub use steady::Steady;

/// The error of asking `place`, a file or a directory, for a tensor it does not hold.
fn not_here(name: &str, place: &std::path::Path) -> crate::base::Error {
    crate::base::Error::user(format!("tensor {} is not in {}", quoted(name), place.display()))
}

/// True if `name` is one plain component: no `..`, no separator, not absolute.
fn is_plain_name(name: &str) -> bool {
    use std::path::{Component, Path};
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    plain && parts.next().is_none() && !name.contains(['\\', '\0'])
}

/// `name` in quotes for a message, cut when a hostile file made it long.
fn quoted(name: &str) -> String {
    format!("{:?}", clipped(name))
}

/// `text` cut to a length fit for one line of a message.
fn clipped(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
