//! Sections: the keys of an algorithm. [`section!`] declares a key in one place, the struct that
//! the algorithm takes; flags, help, TOML, checks and defaults follow.

use super::key::{Commands, Key};
use super::layers::{as_table, broken};
use crate::base::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The keys of a section as a struct.
pub trait Section: Default + Serialize + DeserializeOwned {
    /// Its keys, with bare names.
    fn keys() -> Vec<Key>;
}

/// A section of a configuration, by its struct's keys and defaults.
#[derive(Clone, Copy, Debug)]
pub struct SectionOf {
    keys: fn() -> Vec<Key>,
    defaults: fn() -> Result<Table>,
}

impl SectionOf {
    /// The section that `T` is the struct of.
    pub const fn new<T: Section>() -> SectionOf {
        SectionOf { keys: T::keys, defaults: || as_table(&T::default()) }
    }

    /// The keys of the section `name`, flags of the command `own` and of those of `commands`. Their
    /// paths and aliases live as long as the program: there is one table of keys.
    pub fn keys(&self, name: &str, commands: Commands, own: Commands) -> Vec<Key> {
        let place = |key: Key| Key {
            path: Box::leak(format!("{name}.{}", key.path).into_boxed_str()),
            commands: commands | own,
            aliases: key.aliases.iter().map(|a| (own, a.1)).collect::<Vec<_>>().leak(),
            ..key
        };
        (self.keys)().into_iter().map(place).collect()
    }

    /// The section with its defaults.
    pub fn defaults(&self) -> Result<Table> {
        (self.defaults)()
    }
}

/// The sections of a configuration, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sections(BTreeMap<String, Table>);

impl Sections {
    /// Sections with these names and values.
    pub fn new(all: impl IntoIterator<Item = (String, Table)>) -> Sections {
        Sections(all.into_iter().collect())
    }

    /// The section `name` as `T`, or as a part of its struct that `T` is.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let table = self.0.get(name).cloned();
        let table = table.ok_or_else(|| broken(&format!("section {name} is missing")))?;
        table.try_into().map_err(|e| broken(&e.to_string()))
    }

    /// Puts `value` in the place of the section `name`, or of the part of it that `value` is.
    pub fn put<T: Serialize>(&mut self, name: &str, value: &T) -> Result<()> {
        let values = as_table(value)?;
        self.0.entry(name.to_string()).or_default().extend(values);
        Ok(())
    }

    /// The value of a key, if it has one.
    pub fn value(&self, name: &str, leaf: &str) -> Option<&Value> {
        self.0.get(name)?.get(leaf)
    }
}

/// Declares a section: a struct whose fields are keys, each with its type, default, kind of values
/// and help. `[field: Struct = value, ...]` after the name takes up the keys of other sections.
///
/// ```text
/// section! {
///     /// Supervised finetuning.
///     pub struct SftSection [optimizer: OptimizerSection = OptimizerSection::with(1e-5, 0.0)] {
///         loss_on_prompt: bool = false, Kind::Bool,
///             "learn the prompts too";
///     }
/// }
/// ```
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $([$($shared:ident: $part:ty = $with:expr),+])? {
            $($key:ident: $type:ty = $default:expr, $kind:expr, $help:literal
              $(, $more:ident($($args:tt)*))*;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $($(
                /// Keys that it shares with others.
                #[serde(flatten)]
                pub $shared: $part,
            )+)?
            $(
                #[doc = $help]
                pub $key: $type,
            )*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($($shared: $with,)+)? $($key: $default,)* }
            }
        }

        impl crate::config::Section for $name {
            fn keys() -> Vec<crate::config::Key> {
                let mut all: Vec<crate::config::Key> = vec![];
                $($(all.extend(<$part as crate::config::Section>::keys());)+)?
                all.extend([$(
                    crate::config::Key::new(stringify!($key), 0, $kind, $help)
                        $(.$more($($args)*))*,
                )*]);
                all
            }
        }
    };
}
pub(crate) use section;
