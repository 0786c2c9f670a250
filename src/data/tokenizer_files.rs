//! What Hugging Face's tokenizer files say, in the several spellings they say it: special tokens,
//! end tokens, the chat template. Only reading; the tokenizer itself is next door.

use super::tokenizer_checks::refusal;
use crate::base::{Error, Result, caught};
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::Tokenizer as HfTokenizer;

/// File names with their contents.
pub(super) type Files = [(String, Vec<u8>)];

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("read", path, &e))
}

pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::user(format!("{name}: bad JSON: {e}")))
}

/// What `f`, a call of the tokenizer library about a text or a list of ids, gives. Files of others can make it panic.
pub(super) fn using<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(f) {
        Some(outcome) => outcome.map_err(|e| Error::user(format!("the tokenizer failed: {e}"))),
        None => Err(Error::user("the tokenizer failed: a table in its tokenizer.json is broken")),
    }
}

fn file<'a>(files: &'a Files, name: &str) -> Option<&'a [u8]> {
    files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice())
}

/// The tokenizer in `tokenizer.json`, without the padding and truncation it may prescribe.
pub(super) fn inner_tokenizer(files: &Files, origin: &str) -> Result<HfTokenizer> {
    let bytes = file(files, "tokenizer.json").unwrap_or_default();
    let unusable = |e: &dyn std::fmt::Display| {
        Error::user(format!("tokenizer.json of {origin} cannot be used: {e}"))
    };
    let fail = |e: tokenizers::Error| unusable(&e);
    // The library panics on some files: on broken JSON where it expects a decoder, hence the look
    // at the whole first, and on some broken tables.
    let whole = serde_json::from_slice::<Value>(bytes).map_err(|e| unusable(&e))?;
    if let Some(why) = refusal(&whole) {
        return Err(unusable(&why));
    }
    let mut tokenizer = caught(|| HfTokenizer::from_bytes(bytes))
        .ok_or_else(|| unusable(&"a table in it is broken"))?
        .map_err(fail)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(fail)?;
    Ok(tokenizer)
}

/// `tokenizer_config.json`, completed from `special_tokens_map.json`.
pub(super) fn config_of(files: &Files, origin: &str) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(bytes) = file(files, name) else { continue };
        match parse(&format!("{name} of {origin}"), bytes)? {
            Value::Object(object) => {
                for (key, value) in object.into_iter().filter(|(_, v)| !v.is_null()) {
                    config.entry(key).or_insert(value);
                }
            }
            _ => return Err(Error::user(format!("{name} of {origin} is not a JSON object"))),
        }
    }
    Ok(config)
}

/// The text of a special token: a string, or an object with its `content`.
pub(super) fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    let value = config.get(key)?;
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(text.to_owned()).filter(|t| !t.is_empty())
}

/// The special tokens that transformers gives a chat template, by name: `bos_token` and whatever else
/// ends in `_token`, and the named ones in `extra_special_tokens`. One that is not set is not there.
pub(super) fn special_variables(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(Value::from);
    let named = config.iter().filter(|(key, _)| key.ends_with("_token"));
    let extra = config.get("extra_special_tokens").and_then(Value::as_object);
    named
        .chain(extra.into_iter().flatten())
        .filter_map(|(k, v)| Some((k.clone(), text(v)?)))
        .collect()
}

/// `eos_token_id` of a model's file: one id or several.
pub(super) fn end_ids(config: &Value) -> Vec<i32> {
    let id = |v: &Value| v.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The chat template: `chat_template.jinja`, or the key `chat_template` of a JSON file, which is
/// text or a list of named ones, of which "default" counts.
pub(super) fn template_source(
    files: &Files,
    config: &Map<String, Value>,
    origin: &str,
) -> Result<Option<String>> {
    if let Some(bytes) = file(files, "chat_template.jinja") {
        return String::from_utf8(bytes.to_vec())
            .map(Some)
            .map_err(|_| Error::user(format!("chat_template.jinja of {origin} is not UTF-8")));
    }
    let older = match file(files, "chat_template.json") {
        Some(bytes) => parse(&format!("chat_template.json of {origin}"), bytes)?,
        None => Value::Null,
    };
    match config.get("chat_template").or_else(|| older.get("chat_template")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t["name"] == "default").or(named.first());
            Ok(default.and_then(|t| t["template"].as_str()).map(str::to_owned))
        }
        Some(_) => Err(Error::user(format!(
            "chat_template of {origin} is neither text nor a list of named templates"
        ))),
    }
}

/// What the tokenizer puts before a text: seen by encoding one with and without special tokens.
/// `add_bos_token` in the configuration has the last word, as in Hugging Face's LLaMA tokenizers.
pub(super) fn bos_prefix(
    tokenizer: &HfTokenizer,
    config: &Map<String, Value>,
    bos: Option<i32>,
) -> Result<Vec<i32>> {
    let ids = |special| -> Result<Vec<i32>> {
        let encoding = using(|| tokenizer.encode_fast("a", special))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    };
    let (bare, dressed) = (ids(false)?, ids(true)?);
    let at = dressed.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
    let prefix = dressed[..at].to_vec();
    Ok(match (config.get("add_bos_token"), bos) {
        (Some(Value::Bool(true)), Some(bos)) if prefix.is_empty() => vec![bos],
        (Some(Value::Bool(false)), Some(bos)) if prefix == [bos] => Vec::new(),
        _ => prefix,
    })
}
