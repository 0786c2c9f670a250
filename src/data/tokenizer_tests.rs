use super::*;
use crate::base::Rng;
use crate::formats::OutDir;
use tempfile::TempDir;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const SPECIAL: [&str; 3] = ["<|end|>", "<|im_start|>", "<|im_end|>"];

fn fresh_rng() -> Rng {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    Rng::new(seed, 0)
}

/// Random text: words, white space, digits and characters of every width, U+FFFD among them.
fn random_text(rng: &mut Rng, length: u32) -> String {
    let character = |rng: &mut Rng| match rng.below(8) {
        0 => char::from_u32(rng.below(0x11_0000)).unwrap_or('\u{fffd}'),
        1 => char::from_u32(0x1f300 + rng.below(0x300)).unwrap(),
        2 => char::from_u32(0x4e00 + rng.below(0x5000)).unwrap(),
        3 => [' ', ' ', '\n', '\t', '\u{a0}', '\u{200d}'][rng.below(6) as usize],
        _ => (b' ' + rng.below(95) as u8) as char,
    };
    (0..length).map(|_| character(rng)).collect()
}

fn corpus(rng: &mut Rng) -> Vec<String> {
    let words: Vec<String> = (0..60).map(|_| random_text(rng, 5)).collect();
    let line = |rng: &mut Rng| -> String {
        (0..30).map(|_| format!("{} ", words[rng.below(60) as usize])).collect()
    };
    (0..40).map(|_| line(rng)).collect()
}

fn trained(texts: &[String], template: Option<&str>) -> Tokenizer {
    Tokenizer::byte_level_bpe(texts.iter().map(String::as_str), 600, &SPECIAL, template).unwrap()
}

/// A tokenizer of the bytes alone: no merges, so ids are easy to tell.
fn bytes(template: Option<&str>) -> Tokenizer {
    Tokenizer::byte_level_bpe(["a"].into_iter(), 300, &SPECIAL, template).unwrap()
}

fn saved(tokenizer: &Tokenizer) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(&OutDir::create(dir.path()).unwrap()).unwrap();
    dir
}

/// The one line of a user's error.
fn problem(outcome: Result<impl Sized>) -> String {
    let e = outcome.err().unwrap();
    assert_eq!(e.exit_code(), 2);
    assert!(!e.to_string().contains('\n'));
    e.to_string()
}

#[test]
fn training_is_deterministic() {
    let texts = corpus(&mut fresh_rng());
    let (a, b) = (trained(&texts, None), trained(&texts, None));
    assert_eq!(a.files, b.files);
    assert!(a.same_vocabulary(&b) && !a.same_vocabulary(&bytes(None)));
    assert!(a.vocab_size() > 300 && a.vocab_size() <= 600);
    assert_eq!((a.eos_id(), a.pad_id(), a.eos_text()), (0, 0, "<|end|>"));
    assert!(a.bos_prefix().is_empty() && !a.has_chat_template());
    let line = problem(Tokenizer::byte_level_bpe(["a"].into_iter(), 258, &SPECIAL, None));
    assert_eq!(line, "vocabulary size 258 is too small; use 259 or more");
}

#[test]
fn save_and_load_keep_everything() {
    let mut rng = fresh_rng();
    let tokenizer = trained(&corpus(&mut rng), Some(CHATML));
    let loaded = Tokenizer::load(saved(&tokenizer).path()).unwrap();
    assert!(loaded.same_vocabulary(&tokenizer));
    assert_eq!(loaded.files, tokenizer.files);
    assert_eq!(loaded.stop_ids(), [0, 2]);
    assert_eq!(loaded.stop_ids(), tokenizer.stop_ids());
    assert_eq!((loaded.turn_end_id(), tokenizer.turn_end_id()), (2, 2));
    for _ in 0..50 {
        let text = random_text(&mut rng, 40) + SPECIAL[rng.below(3) as usize];
        for special in [true, false] {
            let ids = tokenizer.encode(&text, special).unwrap();
            assert_eq!(loaded.encode(&text, special).unwrap(), ids);
        }
    }
}

