//! GPT-Neo (Black et al. 2021): GPT-2 with attention that is local in every other layer, and not
//! scaled.

use super::{Family, Names, gpt2};
use crate::arch::{Arch, Config, NormKind, Sizes};
use crate::base::Result;
use serde_json::Value;

pub(super) static GPT_NEO: Family = Family {
    model_type: "gpt_neo",
    causal_lm: "GPTNeoForCausalLM",
    classifier: "GPTNeoForSequenceClassification",
    transposed: false,
    names: Names {
        qkv: &["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"],
        out: &["attn.attention.out_proj"],
        ..gpt2::NAMES
    },
    keys: &[&[
        "hidden_size",
        "num_layers",
        "num_heads",
        "intermediate_size",
        "max_position_embeddings",
        "window_size",
        "attention_layers",
        "attention_types",
        "layer_norm_epsilon",
        "activation_function",
    ]],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let hidden = c.size("hidden_size")?;
    let sizes = Sizes {
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.count("num_layers")?,
        heads: c.count("num_heads")?,
        ffn: c.size_or("intermediate_size", 4 * hidden)?,
        max_positions: c.size("max_position_embeddings")?,
    };
    let plain = Arch::plain(family, sizes);
    let window = c.size_or("window_size", 256)?;
    let windows = local_layers(c, sizes.layers)?;
    Ok(Arch {
        norm: NormKind { eps: c.number_or("layer_norm_epsilon", 1e-5)? as f32, ..plain.norm },
        activation: c.activation("activation_function", "gelu_new")?,
        bias_qkv: false,
        scale: 1.0,
        windows: windows.into_iter().map(|local| if local { window } else { 0 }).collect(),
        tied: c.flag_or("tie_word_embeddings", true)?,
        ..plain
    })
}

/// Which layers are local: by `attention_layers`, else by `attention_types`, a list of (kinds,
/// repeats).
fn local_layers(c: &Config, layers: usize) -> Result<Vec<bool>> {
    let bad = |key: &str| c.error(key, &format!("does not tell the kinds of all {layers} layers"));
    let local = |key: &str, kind: &Value| match kind.as_str() {
        Some("global") => Ok(false),
        Some("local") => Ok(true),
        _ => Err(c.error(key, &format!("{kind} is not supported; known: global, local"))),
    };
    let mut out = vec![];
    let key =
        if c.map.contains_key("attention_layers") { "attention_layers" } else { "attention_types" };
    match c.map.get(key) {
        None | Some(Value::Null) => out = (0..layers).map(|i| i % 2 == 1).collect(),
        Some(Value::Array(kinds)) if key == "attention_layers" => {
            out = kinds.iter().map(|kind| local(key, kind)).collect::<Result<_>>()?;
        }
        Some(types) => {
            for entry in types.as_array().ok_or_else(|| bad(key))? {
                let kinds = entry.get(0).and_then(Value::as_array).ok_or_else(|| bad(key))?;
                let repeats = entry.get(1).and_then(Value::as_u64).ok_or_else(|| bad(key))?;
                if repeats as usize > layers {
                    return Err(bad(key));
                }
                for kind in std::iter::repeat_n(kinds, repeats as usize).flatten() {
                    out.push(local(key, kind)?);
                    if out.len() > layers {
                        return Err(bad(key));
                    }
                }
            }
        }
    }
    if out.len() == layers { Ok(out) } else { Err(bad(key)) }
}
