//! Configuration keys and their layers: names, values, help and defaults, read from TOML, flags and
//! `key=value`, and written as TOML again. It knows no key by name: those of a run are with it,
//! those of an algorithm in its file.

pub mod key;
mod layers;
mod section;

pub use key::{Key, Kind};
pub use layers::{
    Setting, as_now, defaults, flag_setting, flat, merge, nearest, read_toml, set_setting, to_toml,
    toml_settings,
};
pub(crate) use section::section;
pub use section::{Section, SectionOf, Sections};
