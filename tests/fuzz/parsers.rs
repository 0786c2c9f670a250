//! The parsers: each gets bytes where its users' files lie, and does with them what a run does.
//! `run` says whether the input was taken; what must hold of an input that was taken is asserted.

use crate::{corpus, words};
use duplex::arch::Config;
use duplex::base::{DType, Result};
use duplex::config::{set_setting, to_toml, toml_settings};
use duplex::data::{
    ChatFormat, ChatTemplate, Limits, OnBadRow, OnLongPrompt, TemplateInput, Tokenizer,
    pair_example, prompt_example, read_rows, sft_example, text_blocks,
};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::formats::OutDir;
use duplex::formats::{Checkpoint, Snapshot, Sum};
use duplex::model::{
    Head, LoadOptions, LoraConfig, Model, Params, SaveAs, linear_modules, resolve_model,
    save_adapters, save_model,
};
use duplex::pipeline::config::{RUN, RunConfig, VerifyConfig};
use duplex::report::{Event, Reporter};
use duplex::rollout::Sampling;
use duplex::tape::Workspace;
use std::fs;
use std::path::Path;

/// One parser.
pub(crate) struct Parser {
    pub(crate) name: &'static str,
    pub(crate) corpus: fn() -> Vec<Vec<u8>>,
    pub(crate) words: &'static [&'static [u8]],
    /// Puts into the directory what lies there beside the input.
    pub(crate) prepare: fn(&Path),
    /// Runs the parser; true if it accepts the input.
    pub(crate) run: fn(&Path, &[u8]) -> bool,
    /// Bytes that it may hold whatever the input is.
    pub(crate) overhead: usize,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn nothing(_: &Path) {}

#[rustfmt::skip]
pub(crate) static PARSERS: &[Parser] = &[
    Parser { name: "safetensors", corpus: corpus::safetensors, words: words::SAFETENSORS,
        prepare: nothing, run: safetensors, overhead: 256 * KIB },
    Parser { name: "safetensors_headers", corpus: corpus::headers, words: words::SAFETENSORS,
        prepare: nothing, run: safetensors_headers, overhead: 256 * KIB },
    Parser { name: "pickles", corpus: corpus::pickles, words: words::PICKLES,
        prepare: nothing, run: pickles, overhead: 256 * KIB },
    Parser { name: "archives", corpus: corpus::archives, words: words::ARCHIVES,
        prepare: nothing, run: archives, overhead: 256 * KIB },
    Parser { name: "indexes", corpus: corpus::indexes, words: words::INDEXES,
        prepare: prepare_indexes, run: indexes, overhead: 256 * KIB },
    Parser { name: "manifests", corpus: corpus::manifests, words: words::MANIFESTS,
        prepare: prepare_manifests, run: manifests, overhead: 256 * KIB },
    // Four thousand layers, each with its names.
    Parser { name: "configs", corpus: corpus::configs, words: words::CONFIGS,
        prepare: nothing, run: configs, overhead: 64 * MIB },
    Parser { name: "models", corpus: corpus::models, words: words::CONFIGS,
        prepare: prepare_models, run: models, overhead: 64 * MIB },
    Parser { name: "adapters", corpus: corpus::adapters, words: words::ADAPTERS,
        prepare: prepare_adapters, run: adapters, overhead: 4 * MIB },
    Parser { name: "cache_names", corpus: corpus::cache_names, words: words::CACHE_NAMES,
        prepare: prepare_cache, run: cache_names, overhead: 256 * KIB },
    // A regular expression is compiled to at most some ten MiB each.
    Parser { name: "tokenizers", corpus: corpus::tokenizers, words: words::TOKENIZERS,
        prepare: prepare_tokenizers, run: tokenizers, overhead: 64 * MIB },
    Parser { name: "tokenizer_configs", corpus: corpus::tokenizer_configs, words: words::TOKENIZER_CONFIGS,
        prepare: prepare_tokenizer_configs, run: tokenizer_configs, overhead: 4 * MIB },
    Parser { name: "templates", corpus: corpus::templates, words: words::TEMPLATES,
        prepare: nothing, run: templates, overhead: 4 * MIB },
    Parser { name: "rows", corpus: corpus::rows, words: words::ROWS,
        prepare: prepare_rows, run: rows, overhead: 4 * MIB },
    Parser { name: "texts", corpus: corpus::texts, words: words::ROWS,
        prepare: nothing, run: texts, overhead: 256 * KIB },
    Parser { name: "metrics", corpus: corpus::metrics, words: words::METRICS,
        prepare: nothing, run: metrics, overhead: 4 * MIB },
    Parser { name: "settings", corpus: corpus::settings, words: words::SETTINGS,
        prepare: nothing, run: settings, overhead: MIB },
    Parser { name: "flags", corpus: corpus::flags, words: words::FLAGS,
        prepare: nothing, run: flags, overhead: 4 * MIB },
];

