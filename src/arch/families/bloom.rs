//! BLOOM (Le Scao et al. 2022): ALiBi, a norm after the embedding, q, k, v of each head together.

use super::{Family, Names};
use crate::arch::{Arch, Config, NormKind, Position, QkvRows, Sizes, alibi_slopes};
use crate::base::Result;
use serde_json::json;

pub(super) static BLOOM: Family = Family {
    model_type: "bloom",
    causal_lm: "BloomForCausalLM",
    classifier: "BloomForSequenceClassification",
    transposed: false,
    names: Names {
        prefix: "transformer.",
        tokens: "word_embeddings",
        embed_norm: "word_embeddings_layernorm",
        block: "h.{i}",
        norm1: "input_layernorm",
        qkv: &["self_attention.query_key_value"],
        out: &["self_attention.dense"],
        norm2: "post_attention_layernorm",
        up: &["mlp.dense_h_to_4h"],
        down: &["mlp.dense_4h_to_h"],
        final_norm: "ln_f",
        ..Names::NONE
    },
    keys: &[&[
        "apply_residual_connection_post_layernorm",
        "n_embed",
        "hidden_size",
        "n_layer",
        "num_hidden_layers",
        "n_head",
        "num_attention_heads",
        "seq_length",
        "layer_norm_epsilon",
    ]],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    c.only("apply_residual_connection_post_layernorm", &json!(false))?;
    // Some published configs say n_embed and num_attention_heads.
    let either = |read: fn(&Config, &str) -> Result<usize>, new: &str, old: &str| {
        read(c, new).or_else(|e| read(c, old).map_err(|_| e))
    };
    let hidden = either(Config::size, "n_embed", "hidden_size")?;
    let sizes = Sizes {
        vocab: c.size("vocab_size")?,
        hidden,
        layers: either(Config::count, "n_layer", "num_hidden_layers")?,
        heads: either(Config::count, "n_head", "num_attention_heads")?,
        ffn: 4 * hidden,
        // ALiBi has no limit; this is the length it was trained at.
        max_positions: c.size_or("seq_length", 2048)?,
    };
    let plain = Arch::plain(family, sizes);
    Ok(Arch {
        embed_norm: true,
        position: Position::Alibi { slopes: alibi_slopes(sizes.heads) },
        norm: NormKind { eps: c.number_or("layer_norm_epsilon", 1e-5)? as f32, ..plain.norm },
        qkv_order: QkvRows::ByHead,
        tied: c.flag_or("tie_word_embeddings", true)?,
        ..plain
    })
}