#[test]
fn decoding_undoes_encoding() {
    let mut rng = fresh_rng();
    let tokenizer = trained(&corpus(&mut rng), None);
    for round in 0..200 {
        let mut text = random_text(&mut rng, round);
        if round % 3 == 0 {
            text += SPECIAL[rng.below(3) as usize];
        }
        for special in [true, false] {
            let ids = tokenizer.encode(&text, special).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
    assert_eq!(tokenizer.decode(&[-1, i32::MAX, i32::MIN, 100_000], false).unwrap(), "");
    assert_eq!(tokenizer.decode(&[0, 1, 2], true).unwrap(), "");
}

#[test]
fn control_tokens_in_text_stay_text() {
    let tokenizer = bytes(None);
    let text = "a<|end|><|im_end|> <|im_start|><<|end|>>";
    let plain = tokenizer.encode(text, false).unwrap();
    assert!(plain.iter().all(|&id| id > 2));
    assert_eq!(plain.len(), text.len());
    let special = tokenizer.encode(text, true).unwrap();
    assert_eq!(special.iter().filter(|&&id| id <= 2).count(), 4);
    assert_eq!(tokenizer.decode(&special, true).unwrap(), "a <>");
    let mut texts: Vec<&String> = tokenizer.controls.values().collect();
    texts.sort_unstable();
    assert_eq!(texts, ["<|end|>", "<|im_end|>", "<|im_start|>"]);
}

/// A word-level vocabulary holds the control token's text as an ordinary word.
#[test]
fn control_tokens_that_are_ordinary_words_are_cut() {
    let json = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"decoder":null,
        "pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,
        "model":{"type":"WordLevel","vocab":{"<unk>":0,"</s>":1,"hi":2},"unk_token":"<unk>"}}"#;
    let inner = HfTokenizer::from_bytes(json.as_bytes()).unwrap();
    let tokenizer = Tokenizer::from_parts(&inner, "</s>", None, None).unwrap();
    assert_eq!(tokenizer.encode("hi </s> hi", true).unwrap(), [2, 1, 2]);
    assert_eq!(tokenizer.encode("hi </s> hi", false).unwrap(), [2, 0, 0, 2]);
}

#[test]
fn the_first_token() {
    let plain = bytes(None);
    let inner = plain.inner.clone();
    let with_bos = Tokenizer::from_parts(&inner, "<|end|>", Some("<|im_start|>"), None).unwrap();
    let loaded = Tokenizer::load(saved(&with_bos).path()).unwrap();
    for tokenizer in [&with_bos, &loaded] {
        assert_eq!(tokenizer.bos_prefix(), [1]);
        assert_eq!(tokenizer.encode("ab", false).unwrap(), plain.encode("ab", false).unwrap());
    }
    assert!(loaded.notes().is_empty());
    // One put there by the post-processor, whatever the configuration says, as in transformers.
    let dir = saved(&plain);
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}
    });
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().bos_prefix(), [2]);
    let config = json!({"eos_token": {"content": "<|end|>"}, "bos_token": "<|im_end|>",
                        "add_bos_token": false});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let kept = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(kept.bos_prefix(), [2]);
    assert!(kept.notes()[0].contains("add_bos_token false has no effect"), "{:?}", kept.notes());
    // GPT-NeoX's class builds its own, which writes none, by its name or that of the model.
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "gpt_neox"}"#).unwrap();
    assert!(Tokenizer::load(dir.path()).unwrap().bos_prefix().is_empty());
    let named = json!({"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"});
    std::fs::write(dir.path().join("tokenizer_config.json"), named.to_string()).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().bos_prefix(), [2]);
    // Without a post-processor add_bos_token adds none.
    json["post_processor"] = serde_json::Value::Null;
    std::fs::write(&path, json.to_string()).unwrap();
    let config = json!({"eos_token": "<|end|>", "bos_token": "<|im_end|>", "add_bos_token": true,
                        "tokenizer_class": "LlamaTokenizerFast"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert!(Tokenizer::load(dir.path()).unwrap().bos_prefix().is_empty());
}

/// Values of `transformers` 5.23 with these classes and model types.
#[test]
fn spaces_before_a_text_come_from_the_class() {
    let dir = saved(&bytes(None));
    let path = dir.path().join("tokenizer.json");
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let write = |name: &str, v: serde_json::Value| {
        std::fs::write(dir.path().join(name), v.to_string()).unwrap();
    };
    for (class, model_type, rebuilt) in [
        (Some("GPT2TokenizerFast"), "llama", true),
        (Some("Qwen2Tokenizer"), "llama", true),
        (Some("GPTNeoXTokenizerFast"), "gpt2", true),
        (Some("CodeGenTokenizer"), "codegen", true),
        (Some("CohereTokenizerFast"), "cohere", true),
        (Some("PreTrainedTokenizerFast"), "gpt2", false),
        (Some("PreTrainedTokenizerFast"), "qwen2", true),
        (Some("GPT2Tokenizer"), "phi3", false),
        (Some("BloomTokenizerFast"), "bloom", false),
        (None, "opt", true),
        (None, "qwen3", true),
        (None, "llama", false),
    ] {
        for (given, wanted) in [(false, true), (true, false)] {
            let mut file = whole.clone();
            let bytes = json!({"type": "ByteLevel", "add_prefix_space": given,
                "trim_offsets": true, "use_regex": true});
            file["pre_tokenizer"] = match class {
                Some("CohereTokenizerFast") => json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Digits", "individual_digits": true}, bytes]}),
                _ => bytes,
            };
            write("tokenizer.json", file);
            let mut config = json!({"eos_token": "<|end|>"});
            if let Some(class) = class {
                config["tokenizer_class"] = json!(class);
            }
            if wanted {
                config["add_prefix_space"] = json!(true);
            }
            write("tokenizer_config.json", config);
            write("config.json", json!({"model_type": model_type}));
            let tokenizer = Tokenizer::load(dir.path()).unwrap();
            let ids = tokenizer.encode("q", false).unwrap();
            let spaced = tokenizer.decode(&ids, false).unwrap() == " q";
            let want = if rebuilt { wanted } else { given };
            assert_eq!(spaced, want, "{class:?} {model_type} {given} {wanted}");
        }
    }
}

#[test]
fn end_tokens_of_the_model() {
    let dir = saved(&bytes(None));
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("config.json", r#"{"eos_token_id":1}"#);
    write("generation_config.json", r#"{"eos_token_id":[2,99999,-1,"x"]}"#);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.stop_ids()), (0, &[0, 1, 2][..]));
    // Without one of the tokenizer's own, the model's that the tokenizer knows.
    write("tokenizer_config.json", "{}");
    assert_eq!(Tokenizer::load(dir.path()).unwrap().eos_id(), 2);
    write("special_tokens_map.json", r#"{"eos_token":"<|im_start|>","pad_token":"<|end|>"}"#);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (1, 0));
    write("config.json", "{");
    assert!(problem(Tokenizer::load(dir.path())).contains("config.json: bad JSON"));
}

#[test]
fn no_end_token() {
    let inner = bytes(None).inner;
    let line = problem(Tokenizer::from_parts(&inner, "</s>", None, None));
    assert_eq!(
        line,
        "the tokenizer of the tokenizer made in code has no end-of-sequence token; set \
         \"eos_token\" in its tokenizer_config.json"
    );
    let dir = saved(&bytes(None));
    std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id":50256}"#).unwrap();
    let line = problem(Tokenizer::load(dir.path()));
    assert!(line.contains(&dir.path().display().to_string()) && line.contains("eos_token"));
}

#[test]
fn missing_and_broken_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    let line = problem(Tokenizer::load(dir.path()));
    assert!(
        line.starts_with(&format!(
            "no tokenizer.json in {at}, nor vocab.json with merges.txt; save"
        ))
    );
    let whole = saved(&bytes(Some(CHATML)));
    let copy = |name: &str| std::fs::copy(whole.path().join(name), dir.path().join(name)).unwrap();
    let json = std::fs::read(whole.path().join("tokenizer.json")).unwrap();
    let mut rng = fresh_rng();
    for broken in [
        &b""[..],
        b"{}",
        b"[\n\n",
        b"\xff\xfe",
        b"{\"model\":\n{\"type\":\"X\"}}",
        b"{\"decoder\":\"\\ud800\"}",
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), broken).unwrap();
        let line = problem(Tokenizer::load(dir.path()));
        assert!(line.starts_with(&format!("tokenizer.json of {at} cannot be used: ")), "{line}");
    }
    copy("tokenizer_config.json");
    for _ in 0..60 {
        // Whatever the damage: a tokenizer or one line, never a panic.
        let mut bytes = json.clone();
        let at = rng.below(bytes.len() as u32) as usize;
        match rng.below(3) {
            0 => bytes.truncate(at),
            1 => bytes[at] = rng.below(256) as u8,
            _ => drop(bytes.drain(at..(at + 1 + rng.below(20) as usize).min(json.len()))),
        }
        std::fs::write(dir.path().join("tokenizer.json"), bytes).unwrap();
        match Tokenizer::load(dir.path()) {
            Ok(tokenizer) => drop(tokenizer.encode("some text", true)),
            Err(e) => assert_eq!(e.exit_code(), 2),
        }
    }
    copy("tokenizer.json");
    for (name, broken, expected) in [
        ("tokenizer_config.json", "[]", "tokenizer_config.json of AT is not a JSON object"),
        ("special_tokens_map.json", "{", "special_tokens_map.json of AT: bad JSON: EOF"),
        ("chat_template.json", "{", "chat_template.json of AT: bad JSON: EOF"),
        ("chat_template.json", "{\"chat_template\":1}", "chat_template of AT is neither text"),
        ("chat_template.jinja", "\n{% if %}", "chat template of AT line 2: "),
    ] {
        copy("tokenizer_config.json");
        if name.starts_with("chat") {
            let config = r#"{"eos_token":"<|end|>"}"#;
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        }
        std::fs::write(dir.path().join(name), broken).unwrap();
        let line = problem(Tokenizer::load(dir.path()));
        assert!(line.starts_with(&expected.replace("AT", &at)), "{line}");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    copy("tokenizer_config.json");
    assert!(problem(Tokenizer::load(dir.path())).contains("is not UTF-8"));
    let gone = OutDir::create(&dir.path().join("gone")).unwrap();
    std::fs::remove_dir(gone.path()).unwrap();
    let line = problem(bytes(None).save(&gone));
    assert!(line.starts_with(&format!("cannot create {at}/gone/tokenizer")), "{line}");
}

#[test]
fn vocabulary_and_embedding() {
    let tokenizer = bytes(None);
    assert_eq!(tokenizer.vocab_size(), 259);
    tokenizer.check_vocab(259).unwrap();
    assert_eq!(
        problem(tokenizer.check_vocab(258)),
        "the tokenizer of the tokenizer made in code has 259 tokens, but the model's embedding has \
         258 rows; use the tokenizer that belongs to the model"
    );
}

#[test]
fn templates_and_the_end_of_a_turn() {
    assert_eq!(bytes(Some(CHATML)).turn_end_id(), 2);
    assert_eq!(bytes(None).turn_end_id(), 0);
    // No control token after the answer, and a template that accepts no such conversation.
    for template in ["{{ messages[1].content }}!", "{{ raise_exception('no') }}"] {
        assert_eq!(bytes(Some(template)).turn_end_id(), 0);
    }
    let line = problem(bytes(None).template());
    assert!(line.contains("has no chat template") && line.contains("--chat-format"), "{line}");
    // The file has precedence over the configuration; of named ones, "default" counts.
    let dir = saved(&bytes(Some("old")));
    let text = || {
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        tokenizer.template().unwrap().render(&TemplateInput::default()).unwrap().text
    };
    assert_eq!(text(), "old");
    let named = json!([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]);
    let config = json!({"eos_token": "<|end|>", "chat_template": named});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(text(), "d");
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ eos_token }}").unwrap();
    assert_eq!(text(), "<|end|>");
}

