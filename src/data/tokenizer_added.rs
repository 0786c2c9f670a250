//! Tokens that stand beside `tokenizer.json`: in `added_tokens_decoder`, `added_tokens.json` and
//! among the special tokens that a configuration names. They are added as `transformers` does.

use super::tokenizer_files::{Files, file, parse, using};
use crate::base::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashSet;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

/// Special tokens by role, in the order in which `transformers` adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Roles that nothing here needs. A token that only such a role knows is in no text.
const IDLE: [&str; 5] = ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens added to those of `tokenizer.json`.
#[derive(Default)]
pub(super) struct Added {
    /// Ids that stand for nothing: the model was not made with them.
    pub(super) idle: HashSet<u32>,
    pub(super) notes: Vec<String>,
}

/// A special token that a configuration names.
struct Named {
    key: String,
    token: AddedToken,
}

/// Adds the tokens that `files` and `config` have beside the tokenizer's own. An error names a
/// token whose id would not be the one that a file gives it.
pub(super) fn add_tokens(
    tokenizer: &mut HfTokenizer,
    files: &Files,
    config: &Map<String, Value>,
    origin: &str,
) -> Result<Added> {
    let named = named_tokens(config, origin)?;
    let declared = declared_tokens(files, config, &named, origin)?;
    let is_named = |text: &str| named.iter().any(|n| n.token.content == text);
    let known = tokenizer.get_added_tokens_decoder();
    let mut texts: HashSet<String> = known.values().map(|t| t.content.clone()).collect();
    let mut new = Vec::new();
    for Declared { token, .. } in &declared {
        if !known.values().any(|k| k == token) {
            let special = token.special || is_named(&token.content);
            new.push(AddedToken { special, ..token.clone() });
            texts.insert(token.content.clone());
        }
    }
    let mut added = Added::default();
    let mut unheard = Vec::new();
    for Named { key, token } in &named {
        if texts.insert(token.content.clone()) {
            if tokenizer.token_to_id(&token.content).is_none() {
                unheard.push((key, &token.content));
            }
            new.push(token.clone());
        }
    }
    let letters = new.iter().map(|token| token.content.len()).sum();
    using(&format!("the added tokens of {origin}"), letters, || tokenizer.add_tokens(new))?;
    for Declared { id, token, file } in &declared {
        let real = tokenizer.token_to_id(&token.content);
        if real != Some(*id) {
            let real = real.map_or("none".to_owned(), |id| id.to_string());
            return Err(Error::user(format!(
                "{file} of {origin} gives the token {:?} the id {id}, but its id in the tokenizer \
                 is {real}; the files belong to different tokenizers",
                token.content
            )));
        }
    }
    for (key, text) in unheard {
        let Some(id) = tokenizer.token_to_id(text) else { continue };
        if IDLE.contains(&key.as_str()) {
            added.idle.insert(id);
        } else {
            added.notes.push(format!(
                "the tokenizer of {origin}: {key} {text:?} is in no vocabulary; it is added with \
                 the id {id}"
            ));
        }
    }
    Ok(added)
}

/// A token whose id a file gives.
struct Declared {
    id: u32,
    token: AddedToken,
    file: &'static str,
}

/// By id: `added_tokens_decoder` of `tokenizer_config.json`, or without it `added_tokens.json`.
fn declared_tokens(
    files: &Files,
    config: &Map<String, Value>,
    named: &[Named],
    origin: &str,
) -> Result<Vec<Declared>> {
    let older = match file(files, "added_tokens.json") {
        Some(bytes) => parse(&format!("added_tokens.json of {origin}"), bytes)?,
        None => Value::Null,
    };
    let broken = |file: &str, what: &str| {
        Error::user(format!("{file} of {origin}: {what} is no token with an id"))
    };
    let id_of = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut declared = Vec::new();
    match config.get("added_tokens_decoder") {
        Some(Value::Object(decoder)) => {
            let file = "tokenizer_config.json";
            for (key, value) in decoder {
                let entry = format!("{key:?} in added_tokens_decoder");
                let id = key.parse::<u32>().map_err(|_| broken(file, &entry))?;
                let token = added_token(value, false).ok_or_else(|| broken(file, &entry))?;
                // The older file is not read beside this one, but must not contradict it.
                if let Some(other) = older.get(&token.content).filter(|v| id_of(v) != Some(id)) {
                    return Err(Error::user(format!(
                        "{origin}: the token {:?} has the id {id} in tokenizer_config.json and \
                         {other} in added_tokens.json; one of the files belongs to another \
                         tokenizer",
                        token.content
                    )));
                }
                declared.push(Declared { id, token, file });
            }
        }
        Some(_) => return Err(broken("tokenizer_config.json", "added_tokens_decoder")),
        None => {
            let file = "added_tokens.json";
            let entries = match &older {
                Value::Object(entries) => entries.iter().collect(),
                Value::Null => Vec::new(),
                _ => return Err(broken(file, "its content")),
            };
            for (text, id) in entries {
                let id = id_of(id).ok_or_else(|| broken(file, &format!("{text:?}")))?;
                let special = named.iter().any(|n| n.token.content == *text);
                declared.push(Declared { id, token: AddedToken::from(text, special), file });
            }
        }
    }
    declared.sort_by_key(|d| d.id);
    Ok(declared)
}

/// The special tokens that `config` names: by role, by other names that end in `_token`, and those
/// without a role.
fn named_tokens(config: &Map<String, Value>, origin: &str) -> Result<Vec<Named>> {
    let mut named = Vec::new();
    let mut take = |key: &str, value: &Value| -> Result<()> {
        // Text of no length and switches such as `add_bos_token` are no tokens.
        let empty = value.as_str() == Some("") || !(value.is_string() || value.is_object());
        if empty {
            return Ok(());
        }
        let token = added_token(value, true).ok_or_else(|| {
            Error::user(format!("tokenizer_config.json of {origin}: {key} is no token: {value}"))
        })?;
        named.push(Named { key: key.to_owned(), token });
        Ok(())
    };
    for key in NAMED {
        take(key, config.get(key).unwrap_or(&Value::Null))?;
    }
    for (key, value) in config.iter().filter(|(key, _)| key.ends_with("_token")) {
        if !NAMED.contains(&key.as_str()) {
            take(key, value)?;
        }
    }
    let filled = |key: &str| {
        config.get(key).filter(|v| !matches!(v, Value::Array(a) if a.is_empty()) && !v.is_null())
    };
    let key = match filled("extra_special_tokens") {
        Some(_) => "extra_special_tokens",
        None => "additional_special_tokens",
    };
    match filled(key) {
        Some(Value::Object(tokens)) => tokens.values().try_for_each(|v| take(key, v))?,
        Some(Value::Array(tokens)) => tokens.iter().try_for_each(|v| take(key, v))?,
        Some(_) => {
            let message = format!("tokenizer_config.json of {origin}: {key} is no list of tokens");
            return Err(Error::user(message));
        }
        None => {}
    }
    Ok(named)
}

/// A token written as text, special where `named`, or as an object with its properties.
fn added_token(value: &Value, named: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str().filter(|_| named) {
        return Some(AddedToken::from(text, true));
    }
    let text = value.get("content")?.as_str().filter(|t| !t.is_empty())?;
    let is = |key: &str, other: bool| value.get(key).and_then(Value::as_bool).unwrap_or(other);
    Some(
        AddedToken::from(text, named || is("special", false))
            .normalized(is("normalized", true))
            .single_word(is("single_word", false))
            .lstrip(is("lstrip", false))
            .rstrip(is("rstrip", false)),
    )
}
