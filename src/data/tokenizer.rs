//! The tokenizer: text to ids and back, with the special tokens and the chat template that come
//! with it in Hugging Face's files. Texts of users never turn into control tokens unless asked.
//! It knows nothing of rows and batches.

use super::template::{ChatTemplate, Rendering, TemplateInput};
use super::tokenizer_added::add_tokens;
use super::tokenizer_build::Kind;
use super::tokenizer_encode::{Encoded, Matcher};
use super::tokenizer_files::{
    MAX_FILE, MORE_TEMPLATES, absent, bos_note, bos_prefix, chat_templates, check_versions,
    config_of, end_ids, file, inner_tokenizer, parse, source_of, special_variables, token_text,
    tokenizer_of,
};
use super::tokenizer_keys::key_notes;
use crate::base::{Error, Result, entries, is_there, read_if_there};
use crate::formats::OutDir;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

/// Files a tokenizer may consist of; all that are there are kept, so that saving loses nothing.
const FILES: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.txt",
];

/// A tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    inner: HfTokenizer,
    /// Finds added tokens in text.
    matcher: Matcher,
    /// Id and text of every control token.
    controls: HashMap<u32, String>,
    bos_prefix: Vec<i32>,
    eos: i32,
    pad: i32,
    stop_ids: Vec<i32>,
    turn_end: i32,
    turn_end_text: String,
    eos_text: String,
    template: Option<ChatTemplate>,
    tool_template: Option<ChatTemplate>,
    /// The names of all chat templates. Only "default" and "tool_use" are used.
    template_names: Vec<String>,
    /// Ids that stand for nothing: special tokens that only a configuration names.
    idle: HashSet<u32>,
    notes: Vec<String>,
    origin: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model directory. Errors name the file and the way out.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        Self::load_at(dir, now())
    }

    /// Loads with the time that the chat template's `strftime_now` tells: seconds since 1970, UTC.
    pub fn load_at(dir: &Path, now: i64) -> Result<Tokenizer> {
        let at = dir.display();
        if !Self::is_in(dir)? {
            return Err(absent(dir));
        }
        let mut names: Vec<String> = FILES.map(str::to_owned).to_vec();
        let more = dir.join(MORE_TEMPLATES);
        if is_there(&more)? {
            let all = entries(&more)?;
            let all = all.iter().filter_map(|p| p.file_name()?.to_str());
            let templates = all.filter(|n| n.ends_with(".jinja"));
            names.extend(templates.map(|n| format!("{MORE_TEMPLATES}/{n}")));
        }
        let mut files = Vec::new();
        for name in names {
            if let Some(bytes) = read_if_there(&dir.join(&name), MAX_FILE)? {
                files.push((name, bytes));
            }
        }
        // These two belong to the model: read for their end tokens and its kind, not kept.
        let mut model_stops = Vec::new();
        let mut model = Value::Null;
        for name in ["generation_config.json", "config.json"] {
            let path = dir.join(name);
            if let Some(bytes) = read_if_there(&path, MAX_FILE)? {
                model = parse(&path.display().to_string(), &bytes)?;
                model_stops.extend(end_ids(&model));
            }
        }
        Self::from_files(files, &model, &model_stops, &at.to_string(), now)
    }

    /// True if a directory has a tokenizer of its own.
    pub fn is_in(dir: &Path) -> Result<bool> {
        let has = |name: &str| is_there(&dir.join(name));
        Ok(has("tokenizer.json")? || has("vocab.json")? && has("merges.txt")?)
    }

    /// A tokenizer made in code, with the texts of its end-of-sequence (also padding) token and of
    /// its first token, if it has one, and a chat template.
    pub fn from_parts(
        inner: &HfTokenizer,
        eos: &str,
        bos: Option<&str>,
        chat_template: Option<&str>,
    ) -> Result<Tokenizer> {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "pad_token": eos,
            "add_bos_token": bos.is_some(),
            "clean_up_tokenization_spaces": false,
        });
        if let Some(bos) = bos {
            config["bos_token"] = json!(bos);
        }
        if let Some(template) = chat_template {
            config["chat_template"] = json!(template);
        }
        let origin = "the tokenizer made in code";
        if inner.token_to_id(eos).is_none() {
            return Err(no_end(origin));
        }
        let mut inner = inner.clone();
        if let (Some(_), Value::Object(config)) = (bos, &config) {
            let first = Kind::Gpt2.post_processor(config, &inner)?;
            inner.with_post_processor(first);
        }
        let tokenizer =
            inner.to_string(true).map_err(|e| Error::internal(format!("tokenizer: {e}")))?;
        let files = vec![
            ("tokenizer.json".to_owned(), tokenizer.into_bytes()),
            ("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes()),
        ];
        Self::from_files(files, &Value::Null, &[], origin, now())
    }

    /// Trains a byte-level BPE tokenizer of at most `vocab_size` tokens: `special` first (its first
    /// is the end-of-sequence and padding token), then the 256 bytes, then merges. The same texts
    /// give the same tokenizer.
    pub fn byte_level_bpe<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocab_size: usize,
        special: &[&str],
        chat_template: Option<&str>,
    ) -> Result<Tokenizer> {
        let Some(eos) = special.first() else {
            return Err(Error::internal("byte_level_bpe needs an end-of-sequence token"));
        };
        let least = 256 + special.len();
        if vocab_size < least {
            let message = format!("vocabulary size {vocab_size} is too small; use {least} or more");
            return Err(Error::user(message));
        }
        let failed = |e: tokenizers::Error| Error::internal(format!("training a tokenizer: {e}"));
        let mut inner = HfTokenizer::new(BPE::default());
        let bytes = ByteLevel::new(false, true, true);
        inner.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special.iter().map(|s| AddedToken::from(*s, true)).collect())
            .build()
            .into();
        inner.train(&mut trainer, texts).map_err(failed)?;
        Self::from_parts(&inner, eos, None, chat_template)
    }

    /// `model` is the model's `config.json`, `model_stops` its end tokens' ids.
    fn from_files(
        mut files: Vec<(String, Vec<u8>)>,
        model: &Value,
        model_stops: &[i32],
        origin: &str,
        now: i64,
    ) -> Result<Tokenizer> {
        let mut config = config_of(&files, origin)?;
        check_versions(&config, origin)?;
        let mut notes = key_notes(&config, origin);
        let whose = source_of(&files, origin);
        let (inner, idle) = match file(&files, "tokenizer.json") {
            Some(_) => {
                let mut inner = inner_tokenizer(&files, &config, model, origin, &mut notes)?;
                if let Ok(kind) = Kind::of(&config, model, origin) {
                    kind.complete(&mut config, &inner, false);
                }
                let added = add_tokens(&mut inner, &files, &config, origin)?;
                notes.extend(added.notes);
                (inner, added.idle)
            }
            None => built(&mut files, &mut config, model, origin, &mut notes)?,
        };
        let text = |key| token_text(&config, key);
        let id = |text: &Option<String>| {
            let id = text.as_ref().and_then(|t| inner.token_to_id(t));
            id.filter(|id| !idle.contains(id)).map(|id| id as i32)
        };
        let (eos_token, bos, pad) = (text("eos_token"), text("bos_token"), text("pad_token"));
        // A model's end token that the tokenizer lacks can be neither put in nor come out as text.
        let known = |id: &i32| inner.id_to_token(*id as u32).is_some();
        let model_stops: Vec<i32> = model_stops.iter().copied().filter(known).collect();
        let Some(eos) = id(&eos_token).or(model_stops.first().copied()) else {
            return Err(no_end(origin));
        };
        let pad = id(&pad).unwrap_or(eos);
        let eos_text = token_letters(&inner, eos);
        let named = [eos, pad, id(&bos).unwrap_or(eos)];
        let mut controls = control_tokens(&inner, &named, text("unk_token"));
        controls.extend(chat_controls(&config, &inner));
        controls.retain(|id, _| !idle.contains(id));
        let bos_prefix = bos_prefix(&inner, &whose)?;
        notes.extend(bos_note(&config, id(&bos), &bos_prefix, origin));
        let variables = special_variables(&config);
        let template = |source: Option<String>| {
            source.map(|t| ChatTemplate::new(&t, origin, &variables, now)).transpose()
        };
        let mut named = chat_templates(&files, &config, origin)?;
        let template_names = named.keys().cloned().collect();
        let tool_template = template(named.remove("tool_use"))?;
        let source = named.remove("default");
        let template = template(source.clone())?;
        if let Some(source) = source {
            renew_template(&mut files, &config, source);
        }
        let unknown = text("unk_token").and_then(|t| inner.token_to_id(&t));
        let matcher = Matcher::new(&inner, &controls, &idle, unknown, &whose)?;
        let mut tokenizer = Tokenizer {
            inner,
            matcher,
            controls,
            bos_prefix,
            eos,
            pad,
            stop_ids: [&[eos], &model_stops[..]].concat(),
            turn_end: eos,
            turn_end_text: eos_text.clone(),
            eos_text,
            template,
            tool_template,
            template_names,
            idle,
            notes,
            origin: origin.to_owned(),
            files,
        };
        tokenizer.settle_turn_end(unknown, &whose)?;
        Ok(tokenizer)
    }

    /// Finds the token that ends a turn, which is a control token and stops generation.
    fn settle_turn_end(&mut self, unknown: Option<u32>, whose: &str) -> Result<()> {
        self.turn_end = self.find_turn_end(unknown);
        self.turn_end_text = token_letters(&self.inner, self.turn_end);
        if !self.is_control(self.turn_end) {
            self.controls.insert(self.turn_end as u32, self.turn_end_text.clone());
            let (controls, idle) = (&self.controls, &self.idle);
            self.matcher = Matcher::new(&self.inner, controls, idle, unknown, whose)?;
        }
        self.stop_ids.push(self.turn_end);
        self.stop_ids.sort_unstable();
        self.stop_ids.dedup();
        Ok(())
    }

    /// The ids of `text`, without what the tokenizer puts first (see [`Tokenizer::bos_prefix`]).
    /// Special tokens inside it are control tokens only where `allow_special`, else plain text.
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<i32>> {
        let all = 0..text.len();
        let literal = if allow_special { &[][..] } else { std::slice::from_ref(&all) };
        self.matcher.ids(&self.inner, text, literal)
    }

    /// Encodes `text` in one pass, without [`Tokenizer::bos_prefix`]. Control tokens count, except
    /// in the byte ranges `literal` (sorted, disjoint), where their letters are plain text. A
    /// control token that only partly stands in a literal range is plain text too.
    pub fn encode_guarded(&self, text: &str, literal: &[Range<usize>]) -> Result<Encoded> {
        self.matcher.encode(&self.inner, text, literal)
    }

    pub(super) fn is_control(&self, id: i32) -> bool {
        self.controls.contains_key(&(id as u32))
    }

    /// The ids the tokenizer puts before every text: OPT's `</s>`, LLaMA's `<s>`, often none. Chat
    /// templates write them themselves.
    pub fn bos_prefix(&self) -> &[i32] {
        &self.bos_prefix
    }

    /// The text of `ids`, where asked without special tokens. Unknown ids are left out.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.matcher.decode(&self.inner, &ids, skip_special)
    }

    /// Decodes one token at a time, for a chat.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// Largest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.filter(|id| !self.idle.contains(id)).max().map_or(0, |id| id as usize + 1)
    }

    /// True if both tokenizers give every token the same id.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// An error unless the model's embedding has a row for every token.
    pub fn check_vocab(&self, embedding_rows: usize) -> Result<()> {
        let size = self.vocab_size();
        match size <= embedding_rows {
            true => Ok(()),
            false => Err(Error::user(format!(
                "the tokenizer of {} has {size} tokens, but the model's embedding has \
                 {embedding_rows} rows; use the tokenizer that belongs to the model",
                self.origin
            ))),
        }
    }

    /// Id of the end-of-sequence token.
    pub fn eos_id(&self) -> i32 {
        self.eos
    }

    /// Text of the end-of-sequence token.
    pub fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// Id of the padding token; the end-of-sequence token where there is none.
    pub fn pad_id(&self) -> i32 {
        self.pad
    }

    /// Id that ends the assistant's turn in the chat template; without one, the end of sequence.
    pub fn turn_end_id(&self) -> i32 {
        self.turn_end
    }

    /// Text of the token that ends the assistant's turn.
    pub fn turn_end_text(&self) -> &str {
        &self.turn_end_text
    }

    /// Warnings about the files it was read from, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All ids that end an answer, sorted: the tokenizer's, the model's, and the turn's end.
    pub fn stop_ids(&self) -> &[i32] {
        &self.stop_ids
    }

    /// Where it came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// True if the tokenizer has any chat template, even one that no conversation uses.
    pub fn has_chat_template(&self) -> bool {
        !self.template_names.is_empty()
    }

    /// The chat template, or an error that tells how to get one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            let names: Vec<String> = self.template_names.iter().map(|n| format!("{n:?}")).collect();
            let (has, put) = match names.len() {
                0 => ("no chat template".to_owned(), "one"),
                _ => (
                    format!(
                        "chat templates named {}, and none named \"default\"",
                        names.join(", ")
                    ),
                    "the one that is meant",
                ),
            };
            Error::user(format!(
                "the tokenizer of {} has {has}; put {put} in its chat_template.jinja, or use \
                 --chat-format human_assistant",
                self.origin
            ))
        })
    }

    /// The chat template of a conversation: with tools the one named "tool_use", if there is one.
    pub fn template_for(&self, tools: bool) -> Result<&ChatTemplate> {
        let own = self.tool_template.as_ref().filter(|_| tools);
        own.map_or_else(|| self.template(), Ok)
    }

    /// The letters of every control token in `text`, in order. Overlapping ones are joined.
    pub fn controls_in(&self, text: &str) -> Vec<Range<usize>> {
        self.matcher.controls_in(text)
    }

    /// Writes the tokenizer's files to a directory, as they were read. One that was built from
    /// `vocab.json` and `merges.txt` also gets a `tokenizer.json`, which everything loads.
    pub fn save(&self, dir: &OutDir) -> Result<()> {
        self.files.iter().try_for_each(|(name, bytes)| match name.split_once('/') {
            Some((inside, name)) => dir.sub(inside)?.write_bytes(name, bytes),
            None => dir.write_bytes(name, bytes),
        })
    }

    /// Renders a small conversation and looks which added token follows the answer: special or not,
    /// since many a model's `<|im_end|>` is not. Runs of spaces, which some vocabularies add, and
    /// the unknown token end nothing.
    fn find_turn_end(&self, unknown: Option<u32>) -> i32 {
        const ANSWER: &str = "ANSWER";
        // Some templates demand a system message.
        let chat = [
            json!({"role": "system", "content": "instruction"}),
            json!({"role": "user", "content": "question"}),
            json!({"role": "assistant", "content": ANSWER}),
        ];
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let ends = |id: i32| {
            let token = added.get(&(id as u32)).filter(|_| Some(id as u32) != unknown);
            id == self.eos || token.is_some_and(|t| !t.content.trim().is_empty())
        };
        let chat = chat.each_ref();
        for messages in [&chat[1..], &chat] {
            let input = TemplateInput { messages, ..TemplateInput::default() };
            let template = self.template.as_ref().or(self.tool_template.as_ref());
            let rendered = template.map(|t| t.render(&input));
            let Some(Ok(Rendering { text, .. })) = rendered else { continue };
            let Some(at) = text.rfind(ANSWER) else { continue };
            let Ok(encoded) = self.encode_guarded(&text, &[]) else { continue };
            let mut tokens = encoded.ids.into_iter().zip(encoded.offsets);
            let end = tokens.find(|(id, range)| range.start >= at + ANSWER.len() && ends(*id));
            return end.map_or(self.eos, |(id, _)| id);
        }
        self.eos
    }
}

