//! A small model directory with a tokenizer of its own, and data for it.

use duplex::arch::Config;
use duplex::base::{DType, Rng};
use duplex::data::Tokenizer;
use duplex::formats::OutDir;
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
    let fields = config(family, tokenizer.vocab_size());
    write_as(dir, fields, &tokenizer)
}

/// Writes a random model with a vocabulary of `vocab`, most of which its tokenizer does not know,
/// for rows of up to 512 tokens.
pub fn write_large(dir: &Path, family: &str, vocab: usize) -> PathBuf {
    let mut fields = config(family, vocab);
    for name in ["max_position_embeddings", "n_positions"] {
        fields.as_object_mut().unwrap().entry(name).and_modify(|n| *n = json!(512));
    }
    write_as(dir, fields, &tokenizer(None))
}

/// Writes a random LLaMA model of these sizes.
pub fn write_wide(dir: &Path, hidden: usize, ffn: usize, layers: usize) -> PathBuf {
    let tokenizer = tokenizer(None);
    let mut fields = config("llama", tokenizer.vocab_size());
    fields["hidden_size"] = hidden.into();
    fields["intermediate_size"] = ffn.into();
    fields["num_hidden_layers"] = layers.into();
    write_as(dir, fields, &tokenizer)
}

fn write_as(dir: &Path, fields: Value, tokenizer: &Tokenizer) -> PathBuf {
    let config = Config::from_map(fields.as_object().unwrap().clone());
    let model = Model::random(
        &config,
        &LoadOptions { seed: 3, ..LoadOptions::frozen(Head::Lm, DType::F32) },
    )
    .unwrap();
    save_model(&model, &OutDir::create(dir).unwrap(), &SaveAs::default(), None).unwrap();
    tokenizer.save(&OutDir::create(dir).unwrap()).unwrap();
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

/// A generator that differs from run to run; the seed is printed when a test fails.
pub fn fresh_rng() -> Rng {
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    Rng::new(seed, 0)
}

/// Preference rows whose answers have random lengths, of up to `longest` bytes and so about as many
/// tokens.
pub fn uneven_pairs(rng: &mut Rng, n: usize, longest: u32) -> Vec<Value> {
    let mut text = |least: u32| -> String {
        let n = least + rng.below(longest - least);
        // Letters of all kinds, which no merge joins.
        (0..n).map(|_| char::from(b'0' + rng.below(70) as u8)).filter(|c| *c != '\\').collect()
    };
    let row =
        |_| json!({"prompt": format!("{}:", text(3)), "chosen": text(4), "rejected": text(4)});
    (0..n).map(row).collect()
}

/// Writes JSON lines.
pub fn write_rows(path: &Path, rows: &[Value]) -> PathBuf {
    let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(path, text).unwrap();
    path.to_path_buf()
}
