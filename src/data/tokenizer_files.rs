//! Reads special tokens, end tokens and the chat template from Hugging Face's tokenizer files, in
//! each of their spellings. The tokenizer itself is in `tokenizer.rs`.

use super::tokenizer_checks::refusal;
use crate::base::{Error, Result, bounded, catch_panic};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::Tokenizer as HfTokenizer;

/// The directory of chat templates beside the default one.
pub(super) const MORE_TEMPLATES: &str = "additional_chat_templates";

/// File names with their contents.
pub(super) type Files = [(String, Vec<u8>)];

/// Largest file of a tokenizer that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// Why a directory has no tokenizer that can be read, by the files that it has instead.
pub(super) fn absent(dir: &Path) -> Error {
    let at = dir.display();
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let listed = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let tiktoken = listed
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.ends_with(".tiktoken"));
    let known = [
        ("tokenizer.model", "a SentencePiece or tiktoken model"),
        ("spiece.model", "a SentencePiece model"),
        ("sentencepiece.bpe.model", "a SentencePiece model"),
        ("tiktoken.model", "a tiktoken vocabulary"),
        ("tekken.json", "a tekken vocabulary"),
        ("vocab.txt", "a WordPiece vocabulary"),
    ];
    let found = known.iter().find(|(name, _)| has(name));
    let found =
        found.map(|(name, kind)| format!(" ({name} is {kind}, which Duplex does not read)"));
    let found = found
        .or(tiktoken
            .map(|n| format!(" ({n} is a tiktoken vocabulary, which Duplex does not read)")));
    let half = match (has("vocab.json"), has("merges.txt")) {
        (true, false) => Some(" (vocab.json is there, merges.txt is missing)".to_owned()),
        (false, true) => Some(" (merges.txt is there, vocab.json is missing)".to_owned()),
        _ => None,
    };
    Error::user(format!(
        "no tokenizer.json in {at}, nor vocab.json with merges.txt{}; save the tokenizer there \
         with `AutoTokenizer.from_pretrained(...).save_pretrained({:?})`",
        half.or(found).unwrap_or_default(),
        at.to_string()
    ))
}

pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::user(format!("{name}: bad JSON: {e}")))
}

/// Returns the result of `f`, a call of the tokenizer library on `bytes` bytes of input. `whose` is
/// the file that the tokenizer was read from, for errors. A panic, which broken files can cause,
/// becomes an error; memory and time are bounded.
pub(super) fn using<T>(
    whose: &str,
    bytes: usize,
    f: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T> {
    match bounded(whose, bytes, || catch_panic(f)) {
        Some(outcome) => outcome.map_err(|e| Error::user(format!("{whose} failed: {e}"))),
        None => Err(Error::user(format!("{whose} failed: a table in it is broken"))),
    }
}

/// The file that a tokenizer is read from, in words.
pub(super) fn source_of(files: &Files, origin: &str) -> String {
    let name = match file(files, "tokenizer.json") {
        Some(_) => "tokenizer.json",
        None => "vocab.json with merges.txt",
    };
    format!("{name} of {origin}")
}

pub(super) fn file<'a>(files: &'a Files, name: &str) -> Option<&'a [u8]> {
    files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice())
}

/// The tokenizer in `tokenizer.json`, without the padding, truncation and random merges it may
/// prescribe; `notes` gets a line about the last. `config` has a say in spaces, as in
/// `transformers`; `model` is the model's `config.json`.
pub(super) fn inner_tokenizer(
    files: &Files,
    config: &Map<String, Value>,
    model: &Value,
    origin: &str,
    notes: &mut Vec<String>,
) -> Result<HfTokenizer> {
    let bytes = file(files, "tokenizer.json").unwrap_or_default();
    let mut whole = serde_json::from_slice::<Value>(bytes)
        .map_err(|e| unusable("tokenizer.json", origin, &e))?;
    let mut changed = false;
    if let Some(dropout) = whole.pointer_mut("/model/dropout").filter(|d| !d.is_null()) {
        notes.push(format!(
            "tokenizer.json of {origin}: BPE dropout of {dropout} is off, so that a text always \
             has the same tokens"
        ));
        *dropout = Value::Null;
        changed = true;
    }
    // These classes take spaces from the configuration, whatever tokenizer.json says.
    let class = class_of(config, model);
    if REBUILT.contains(&class) {
        let wanted = config.get("add_prefix_space") == Some(&Value::Bool(true));
        changed |= set_prefix_space(&mut whole["pre_tokenizer"], wanted);
    }
    // This one puts nothing before or behind a text where there is a tokenizer.json.
    if class == "GPTNeoXTokenizer" && !whole["post_processor"].is_null() {
        whole["post_processor"] = Value::Null;
        changed = true;
    }
    let written = changed.then(|| whole.to_string());
    let bytes = written.as_deref().map_or(bytes, str::as_bytes);
    tokenizer_of(&whole, bytes, "tokenizer.json", origin)
}

