//! OPT (Zhang et al. 2022). The 350m model is the odd one: post-norm, and a narrower embedding.

use super::{Family, Names};
use crate::arch::{Arch, Config, Position, Residual, Sizes};
use crate::base::Result;
use serde_json::json;

pub(super) static OPT: Family = Family {
    model_type: "opt",
    causal_lm: "OPTForCausalLM",
    classifier: "OPTForSequenceClassification",
    transposed: false,
    names: Names {
        prefix: "model.decoder.",
        tokens: "embed_tokens",
        positions: "embed_positions",
        project_in: "project_in",
        project_out: "project_out",
        block: "layers.{i}",
        norm1: "self_attn_layer_norm",
        qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        out: &["self_attn.out_proj"],
        norm2: "final_layer_norm",
        up: &["fc1"],
        down: &["fc2"],
        final_norm: "final_layer_norm",
        ..Names::NONE
    },
    keys: &[&[
        "layer_norm_elementwise_affine",
        "hidden_size",
        "do_layer_norm_before",
        "enable_bias",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
        "max_position_embeddings",
        "word_embed_proj_dim",
        "_remove_final_layer_norm",
        "activation_function",
    ]],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    c.only("layer_norm_elementwise_affine", &json!(true))?;
    let hidden = c.size("hidden_size")?;
    let pre_norm = c.flag_or("do_layer_norm_before", true)?;
    let bias = c.flag_or("enable_bias", true)?;
    let sizes = Sizes {
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.count("num_hidden_layers")?,
        heads: c.count("num_attention_heads")?,
        ffn: c.size("ffn_dim")?,
        max_positions: c.size("max_position_embeddings")?,
    };
    Ok(Arch {
        embed_width: c.size_or("word_embed_proj_dim", hidden)?,
        position: Position::Learned { rows: sizes.max_positions + 2, offset: 2 },
        residual: if pre_norm { Residual::PreNorm } else { Residual::PostNorm },
        final_norm: pre_norm && !c.flag_or("_remove_final_layer_norm", false)?,
        activation: c.activation("activation_function", "relu")?,
        bias_qkv: bias,
        bias_out: bias,
        bias_mlp: bias,
        tied: c.flag_or("tie_word_embeddings", true)?,
        ..Arch::plain(family, sizes)
    })
}
