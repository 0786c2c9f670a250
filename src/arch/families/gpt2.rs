//! GPT-2 (Radford et al. 2019), whose linear layers are stored `[in, out]`.

use super::{Family, Names};
use crate::arch::{Arch, Config, NormKind, Sizes};
use crate::base::Result;
use serde_json::json;

/// GPT-Neo, GPT-J and CodeGen differ from them in a few.
pub(super) const NAMES: Names = Names {
    prefix: "transformer.",
    tokens: "wte",
    positions: "wpe",
    block: "h.{i}",
    norm1: "ln_1",
    qkv: &["attn.c_attn"],
    out: &["attn.c_proj"],
    norm2: "ln_2",
    up: &["mlp.c_fc"],
    down: &["mlp.c_proj"],
    final_norm: "ln_f",
    ..Names::NONE
};

pub(super) static GPT2: Family = Family {
    model_type: "gpt2",
    causal_lm: "GPT2LMHeadModel",
    classifier: "GPT2ForSequenceClassification",
    transposed: true,
    names: NAMES,
    keys: &[&[
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
        "layer_norm_epsilon",
        "activation_function",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
    ]],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    c.only("scale_attn_weights", &json!(true))?;
    c.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
    c.only("add_cross_attention", &json!(false))?;
    let plain = Arch::plain(family, sizes(c)?);
    Ok(Arch {
        norm: NormKind { eps: c.number_or("layer_norm_epsilon", 1e-5)? as f32, ..plain.norm },
        activation: c.activation("activation_function", "gelu_new")?,
        tied: c.flag_or("tie_word_embeddings", true)?,
        ..plain
    })
}

/// The sizes under GPT-2's keys, which GPT-J and CodeGen keep.
pub(super) fn sizes(c: &Config) -> Result<Sizes> {
    let hidden = c.size("n_embd")?;
    Ok(Sizes {
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.count("n_layer")?,
        heads: c.count("n_head")?,
        ffn: c.size_or("n_inner", 4 * hidden)?,
        max_positions: c.size("n_positions")?,
    })
}
