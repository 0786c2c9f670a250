//! Layers of settings: reading them from TOML, from `key=value` and from flags, putting them over
//! the defaults, and writing the result as TOML again.

use super::key::{Key, written};
use crate::base::{Error, Result, read_text};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// Largest configuration file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A checked value for a key.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value, in the form the configuration is read from.
    pub value: Value,
}

/// The settings in the TOML file at `path`.
pub fn read_toml(keys: &'static [Key], path: &Path) -> Result<Vec<Setting>> {
    toml_settings(keys, &path.display().to_string(), &read_text(path, MAX_FILE)?)
}

/// The settings in TOML `text`; `name` stands for it in error lines.
pub fn toml_settings(keys: &'static [Key], name: &str, text: &str) -> Result<Vec<Setting>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let table: Table = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|s| 1 + text[..s.start].matches('\n').count());
        let line = line.map_or(String::new(), |l| format!("line {l}: "));
        Error::user(format!("{name}: {line}{}", e.message()))
    })?;
    let mut settings = Vec::new();
    collect(keys, name, "", &table, &mut settings)?;
    Ok(settings)
}

fn collect(
    keys: &'static [Key],
    name: &str,
    section: &str,
    table: &Table,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    for (leaf, value) in table {
        let path = if section.is_empty() { leaf.clone() } else { format!("{section}.{leaf}") };
        let is_section = keys.iter().any(|k| k.section() == path);
        match value {
            Value::Table(inner) if is_section => collect(keys, name, &path, inner, settings)?,
            // A misspelt section is found by its first key.
            Value::Table(inner) if !inner.is_empty() && find(keys, &path).is_none() => {
                collect(keys, name, &path, inner, settings)?;
            }
            _ if is_section => {
                let hint = format!("write its keys under [{path}]");
                return Err(Error::user(format!("{name}: {path:?} is a section; {hint}")));
            }
            _ => {
                let key = find(keys, &path).ok_or_else(|| unknown(keys, name, &path))?;
                let value = key.accept(&format!("{name}: {path:?}"), value)?;
                settings.push(Setting { key, value });
            }
        }
    }
    Ok(())
}

/// The setting in `key=value`, as given to `--set`. The value is TOML, or plain text.
pub fn set_setting(keys: &'static [Key], text: &str) -> Result<Setting> {
    let Some((path, word)) = text.split_once('=') else {
        return Err(Error::user(format!("--set {text:?} has no value; write --set key=value")));
    };
    let (path, word) = (path.trim().replace('-', "_"), word.trim());
    let key = find(keys, &path).ok_or_else(|| unknown(keys, "--set", &path))?;
    let parsed: Option<Table> = toml::from_str(&format!("v = {word}")).ok();
    // More than one entry means that the text broke out of its line.
    let parsed = parsed.filter(|t| t.len() == 1).and_then(|mut t| t.remove("v"));
    let place = format!("--set: {path:?}");
    let parsed = parsed.filter(|v| key.accept(&place, v).is_ok());
    let value = key.accept(&place, &parsed.unwrap_or_else(|| key.kind.parse(word)))?;
    Ok(Setting { key, value })
}

/// The setting made by `--flag words...`.
pub fn flag_setting(key: &'static Key, flag: &str, words: &[String]) -> Result<Setting> {
    let mut values: Vec<Value> = words.iter().map(|w| key.kind.parse(w)).collect();
    let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    let value = key.accept(&format!("--{flag} ({:?})", key.path), &value)?;
    Ok(Setting { key, value })
}

fn find(keys: &'static [Key], path: &str) -> Option<&'static Key> {
    keys.iter().find(|k| k.path == path || k.former == Some(path))
}

/// The error for a key that does not exist, with what may have been meant.
fn unknown(keys: &'static [Key], name: &str, path: &str) -> Error {
    let leaf = path.rsplit_once('.').map_or(path, |(_, leaf)| leaf);
    let flag = leaf.replace('_', "-");
    let same_leaf = |k: &&Key| k.leaf() == leaf || k.aliases.iter().any(|(_, a)| *a == flag);
    let elsewhere: Vec<&str> = keys.iter().filter(same_leaf).map(|k| k.path).collect();
    let near = nearest(path, keys.iter().map(|k| k.path));
    let close = near.filter(|n| strsim::damerau_levenshtein(n, path) <= 2);
    let by_leaf = || {
        let leaf = nearest(leaf, keys.iter().map(Key::leaf))?;
        keys.iter().find(|k| k.leaf() == leaf).map(|k| k.path)
    };
    let meant = match close {
        Some(path) => vec![path],
        None if !elsewhere.is_empty() => elsewhere,
        None => near.or_else(by_leaf).into_iter().collect(),
    };
    let meant: Vec<String> = meant.iter().map(|m| format!("{m:?}")).collect();
    let hint = match meant.is_empty() {
        true => "--print-config lists all keys".to_string(),
        false => format!("did you mean {}?", meant.join(" or ")),
    };
    Error::user(format!("{name}: unknown key {path:?}; {hint}"))
}

/// The candidate that `word` is most likely a misspelling of, if one is near enough.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + word.len() / 5;
    candidates
        .map(|c| (strsim::damerau_levenshtein(c, word), c))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, c)| c)
}