fn streamed(tokenizer: &Tokenizer, ids: &[i32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip_special);
    let mut parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    parts.push(stream.finish().unwrap());
    parts
}

#[test]
fn streams_show_whole_characters() {
    let mut rng = fresh_rng();
    let tokenizer = trained(&corpus(&mut rng), None);
    for round in 0..100 {
        let text: String =
            random_text(&mut rng, round).chars().filter(|&c| c != '\u{fffd}').collect();
        let mut ids = tokenizer.encode(&text, false).unwrap();
        ids.insert(rng.below(ids.len() as u32 + 1) as usize, 1);
        for skip in [true, false] {
            let parts = streamed(&tokenizer, &ids, skip);
            let whole = tokenizer.decode(&ids, skip).unwrap();
            assert_eq!(parts.concat(), whole);
            // Half a character would have become U+FFFD; only the inserted token can cause one.
            assert_eq!(parts.concat().contains('\u{fffd}'), whole.contains('\u{fffd}'));
        }
        // Any ids at all.
        let ids: Vec<i32> = (0..round).map(|_| rng.below(620) as i32).collect();
        assert_eq!(
            streamed(&tokenizer, &ids, false).concat(),
            tokenizer.decode(&ids, false).unwrap()
        );
    }
    let parts = streamed(&bytes(None), &bytes(None).encode("a😀b", false).unwrap(), true);
    assert_eq!(parts, ["a", "", "", "", "😀", "b", ""]);
}