/// Classes of `transformers` that build their tokenizer anew from the vocabulary in
/// `tokenizer.json`.
const REBUILT: [&str; 5] =
    ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "CohereTokenizer"];

/// The class that `AutoTokenizer` takes beside a `tokenizer.json`, without "Fast": some models'
/// own, else the one that the configuration names, else the model type's. Empty for the plain one.
fn class_of<'a>(config: &'a Map<String, Value>, model: &'a Value) -> &'a str {
    let model_type = model.get("model_type").and_then(Value::as_str).unwrap_or_default();
    match model_type {
        "qwen2" => return "Qwen2Tokenizer",
        "mistral" | "phi3" => return "",
        _ => {}
    }
    if let Some(class) = named_class(config, model) {
        return class;
    }
    match model_type {
        "gpt2" | "opt" | "gptj" | "gpt_neo" | "codegen" => "GPT2Tokenizer",
        "gpt_neox" => "GPTNeoXTokenizer",
        "qwen3" => "Qwen2Tokenizer",
        "cohere" => "CohereTokenizer",
        _ => "",
    }
}

/// The class that `tokenizer_config.json` names, or else `config.json`, without "Fast".
pub(super) fn named_class<'a>(config: &'a Map<String, Value>, model: &'a Value) -> Option<&'a str> {
    let class = config.get("tokenizer_class").or_else(|| model.get("tokenizer_class"))?.as_str()?;
    Some(class.strip_suffix("Fast").unwrap_or(class))
}

/// Has the byte-level parts of a pre-tokenizer put a space first, or not. Says whether that is new.
fn set_prefix_space(part: &mut Value, wanted: bool) -> bool {
    if let Some(parts) = part.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        return parts.iter_mut().fold(false, |new, part| set_prefix_space(part, wanted) | new);
    }
    let bytes = part["type"] == "ByteLevel";
    match part.get_mut("add_prefix_space") {
        Some(Value::Bool(is)) if bytes && *is != wanted => {
            *is = wanted;
            true
        }
        _ => false,
    }
}

fn unusable(name: &str, origin: &str, e: &dyn std::fmt::Display) -> Error {
    Error::user(format!("{name} of {origin} cannot be used: {e}"))
}

/// The tokenizer that `whole`, in `bytes` as text, describes; `name` is the file's, for errors.
pub(super) fn tokenizer_of(
    whole: &Value,
    bytes: &[u8],
    name: &str,
    origin: &str,
) -> Result<HfTokenizer> {
    let fail = |e: tokenizers::Error| unusable(name, origin, &e);
    // The library panics on some files: on broken JSON where it expects a decoder, hence the look
    // at the whole first, and on some broken tables.
    if let Some(why) = refusal(whole) {
        return Err(unusable(name, origin, &why));
    }
    let whose = format!("{name} of {origin}");
    let read = || catch_panic(|| HfTokenizer::from_bytes(bytes));
    let mut tokenizer = bounded(&whose, bytes.len(), read)
        .ok_or_else(|| unusable(name, origin, &"a table in it is broken"))?
        .map_err(fail)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(fail)?;
    Ok(tokenizer)
}

/// `tokenizer_config.json` with `special_tokens_map.json`. As in `transformers`, the second counts
/// more where the first is so old that it has no `added_tokens_decoder`.
pub(super) fn config_of(files: &Files, origin: &str) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(bytes) = file(files, name) else { continue };
        match parse(&format!("{name} of {origin}"), bytes)? {
            Value::Object(object) => {
                let newer = config.contains_key("added_tokens_decoder");
                for (key, value) in object.into_iter().filter(|(_, v)| !v.is_null()) {
                    match newer {
                        true => drop(config.entry(key).or_insert(value)),
                        false => drop(config.insert(key, value)),
                    }
                }
            }
            _ => return Err(Error::user(format!("{name} of {origin} is not a JSON object"))),
        }
    }
    Ok(config)
}

/// Refuses a configuration that names other files than `tokenizer.json`, by version: `transformers`
/// reads one of them instead.
pub(super) fn check_versions(config: &Map<String, Value>, origin: &str) -> Result<()> {
    let names = config.get("fast_tokenizer_files").and_then(Value::as_array).into_iter().flatten();
    let version = |n: &&str| n.starts_with("tokenizer.") && *n != "tokenizer.json";
    match names.filter_map(Value::as_str).find(version) {
        None => Ok(()),
        Some(name) => Err(Error::user(format!(
            "tokenizer_config.json of {origin}: fast_tokenizer_files names {name}, which Duplex \
             does not read; save the tokenizer again with \
             `AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
        ))),
    }
}