/// Text as a program gets it, where that must be text.
fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// An error must be one line that a person can read.
fn taken<T>(result: Result<T>) -> bool {
    if let Err(e) = &result {
        let line = e.to_string();
        assert!(!line.contains('\n') && !line.is_empty(), "{line:?}");
        assert!(e.exit_code() != 1, "internal error: {line}");
    }
    result.is_ok()
}

/// Reads all tensors of an open file of `size` bytes.
fn read_all(file: Result<Checkpoint>, size: usize) -> bool {
    if let Ok(file) = &file {
        for name in file.names() {
            let bytes = file.info(name).unwrap().checked_bytes().unwrap();
            if let Ok(raw) = file.read_raw(name) {
                assert!(raw.len() == bytes && bytes <= size, "{} of {bytes} bytes", raw.len());
            }
            taken(file.read_f32(name));
        }
    }
    taken(file)
}

fn safetensors(place: &Path, input: &[u8]) -> bool {
    let path = place.join("m.safetensors");
    fs::write(&path, input).unwrap();
    read_all(Checkpoint::open_file(&path), input.len())
}

fn safetensors_headers(place: &Path, input: &[u8]) -> bool {
    safetensors(place, &corpus::with_header(input))
}

fn archives(place: &Path, input: &[u8]) -> bool {
    let path = place.join("m.bin");
    fs::write(&path, input).unwrap();
    read_all(Checkpoint::open_file(&path), input.len())
}

/// The archive is made around the bad pickle, so that no checksum hides it.
fn pickles(place: &Path, input: &[u8]) -> bool {
    archives(place, &corpus::archive(input))
}

fn prepare_indexes(place: &Path) {
    let write = |name: &str, header: &str| {
        fs::write(place.join(name), corpus::with_header(header.as_bytes())).unwrap()
    };
    fs::create_dir_all(place.join("model/sub")).unwrap();
    write("model/one.safetensors", corpus::HEADERS[0]);
    let other = corpus::HEADERS[1].replace("\"a\"", "\"e\"").replace("\"b\"", "\"f\"");
    write("model/two.safetensors", &other);
    write("model/sub/three.safetensors", corpus::HEADERS[2]);
    write("outside.safetensors", corpus::HEADERS[2]);
}

fn indexes(place: &Path, input: &[u8]) -> bool {
    let dir = place.join("model");
    fs::write(dir.join("model.safetensors.index.json"), input).unwrap();
    let open = Checkpoint::open(&dir);
    if let Ok(open) = &open {
        for file in open.files() {
            assert_eq!(file.parent(), Some(&*dir), "a file outside: {}", file.display());
            assert!(file.canonicalize().unwrap().starts_with(dir.canonicalize().unwrap()));
        }
    }
    read_all(open, 1 << 20)
}

fn prepare_manifests(place: &Path) {
    corpus::checkpoint(place);
    fs::write(place.join("outside.safetensors"), "").unwrap();
}

