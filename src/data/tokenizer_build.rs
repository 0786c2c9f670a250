//! Byte-level BPE tokenizers from `vocab.json` and `merges.txt`, the files of GPT-2, OPT, GPT-Neo,
//! CodeGen, RoBERTa and Qwen2, as the classes of `transformers` build them.

use super::tokenizer_files::{Files, file, named_class, parse, token_text};
use crate::base::{Error, Result};
use serde_json::{Map, Value, json};
use tokenizers::{PostProcessorWrapper, Tokenizer as HfTokenizer};

/// Qwen2's words, as `transformers` has them.
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Special tokens of a class that its files need not name.
const GPT2_TOKENS: [(&str, &str); 3] = [
    ("bos_token", "<|endoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
];
const QWEN2_TOKENS: [(&str, &str); 3] = [
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];
const ROBERTA_TOKENS: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];

/// The kinds of tokenizer that these two files can mean.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Gpt2,
    Qwen2,
    Roberta,
}

impl Kind {
    /// The kind that `tokenizer_class` names, or where it says nothing, `model_type` of the model's
    /// `config.json`. An error names what cannot be built.
    pub(super) fn of(config: &Map<String, Value>, model: &Value, origin: &str) -> Result<Kind> {
        let class = named_class(config, model).unwrap_or_default();
        let model_type = model.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let by_type = || match model_type {
            "opt" | "gpt2" | "gpt_neo" | "gptj" | "gpt_bigcode" | "codegen" => Some(Kind::Gpt2),
            "roberta" | "bart" | "longformer" => Some(Kind::Roberta),
            t if t.starts_with("qwen2") || t.starts_with("qwen3") => Some(Kind::Qwen2),
            _ => None,
        };
        let kind = match class {
            "GPT2Tokenizer" | "CodeGenTokenizer" => Some(Kind::Gpt2),
            "Qwen2Tokenizer" => Some(Kind::Qwen2),
            "RobertaTokenizer" | "BartTokenizer" | "LongformerTokenizer" => Some(Kind::Roberta),
            "" | "PreTrainedTokenizer" | "TokenizersBackend" => by_type(),
            _ => None,
        };
        kind.ok_or_else(|| {
            Error::user(format!(
                "{origin} has vocab.json and merges.txt, but a tokenizer_class of \"{class}\" and \
                 a model_type of \"{model_type}\" do not say how to read them; save a \
                 tokenizer.json there with `AutoTokenizer.from_pretrained(...).save_pretrained\
                 ({origin:?})`"
            ))
        })
    }

    /// Completes `config` by the special tokens of the class that the vocabulary has: `all`, or
    /// those that begin and end a text.
    pub(super) fn complete(
        self,
        config: &mut Map<String, Value>,
        tokenizer: &HfTokenizer,
        all: bool,
    ) {
        let tokens = match self {
            Kind::Gpt2 => &GPT2_TOKENS[..],
            Kind::Qwen2 => &QWEN2_TOKENS,
            Kind::Roberta => &ROBERTA_TOKENS,
        };
        let wanted = |key: &str| all || key == "bos_token" || key == "eos_token";
        for (key, text) in tokens.iter().filter(|(key, _)| wanted(key)) {
            if !config.contains_key(*key) && tokenizer.token_to_id(text).is_some() {
                config.insert((*key).to_owned(), json!(text));
            }
        }
    }

    /// `tokenizer.json` with the two files' vocabulary and without special tokens.
    pub(super) fn build(
        self,
        files: &Files,
        config: &Map<String, Value>,
        origin: &str,
    ) -> Result<Value> {
        let prefix_space = config.get("add_prefix_space") == Some(&Value::Bool(true));
        let bytes = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true,
                "use_regex": use_regex})
        };
        let words = json!({"type": "Split", "pattern": {"Regex": QWEN2_WORDS},
            "behavior": "Isolated", "invert": false});
        let (normalizer, pre_tokenizer) = match self {
            Kind::Qwen2 => (
                json!({"type": "NFC"}),
                json!({"type": "Sequence", "pretokenizers": [words, bytes(false)]}),
            ),
            Kind::Gpt2 | Kind::Roberta => (Value::Null, bytes(true)),
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary(files, origin)?, "merges": merges(files, origin)?},
        }))
    }

    /// The tokens put before and behind a text, by `add_bos_token`, `add_eos_token` or the class.
    pub(super) fn post_processor(
        self,
        config: &Map<String, Value>,
        tokenizer: &HfTokenizer,
    ) -> Result<Option<PostProcessorWrapper>> {
        let token = |key: &str| {
            let text = token_text(config, key)?;
            Some((tokenizer.token_to_id(&text)?, text))
        };
        let wanted = |key: &str| config.get(key) == Some(&Value::Bool(true));
        let always = self == Kind::Roberta;
        let first = token("bos_token").filter(|_| always || wanted("add_bos_token"));
        let last = token("eos_token").filter(|_| always || wanted("add_eos_token"));
        if first.is_none() && last.is_none() {
            return Ok(None);
        }
        let part = |token: &Option<(u32, String)>, id: usize| -> Option<Value> {
            let (_, text) = token.as_ref()?;
            Some(json!({"SpecialToken": {"id": text, "type_id": id}}))
        };
        let text = |name: &str, id: usize| Some(json!({"Sequence": {"id": name, "type_id": id}}));
        let one = [part(&first, 0), text("A", 0), part(&last, 0)];
        let two = [part(&first, 1), text("B", 1), part(&last, 1)];
        let single: Vec<&Value> = one.iter().flatten().collect();
        let pair: Vec<&Value> = one.iter().chain(&two).flatten().collect();
        let known = |(id, text): &(u32, String)| {
            (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))
        };
        let special: Map<String, Value> =
            [&first, &last].into_iter().flatten().map(known).collect();
        let processor = json!({"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": special});
        serde_json::from_value(processor)
            .map(Some)
            .map_err(|e| Error::internal(format!("a post-processor: {e}")))
    }
}

fn vocabulary(files: &Files, origin: &str) -> Result<Value> {
    let name = format!("vocab.json of {origin}");
    let vocab = parse(&name, file(files, "vocab.json").unwrap_or_default())?;
    let Value::Object(entries) = &vocab else {
        return Err(Error::user(format!("{name} is not a JSON object of tokens and ids")));
    };
    let is_id = |id: &Value| id.as_u64().is_some_and(|id| id < i32::MAX as u64);
    match entries.iter().find(|(_, id)| !is_id(id)) {
        Some((token, id)) => Err(Error::user(format!("{name}: {token:?} has {id} for an id"))),
        None => Ok(vocab),
    }
}

/// Pairs in the order of the file, which is their rank. The line `#version` is none.
fn merges(files: &Files, origin: &str) -> Result<Vec<Value>> {
    let bytes = file(files, "merges.txt").unwrap_or_default();
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Error::user(format!("merges.txt of {origin} is not UTF-8")))?;
    let pair = |(at, line): (usize, &str)| match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok(json!([a, b])),
        _ => Err(Error::user(format!(
            "merges.txt of {origin} line {}: {line:?} is not a pair of tokens",
            at + 1
        ))),
    };
    let lines = text.lines().enumerate();
    lines.filter(|(_, l)| !l.is_empty() && !l.starts_with("#version")).map(pair).collect()
}
