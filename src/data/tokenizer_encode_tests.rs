use super::*;
use crate::base::Rng;
use crate::data::Tokenizer;
use serde_json::{Value, json};

fn fresh_rng() -> Rng {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    Rng::new(seed, 1)
}

/// Control tokens first, then added tokens that count everywhere.
const CONTROLS: [&str; 5] = ["</s>", "<s>", "<|im_end|>", "[INST]", "<|im_end|> <s>"];
const ADDED: [&str; 3] = ["<think>", "  ", "Añadido"];

fn added(first_id: u32) -> Value {
    let control = |(at, text): (usize, &&str)| {
        json!({"id": first_id as usize + at, "content": text, "single_word": at == 3,
            "lstrip": at == 2, "rstrip": at == 3, "normalized": at == 1, "special": true})
    };
    let other = |(at, text): (usize, &&str)| {
        json!({"id": first_id as usize + CONTROLS.len() + at, "content": text,
            "single_word": at == 2, "lstrip": false, "rstrip": at == 0, "normalized": at != 1,
            "special": false})
    };
    let controls = CONTROLS.iter().enumerate().map(control);
    controls.chain(ADDED.iter().enumerate().map(other)).collect()
}

/// A BPE model with the bytes to fall back on, a few merges, and the text of `</s>` as an entry.
fn bpe(space: &str) -> (Value, u32) {
    let mut vocab = serde_json::Map::new();
    let merges = [(space, "a"), (space, "<"), ("a", "b"), ("<", "s"), ("e", "n"), ("en", "d")];
    let mut entries: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
    entries.extend(["</s>", "<s>", "<unk>"].map(str::to_owned));
    entries.extend((b'!'..=b'~').map(|c| (c as char).to_string()));
    entries.push(space.to_owned());
    entries.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    for entry in entries {
        let id = vocab.len();
        vocab.insert(entry, json!(id));
    }
    let merges: Vec<Value> = merges.iter().map(|(a, b)| json!([a, b])).collect();
    let size = vocab.len() as u32;
    let model = json!({"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": true,
        "unk_token": "<unk>", "fuse_unk": true});
    (model, size)
}

/// A unigram model, which chooses `</s>` where it can: its score is the best.
fn unigram() -> (Value, u32) {
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["</s>", 0.0]), json!(["▁", -2.0])];
    for (at, c) in (b'!'..=b'~').enumerate() {
        vocab.push(json!([(c as char).to_string(), -5.0 - at as f64 / 50.0]));
    }
    vocab.extend([json!(["▁a", -3.0]), json!(["▁<", -4.0]), json!(["end", -4.5])]);
    let size = vocab.len() as u32;
    (json!({"type": "Unigram", "unk_id": 0, "vocab": vocab}), size)
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

