//! The demo's starting model: a tokenizer made from its own text and a small LLaMA with random
//! weights. They are written as an ordinary model directory, so the run itself is like any other.

use super::rows::{PREFERENCE_SET, SFT_SET, Sizes, corpus, write_jsonl};
use crate::algo::{Algorithm, DEEPSPEED_CHAT};
use crate::arch::Config;
use crate::base::{DType, Result};
use crate::data::Tokenizer;
use crate::formats::OutDir;
use crate::model::{Head, LoadOptions, Model, SaveAs, save_model};
use crate::pipeline::config::RunConfig;
use serde_json::{Map, Value, json};

const VOCAB: usize = 512;

/// The stages that begin with files of the demonstration.
const SFT: &Algorithm = DEEPSPEED_CHAT[0];
const REWARD: &Algorithm = DEEPSPEED_CHAT[1];

/// A conversation as the rows have it. The model has seen single questions only, so it is asked
/// the last one alone.
const TEMPLATE: &str = "\
{%- if add_generation_prompt -%}
Human: {{ messages[-1]['content'] }}
Assistant:
{%- else -%}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}
Human: {{ m['content'] }}
Assistant:
{%- else %} {{ m['content'] }}<|endoftext|>
{%- endif -%}
{%- endfor -%}
{%- endif -%}";

/// The configuration with the demo's model and data.
pub(crate) fn configure(cfg: &RunConfig) -> RunConfig {
    let in_run = |name: &str| cfg.output_dir.join(name).display().to_string();
    let mut cfg = cfg.clone();
    cfg.actor_model = cfg.runs(SFT).then(|| in_run("base"));
    // The reward model starts from what has already read the world's facts.
    cfg.reward_model = cfg.runs(REWARD).then(|| in_run(SFT.name));
    cfg.sft_only_data_path = vec![in_run(&format!("data/{SFT_SET}"))];
    cfg.data_path = vec![in_run(&format!("data/{PREFERENCE_SET}"))];
    cfg
}

/// Writes data, tokenizer and untrained model into the run directory, where the stages to run need
/// them.
pub(crate) fn prepare(run: &OutDir, stages: &[&Algorithm], seed: u64, dtype: DType) -> Result<()> {
    let begins = stages.contains(&SFT);
    if begins || run.find("data")?.is_none() {
        run.replace("data", |data| write_jsonl(data, seed, Sizes::default()))?;
    }
    if !begins {
        return Ok(());
    }
    let texts: Vec<String> = corpus().collect();
    let texts = texts.iter().map(String::as_str);
    let tokenizer = Tokenizer::byte_level_bpe(texts, VOCAB, &["<|endoftext|>"], Some(TEMPLATE))?;
    let config = config(&tokenizer);
    let options = LoadOptions { seed, ..LoadOptions::frozen(Head::Lm, dtype) };
    let model = Model::random(&config, &options)?;
    run.replace("base", |dir| {
        save_model(&model, dir, &SaveAs::default(), None)?;
        tokenizer.save(dir)
    })
}

fn config(tokenizer: &Tokenizer) -> Config {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": null,
        "eos_token_id": tokenizer.eos_id(),
        "pad_token_id": tokenizer.eos_id(),
    });
    let Value::Object(map) = config else { return Config::from_map(Map::new()) };
    Config::from_map(map)
}