/// The defaults with `settings` over them, a later one over an earlier one.
pub fn merge<T>(keys: &'static [Key], settings: &[Setting]) -> Result<T>
where
    T: Default + Serialize + DeserializeOwned,
{
    let mut table = as_table(&T::default())?;
    for setting in settings {
        debug_assert!(keys.iter().any(|k| k.path == setting.key.path));
        let mut place = &mut table;
        let section = setting.key.section();
        if !section.is_empty() {
            let inner = place.get_mut(section).and_then(Value::as_table_mut);
            place = inner.ok_or_else(|| broken(&format!("section {section} is missing")))?;
        }
        place.insert(setting.key.leaf().to_string(), setting.value.clone());
    }
    table.try_into().map_err(|e| broken(&e.to_string()))
}

/// The value of `key` in `config`; None where it is not set.
fn value_of(config: &Table, key: &Key) -> Option<Value> {
    let section = key.section();
    let place = if section.is_empty() { Some(config) } else { config.get(section)?.as_table() };
    // A path without a default is empty, which no key accepts: it is not set.
    place?.get(key.leaf()).filter(|v| v.as_str() != Some("")).cloned()
}

/// The whole of `config` as a TOML file that gives the same configuration when read.
pub fn to_toml<T: Serialize>(keys: &'static [Key], config: &T) -> Result<String> {
    let table = as_table(config)?;
    let (mut text, mut section) = (String::new(), "");
    for key in keys {
        if key.section() != section {
            section = key.section();
            text.push_str(&format!("\n[{section}]\n"));
        }
        match value_of(&table, key) {
            Some(value) => text.push_str(&format!("{} = {}\n", key.leaf(), written(&value))),
            None => text.push_str(&format!("# {} is not set\n", key.leaf())),
        }
    }
    Ok(text)
}

/// Every key with its value as TOML; empty where it is not set.
pub fn flat<T: Serialize>(keys: &'static [Key], config: &T) -> Result<BTreeMap<String, String>> {
    let table = as_table(config)?;
    let value = |key| value_of(&table, key).map_or(String::new(), |v| written(&v));
    Ok(keys.iter().map(|key| (key.path.to_string(), value(key))).collect())
}

/// The default of every key of `T`, as shown in help; None where it has none.
pub fn defaults<T: Default + Serialize>(keys: &'static [Key]) -> Vec<Option<String>> {
    let table = as_table(&T::default()).unwrap_or_default();
    let shown = |value: Value| match value {
        Value::String(s) => s,
        Value::Array(items) if items.is_empty() => String::new(),
        Value::Array(items) => {
            let words = items.iter().map(|v| v.as_str().map_or(v.to_string(), str::to_string));
            words.collect::<Vec<_>>().join(" ")
        }
        other => written(&other),
    };
    keys.iter().map(|k| value_of(&table, k).map(shown).filter(|s| !s.is_empty())).collect()
}

/// `text`, TOML of one value, in the form that `key` has now; as it is where that cannot be told.
pub fn as_now(key: &Key, text: &str) -> String {
    let table: Option<Table> = toml::from_str(&format!("v = {text}")).ok();
    let value = table.and_then(|mut t| t.remove("v"));
    let now = value.and_then(|v| key.accept("", &v).ok());
    now.map_or_else(|| text.to_string(), |v| written(&v))
}

/// `config` as a table.
pub(super) fn as_table<T: Serialize>(config: &T) -> Result<Table> {
    Table::try_from(config).map_err(|e| broken(&e.to_string()))
}

/// The table of keys and the configuration structs disagree, which a test excludes.
pub(super) fn broken(what: &str) -> Error {
    Error::internal(format!("the table of keys does not fit the configuration: {what}"))
}