fn no_end(origin: &str) -> Error {
    Error::user(format!(
        "the tokenizer of {origin} has no end-of-sequence token; set \"eos_token\" in its \
         tokenizer_config.json"
    ))
}

/// The text of a token as it stands in a text; the library normalizes that of some added tokens.
fn token_letters(tokenizer: &HfTokenizer, id: i32) -> String {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&(id as u32));
    let text = added.map(|t| t.content.clone());
    text.or_else(|| tokenizer.id_to_token(id as u32)).unwrap_or_default()
}

/// Builds a tokenizer from `vocab.json` and `merges.txt`, adds its `tokenizer.json` to `files` and
/// the special tokens of its class to `config`. Returns the idle ids too.
fn built(
    files: &mut Vec<(String, Vec<u8>)>,
    config: &mut Map<String, Value>,
    model: &Value,
    origin: &str,
    notes: &mut Vec<String>,
) -> Result<(HfTokenizer, HashSet<u32>)> {
    let kind = Kind::of(config, model, origin)?;
    let whole = kind.build(files, config, origin)?;
    let bytes = whole.to_string().into_bytes();
    let mut inner = tokenizer_of(&whole, &bytes, "vocab.json with merges.txt", origin)?;
    kind.complete(config, &inner, true);
    let added = add_tokens(&mut inner, files, config, origin)?;
    notes.extend(added.notes);
    let processor = kind.post_processor(config, &inner)?;
    inner.with_post_processor(processor);
    let json = inner.to_string(true).map_err(|e| Error::internal(format!("tokenizer: {e}")))?;
    files.push(("tokenizer.json".to_owned(), json.into_bytes()));
    Ok((inner, added.idle))
}

