//! The models that are planned for: their `config.json`, without weights. Published OPT models
//! (Zhang et al. 2022, table 1) are known by name.

use crate::arch::Config;
use crate::base::Result;
use crate::model::{base_dir, resolve_model};
use serde_json::{Map, Value, json};

/// Name, layers, heads, width, width of the embeddings.
type Shape = (&'static str, usize, usize, usize, usize);

/// Widths are multiples of heads; vocabulary, positions and the MLP's ratio of 4 are the same in
/// all.
pub(super) static OPT: [Shape; 9] = [
    ("opt-125m", 12, 12, 768, 768),
    ("opt-350m", 24, 16, 1024, 512),
    ("opt-1.3b", 24, 32, 2048, 2048),
    ("opt-2.7b", 32, 32, 2560, 2560),
    ("opt-6.7b", 32, 32, 4096, 4096),
    ("opt-13b", 40, 40, 5120, 5120),
    ("opt-30b", 48, 56, 7168, 7168),
    ("opt-66b", 64, 72, 9216, 9216),
    ("opt-175b", 96, 96, 12288, 12288),
];

/// The configuration of a model directory, a model in the local cache, or a published OPT.
pub(super) fn config(name: &str) -> Result<Config> {
    let found = resolve_model(name).and_then(|dir| Config::read(&base_dir(&dir)?));
    let short = name.strip_prefix("facebook/").unwrap_or(name);
    match (found, OPT.iter().find(|shape| shape.0 == short)) {
        (Err(_), Some(shape)) => Ok(opt(shape)),
        (found, _) => found,
    }
}

fn opt(&(name, layers, heads, hidden, embedded): &Shape) -> Config {
    let fields = json!({
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "word_embed_proj_dim": embedded,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
        // The 350M model alone has its norms after attention and MLP.
        "do_layer_norm_before": name != "opt-350m",
        "eos_token_id": 2,
    });
    Config::from_map(match fields {
        Value::Object(map) => map,
        _ => Map::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_models_have_the_parameters_of_their_names() {
        for shape in &OPT {
            let (number, unit) = shape.0[4..].split_at(shape.0.len() - 5);
            let said = number.parse::<f64>().unwrap() * if unit == "m" { 1e6 } else { 1e9 };
            let arch = config(&format!("facebook/{}", shape.0)).unwrap().arch().unwrap();
            // The head is the embedding.
            let count = arch.parameters() - (arch.vocab * arch.embed_width) as f64;
            assert!((count / said - 1.0).abs() < 0.06, "{}: {count}", shape.0);
        }
        assert_eq!(config("opt-9b").unwrap_err().exit_code(), 2);
    }
}
