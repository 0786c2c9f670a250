//! Kernels that decoding launches for a token, by family: what a graph's replay saves the host.

use duplex::arch::Config;
use duplex::base::{DType, Result};
use duplex::device::Device;
use duplex::model::{Head, LoadOptions, Model};
use duplex::rollout::launches_per_step;
use duplex::tape::Workspace;
use serde_json::{Value, json};

fn model(family: &str, layers: usize) -> Value {
    json!({"model_type": family, "vocab_size": 503, "hidden_size": 128, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256,
        "ffn_dim": 256, "max_position_embeddings": 128, "word_embed_proj_dim": 128})
}

fn launches(device: Device, family: &str, layers: usize) -> Result<u64> {
    let map = model(family, layers).as_object().cloned().unwrap_or_default();
    let options = LoadOptions::frozen(Head::Lm, DType::Bf16).on(device);
    let model = Model::random(&Config::from_map(map), &options)?;
    launches_per_step(&model, &mut Workspace::new(device, 1 << 30)?)
}

/// Launches per token: of each layer, and besides.
pub(crate) fn count(device: Device) -> Result<String> {
    let mut lines = vec![];
    for family in ["opt", "gpt_neox", "llama"] {
        let (one, two) = (launches(device, family, 1)?, launches(device, family, 2)?);
        let layer = two - one;
        lines.push(format!("{family} {layer} a layer and {}", one - layer));
    }
    Ok(format!("kernels per token: {}", lines.join(", ")))
}
