//! Gemma 2 (Gemma Team 2024): norms on both sides of attention and MLP, soft caps on scores and
//! logits, sliding windows in every other layer.

use super::{Family, Names, llama};
use crate::arch::{Arch, NormKind, Residual};
use serde_json::json;

pub(super) static GEMMA2: Family = Family {
    model_type: "gemma2",
    causal_lm: "Gemma2ForCausalLM",
    classifier: "Gemma2ForSequenceClassification",
    transposed: false,
    names: Names {
        post1: "post_attention_layernorm",
        norm2: "pre_feedforward_layernorm",
        post2: "post_feedforward_layernorm",
        ..llama::NAMES
    },
    keys: &[
        llama::KEYS,
        llama::WINDOWS,
        &[
            "attention_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "hidden_activation",
            "query_pre_attn_scalar",
            "use_bidirectional_attention",
        ],
    ],
    read: |c, family| {
        c.only("use_bidirectional_attention", &json!(false))?;
        let arch = llama::read(c, family)?;
        let bias = c.flag_or("attention_bias", false)?;
        let query = c.number_or("query_pre_attn_scalar", 256.0)?;
        Ok(Arch {
            embed_scale: (arch.hidden as f32).sqrt(),
            norm: NormKind { unit_offset: true, ..arch.norm },
            residual: Residual::Sandwich,
            scale: (1.0 / query.sqrt()) as f32,
            attention_softcap: c.number_or_null("attn_logit_softcapping", 50.0)? as f32,
            windows: c.windows(arch.layers, 4096, |i| i % 2 == 0)?,
            activation: c.activation("hidden_activation", "gelu_pytorch_tanh")?,
            bias_qkv: bias,
            bias_out: bias,
            tied: c.flag_or("tie_word_embeddings", true)?,
            head_softcap: c.number_or_null("final_logit_softcapping", 30.0)? as f32,
            ..arch
        })
    },
};
