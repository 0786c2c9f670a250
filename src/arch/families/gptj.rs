//! GPT-J (Wang and Komatsuzaki 2021): attention and MLP in parallel behind one norm, interleaved
//! rotary positions, a head with a bias.

use super::{Family, Names};
use crate::arch::{Arch, Config, NormKind, Position, Residual, Rotary, Sizes};
use crate::base::Result;

pub(super) static GPTJ: Family = Family {
    model_type: "gptj",
    causal_lm: "GPTJForCausalLM",
    classifier: "GPTJForSequenceClassification",
    transposed: false,
    names: Names {
        prefix: "transformer.",
        tokens: "wte",
        block: "h.{i}",
        norm1: "ln_1",
        qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
        out: &["attn.out_proj"],
        up: &["mlp.fc_in"],
        down: &["mlp.fc_out"],
        final_norm: "ln_f",
        ..Names::NONE
    },
    read,
};

/// Also CodeGen's, whose config has the same keys.
pub(super) fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let hidden = c.size("n_embd")?;
    let sizes = Sizes {
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.size("n_layer")?,
        heads: c.size("n_head")?,
        ffn: c.size_or("n_inner", 4 * hidden)?,
        max_positions: c.size("n_positions")?,
    };
    let plain = Arch::plain(family, sizes);
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
