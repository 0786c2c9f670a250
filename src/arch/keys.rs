//! The keys of `config.json`: which are read, which change nothing here, and which mean another
//! model where their value is not the neutral one. All others are counted in a warning.

use crate::arch::config::PART;
use crate::arch::{Arch, Config, Position};
use crate::base::Result;
use serde_json::Value;

/// Keys of any config that do not change what the model computes: records of who saved it, tokens,
/// settings of generation, initialisation, memory and speed. Dropout is among them, since Duplex
/// trains without dropout in the base model.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "activation_dropout",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attention_softmax_in_fp32",
    "attn_implementation",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bias_dropout_fusion",
    "bos_token_id",
    "cache_implementation",
    "chat_template",
    "chunk_size_feed_forward",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "cls_token_id",
    "custom_pipelines",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "embed_dropout",
    "embedding_dropout",
    "encoder_no_repeat_ngram_size",
    "end_token_id",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "fused_norm",
    "gradient_checkpointing",
    "head_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "length_penalty",
    "masked_softmax_fusion",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "offset_alibi",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_projection",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_dropout",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "share_decoder_input_output_embed",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "sliding_window_size",
    "slow_but_exact",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention_2",
    "vocab_size",
];

/// Keys that choose the architecture. A family that does not read one accepts its neutral value
/// alone.
const STRUCTURAL: &[(&str, Neutral)] = &[
    ("add_cross_attention", Neutral::Off),
    ("alibi", Neutral::Alibi),
    ("apply_residual_connection_post_layernorm", Neutral::Off),
    ("attention_bias", Neutral::Biases),
    ("attention_multiplier", Neutral::Off),
    ("attention_out_bias", Neutral::Off),
    ("attn_logit_softcapping", Neutral::Off),
    ("clip_qkv", Neutral::Off),
    ("cross_attention_hidden_size", Neutral::Off),
    ("do_layer_norm_before", Neutral::On),
    ("embedding_multiplier", Neutral::One),
    ("enable_bias", Neutral::On),
    ("final_logit_softcapping", Neutral::Off),
    ("head_dim", Neutral::HeadDim),
    ("is_causal", Neutral::Causal),
    ("is_encoder_decoder", Neutral::Off),
    ("kv_lora_rank", Neutral::Off),
    ("layer_norm_elementwise_affine", Neutral::On),
    ("layer_types", Neutral::FullAttention),
    ("lm_head_bias", Neutral::Off),
    ("logit_scale", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("mlp_bias", Neutral::Off),
    ("moe_intermediate_size", Neutral::Off),
    ("mup_base_width", Neutral::Off),
    ("n_inner", Neutral::Ffn),
    ("n_routed_experts", Neutral::Off),
    ("no_rope_layers", Neutral::Off),
    ("num_experts", Neutral::Off),
    ("num_local_experts", Neutral::Off),
    ("num_key_value_heads", Neutral::KvHeads),
    ("num_nextn_predict_layers", Neutral::Off),
    ("parallel_attn", Neutral::Off),
    ("pruned_heads", Neutral::Off),
    ("q_lora_rank", Neutral::Off),
    ("qk_layernorm", Neutral::Off),
    ("qk_norm", Neutral::Off),
    ("qkv_bias", Neutral::Off),
    ("quantization_config", Neutral::Off),
    ("compression_config", Neutral::Off),
    ("query_pre_attn_scalar", Neutral::HeadDim),
    ("residual_multiplier", Neutral::One),
    ("rope_interleaved", Neutral::Off),
    ("rotary", Neutral::On),
    ("rope_parameters", Neutral::PlainRope),
    ("rope_scaling", Neutral::PlainRope),
    ("scale_attention_softmax_in_fp32", Neutral::On),
    ("scale_attn_by_inverse_layer_idx", Neutral::Off),
    ("scale_attn_weights", Neutral::On),
    ("sliding_window", Neutral::Window),
    ("text_config", Neutral::Off),
    ("use_bidirectional_attention", Neutral::Off),
    ("use_mrope", Neutral::Off),
    ("use_parallel_residual", Neutral::Off),
    ("use_qk_norm", Neutral::Off),
    ("use_qkv_bias", Neutral::Off),
    ("use_sliding_window", Neutral::Off),
    ("vision_config", Neutral::Off),
    ("audio_config", Neutral::Off),
    ("word_embed_proj_dim", Neutral::Hidden),
];

/// The value of a key that changes nothing. Null is one too.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    /// False, 0, an empty list or object.
    Off,
    /// True.
    On,
    /// True, and not null: for `transformers` that depends on the kernel of attention.
    Causal,
    /// 1.
    One,
    /// True if the family has ALiBi.
    Alibi,
    /// True if q, k and v have biases.
    Biases,
    /// The width of a head.
    HeadDim,
    /// The width of the residual stream.
    Hidden,
    /// The width of the MLP.
    Ffn,
    /// The number of key and value heads.
    KvHeads,
    /// All layers with full attention.
    FullAttention,
    /// Rotary embedding without scaling.
    PlainRope,
    /// A window that no sequence fills.
    Window,
}