/// Adds the template as a file of today's where it comes from one of old: `transformers` does not
/// read that for a tokenizer, and what is saved must not depend on it.
fn renew_template(files: &mut Vec<(String, Vec<u8>)>, config: &Map<String, Value>, source: String) {
    let older = file(files, "chat_template.json").is_some();
    let newer = config.contains_key("chat_template")
        || files.iter().any(|(name, _)| name.ends_with(".jinja"));
    if older && !newer {
        files.push(("chat_template.jinja".to_owned(), source.into_bytes()));
    }
}

/// The tokens that the config names as control tokens of conversations.
fn chat_controls(config: &Map<String, Value>, inner: &HfTokenizer) -> Vec<(u32, String)> {
    let named = config.get("chat_control_tokens").and_then(Value::as_array);
    let texts = named.into_iter().flatten().filter_map(Value::as_str);
    texts.filter_map(|text| Some((inner.token_to_id(text)?, text.to_owned()))).collect()
}

/// The added tokens marked special and the `named` ones. The unknown token is none of them unless
/// it is also one of the named: it stands for text and may come out of any.
fn control_tokens(
    tokenizer: &HfTokenizer,
    named: &[i32],
    unknown: Option<String>,
) -> HashMap<u32, String> {
    let added = tokenizer.get_added_tokens_decoder();
    let special =
        added.into_iter().filter(|(_, t)| t.special && Some(&t.content) != unknown.as_ref());
    let mut controls: HashMap<u32, String> = special.map(|(id, t)| (id, t.content)).collect();
    for &id in named {
        if let Some(text) = tokenizer.id_to_token(id as u32) {
            controls.insert(id as u32, text);
        }
    }
    controls
}

