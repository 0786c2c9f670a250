//! Names of tensors and files, in messages and as they are checked.

use crate::base::Error;
use std::path::Path;

/// The error of asking `place`, a file or a directory, for a tensor it does not hold.
pub(super) fn not_here(name: &str, place: &Path) -> Error {
    Error::user(format!("tensor {} is not in {}", quoted(name), place.display()))
}

/// True if `name` is one plain component: no `..`, no separator, not absolute.
pub(super) fn is_plain_name(name: &str) -> bool {
    use std::path::{Component, Path};
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    plain && parts.next().is_none() && !name.contains(['\\', '\0'])
}

/// `name` in quotes for a message, cut when a hostile file made it long.
pub(super) fn quoted(name: &str) -> String {
    format!("{:?}", clipped(name))
}

/// `text` cut to a length fit for one line of a message.
pub(super) fn clipped(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
