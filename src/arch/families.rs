//! The families: one row each, with the tensor names of their Hugging Face checkpoints.

use crate::arch::{Arch, Config, NormKind, Position};
use crate::base::Result;
use serde_json::json;

/// Checkpoint modules that make up one of our linear layers, stacked by output rows in this order.
pub type Module = &'static [&'static str];

/// Names of the modules in a checkpoint; block modules are relative to the block.
#[derive(Debug)]
pub struct Names {
    /// Prefix of everything but the heads, which some published checkpoints leave out.
    pub prefix: &'static str,
    /// Token embedding.
    pub tokens: &'static str,
    /// Position embedding, if learned.
    pub positions: &'static str,
    /// Block `{i}`.
    pub block: &'static str,
    /// Norm before attention.
    pub norm1: &'static str,
    /// q, k and v.
    pub qkv: Module,
    /// Attention output.
    pub out: Module,
    /// Norm before the MLP.
    pub norm2: &'static str,
    /// First MLP layer, or gate and up.
    pub up: Module,
    /// Second MLP layer.
    pub down: Module,
    /// Norm before the head.
    pub final_norm: &'static str,
}

/// One family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Class of the language model.
    pub causal_lm: &'static str,
    /// Class of the reward model and critic (one label).
    pub classifier: &'static str,
    /// Linear weights of blocks are stored `[in, out]` (Conv1D).
    pub transposed: bool,
    /// Tensor names.
    pub names: Names,
    /// Reads the architecture from a config.
    pub read: fn(&Config, &'static Family) -> Result<Arch>,
}

/// All families.
pub static FAMILIES: &[Family] = &[
    Family {
        model_type: "opt",
        causal_lm: "OPTForCausalLM",
        classifier: "OPTForSequenceClassification",
        transposed: false,
        names: Names {
            prefix: "model.decoder.",
            tokens: "embed_tokens",
            positions: "embed_positions",
            block: "layers.{i}",
            norm1: "self_attn_layer_norm",
            qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            out: &["self_attn.out_proj"],
            norm2: "final_layer_norm",
            up: &["fc1"],
            down: &["fc2"],
            final_norm: "final_layer_norm",
        },
        read: opt,
    },
    Family {
        model_type: "gpt2",
        causal_lm: "GPT2LMHeadModel",
        classifier: "GPT2ForSequenceClassification",
        transposed: true,
        names: Names {
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
        },
        read: gpt2,
    },
    Family {
        model_type: "llama",
        causal_lm: "LlamaForCausalLM",
        classifier: "LlamaForSequenceClassification",
        transposed: false,
        names: Names {
            prefix: "model.",
            tokens: "embed_tokens",
            positions: "",
            block: "layers.{i}",
            norm1: "input_layernorm",
            qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            out: &["self_attn.o_proj"],
            norm2: "post_attention_layernorm",
            up: &["mlp.gate_proj", "mlp.up_proj"],
            down: &["mlp.down_proj"],
            final_norm: "norm",
        },
        read: llama,
    },
];

fn opt(c: &Config, family: &'static Family) -> Result<Arch> {
    c.only("do_layer_norm_before", &json!(true))?;
    c.only("_remove_final_layer_norm", &json!(false))?;
    c.only("layer_norm_elementwise_affine", &json!(true))?;
    let hidden = c.size("hidden_size")?;
    c.only("word_embed_proj_dim", &json!(hidden))?;
    let heads = c.size("num_attention_heads")?;
    let bias = c.flag_or("enable_bias", true)?;
    let max_positions = c.size("max_position_embeddings")?;
    Ok(Arch {
        family,
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads.max(1),
        ffn: c.size("ffn_dim")?,
        max_positions,
        position: Position::Learned { rows: max_positions + 2, offset: 2 },
        norm: NormKind { layer_norm: true, eps: 1e-5 },
        activation: c.activation("activation_function", "relu")?,
        gated: false,
        bias_qkv: bias,
        bias_out: bias,
        bias_mlp: bias,
        tied: c.flag_or("tie_word_embeddings", true)?,
    })
}

fn gpt2(c: &Config, family: &'static Family) -> Result<Arch> {
    c.only("scale_attn_weights", &json!(true))?;
    c.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
    c.only("add_cross_attention", &json!(false))?;
    let (hidden, heads) = (c.size("n_embd")?, c.size("n_head")?);
    let max_positions = c.size("n_positions")?;
    Ok(Arch {
        family,
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads.max(1),
        ffn: c.size_or("n_inner", 4 * hidden)?,
        max_positions,
        position: Position::Learned { rows: max_positions, offset: 0 },
        norm: NormKind { layer_norm: true, eps: c.number_or("layer_norm_epsilon", 1e-5)? as f32 },
        activation: c.activation("activation_function", "gelu_new")?,
        gated: false,
        bias_qkv: true,
        bias_out: true,
        bias_mlp: true,
        tied: c.flag_or("tie_word_embeddings", true)?,
    })
}

fn llama(c: &Config, family: &'static Family) -> Result<Arch> {
    let (hidden, heads) = (c.size("hidden_size")?, c.size("num_attention_heads")?);
    let head_dim = c.size_or("head_dim", hidden / heads.max(1))?;
    let attention_bias = c.flag_or("attention_bias", false)?;
    Ok(Arch {
        family,
        vocab: c.size("vocab_size")?,
        hidden,
        layers: c.size("num_hidden_layers")?,
        heads,
        kv_heads: c.size_or("num_key_value_heads", heads)?,
        head_dim,
        ffn: c.size("intermediate_size")?,
        max_positions: c.size_or("max_position_embeddings", 2048)?,
        position: Position::Rope { inv_freq: c.inv_freq(head_dim)?.into() },
        norm: NormKind { layer_norm: false, eps: c.number_or("rms_norm_eps", 1e-6)? as f32 },
        activation: c.activation("hidden_act", "silu")?,
        gated: true,
        bias_qkv: attention_bias,
        bias_out: attention_bias,
        bias_mlp: c.flag_or("mlp_bias", false)?,
        tied: c.flag_or("tie_word_embeddings", false)?,
    })
}
