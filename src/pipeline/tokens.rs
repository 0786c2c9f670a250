//! Tokenizer, chat template and generation settings of a model directory: what they say, and where
//! they do not agree with each other or with the model.

use super::generation;
use super::sources::tokenizer_dir;
use crate::arch::Config;
use crate::base::Result;
use crate::data::{ChatFormat, Message, Tokenizer, chat_ids};
use crate::model::base_dir;
use serde_json::{Map, Value};
use std::path::Path;

/// Facts for `duplex inspect`, one a line. `rows` are those of the embedding. A model can be looked
/// at without its tokenizer.
pub(super) fn facts(dir: &Path, rows: usize) -> Vec<(&'static str, String)> {
    let tokenizer = match tokenizer_dir(dir).and_then(|d| Tokenizer::load(&d)) {
        Ok(tokenizer) => tokenizer,
        Err(e) => return vec![("tokenizer", format!("none: {e}"))],
    };
    let mut facts = vec![("tokenizer", format!("{} tokens", tokenizer.vocab_size()))];
    let mut special = vec![format!("eos {}", named(&tokenizer, tokenizer.eos_id()))];
    special.push(format!("pad {}", named(&tokenizer, tokenizer.pad_id())));
    let first = tokenizer.bos_prefix().iter().map(|id| named(&tokenizer, *id));
    special.extend(first.map(|token| format!("{token} before every text")));
    facts.push(("special tokens", special.join(", ")));
    facts.push((
        "chat template",
        match probe(&tokenizer) {
            None => "none".into(),
            Some(Ok(text)) => format!("renders {text:?}"),
            Some(Err(e)) => format!("fails on a message of a user: {e}"),
        },
    ));
    facts.push(("turn end", named(&tokenizer, tokenizer.turn_end_id())));
    let stops: Vec<String> = tokenizer.stop_ids().iter().map(|id| named(&tokenizer, *id)).collect();
    facts.push(("stop ids", stops.join(", ")));
    facts.push((
        "generation",
        match generation_settings(dir) {
            Ok(Some(settings)) => {
                let keys = settings.iter();
                let keys =
                    keys.filter(|(k, _)| *k != "transformers_version" && !k.starts_with('_'));
                let keys: Vec<String> = keys.map(|(k, v)| format!("{k} {v}")).collect();
                format!("{}: {}", generation::FILE, keys.join(", "))
            }
            Ok(None) => format!("no {}", generation::FILE),
            Err(e) => e.to_string(),
        },
    ));
    let notes = check(dir, &tokenizer, rows).unwrap_or_else(|e| vec![e.to_string()]);
    facts.extend(notes.into_iter().map(|note| ("note", note)));
    facts
}

/// Checks what belongs to the tokenizer of `dir`, for a model with `rows` rows in its embedding.
/// Returns notes on what loads, but does not agree.
///
/// # Errors
/// Reasons for which a run that uses the model would stop.
pub(super) fn verify(dir: &Path, rows: usize) -> Result<Vec<String>> {
    let from = tokenizer_dir(dir)?;
    let tokenizer = Tokenizer::load(&from)?;
    tokenizer.check_vocab(rows)?;
    check(dir, &tokenizer, rows)
}

fn check(dir: &Path, tokenizer: &Tokenizer, rows: usize) -> Result<Vec<String>> {
    let mut notes = vec![];
    if let Err(e) = tokenizer.check_vocab(rows) {
        notes.push(e.to_string());
    }
    if let Some(Err(e)) = probe(tokenizer) {
        notes.push(format!("its chat template fails on a message of a user: {e}"));
    }
    let (file, settings) = match generation_settings(dir)? {
        Some(settings) if settings.contains_key("eos_token_id") => (generation::FILE, settings),
        _ => ("config.json", Config::read(&base_dir(dir)?)?.map),
    };
    let ids = generation::ends(settings.get("eos_token_id"));
    for id in ids.iter().filter(|id| !(0..rows as i64).contains(id)) {
        notes.push(format!("{file}: eos_token_id {id} is none of the model's {rows} tokens"));
    }
    let end = tokenizer.turn_end_id();
    if !ids.contains(&i64::from(end)) {
        notes.push(format!(
            "{file}: eos_token_id does not hold {}, which ends a turn: `generate` of transformers \
             continues after it",
            named(tokenizer, end)
        ));
    }
    Ok(notes)
}

/// The settings of generation in the directory, or in that of the base model of adapters.
fn generation_settings(dir: &Path) -> Result<Option<Map<String, Value>>> {
    generation::settings(&[dir, &base_dir(dir)?])
}

/// A rendered question, if there is a template.
fn probe(tokenizer: &Tokenizer) -> Option<Result<String>> {
    let message = Message::new("user", "Hello!");
    tokenizer.has_chat_template().then(|| {
        let ids = chat_ids(&[message], tokenizer, ChatFormat::Template)?;
        tokenizer.decode(&ids, false)
    })
}

/// A token by text and id.
fn named(tokenizer: &Tokenizer, id: i32) -> String {
    match tokenizer.decode(&[id], false) {
        Ok(text) => format!("{text:?} ({id})"),
        Err(_) => id.to_string(),
    }
}