/// The text of a special token: a string, or an object with its `content`.
pub(super) fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    let text = content(config.get(key)?)?;
    Some(text.to_owned()).filter(|t| !t.is_empty())
}

fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The special tokens that transformers gives a chat template, by name: `bos_token` and whatever
/// else ends in `_token`, and the named ones in `extra_special_tokens`. One that is not set is not
/// there.
pub(super) fn special_variables(config: &Map<String, Value>) -> Map<String, Value> {
    let named = config.iter().filter(|(key, _)| key.ends_with("_token"));
    let extra = config.get("extra_special_tokens").and_then(Value::as_object);
    named
        .chain(extra.into_iter().flatten())
        .filter_map(|(k, v)| Some((k.clone(), content(v)?.into())))
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

/// The text of a template's file.
fn template_text(files: &Files, name: &str, origin: &str) -> Result<Option<String>> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::user(format!("{name} of {origin} is not UTF-8")))
    };
    file(files, name).map(text).transpose()
}

/// The chat templates by name, as `transformers` finds them: files, of which
/// `additional_chat_templates/default.jinja` goes before `chat_template.jinja`; where there are
/// none, the key `chat_template` of a JSON file: one text, or named ones. One text is "default".
pub(super) fn chat_templates(
    files: &Files,
    config: &Map<String, Value>,
    origin: &str,
) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    if let Some(text) = template_text(files, "chat_template.jinja", origin)? {
        found.insert("default".to_owned(), text);
    }
    for (path, _) in files.iter() {
        let name = path.strip_prefix(MORE_TEMPLATES).and_then(|n| n.strip_prefix('/'));
        let name = name.and_then(|n| n.strip_suffix(".jinja"));
        if let (Some(name), Some(text)) = (name, template_text(files, path, origin)?) {
            found.insert(name.to_owned(), text);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let older = match file(files, "chat_template.json") {
        Some(bytes) => parse(&format!("chat_template.json of {origin}"), bytes)?,
        None => Value::Null,
    };
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let named: Option<BTreeMap<String, String>> =
        match config.get("chat_template").or_else(|| older.get("chat_template")) {
            None | Some(Value::Null) => Some(found),
            Some(Value::String(one)) => Some([("default".to_owned(), one.clone())].into()),
            Some(Value::Array(named)) => {
                named.iter().map(|t| Some((text(&t["name"])?, text(&t["template"])?))).collect()
            }
            Some(Value::Object(named)) => {
                named.iter().map(|(name, t)| Some((name.clone(), text(t)?))).collect()
            }
            Some(_) => None,
        };
    named.ok_or_else(|| {
        Error::user(format!(
            "chat_template of {origin} is neither text nor a list of named templates"
        ))
    })
}

/// Ids that the tokenizer puts before a text: seen by encoding one with and without special tokens.
/// An error where one of them is no token.
pub(super) fn bos_prefix(tokenizer: &HfTokenizer, whose: &str) -> Result<Vec<i32>> {
    let ids = |special| -> Result<Vec<u32>> {
        let encoding = using(whose, 1, || tokenizer.encode_fast("a", special))?;
        Ok(encoding.get_ids().to_vec())
    };
    let (bare, dressed) = (ids(false)?, ids(true)?);
    let at = dressed.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
    let prefix = &dressed[..at];
    match prefix.iter().find(|id| tokenizer.id_to_token(**id).is_none()) {
        None => Ok(prefix.iter().map(|&id| id as i32).collect()),
        Some(id) => Err(Error::user(format!(
            "{whose}: its post_processor puts the id {id} before every text, which no token has"
        ))),
    }
}

/// A warning where `add_bos_token` asks for another `prefix` than `tokenizer.json` writes: that one
/// counts, as in `transformers`.
pub(super) fn bos_note(
    config: &Map<String, Value>,
    bos: Option<i32>,
    prefix: &[i32],
    origin: &str,
) -> Option<String> {
    let wanted = config.get("add_bos_token").and_then(Value::as_bool)?;
    let is = bos.is_some_and(|bos| prefix.contains(&bos));
    (bos.is_some() && wanted != is).then(|| {
        format!(
            "tokenizer_config.json of {origin}: add_bos_token {wanted} has no effect beside \
             tokenizer.json, as in transformers; what its post_processor writes counts"
        )
    })
}
