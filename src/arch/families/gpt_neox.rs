//! GPT-NeoX and Pythia (Black et al. 2022): attention and MLP in parallel (or not), rotary
//! positions on part of each head, q, k, v of each head together.

use super::{Family, Names, llama};
use crate::arch::{Arch, Config, NormKind, Position, QkvRows, Residual, Rotary};
use crate::base::Result;

pub(super) static GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    causal_lm: "GPTNeoXForCausalLM",
    classifier: "GPTNeoXForSequenceClassification",
    transposed: false,
    names: Names {
        prefix: "gpt_neox.",
        tokens: "embed_in",
        block: "layers.{i}",
        norm1: "input_layernorm",
        qkv: &["attention.query_key_value"],
        out: &["attention.dense"],
        norm2: "post_attention_layernorm",
        up: &["mlp.dense_h_to_4h"],
        down: &["mlp.dense_4h_to_h"],
        final_norm: "final_layer_norm",
        head: "embed_out",
        ..Names::NONE
    },
    keys: &[&[
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "rope_parameters",
        "rope_scaling",
        "rotary_pct",
        "rope_theta",
        "rotary_emb_base",
        "use_parallel_residual",
        "attention_bias",
        "layer_norm_eps",
        "hidden_act",
    ]],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let plain = Arch::plain(family, llama::sizes(c)?);
    let part = c.rope_number("partial_rotary_factor", &["rotary_pct"], 0.25)?;
    let theta = c.rope_number("rope_theta", &["rotary_emb_base"], 10_000.0)?;
    let inv_freq = c.inv_freq((plain.head_dim as f64 * part) as usize, theta)?;
    let parallel = c.flag_or("use_parallel_residual", true)?;
    let bias = c.flag_or("attention_bias", true)?;
    Ok(Arch {
        position: Position::Rotary(Rotary { inv_freq: inv_freq.into(), interleaved: false }),
        norm: NormKind { eps: c.number_or("layer_norm_eps", 1e-5)? as f32, ..plain.norm },
        residual: if parallel { Residual::Parallel } else { Residual::PreNorm },
        qkv_order: QkvRows::ByHead,
        activation: c.activation("hidden_act", "gelu")?,
        bias_qkv: bias,
        bias_out: bias,
        tied: c.flag_or("tie_word_embeddings", false)?,
        ..plain
    })
}
