//! The tokenizer: text to ids and back, with the special tokens and the chat template that come
//! with it in Hugging Face's files. Texts of users never turn into control tokens unless asked.
//! It knows nothing of rows and batches.

use super::template::{ChatTemplate, TemplateInput};
use super::tokenizer_files::{
    bos_prefix, config_of, end_ids, inner_tokenizer, parse, read, special_variables,
    template_source, token_text, using,
};
use crate::base::{Error, Result};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

/// Files a tokenizer may consist of; all that are there are kept, so that saving loses nothing.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Ids, each with the bytes of the text that it came from.
pub struct Encoded {
    /// The ids.
    pub ids: Vec<i32>,
    /// Byte ranges.
    pub offsets: Vec<std::ops::Range<usize>>,
}

/// A tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    /// Finds special tokens in text.
    special: HfTokenizer,
    /// Takes special tokens in text as text.
    plain: HfTokenizer,
    /// Id and text of every control token.
    controls: HashMap<u32, String>,
    bos_prefix: Vec<i32>,
    eos: i32,
    pad: i32,
    stop_ids: Vec<i32>,
    turn_end: i32,
    eos_text: String,
    template: Option<ChatTemplate>,
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
        if !dir.join("tokenizer.json").is_file() {
            return Err(Error::user(format!(
                "no tokenizer.json in {at}; save the tokenizer there with \
                 `AutoTokenizer.from_pretrained(...).save_pretrained({:?})`",
                at.to_string()
            )));
        }
        let mut files = Vec::new();
        for name in FILES {
            if dir.join(name).is_file() {
                files.push((name.to_owned(), read(&dir.join(name))?));
            }
        }
        // These two belong to the model: read for their end tokens, not kept.
        let mut model_stops = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = dir.join(name);
            if path.is_file() {
                model_stops.extend(end_ids(&parse(&path.display().to_string(), &read(&path)?)?));
            }
        }
        Self::from_files(files, &model_stops, &at.to_string(), now)
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
        let tokenizer =
            inner.to_string(true).map_err(|e| Error::internal(format!("tokenizer: {e}")))?;
        let files = vec![
            ("tokenizer.json".to_owned(), tokenizer.into_bytes()),
            ("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes()),
        ];
        Self::from_files(files, &[], "the tokenizer made in code", now())
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

    fn from_files(
        files: Vec<(String, Vec<u8>)>,
        model_stops: &[i32],
        origin: &str,
        now: i64,
    ) -> Result<Tokenizer> {
        let special = inner_tokenizer(&files, origin)?;
        let mut plain = special.clone();
        plain.set_encode_special_tokens(true);
        let config = config_of(&files, origin)?;
        let text = |key| token_text(&config, key);
        let id = |text: &Option<String>| {
            text.as_ref().and_then(|t| special.token_to_id(t)).map(|id| id as i32)
        };
        let (eos_token, bos, pad) = (text("eos_token"), text("bos_token"), text("pad_token"));
        // A model's end token that the tokenizer lacks can be neither put in nor come out as text.
        let known = |id: &i32| special.id_to_token(*id as u32).is_some();
        let model_stops: Vec<i32> = model_stops.iter().copied().filter(known).collect();
        let Some(eos) = id(&eos_token).or(model_stops.first().copied()) else {
            return Err(Error::user(format!(
                "the tokenizer of {origin} has no end-of-sequence token; set \"eos_token\" in its \
                 tokenizer_config.json"
            )));
        };
        let pad = id(&pad).unwrap_or(eos);
        let eos_text = special.id_to_token(eos as u32).unwrap_or_default();
        let controls =
            control_tokens(&special, &[eos, pad, id(&bos).unwrap_or(eos)], text("unk_token"));
        let bos_prefix = bos_prefix(&special, &config, id(&bos))?;
        let template = template_source(&files, &config, origin)?
            .map(|t| ChatTemplate::new(&t, origin, &special_variables(&config), now))
            .transpose()?;
        let mut tokenizer = Tokenizer {
            special,
            plain,
            controls,
            bos_prefix,
            eos,
            pad,
            stop_ids: [&[eos], &model_stops[..]].concat(),
            turn_end: eos,
            eos_text,
            template,
            origin: origin.to_owned(),
            files,
        };
        tokenizer.turn_end = tokenizer.find_turn_end();
        tokenizer.stop_ids.push(tokenizer.turn_end);
        tokenizer.stop_ids.sort_unstable();
        tokenizer.stop_ids.dedup();
        Ok(tokenizer)
    }

    /// The ids of `text`, without what the tokenizer puts first (see [`Tokenizer::bos_prefix`]).
    /// Special tokens inside it are control tokens only where `allow_special`, else plain text.
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<i32>> {
        let ids = encode_with(if allow_special { &self.special } else { &self.plain }, text)?;
        match allow_special || !ids.iter().any(|&id| self.is_control(id)) {
            true => Ok(ids),
            false => self.encode_cut(text),
        }
    }

    /// Encodes `text` with control tokens in it, but for the byte ranges `literal`, whose letters are
    /// plain text.
    pub fn encode_guarded(
        &self,
        text: &str,
        literal: &[std::ops::Range<usize>],
    ) -> Result<Encoded> {
        let mut out = Encoded { ids: vec![], offsets: vec![] };
        let mut at = 0;
        for span in literal.iter().cloned().chain([text.len()..text.len()]) {
            for (range, t) in [(at..span.start, &self.special), (span.clone(), &self.plain)] {
                let e = using(|| t.encode(&text[range.clone()], false))?;
                out.ids.extend(e.get_ids().iter().map(|&i| i as i32));
                out.offsets
                    .extend(e.get_offsets().iter().map(|o| o.0 + range.start..o.1 + range.start));
            }
            at = span.end;
        }
        Ok(out)
    }

    fn is_control(&self, id: i32) -> bool {
        self.controls.contains_key(&(id as u32))
    }

    /// Some vocabularies (unigram, word level) hold the text of a control token as an ordinary
    /// piece. Cutting such a piece in two leaves the model no way to choose it.
    fn encode_cut(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = using(|| self.plain.encode(text, false))?;
        let mut ids = Vec::new();
        let mut start = 0;
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        let mut cuts: Vec<usize> = spans
            .filter(|(id, _)| self.controls.contains_key(id))
            .filter_map(|(_, &(from, to))| {
                let piece = text.get(from..to)?;
                let lead = piece.len() - piece.trim_start().len();
                let first = piece[lead..].chars().next()?;
                Some(from + lead + first.len_utf8())
            })
            .collect();
        cuts.push(text.len());
        for cut in cuts.into_iter().filter(|&c| text.is_char_boundary(c)) {
            if cut > start {
                // A control token of one character cannot be cut; it is left out.
                let piece = encode_with(&self.plain, &text[start..cut])?;
                ids.extend(piece.into_iter().filter(|&id| !self.is_control(id)));
                start = cut;
            }
        }
        Ok(ids)
    }

    /// The ids the tokenizer puts before every text: OPT's `</s>`, LLaMA's `<s>`, often none. Chat
    /// templates write them themselves.
    pub fn bos_prefix(&self) -> &[i32] {
        &self.bos_prefix
    }

    /// The text of `ids`, where asked without special tokens. Unknown ids are left out.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        using(|| self.special.decode(&ids, skip_special))
    }

    /// Decodes one token at a time, for a chat.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// Largest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.special.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Whether both give every token the same id.
    pub fn same_vocabulary(&self, other: &Tokenizer) -> bool {
        self.special.get_vocab(true) == other.special.get_vocab(true)
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

    /// All ids that end an answer, sorted: the tokenizer's, the model's, and the turn's end.
    pub fn stop_ids(&self) -> &[i32] {
        &self.stop_ids
    }

    /// Where it came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether it has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The chat template, or an error that tells how to get one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::user(format!(
                "the tokenizer of {} has no chat template; put one in its chat_template.jinja, or \
                 use --chat-format human_assistant",
                self.origin
            ))
        })
    }

    /// Writes the tokenizer's files to an existing directory, as they were read.
    pub fn save(&self, dir: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, &e))?;
        }
        Ok(())
    }

    /// Texts of the control tokens.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.controls.values().map(String::as_str)
    }

    /// Renders a small conversation and looks which control token follows the answer.
    fn find_turn_end(&self) -> i32 {
        const ANSWER: &str = "ANSWER";
        let chat = [
            json!({"role": "user", "content": "question"}),
            json!({"role": "assistant", "content": ANSWER}),
        ];
        let input = TemplateInput { messages: &chat, ..TemplateInput::default() };
        let after = || -> Option<Vec<i32>> {
            let text = self.template.as_ref()?.render(&input).ok()?.text;
            self.encode(text.rsplit_once(ANSWER)?.1, true).ok()
        };
        let ids = after().unwrap_or_default();
        ids.into_iter().find(|&id| self.is_control(id)).unwrap_or(self.eos)
    }
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

fn encode_with(tokenizer: &HfTokenizer, text: &str) -> Result<Vec<i32>> {
    let encoding = using(|| tokenizer.encode_fast(text, false))?;
    Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
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

    /// What `ids`, a beginning of `self.ids`, add to the text shown.
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
