//! Tiny random models of every family, shared by the integration tests.

pub mod checkpoint;
pub mod device;

pub use checkpoint::fresh_rng;
pub use device::device;
use duplex::arch::Config;
use duplex::base::{DType, Rng};
use duplex::model::{Head, LoadOptions, LoraConfig, Model};
use duplex::tape::ActivationCheckpointing;
use duplex::train::{AdamWConfig, AdamWState, Schedule, ScheduleKind};
use serde_json::{Value, json};

/// The three whose parts the others are made of.
pub const FAMILIES: [&str; 3] = ["opt", "gpt2", "llama"];
/// Every family, and its variants of another shape.
pub const ALL_FAMILIES: [&str; 17] = [
    "opt",
    "opt_350m",
    "gpt2",
    "gpt_neo",
    "bloom",
    "gpt_neox",
    "gpt_neox_serial",
    "gptj",
    "codegen",
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "phi3_partial",
];
pub const VOCAB: usize = 97;

pub fn config(family: &str) -> Config {
    Config::from_map(fields(family).as_object().unwrap().clone())
}

/// The same with another vocabulary, and room for rows of `positions` tokens.
pub fn config_of(family: &str, vocab: usize, positions: usize) -> Config {
    let mut fields = fields(family).as_object().unwrap().clone();
    fields.insert("vocab_size".into(), vocab.into());
    for name in ["max_position_embeddings", "n_positions", "seq_length"] {
        fields.entry(name).and_modify(|n| *n = positions.into());
    }
    Config::from_map(fields)
}

fn fields(family: &str) -> Value {
    match family {
        "opt" => json!({"model_type": "opt", "vocab_size": VOCAB, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 52,
            "max_position_embeddings": 128, "word_embed_proj_dim": 32}),
        "gpt2" => json!({"model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2,
            "n_head": 4, "n_positions": 128, "n_inner": 56}),
        "llama" => json!({"model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 50, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false}),
        "opt_350m" => json!({"model_type": "opt", "vocab_size": VOCAB, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 52,
            "max_position_embeddings": 128, "word_embed_proj_dim": 20,
            "do_layer_norm_before": false}),
        "gpt_neo" => json!({"model_type": "gpt_neo", "vocab_size": VOCAB, "hidden_size": 32,
            "num_layers": 2, "num_heads": 4, "intermediate_size": 52, "window_size": 7,
            "max_position_embeddings": 128, "attention_types": [[["global", "local"], 1]]}),
        "bloom" => json!({"model_type": "bloom", "vocab_size": VOCAB, "hidden_size": 30,
            "n_layer": 2, "n_head": 5, "seq_length": 128}),
        "gpt_neox" | "gpt_neox_serial" => json!({"model_type": "gpt_neox", "vocab_size": VOCAB,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 52, "max_position_embeddings": 128, "rotary_pct": 0.5,
            "use_parallel_residual": family == "gpt_neox"}),
        "gptj" | "codegen" => json!({"model_type": family, "vocab_size": VOCAB, "n_embd": 32,
            "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
        _ => llama_like(family),
    }
}

fn llama_like(family: &str) -> Value {
    let mut v = json!({"model_type": family.split('_').next(), "vocab_size": VOCAB,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 50, "max_position_embeddings": 128});
    let more = match family {
        "llama3" => json!({"model_type": "llama", "rope_parameters": {"rope_type": "llama3",
            "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}}),
        "mistral" => json!({"sliding_window": 9}),
        "qwen2" => json!({"tie_word_embeddings": true}),
        "qwen3" => json!({"head_dim": 12}),
        "gemma2" => json!({"head_dim": 12, "sliding_window": 9, "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0,
            "hidden_act": "gelu_pytorch_tanh"}),
        "phi3" => json!({}),
        "phi3_partial" => json!({"partial_rotary_factor": 0.5}),
        other => panic!("{other}"),
    };
    let (v, more) = (v.as_object_mut().unwrap(), more.as_object().unwrap());
    v.extend(more.clone());
    Value::Object(v.clone())
}

pub fn lora(family: &str) -> LoraConfig {
    let modules: &[&str] = match family {
        "opt" => &["q_proj", "v_proj", "fc1"],
        "gpt2" => &["c_attn", "c_fc"],
        "llama" => &["q_proj", "v_proj", "gate_proj", "down_proj"],
        _ => &["all"],
    };
    let modules = modules.iter().map(|m| m.to_string()).collect();
    LoraConfig { rank: 4, alpha: 8.0, modules, ..LoraConfig::default() }
}

/// A model whose weights are large enough for its distributions to be far from uniform.
pub fn model(
    family: &str,
    head: Head,
    dtype: DType,
    train: bool,
    with: Option<&LoraConfig>,
    seed: u64,
) -> Model {
    let options =
        LoadOptions { train, lora: with.cloned(), seed, ..LoadOptions::frozen(head, dtype) };
    model_as(family, &options.on(device()))
}

/// The same with every option.
pub fn model_as(family: &str, options: &LoadOptions) -> Model {
    model_of(&config(family), options)
}

/// The same of any configuration.
pub fn model_of(config: &Config, options: &LoadOptions) -> Model {
    let seed = options.seed;
    let model = Model::random(config, options).unwrap();
    for (i, p) in model.store.params().iter().enumerate() {
        if p.spec.name.contains(".lora.") {
            continue;
        }
        let mut rng = Rng::new(seed, 1000 + i as u64);
        let n = p.spec.shape.iter().product::<usize>();
        let (mean, std) = if p.spec.name.contains("norm") && p.spec.name.ends_with("weight") {
            (1.0, 0.2)
        } else {
            (0.0, 0.15)
        };
        let values: Vec<f32> = (0..n).map(|_| mean + std * rng.normal()).collect();
        model.store.write_f32(duplex::pool::ParamId(i), &values).unwrap();
    }
    model
}

pub fn adamw(learning_rate: f32) -> AdamWConfig {
    AdamWConfig {
        learning_rate,
        lora_learning_rate: learning_rate,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
        state: AdamWState::Full,
        offload: false,
    }
}

pub fn constant() -> Schedule {
    Schedule { kind: ScheduleKind::Constant, warmup: 0, total: 100 }
}

pub fn prompts(seed: u64, n: usize) -> Vec<Vec<i32>> {
    let mut rng = Rng::new(seed, 77);
    (0..n)
        .map(|_| (0..1 + rng.below(70)).map(|_| rng.below(VOCAB as u32) as i32).collect())
        .collect()
}

/// A row of `shortest..=longest` tokens of a vocabulary.
pub fn row(rng: &mut Rng, vocab: usize, shortest: usize, longest: usize) -> Vec<i32> {
    let n = shortest + rng.below((longest - shortest + 1) as u32) as usize;
    (0..n).map(|_| rng.below(vocab as u32) as i32).collect()
}

pub const CHECKPOINTINGS: [ActivationCheckpointing; 3] = [
    ActivationCheckpointing::None,
    ActivationCheckpointing::Selective,
    ActivationCheckpointing::Full,
];