/// Seconds since 1970. `SOURCE_DATE_EPOCH` overrides the clock, for runs that must repeat exactly
/// under a template that writes the date.
pub fn now() -> i64 {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse().ok());
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
    fixed.unwrap_or_else(clock)
}

/// Tokens a stream holds back at most.
const MOST_PENDING: usize = 16;

/// Bytes of a UTF-8 character at most, hence tokens too.
const CHARACTER_BYTES: usize = 4;

/// Text that grows by one token at a time and never shows half a character.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The tokens since the last whole text, and before them those that give it its context.
    ids: Vec<i32>,
    /// How many of `ids` are shown already.
    shown: usize,
}

impl TextStream<'_> {
    /// Takes one token; returns the text it completes, perhaps none.
    pub fn push(&mut self, id: i32) -> Result<String> {
        self.ids.push(id);
        let new = self.since_shown(&self.ids)?;
        // A byte-level decoder turns an unfinished character into U+FFFD.
        if !new.is_empty() && !new.ends_with('\u{fffd}') {
            self.show(self.ids.len());
            return Ok(new);
        }
        if self.ids.len() - self.shown < MOST_PENDING {
            return Ok(String::new());
        }
        // No character has so many bytes: all but its last possible ones are broken, or they are
        // special tokens left out. Kept, they would be decoded again with every token.
        let end = self.ids.len() - CHARACTER_BYTES;
        let new = self.since_shown(&self.ids[..end])?;
        self.show(end);
        Ok(new)
    }

    /// Takes all before `end` as shown, and what was shown before no longer as context.
    fn show(&mut self, end: usize) {
        self.ids.drain(..self.shown);
        self.shown = end - self.shown;
    }

    /// The rest at the end of the text, broken characters as U+FFFD.
    pub fn finish(self) -> Result<String> {
        self.since_shown(&self.ids)
    }

    /// Returns the text that `ids`, a prefix of `self.ids`, adds to the text already shown.
    fn since_shown(&self, ids: &[i32]) -> Result<String> {
        let decode = |ids| self.tokenizer.decode(ids, self.skip_special);
        let (old, all) = (decode(&self.ids[..self.shown])?, decode(ids)?);
        match all.strip_prefix(old.as_str()) {
            Some(new) => Ok(new.to_owned()),
            // Decoders of single bytes give up on the whole run of bytes around a broken one; what
            // was shown stays as it is.
            None => decode(&ids[self.shown..]),
        }
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "tokenizer_layout_tests.rs"]
mod layout_tests;

#[cfg(test)]
#[path = "tokenizer_golden_tests.rs"]
mod golden_tests;
