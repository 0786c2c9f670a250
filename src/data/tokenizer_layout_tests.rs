//! The layouts in which tokenizers are published, and what does not fit together in them.

use super::*;
use crate::formats::OutDir;
use tempfile::TempDir;

const SPECIAL: [&str; 2] = ["<|end|>", "<pad>"];
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A directory with `tokenizer.json` of the 256 bytes behind two special tokens, and `config`.
fn with(config: Value) -> TempDir {
    let tokenizer = Tokenizer::byte_level_bpe(["a"].into_iter(), 300, &SPECIAL, None).unwrap();
    assert_eq!(tokenizer.vocab_size(), 258);
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(&OutDir::create(dir.path()).unwrap()).unwrap();
    write(&dir, "tokenizer_config.json", &config.to_string());
    dir
}

fn write(dir: &TempDir, name: &str, text: &str) {
    std::fs::write(dir.path().join(name), text).unwrap();
}

fn load(dir: &TempDir) -> Tokenizer {
    Tokenizer::load(dir.path()).unwrap()
}

/// The one line of a user's error.
fn problem(dir: &TempDir) -> String {
    let e = Tokenizer::load(dir.path()).err().unwrap();
    assert_eq!(e.exit_code(), 2);
    assert!(!e.to_string().contains('\n'));
    e.to_string().replace(&dir.path().display().to_string(), "DIR")
}

fn flags(content: &str, special: bool) -> Value {
    json!({"content": content, "special": special, "normalized": false, "lstrip": false,
        "rstrip": false, "single_word": false})
}

fn chat(template: &str, special: bool) -> Tokenizer {
    load(&with(json!({"eos_token": "<|end|>", "chat_template": template, "added_tokens_decoder": {
        "258": flags("<|im_start|>", special), "259": flags("<|im_end|>", special),
        "260": flags("<think>", false), "261": flags("   ", false)}})))
}

#[test]
fn the_turn_ends_with_what_the_template_writes() {
    for special in [true, false] {
        let tokenizer = chat(CHATML, special);
        assert_eq!((tokenizer.turn_end_id(), tokenizer.turn_end_text()), (259, "<|im_end|>"));
        assert_eq!(tokenizer.stop_ids(), [0, 259]);
        // Users cannot write it; what is neither special nor ends a turn they can.
        let ids = tokenizer.encode("<think><|im_end|>", false).unwrap();
        assert!(!ids.contains(&259) && ids.contains(&260) && ids.len() == 11);
        assert_eq!(tokenizer.encode("<think><|im_end|>", true).unwrap(), [260, 259]);
        assert!(tokenizer.controls.values().any(|t| t == "<|im_end|>"));
    }
    let demanding = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}\
                     {% endif %}{{ messages[2].content }}   <|im_end|>";
    let wordy = "{{ messages[1].content }}\n### End\n";
    let first_system = "{{ messages[1].content }}   \n<|end|><|im_end|>";
    for (template, end) in [(demanding, 259), (wordy, 0), (first_system, 0)] {
        assert_eq!(chat(template, false).turn_end_id(), end, "{template}");
    }
}