/// The manifest of a checkpoint, with a right checksum, so that none hides what is wrong with it.
fn manifests(place: &Path, input: &[u8]) -> bool {
    let head = format!("{{\"checksum\":\"{}\",", Sum::of(input));
    assert_eq!(head.len(), corpus::MANIFEST_HEAD);
    let dir = place.join("sft-00000007");
    fs::write(dir.join("manifest.json"), [head.as_bytes(), input].concat()).unwrap();
    let open = Snapshot::open(&dir);
    if let Ok(open) = &open {
        for (name, info) in open.tensors() {
            let bytes = open.tensor(name, info.dtype, &info.shape).unwrap();
            assert!(bytes.len() == info.checked_bytes().unwrap(), "{name}");
            taken(open.count_not_finite(name));
        }
        taken(open.get::<f32>("loss_first"));
        taken(open.find::<u64>("model.optimizer_steps"));
    }
    // The line for each is all that is wanted; it is an error as soon as one is damaged.
    let verified = duplex::pipeline::verify(&VerifyConfig { path: dir }, &mut |_| Ok(()));
    assert!(verified.is_ok() || open.is_err(), "opened, but not verified");
    taken(verified);
    taken(open)
}

fn configs(place: &Path, input: &[u8]) -> bool {
    fs::write(place.join("config.json"), input).unwrap();
    taken(Config::read(place).and_then(|config| {
        let arch = config.arch()?;
        linear_modules(&arch);
        let (specs, _) = Params::lay_out(&arch, Head::Lm, true, None, 1)?;
        let mut each =
            specs.iter().map(|s| s.shape.iter().try_fold(4usize, |n, d| n.checked_mul(*d)));
        let all = each.try_fold(0usize, |sum, n| sum.checked_add(n?));
        assert!(all.is_some(), "a size overflows");
        Ok(())
    }))
}

fn tiny() -> Config {
    Config::from_map(serde_json::from_str(corpus::TINY).unwrap())
}

fn prepare_models(place: &Path) {
    let options = LoadOptions { seed: 5, ..LoadOptions::frozen(Head::Lm, DType::F32) };
    save_model(
        &Model::random(&tiny(), &options).unwrap(),
        &OutDir::create(place).unwrap(),
        &SaveAs::default(),
        None,
    )
    .unwrap();
}

/// Loads the weights of another config, and where they fit all the same generates with them.
fn models(place: &Path, input: &[u8]) -> bool {
    fs::write(place.join("config.json"), input).unwrap();
    let model = Model::load(place, &LoadOptions::frozen(Head::Lm, DType::F32));
    let Ok(model) = model else { return taken(model) };
    let room = model.arch.max_positions;
    let mut engine = Engine::frozen(model);
    let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
    let prompt: Vec<i32> = (0..6.min(room.saturating_sub(2)) as i32).collect();
    if prompt.is_empty() {
        return true;
    }
    let sampling = Sampling::greedy(2, vec![]);
    taken(engine.generate(&mut ws, &[&prompt], &[0], &sampling, &mut |_, _| {}))
}

fn prepare_adapters(place: &Path) {
    let base = place.join("base");
    fs::create_dir_all(&base).unwrap();
    prepare_models(&base);
    let modules = vec!["q_proj".to_string(), "v_proj".to_string()];
    let lora = Some(LoraConfig { rank: 2, alpha: 8.0, modules, ..LoraConfig::default() });
    let options = LoadOptions { lora, train: true, ..LoadOptions::frozen(Head::Lm, DType::F32) };
    let model = Model::random(&tiny(), &options).unwrap();
    save_adapters(&model, &OutDir::create(&place.join("adapter")).unwrap(), "base").unwrap();
}