/// Tokenizers of every kind that matters here, by name.
fn kinds() -> Vec<(String, HfTokenizer)> {
    let llama2 = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    let nfkc =
        json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
        "use_regex": true});
    let words: Vec<&str> = [&["<unk>", "</s>", "a", "ab", "end", "<s>"][..]].concat();
    let words: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, w)| ((*w).to_owned(), json!(id))).collect();
    let word_level = (json!({"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}), 6);
    let mut kinds = vec![
        ("llama-2".to_owned(), bpe("▁"), llama2, Value::Null),
        ("bytes".to_owned(), bpe("Ġ"), Value::Null, bytes),
        ("words".to_owned(), word_level, nfkc.clone(), json!({"type": "WhitespaceSplit"})),
    ];
    for scheme in ["always", "first", "never"] {
        for split in [true, false] {
            let name = format!("{scheme} {split}");
            kinds.push((format!("BPE {name}"), bpe("▁"), Value::Null, metaspace(scheme, split)));
            kinds.push((format!("uni {name}"), unigram(), nfkc.clone(), metaspace(scheme, split)));
        }
    }
    let built = |(name, (model, size), normalizer, pre): (String, (Value, u32), Value, Value)| {
        let json = json!({"version": "1.0", "added_tokens": added(size), "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": null, "decoder": null, "model": model});
        (name, HfTokenizer::from_bytes(json.to_string()).unwrap())
    };
    kinds.into_iter().map(built).collect()
}

/// Letters of tokens, whole or cut, among words, spaces and characters of every width.
fn random_text(rng: &mut Rng, length: u32) -> String {
    let part = |rng: &mut Rng| -> String {
        let token = match rng.below(2) {
            0 => CONTROLS[rng.below(CONTROLS.len() as u32) as usize],
            _ => ADDED[rng.below(ADDED.len() as u32) as usize],
        };
        match rng.below(9) {
            0..=2 => token.to_owned(),
            3 => token.chars().take(1 + rng.below(3) as usize).collect(),
            4 => token.chars().skip(rng.below(3) as usize).collect(),
            5 => " ".repeat(1 + rng.below(3) as usize),
            6 => ["ab", "a", "end", "END", "x,", "\n"][rng.below(6) as usize].to_owned(),
            7 => ["＜s＞", "é", "e\u{301}", "ﬁ", "▁", "\u{a0}", "😀"][rng.below(7) as usize].into(),
            _ => char::from_u32(rng.below(0x11_0000)).unwrap_or('\u{fffd}').to_string(),
        }
    };
    (0..length).map(|_| part(rng)).collect()
}

fn random_ranges(rng: &mut Rng, text: &str) -> Vec<Range<usize>> {
    let mut at: Vec<usize> = (0..2 * rng.below(4))
        .map(|_| text.floor_char_boundary(rng.below(text.len() as u32 + 1) as usize))
        .collect();
    at.sort_unstable();
    at.chunks(2).map(|pair| pair[0]..pair[1]).filter(|r| !r.is_empty()).collect()
}

fn library(tokenizer: &HfTokenizer, text: &str) -> Vec<i32> {
    let encoding = tokenizer.encode(text, false).unwrap();
    encoding.get_ids().iter().map(|&id| id as i32).collect()
}

#[test]
fn agrees_with_the_library() {
    let mut rng = fresh_rng();
    for (kind, inner) in kinds() {
        let tokenizer = Tokenizer::from_parts(&inner, "</s>", Some("<s>"), None).unwrap();
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let control = |id: &i32| tokenizer.is_control(*id);
        let mut pieces_of_controls = 0;
        for round in 0..300 {
            let text = random_text(&mut rng, round % 30);
            let free = tokenizer.encode_guarded(&text, &[]).unwrap();
            assert_eq!(free.ids, library(&inner, &text), "{kind}: {text:?}");
            assert_eq!(free.ids, tokenizer.encode(&text, true).unwrap());
            let literal =
                tokenizer.encode_guarded(&text, std::slice::from_ref(&(0..text.len()))).unwrap();
            assert_eq!(literal.ids, tokenizer.encode(&text, false).unwrap());
            assert!(!literal.ids.iter().any(control), "{kind}: {text:?}");
            let theirs = library(&plain, &text);
            match theirs.iter().any(control) {
                true => pieces_of_controls += 1,
                false => assert_eq!(literal.ids, theirs, "{kind}: {text:?}"),
            }
        }
        // Vocabularies that hold the control token as a word were met with.
        let holds_words = kind.starts_with("uni") || kind == "words";
        assert_eq!(pieces_of_controls > 0, holds_words, "{kind}");
    }
}

#[test]
fn literal_ranges_are_text_and_offsets_fit() {
    let mut rng = fresh_rng();
    for (kind, inner) in kinds() {
        let tokenizer = Tokenizer::from_parts(&inner, "</s>", Some("<s>"), None).unwrap();
        for round in 0..300 {
            let text = random_text(&mut rng, 1 + round % 30);
            let literal = random_ranges(&mut rng, &text);
            let encoded = tokenizer.encode_guarded(&text, &literal).unwrap();
            assert_eq!(encoded.ids.len(), encoded.offsets.len());
            let mut last = 0..0;
            for (&id, at) in encoded.ids.iter().zip(&encoded.offsets) {
                assert!(text.is_char_boundary(at.start) && text.is_char_boundary(at.end));
                assert!(at.start <= at.end && last.start <= at.start && last.end <= at.end);
                last = at.clone();
                // What `rstrip` takes behind a control token may be literal white space.
                let letters = at.start..at.start + text[at.clone()].trim_end().len();
                let letters = letters.end - text[letters.clone()].trim_start().len()..letters.end;
                assert!(
                    !tokenizer.is_control(id) || overlap(&literal, &letters).is_none(),
                    "{kind}: {id} at {at:?} of {text:?} with {literal:?}"
                );
            }
        }
    }
}

/// The letters of a control token gain no space, and what the template writes still counts.
#[test]
fn one_pass_adds_no_space() {
    for (kind, inner) in kinds() {
        let tokenizer = Tokenizer::from_parts(&inner, "</s>", Some("<s>"), None).unwrap();
        let text = "<s>a</s>b</s>";
        let literal = 3..9;
        let encoded = tokenizer.encode_guarded(text, std::slice::from_ref(&literal)).unwrap();
        let ids = &encoded.ids;
        if kind == "words" {
            // One word, unknown as such.
            assert_eq!(tokenizer.decode(ids, false).unwrap().matches("<unk>").count(), 1);
            continue;
        }
        let piece = |id: &i32| inner.id_to_token(*id as u32).unwrap();
        let pieces: Vec<String> = ids.iter().map(piece).collect();
        let inside = pieces[1..pieces.len() - 1].concat();
        let space = inside.trim_start_matches(['▁', 'Ġ']);
        assert_eq!(space, "a</s>b", "{kind}: {pieces:?}");
        assert_eq!((ids[0], *ids.last().unwrap()), (id(&inner, "<s>"), id(&inner, "</s>")));
        assert_eq!(encoded.offsets[0], 0..3);
        assert_eq!(*encoded.offsets.last().unwrap(), 9..13);
    }
}

fn id(tokenizer: &HfTokenizer, text: &str) -> i32 {
    tokenizer.token_to_id(text).unwrap() as i32
}

/// Tokens that begin in literal text and end outside of it hide none that stand behind them.
#[test]
fn a_token_behind_a_half_literal_one_counts() {
    // Under a normalizer that prepends, the normalized `<s>` is another text.
    let apart = |(kind, _): &(String, HfTokenizer)| kind != "words" && kind != "llama-2";
    for (kind, inner) in kinds().into_iter().filter(apart) {
        let tokenizer = Tokenizer::from_parts(&inner, "</s>", None, None).unwrap();
        let text = "a<|im_end|> <s>";
        let encoded = tokenizer.encode_guarded(text, std::slice::from_ref(&(0..11))).unwrap();
        assert_eq!(encoded.ids.last(), Some(&id(&inner, "<s>")), "{kind}");
        let ends = id(&inner, "<|im_end|>");
        assert!(!encoded.ids.contains(&ends), "{kind}");
        let encoded = tokenizer.encode_guarded(text, std::slice::from_ref(&(12..15))).unwrap();
        assert!(encoded.ids.contains(&ends), "{kind}");
    }
}
