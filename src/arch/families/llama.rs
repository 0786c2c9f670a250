//! LLaMA 1 to 3 (Touvron et al. 2023) and those built like it: Mistral, Qwen2, Qwen3.

use super::{Family, Names};
use crate::arch::{Arch, Config, NormKind, Position, Rotary, Sizes};
use crate::base::Result;

/// Tensor names of LLaMA and its relatives.
pub(super) const NAMES: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    block: "layers.{i}",
    norm1: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: &["self_attn.o_proj"],
    norm2: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: &["mlp.down_proj"],
    final_norm: "norm",
    ..Names::NONE
};

/// Keys that [`read`] reads; Gemma 2 has its activation by another.
pub(super) const KEYS: &[&str] = &[
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
];

/// Keys that [`Config::windows`] reads.
pub(super) const WINDOWS: &[&str] = &["layer_types", "sliding_window"];

/// Keys that say where Qwen has windows.
const QWEN: &[&str] = &["max_window_layers", "use_sliding_window"];

pub(super) static LLAMA: Family = Family {
    model_type: "llama",
    causal_lm: "LlamaForCausalLM",
    classifier: "LlamaForSequenceClassification",
    transposed: false,
    names: NAMES,
    keys: &[KEYS, &["attention_bias", "mlp_bias"]],
    read: |c, family| {
        let bias = c.flag_or("attention_bias", false)?;
        let bias_mlp = c.flag_or("mlp_bias", false)?;
        Ok(Arch { bias_qkv: bias, bias_out: bias, bias_mlp, ..read(c, family)? })
    },
};

pub(super) static MISTRAL: Family = Family {
    model_type: "mistral",
    causal_lm: "MistralForCausalLM",
    classifier: "MistralForSequenceClassification",
    transposed: false,
    names: NAMES,
    keys: &[KEYS, WINDOWS],
    read: |c, family| {
        let arch = read(c, family)?;
        Ok(Arch { windows: c.windows(arch.layers, 4096, |_| true)?, ..arch })
    },
};

pub(super) static QWEN2: Family = Family {
    model_type: "qwen2",
    causal_lm: "Qwen2ForCausalLM",
    classifier: "Qwen2ForSequenceClassification",
    transposed: false,
    names: NAMES,
    keys: &[KEYS, WINDOWS, QWEN],
    read: |c, family| Ok(Arch { bias_qkv: true, ..qwen(c, family)? }),
};

pub(super) static QWEN3: Family = Family {
    model_type: "qwen3",
    causal_lm: "Qwen3ForCausalLM",
    classifier: "Qwen3ForSequenceClassification",
    transposed: false,
    names: Names { q_norm: "self_attn.q_norm", k_norm: "self_attn.k_norm", ..NAMES },
    keys: &[KEYS, WINDOWS, QWEN, &["attention_bias"]],
    read: |c, family| {
        let bias = c.flag_or("attention_bias", false)?;
        Ok(Arch { bias_qkv: bias, bias_out: bias, qk_norm: true, ..qwen(c, family)? })
    },
};

/// Windows only where `use_sliding_window`, and then in the layers from `max_window_layers` on.
fn qwen(c: &Config, family: &'static Family) -> Result<Arch> {
    let arch = read(c, family)?;
    if !c.flag_or("use_sliding_window", false)? {
        return Ok(arch);
    }
    let first = c.size_or("max_window_layers", 28)?;
    Ok(Arch { windows: c.windows(arch.layers, 4096, |i| i >= first)?, ..arch })
}

/// Reads the architecture that LLaMA and its relatives share: RMSNorm, rotary positions,
/// grouped-query attention, a gated MLP and no biases.
pub(super) fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let sizes = sizes(c)?;
    let plain = Arch::plain(family, sizes);
    // Some have defaults of their own: size of a head, kv heads, epsilon.
    let (head_dim, kv_heads, eps) = match family.model_type {
        "mistral" => (plain.head_dim, 8, 1e-6),
        "qwen2" => (plain.head_dim, 32, 1e-6),
        "qwen3" => (128, 32, 1e-6),
        "gemma2" => (256, 4, 1e-6),
        "phi3" => (plain.head_dim, sizes.heads, 1e-5),
        _ => (plain.head_dim, sizes.heads, 1e-6),
    };
    // An explicit null means as many as query heads.
    let null = c.map.contains_key("num_key_value_heads");
    let kv_heads = c.size_or("num_key_value_heads", if null { sizes.heads } else { kv_heads })?;
    let head_dim = c.size_or("head_dim", head_dim)?;
    let part = c.turning_part(family)?;
    let theta = c.rope_number("rope_theta", &["rope_theta"], 10_000.0)?;
    let inv_freq = c.inv_freq((head_dim as f64 * part) as usize, theta)?;
    Ok(Arch {
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
        position: Position::Rotary(Rotary { inv_freq: inv_freq.into(), interleaved: false }),
        norm: NormKind {
            layer_norm: false,
            eps: c.number_or("rms_norm_eps", eps)? as f32,
            unit_offset: false,
        },
        // Gemma 2 reads a key of its own instead.
        activation: match family.model_type {
            "gemma2" => plain.activation,
            _ => c.activation("hidden_act", "silu")?,
        },
        gated: true,
        bias_qkv: false,
        bias_out: false,
        bias_mlp: false,
        tied: c.flag_or("tie_word_embeddings", false)?,
        ..plain
    })
}

/// The sizes under the keys most families use today.
pub(super) fn sizes(c: &Config) -> Result<Sizes> {
    Ok(Sizes {
        vocab: c.size("vocab_size")?,
        hidden: c.size("hidden_size")?,
        layers: c.count("num_hidden_layers")?,
        heads: c.count("num_attention_heads")?,
        ffn: c.size("intermediate_size")?,
        max_positions: c.size_or("max_position_embeddings", 2048)?,
    })
}