fn adapters(place: &Path, input: &[u8]) -> bool {
    let dir = place.join("adapter");
    fs::write(dir.join("adapter_config.json"), input).unwrap();
    taken(Model::load(&dir, &LoadOptions::frozen(Head::Lm, DType::F32)))
}

fn prepare_cache(place: &Path) {
    for dir in
        ["hub/models--a--b/refs", "hub/models--a--b/snapshots/good", "hub/models--a--b/other"]
    {
        fs::create_dir_all(place.join(dir)).unwrap();
    }
    for dir in [
        "hub/models--a--b/snapshots/good",
        "hub/models--a--b/other",
        "hub/models--a--b/snapshots",
        "hub",
        "",
    ] {
        fs::write(place.join(dir).join("config.json"), "{}").unwrap();
    }
}

/// The name of a version in the cache: `HF_HUB_CACHE` is `hub` in the directory.
fn cache_names(place: &Path, input: &[u8]) -> bool {
    let repo = place.join("hub/models--a--b");
    fs::write(repo.join("refs/main"), input).unwrap();
    let found = resolve_model("a/b");
    if let Ok(found) = &found {
        let inside = repo.join("snapshots").canonicalize().unwrap();
        assert_eq!(
            found.canonicalize().unwrap().parent(),
            Some(&*inside),
            "outside: {}",
            found.display()
        );
    }
    taken(found)
}