#[test]
fn tokens_beside_tokenizer_json() {
    let decoder = json!({"0": flags("<|end|>", true), "258": flags("<|im_start|>", true),
        "259": flags("<|im_end|>", false)});
    let config = json!({"eos_token": "<|im_end|>", "chat_template": CHATML,
        "added_tokens_decoder": decoder, "image_token": "<image>",
        "extra_special_tokens": ["<extra>", "<|end|>"]});
    let dir = with(config);
    write(&dir, "added_tokens.json", r#"{"<|im_start|>": 258}"#);
    let tokenizer = load(&dir);
    assert_eq!((tokenizer.eos_id(), tokenizer.vocab_size()), (259, 262));
    let ids = tokenizer.encode("<|im_start|><|im_end|><image><extra><|end|>", true).unwrap();
    assert_eq!(ids, [258, 259, 260, 261, 0]);
    // Two were heard of by name alone.
    let notes = tokenizer.notes();
    assert!(notes[0].contains("image_token \"<image>\"") && notes[0].ends_with("id 260"));
    assert_eq!(notes.len(), 2);
    write(&dir, "added_tokens.json", r#"{"<|im_end|>": 258}"#);
    assert!(problem(&dir).starts_with("DIR: the token \"<|im_end|>\" has the id 259 in"));

    // An older layout: ids in added_tokens.json, special tokens in special_tokens_map.json.
    let dir = with(json!({"eos_token": "<|end|>"}));
    write(&dir, "added_tokens.json", r#"{"<b>": 259, "<a>": 258}"#);
    write(&dir, "special_tokens_map.json", r#"{"eos_token": "<a>"}"#);
    let tokenizer = load(&dir);
    assert_eq!((tokenizer.eos_id(), tokenizer.encode("<b>", false).unwrap()), (258, vec![259]));
    write(&dir, "added_tokens.json", r#"{"<a>": 300}"#);
    assert_eq!(
        problem(&dir),
        "added_tokens.json of DIR gives the token \"<a>\" the id 300, but its id in the tokenizer \
         is 258; the files belong to different tokenizers"
    );
    for broken in ["[]", r#"{"a": -1}"#, r#"{"a": "b"}"#] {
        write(&dir, "added_tokens.json", broken);
        assert!(problem(&dir).starts_with("added_tokens.json of DIR: "), "{broken}");
    }
    for broken in [json!([]), json!({"x": {"content": "a"}}), json!({"7": "a"})] {
        let dir = with(json!({"eos_token": "<|end|>", "added_tokens_decoder": broken}));
        assert!(problem(&dir).starts_with("tokenizer_config.json of DIR: "), "{broken}");
    }
}

/// A padding token that the model was not made with takes no row of the embedding.
#[test]
fn a_padding_token_known_by_name_alone_is_not_used() {
    let tokenizer = load(&with(json!({"eos_token": "<|end|>", "pad_token": "[PAD]"})));
    assert_eq!((tokenizer.pad_id(), tokenizer.vocab_size()), (0, 258));
    assert_eq!(tokenizer.encode("[PAD]", true).unwrap().len(), 5);
    // An end token by name alone is used, and named.
    let tokenizer = load(&with(json!({"eos_token": "</s>", "pad_token": "<pad>"})));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.vocab_size()), (258, 1, 259));
    assert!(tokenizer.notes()[0].contains("eos_token \"</s>\" is in no vocabulary"));
}

#[test]
fn random_merges_are_off() {
    let dir = with(json!({"eos_token": "<|end|>"}));
    let path = dir.path().join("tokenizer.json");
    let mut whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    whole["model"]["dropout"] = json!(0.5);
    std::fs::write(&path, whole.to_string()).unwrap();
    let tokenizer = load(&dir);
    assert!(tokenizer.notes()[0].contains("BPE dropout of 0.5 is off"));
}

#[test]
fn other_versions_of_tokenizer_json_are_refused() {
    let of = |names: &[&str]| with(json!({"eos_token": "<|end|>", "fast_tokenizer_files": names}));
    assert!(load(&of(&["tokenizer.json"])).notes().is_empty());
    let dir = of(&["tokenizer.4.0.0.json", "tokenizer.json"]);
    assert!(problem(&dir).contains("fast_tokenizer_files names tokenizer.4.0.0.json"));
}

#[test]
fn an_additional_default_template_is_the_template() {
    let dir = with(json!({"eos_token": "<|end|>"}));
    let shown = |dir: &TempDir| {
        let messages = [json!({"role": "user", "content": "x"})];
        let input = TemplateInput { messages: &messages.each_ref(), ..TemplateInput::default() };
        load(dir).template().unwrap().render(&input).unwrap().text
    };
    write(&dir, "chat_template.json", &json!({"chat_template": "old"}).to_string());
    assert_eq!(shown(&dir), "old");
    let out = tempfile::tempdir().unwrap();
    load(&dir).save(&OutDir::open(out.path()).unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(out.path().join("chat_template.jinja")).unwrap(), "old");
    write(&dir, "chat_template.jinja", "one");
    assert_eq!(shown(&dir), "one");
    std::fs::create_dir(dir.path().join(MORE_TEMPLATES)).unwrap();
    write(&dir, "additional_chat_templates/default.jinja", "two");
    assert_eq!(shown(&dir), "two");
}

#[test]
fn two_files_make_a_tokenizer() {
    let vocab = r#"{"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5}"#;
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "vocab.json", vocab);
    assert!(problem(&dir).contains("(vocab.json is there, merges.txt is missing)"));
    write(&dir, "merges.txt", "#version: 0.2\na b\nĠ a\n\n");
    write(&dir, "config.json", r#"{"model_type": "opt", "eos_token_id": 0}"#);
    let encoded = |dir: &TempDir| load(dir).encode("ab ab", false).unwrap();
    assert_eq!(encoded(&dir), [3, 4, 3]);
    assert_eq!((load(&dir).eos_id(), load(&dir).bos_prefix()), (0, &[][..]));
    let config = json!({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>",
        "add_bos_token": true, "add_prefix_space": true});
    write(&dir, "tokenizer_config.json", &config.to_string());
    assert_eq!(encoded(&dir), [4, 3, 4, 3]);
    assert_eq!(load(&dir).bos_prefix(), [0]);
    let config = json!({"tokenizer_class": "RobertaTokenizer", "eos_token": "a", "bos_token": "b"});
    write(&dir, "tokenizer_config.json", &config.to_string());
    assert_eq!((load(&dir).bos_prefix(), load(&dir).eos_id()), (&[2][..], 1));
    let config = json!({"tokenizer_class": "Qwen2Tokenizer"});
    write(&dir, "tokenizer_config.json", &config.to_string());
    assert_eq!(load(&dir).encode(" a", false).unwrap(), [5]);
    let config = json!({"tokenizer_class": "BertTokenizer"});
    write(&dir, "tokenizer_config.json", &config.to_string());
    assert!(problem(&dir).contains("tokenizer_class of \"BertTokenizer\""));
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    for (name, broken, expected) in [
        ("merges.txt", "#version: 0.2\na b\na b c\n", "merges.txt of DIR line 3: \"a b c\" is not"),
        ("merges.txt", "a c\n", "vocab.json with merges.txt of DIR cannot be used: "),
        ("vocab.json", "[]", "vocab.json of DIR is not a JSON object"),
        ("vocab.json", r#"{"a": -1}"#, "vocab.json of DIR: \"a\" has -1 for an id"),
    ] {
        write(&dir, name, broken);
        let line = problem(&dir);
        assert!(line.starts_with(expected), "{line}");
        write(&dir, "merges.txt", "");
    }
}

#[test]
fn other_vocabularies_are_refused_by_name() {
    for (name, kind) in [
        ("tokenizer.model", "a SentencePiece or tiktoken model"),
        ("qwen.tiktoken", "a tiktoken vocabulary"),
        ("vocab.txt", "a WordPiece vocabulary"),
        ("tekken.json", "a tekken vocabulary"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, name, "");
        let line = problem(&dir);
        assert!(
            line.contains(&format!("({name} is {kind}, which Duplex does not read)")),
            "{line}"
        );
        assert!(line.contains("save_pretrained"));
    }
}

#[test]
fn a_broken_link_is_not_absent() {
    let dir = with(json!({"eos_token": "<|end|>"}));
    let link = dir.path().join("chat_template.jinja");
    std::os::unix::fs::symlink("../blobs/gone", &link).unwrap();
    assert_eq!(
        problem(&dir),
        "DIR/chat_template.jinja is a link to ../blobs/gone, which does not exist; put the file \
         there"
    );
}

#[test]
fn templates_for_tools() {
    let named =
        json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    let dir = with(json!({"eos_token": "<|end|>", "chat_template": named}));
    let render = |t: &ChatTemplate| t.render(&TemplateInput::default()).unwrap().text;
    let tokenizer = load(&dir);
    assert_eq!(render(tokenizer.template().unwrap()), "d");
    assert_eq!(render(tokenizer.template_for(true).unwrap()), "t");
    std::fs::create_dir(dir.path().join(MORE_TEMPLATES)).unwrap();
    write(&dir, "additional_chat_templates/tool_use.jinja", "file");
    let tokenizer = load(&dir);
    assert_eq!(render(tokenizer.template_for(true).unwrap()), "file");
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(&OutDir::create(saved.path()).unwrap()).unwrap();
    assert_eq!(render(load(&saved).template_for(true).unwrap()), "file");
    assert_eq!(render(chat("d", true).template_for(true).unwrap()), "d");
}

#[test]
fn named_templates_without_a_default_one() {
    let render = |t: &ChatTemplate| t.render(&TemplateInput::default()).unwrap().text;
    let list = json!([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]);
    for named in [list, json!({"tool_use": "t", "rag": "r"})] {
        let dir = with(json!({"eos_token": "<|end|>", "chat_template": named}));
        let tokenizer = load(&dir);
        assert!(tokenizer.has_chat_template());
        assert_eq!(render(tokenizer.template_for(true).unwrap()), "t");
        let line = tokenizer.template_for(false).err().unwrap().to_string();
        assert!(
            line.ends_with(
                "has chat templates named \"rag\", \"tool_use\", and none named \"default\"; put \
                 the one that is meant in its chat_template.jinja, or use --chat-format \
                 human_assistant"
            ),
            "{line}"
        );
        // Files are all that counts where there are any.
        write(&dir, "chat_template.jinja", "d");
        let tokenizer = load(&dir);
        for tools in [false, true] {
            assert_eq!(render(tokenizer.template_for(tools).unwrap()), "d");
        }
    }
    let dir = with(json!({"eos_token": "<|end|>", "chat_template": [{"name": "default"}]}));
    assert!(problem(&dir).ends_with("is neither text nor a list of named templates"));
}

#[test]
fn all_files_travel_as_they_were() {
    let dir = with(json!({"eos_token": "<|end|>"}));
    let own = [
        ("merges.txt", "a b"),
        ("vocab.json", "{}"),
        ("tokenizer.model", "pieces"),
        ("sentencepiece.bpe.model", "more pieces"),
        ("tekken.json", "{\"a\": 1}"),
        ("additional_chat_templates/tool_use.jinja", "{{ tools }}"),
    ];
    std::fs::create_dir(dir.path().join(MORE_TEMPLATES)).unwrap();
    own.iter().for_each(|(name, text)| write(&dir, name, text));
    let saved = tempfile::tempdir().unwrap();
    load(&dir).save(&OutDir::open(saved.path()).unwrap()).unwrap();
    for (name, text) in own {
        assert_eq!(std::fs::read_to_string(saved.path().join(name)).unwrap(), text, "{name}");
    }
}
