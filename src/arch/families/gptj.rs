//! GPT-J (Wang and Komatsuzaki 2021): attention and MLP in parallel behind one norm, interleaved
//! rotary positions, a head with a bias.

use super::{Family, Names, gpt2};
use crate::arch::{Arch, Config, NormKind, Position, Residual, Rotary};
use crate::base::Result;

/// Also CodeGen's, but for qkv.
pub(super) const NAMES: Names = Names {
    positions: "",
    qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    out: &["attn.out_proj"],
    norm2: "",
    up: &["mlp.fc_in"],
    down: &["mlp.fc_out"],
    ..gpt2::NAMES
};

/// Keys that are read, for CodeGen too.
pub(super) const KEYS: &[&str] = &[
    "activation_function",
    "layer_norm_epsilon",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "rotary_dim",
];

pub(super) static GPTJ: Family = Family {
    model_type: "gptj",
    causal_lm: "GPTJForCausalLM",
    classifier: "GPTJForSequenceClassification",
    transposed: false,
    names: NAMES,
    keys: &[KEYS],
    read,
};

/// Also CodeGen's, whose config has the same keys.
pub(super) fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let plain = Arch::plain(family, gpt2::sizes(c)?);
    let rotary_dim = c.number_or_null("rotary_dim", 64.0)? as usize;
    if rotary_dim == 0 || rotary_dim > plain.head_dim {
        let what = format!("must be 2 to {}, the size of a head", plain.head_dim);
        return Err(c.error("rotary_dim", &what));
    }
    let inv_freq = c.inv_freq(rotary_dim, 10_000.0)?;
    Ok(Arch {
        position: Position::Rotary(Rotary { inv_freq: inv_freq.into(), interleaved: true }),
        norm: NormKind { eps: c.number_or("layer_norm_epsilon", 1e-5)? as f32, ..plain.norm },
        residual: Residual::ParallelOneNorm,
        activation: c.activation("activation_function", "gelu_new")?,
        bias_qkv: false,
        bias_out: false,
        tied: c.flag_or("tie_word_embeddings", false)?,
        head_bias: true,
        ..plain
    })
}
