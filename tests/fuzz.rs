//! Every parser of what others wrote, on inputs that are wrong in every way: valid ones with bits
//! flipped, parts cut out, spliced, repeated, lengths and numbers replaced by bad ones, words of
//! the format thrown in.
//!
//! A parser may refuse an input or take it. It fails by a panic, an abort or a stack that
//! overflows; by memory far beyond the input's size; by more than a second; by a file outside its
//! directory. Each parser runs in a process of its own, so that whatever happens is counted and the
//! rest goes on.
//!
//! An input follows from parser, seed and number alone. Two seeds are used: one that stays, one of
//! this moment, which is printed. `DUPLEX_FUZZ_EXECUTIONS` and `DUPLEX_FUZZ_SEED` ask for more, or
//! for the same again; `tools/fuzz` sets them.

#[path = "fuzz/child.rs"]
mod child;
#[path = "fuzz/corpus.rs"]
mod corpus;
#[path = "fuzz/drive.rs"]
mod drive;
#[path = "fuzz/memory.rs"]
mod memory;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/parsers.rs"]
mod parsers;
#[rustfmt::skip]
#[path = "fuzz/words.rs"]
mod words;

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

#[test]
fn safetensors() {
    drive::fuzz("safetensors");
}

#[test]
fn safetensors_headers() {
    drive::fuzz("safetensors_headers");
}

#[test]
fn pickles() {
    drive::fuzz("pickles");
}

#[test]
fn archives() {
    drive::fuzz("archives");
}

#[test]
fn indexes() {
    drive::fuzz("indexes");
}

#[test]
fn manifests() {
    drive::fuzz("manifests");
}

#[test]
fn configs() {
    drive::fuzz("configs");
}

#[test]
fn models() {
    drive::fuzz("models");
}

#[test]
fn adapters() {
    drive::fuzz("adapters");
}

#[test]
fn cache_names() {
    drive::fuzz("cache_names");
}

#[test]
fn tokenizers() {
    drive::fuzz("tokenizers");
}

#[test]
fn tokenizer_configs() {
    drive::fuzz("tokenizer_configs");
}

#[test]
fn templates() {
    drive::fuzz("templates");
}

#[test]
fn rows() {
    drive::fuzz("rows");
}

#[test]
fn texts() {
    drive::fuzz("texts");
}

#[test]
fn metrics() {
    drive::fuzz("metrics");
}

#[test]
fn settings() {
    drive::fuzz("settings");
}

#[test]
fn flags() {
    drive::fuzz("flags");
}

/// The tests above, by name.
const TESTED: [&str; 18] = [
    "safetensors",
    "safetensors_headers",
    "pickles",
    "archives",
    "indexes",
    "manifests",
    "configs",
    "models",
    "adapters",
    "cache_names",
    "tokenizers",
    "tokenizer_configs",
    "templates",
    "rows",
    "texts",
    "metrics",
    "settings",
    "flags",
];

#[test]
fn every_parser_is_fuzzed() {
    let names: Vec<&str> = parsers::PARSERS.iter().map(|p| p.name).collect();
    assert_eq!(names, TESTED);
}

/// The process of one parser; the tests above start it.
#[test]
#[ignore = "started by the tests above"]
fn child_process() {
    child::run();
}