/// Texts of every kind, with the words of the tokenizers.
const SPOKEN: [&str; 4] =
    ["ab abc  b", "", "é😀\u{0}日本 <e> [C]a7,7!", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa\n\n bbbb\t<e"];

fn use_tokenizer(tokenizer: &Tokenizer) -> Result<()> {
    tokenizer.vocab_size();
    tokenizer.check_vocab(10)?;
    for spoken in SPOKEN {
        for special in [false, true] {
            let ids = tokenizer.encode(spoken, special)?;
            tokenizer.decode(&ids, !special)?;
            let mut stream = tokenizer.stream(special);
            for id in ids {
                stream.push(id)?;
            }
            stream.finish()?;
        }
    }
    tokenizer.decode(&[-1, i32::MAX, 0, 9, 8, 7], true)?;
    Ok(())
}

fn prepare_tokenizers(place: &Path) {
    fs::write(place.join("tokenizer_config.json"), r#"{"eos_token":"<e>","bos_token":"a"}"#)
        .unwrap();
}

fn tokenizers(place: &Path, input: &[u8]) -> bool {
    fs::write(place.join("tokenizer.json"), input).unwrap();
    taken(Tokenizer::load(place).and_then(|t| use_tokenizer(&t)))
}

fn prepare_tokenizer_configs(place: &Path) {
    fs::write(place.join("tokenizer.json"), corpus::word_tokenizer()).unwrap();
}

/// The same bytes as one of the files that say the same things in different places.
fn tokenizer_configs(place: &Path, input: &[u8]) -> bool {
    const NAMES: [&str; 4] = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.json",
    ];
    let chosen = input.len() % NAMES.len();
    for (i, name) in NAMES.iter().enumerate() {
        let path = place.join(name);
        match i {
            i if i == chosen => fs::write(path, input).unwrap(),
            0 => fs::write(path, r#"{"eos_token":"<e>"}"#).unwrap(),
            _ => {
                let _ = fs::remove_file(path);
            }
        }
    }
    taken(Tokenizer::load(place).and_then(|t| {
        if t.has_chat_template() {
            taken(t.template()?.render(&given(&conversation().each_ref())));
        }
        use_tokenizer(&t)
    }))
}

fn given<'m>(messages: &'m [&'m serde_json::Value]) -> TemplateInput<'m> {
    TemplateInput { messages, add_generation_prompt: !messages.is_empty(), ..Default::default() }
}

fn conversation() -> [serde_json::Value; 4] {
    let say = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    [
        say("system", " Be kind. "),
        say("user", "a </think> b"),
        say("assistant", "ab\n"),
        say("user", "é'\"<>&"),
    ]
}

fn templates(_: &Path, bytes: &[u8]) -> bool {
    let special = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    let special = special.as_object().unwrap();
    let template = ChatTemplate::new(&text(bytes), "the fuzzer", special, 1_700_000_000);
    taken(template.and_then(|t| {
        t.render(&given(&[]))?;
        t.render(&given(&conversation().each_ref()))
    }))
}

fn prepare_rows(place: &Path) {
    prepare_tokenizer_configs(place);
    let config = String::from_utf8(corpus::tokenizer_configs().swap_remove(0)).unwrap();
    fs::write(place.join("tokenizer_config.json"), config).unwrap();
}

/// Rows, and the examples of every step made of them.
fn rows(place: &Path, input: &[u8]) -> bool {
    thread_local! {
        static TOKENIZER: std::cell::OnceCell<Tokenizer> = const { std::cell::OnceCell::new() };
    }
    let path = place.join("data.jsonl");
    fs::write(&path, input).unwrap();
    let strict = taken(read_rows(&path, OnBadRow::Error));
    let read = read_rows(&path, OnBadRow::Skip);
    let Ok((rows, bad)) = read else { return taken(read) };
    assert!(bad.count > 0 || strict, "good rows are refused");
    TOKENIZER.with(|tokenizer| {
        let tokenizer = tokenizer.get_or_init(|| Tokenizer::load(place).unwrap());
        for (i, row) in rows.iter().enumerate() {
            let limits = Limits {
                max_prompt_len: 1 + i % 9,
                max_seq_len: 12,
                on_long_prompt: if i % 2 == 0 {
                    OnLongPrompt::Skip
                } else {
                    OnLongPrompt::TruncateLeft
                },
                chat: if i % 3 == 0 { ChatFormat::HumanAssistant } else { ChatFormat::Template },
                allow_special: i % 5 == 0,
                all_turns: i % 2 == 0,
            };
            taken(sft_example(row, tokenizer, &limits));
            taken(pair_example(row, tokenizer, &limits));
            taken(prompt_example(row, tokenizer, &limits));
        }
        taken(text_blocks(&rows, tokenizer, 3, false));
    });
    true
}

fn texts(place: &Path, input: &[u8]) -> bool {
    let path = place.join("data.txt");
    fs::write(&path, input).unwrap();
    taken(read_rows(&path, OnBadRow::Skip))
}

/// The metrics of an earlier run, from which the report is drawn again.
fn metrics(place: &Path, input: &[u8]) -> bool {
    fs::write(place.join("metrics.jsonl"), input).unwrap();
    let reporter = Reporter::open(&OutDir::create(place).unwrap(), true, false);
    taken(reporter.map(|mut reporter| {
        reporter.emit(Event::metrics("sft", 3, &[("loss", 1.0)]));
        reporter.emit(Event::RunEnd { seconds: 1.0 });
    }))
}

/// A file of settings, and one setting of `--set`.
fn settings(_: &Path, input: &[u8]) -> bool {
    let text = text(input);
    let config = toml_settings(&RUN, "run.toml", &text).and_then(RunConfig::resolve);
    if let Ok(config) = &config {
        // What is written must be read as the same.
        let again = toml_settings(&RUN, "printed", &to_toml(&RUN, config).unwrap())
            .and_then(RunConfig::resolve);
        let again = again.unwrap();
        assert_eq!(RunConfig { explicit: config.explicit.clone(), ..again }, *config);
    }
    taken(set_setting(&RUN, &text)) | taken(config)
}

/// A command line, of words between white space.
fn flags(_: &Path, input: &[u8]) -> bool {
    use std::os::unix::ffi::OsStringExt;
    let words = input.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
    let words = words.map(|w| std::ffi::OsString::from_vec(w.to_vec()));
    taken(duplex::cli::check(std::iter::once("duplex".into()).chain(words).collect()))
}
