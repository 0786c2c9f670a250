//! A small model directory with a tokenizer of its own, and data for it.
#![allow(dead_code, unreachable_pub)]

use duplex::arch::Config;
use duplex::base::DType;
use duplex::data::Tokenizer;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const TEXT: &str = "Human: What is the colour of the sea?\nAssistant: The sea is blue, of course. \
    Human: And the colour of grass?\nAssistant: Grass is green. Take care! Go away.";

/// A byte-level tokenizer; with `template`, one with a chat template.
pub fn tokenizer(template: Option<&str>) -> Tokenizer {
    tokenizer_of(300, template)
}

fn tokenizer_of(vocab: usize, template: Option<&str>) -> Tokenizer {
    let texts = [TEXT; 4];
    Tokenizer::byte_level_bpe(texts.into_iter(), vocab, &["<|end|>"], template).unwrap()
}

/// The fields of `config.json`, to be changed by a test.
pub fn config(family: &str, vocab: usize) -> Value {
    match family {
        "opt" => json!({"model_type": "opt", "vocab_size": vocab, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
            "max_position_embeddings": 128, "word_embed_proj_dim": 32}),
        "gpt2" => json!({"model_type": "gpt2", "vocab_size": vocab, "n_embd": 32, "n_layer": 2,
            "n_head": 4, "n_positions": 128}),
        "gpt_neox" => json!({"model_type": "gpt_neox", "vocab_size": vocab, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 128}),
        _ => json!({"model_type": "llama", "vocab_size": vocab, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true}),
    }
}

/// Writes a random model of `family` with its tokenizer to `dir`.
pub fn write(dir: &Path, family: &str) -> PathBuf {
    write_with(dir, family, 300)
}

/// The same with a tokenizer of `vocab` tokens.
pub fn write_with(dir: &Path, family: &str, vocab: usize) -> PathBuf {
    let tokenizer = tokenizer_of(vocab, None);
    let fields = config(family, tokenizer.vocab_size()).as_object().unwrap().clone();
    let config = Config::from_map(fields);
    let model = Model::random(
        &config,
        &LoadOptions { seed: 3, ..LoadOptions::frozen(Head::Lm, DType::F32) },
    )
    .unwrap();
    save_model(&model, dir, &SaveAs::default(), None).unwrap();
    tokenizer.save(dir).unwrap();
    dir.to_path_buf()
}

/// Preference rows.
pub fn pairs(n: usize) -> Vec<Value> {
    (0..n)
        .map(|i| {
            let prompt = format!("Human: Say the number {i}, please.\nAssistant:");
            json!({"prompt": prompt, "chosen": format!(" It is {i}."), "rejected": " Go away!"})
        })
        .collect()
}

/// Writes JSON lines.
pub fn write_rows(path: &Path, rows: &[Value]) -> PathBuf {
    let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(path, text).unwrap();
    path.to_path_buf()
}
