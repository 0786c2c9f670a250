//! Flags without a stage's name, such as `--reward-rule`, where several stages have the key: the
//! only stage of the run that has it is meant.

use super::commands::Entry;
use crate::algo::{DEEPSPEED_CHAT, meant};
use crate::config::{Key, read_toml};
use std::cell::LazyCell;
use std::path::Path;

/// Puts the stage's name into such flags among `words`.
pub(super) fn with_stages(entry: &Entry, words: Vec<String>) -> Vec<String> {
    if !entry.own_keys().any(|k| k.path == "stages") {
        return words;
    }
    // A file may have to be read for them.
    let stages = LazyCell::new(|| stages(entry, &words));
    let known: Vec<String> =
        entry.own_keys().flat_map(|k| [vec![entry.flag(k)], entry.aliases(k)].concat()).collect();
    let named = |word: &String| {
        let Some(bare) = word.strip_prefix("--") else { return word.clone() };
        let (flag, value) = bare.split_once('=').map_or((bare, None), |(f, v)| (f, Some(v)));
        if known.iter().any(|k| k == flag) {
            return word.clone();
        }
        let leaf = flag.replace('-', "_");
        let of = |stages: &[&str]| {
            let has = |k: &&'static Key| k.leaf() == leaf && stages.contains(&k.section());
            entry.own_keys().filter(has).collect::<Vec<_>>()
        };
        // A flag of a stage that does not run changes nothing; scripts give such flags to all runs.
        let found = match of(&stages) {
            found if found.is_empty() => of(&DEEPSPEED_CHAT.map(|a| a.name)),
            found => found,
        };
        match (&found[..], value) {
            ([key], None) => format!("--{}", entry.flag(key)),
            ([key], Some(value)) => format!("--{}={value}", entry.flag(key)),
            _ => word.clone(),
        }
    };
    words.iter().map(named).collect()
}

/// The names of the run's stages: as flags say, else as the file says, else those of a run that
/// names none. A mistake in either is found when they are read.
fn stages(entry: &Entry, words: &[String]) -> Vec<&'static str> {
    let after = |flag: &str| -> Vec<String> {
        let mut found = vec![];
        for (i, word) in words.iter().enumerate() {
            match word.strip_prefix(flag) {
                Some("") => {
                    found.extend(
                        words[i + 1..].iter().take_while(|w| !w.starts_with("--")).cloned(),
                    );
                }
                Some(rest) => found.extend(rest.strip_prefix('=').map(str::to_string)),
                None => {}
            }
        }
        found
    };
    let given = [after("--stages"), after("--step")].concat();
    let in_file = || {
        let file = after("--config").into_iter().next()?;
        let settings = read_toml(entry.keys, Path::new(&file)).ok()?;
        let text = settings.into_iter().find(|s| s.key.path == "stages")?.value.to_string();
        Some(vec![text])
    };
    let words = if given.is_empty() { in_file().unwrap_or_default() } else { given };
    let apart = |text: &String| -> Vec<&'static str> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        text.split(|c| !is_part(c)).filter_map(meant).collect()
    };
    let stages: Vec<&str> = words.iter().flat_map(apart).collect();
    if stages.is_empty() { DEEPSPEED_CHAT.iter().map(|a| a.name).collect() } else { stages }
}