impl Neutral {
    fn is(self, value: &Value, arch: &Arch) -> bool {
        let size = |n: usize| value.as_u64() == Some(n as u64);
        if value.is_null() {
            return !matches!(self, Neutral::Causal);
        }
        match self {
            Neutral::Off => is_off(value),
            Neutral::On | Neutral::Causal => value == &Value::Bool(true),
            Neutral::One => value.as_f64() == Some(1.0),
            Neutral::Alibi => {
                value == &Value::Bool(matches!(arch.position, Position::Alibi { .. }))
            }
            Neutral::Biases => value == &Value::Bool(arch.bias_qkv),
            Neutral::HeadDim => size(arch.head_dim),
            Neutral::Hidden => size(arch.hidden),
            Neutral::Ffn => size(arch.ffn),
            Neutral::KvHeads => size(arch.kv_heads),
            Neutral::FullAttention => {
                let kinds = value.as_array().into_iter().flatten();
                kinds.into_iter().all(|k| k.as_str() == Some("full_attention"))
            }
            Neutral::PlainRope => {
                let kind = value.get("rope_type").or_else(|| value.get("type"));
                value.is_object()
                    && kind.is_none_or(|k| k == "default")
                    && value.get("factor").is_none()
            }
            Neutral::Window => value.as_u64().is_some_and(|w| w as usize >= arch.max_positions),
        }
    }
}

/// True if a value switches nothing on: null, false, 0, or empty.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

impl Config {
    /// Refuses keys that mean another model than `arch`, which is what the family reads.
    pub(super) fn check_keys(&self, arch: &Arch) -> Result<()> {
        for (key, value) in &self.map {
            let Some((_, neutral)) = STRUCTURAL.iter().find(|(k, _)| k == key) else { continue };
            if arch.family.reads(key) || neutral.is(value, arch) {
                continue;
            }
            let kind = arch.family.model_type;
            let what = match key.as_str() {
                "quantization_config" | "compression_config" => {
                    let method = value.get("quant_method").and_then(Value::as_str);
                    let method = method.map_or(String::new(), |m| format!(" ({m})"));
                    format!("is set{method}: quantised weights are not supported; use the original")
                }
                "text_config" | "vision_config" | "audio_config" => {
                    "is set: models of more than text are not supported".to_string()
                }
                _ => {
                    let shown: String = value.to_string().chars().take(60).collect();
                    format!(
                        "{shown} is not supported for {kind} models; if it has no effect, remove it"
                    )
                }
            };
            return Err(self.error(key, &what));
        }
        Ok(())
    }

    /// One line for the user about keys that have no meaning here, if there are any.
    pub fn notes(&self, arch: &Arch) -> Vec<String> {
        let known = |key: &str| {
            arch.family.reads(key)
                || HARMLESS.contains(&key)
                || STRUCTURAL.iter().any(|(k, _)| *k == key)
        };
        // Heads that turn whole need no word. GPT-NeoX's turn in part, by another key.
        let neox = arch.family.model_type == "gpt_neox";
        let whole = |key: &str, value: &Value| key == PART && !neox && value.as_f64() == Some(1.0);
        let mut unknown: Vec<&str> = (self.map.iter())
            .filter(|(key, value)| !known(key) && !value.is_null() && !whole(key, value))
            .map(|(key, _)| key.as_str())
            .collect();
        let nested = self.nested_part().filter(|_| !neox && !arch.family.reads(PART));
        unknown.extend(nested.as_deref());
        if unknown.is_empty() {
            return vec![];
        }
        let first = unknown.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let dots = if unknown.len() > 5 { ", ..." } else { "" };
        vec![format!(
            "{}: {} to a {} model: {first}{dots}",
            self.path().display(),
            match unknown.len() {
                1 => "1 key without effect".to_string(),
                n => format!("{n} keys without effect"),
            },
            arch.family.model_type
        )]
    }
}

#[cfg(test)]
mod tests;