/// A stream decodes tokens that show no text (broken bytes, special tokens left out) only a few
/// times.
#[test]
fn streams_hold_back_little() {
    let tokenizer = bytes(None);
    let half = tokenizer.encode("é", false).unwrap()[0];
    let mut broken = vec![half; 3000];
    broken.extend(tokenizer.encode("é done", false).unwrap());
    for (ids, skip) in [(broken, false), (vec![1; 3000], true)] {
        let mut stream = tokenizer.stream(skip);
        let mut shown = String::new();
        for &id in &ids {
            shown += &stream.push(id).unwrap();
            assert!(stream.ids.len() <= 3 * MOST_PENDING);
        }
        shown += &stream.finish().unwrap();
        assert_eq!(shown, tokenizer.decode(&ids, skip).unwrap());
    }
}

/// Vocabularies with single bytes to fall back on give up on a whole run of bytes when one is
/// broken; what follows must still be shown.
#[test]
fn streams_survive_broken_bytes() {
    let vocab: HashMap<String, usize> =
        (0..=255).map(|b| (format!("<0x{b:02X}>"), b)).chain([("a".to_owned(), 256)]).collect();
    let json = json!({"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true}});
    let inner = HfTokenizer::from_bytes(json.to_string()).unwrap();
    let tokenizer = Tokenizer::from_parts(&inner, "<0x00>", None, None).unwrap();
    let mut ids = tokenizer.encode("a你好", false).unwrap();
    assert_eq!(ids.len(), 7);
    assert_eq!(streamed(&tokenizer, &ids, false).concat(), "a你好");
    ids.extend([0xff, 256, 256]);
    assert_eq!(streamed(&tokenizer, &ids, false).concat(), "a你好\u{fffd}aa");
}

/// Long runs without a word's end must take linear time.
#[test]
fn long_runs_are_encoded() {
    let tokenizer = bytes(None);
    for unit in [" ", "a", "\n", "<|end|>"] {
        let text = unit.repeat(100_000 / unit.len());
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(ids.len(), text.len());
    }
}
