//! Keys as published models have them, and keys that make another model of them.

use super::*;
use serde_json::json;

fn read(config: &Value) -> Result<(Arch, Vec<String>)> {
    let config = Config::from_map(config.as_object().unwrap().clone());
    let arch = config.arch()?;
    let notes = config.notes(&arch);
    Ok((arch, notes))
}

fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn opt() -> Value {
    json!({"_name_or_path": "facebook/opt-350m", "_remove_final_layer_norm": false,
        "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
        "do_layer_norm_before": false, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096,
        "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1,
        "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.20.0.dev0",
        "use_cache": true, "vocab_size": 50272, "word_embed_proj_dim": 512})
}

fn gpt2() -> Value {
    json!({"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
        "summary_type": "cls_index", "summary_use_proj": true, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}})
}

fn gpt_neo() -> Value {
    json!({"activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"],
        "attention_dropout": 0, "attention_layers": ["global", "local", "global", "local"],
        "attention_types": [[["global", "local"], 2]], "bos_token_id": 50256, "embed_dropout": 0,
        "eos_token_id": 50256, "gradient_checkpointing": false, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": null, "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12, "num_layers": 4,
        "resid_dropout": 0, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "transformers_version": "4.9.0.dev0", "use_cache": true, "vocab_size": 50257,
        "window_size": 256})
}

fn gpt_neox() -> Value {
    json!({"architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0,
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_dropout_prob": 0,
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
        "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true,
        "vocab_size": 50304})
}

fn gptj() -> Value {
    json!({"activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"],
        "attn_pdrop": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
        "gradient_checkpointing": false, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": null, "n_layer": 28,
        "n_positions": 2048, "resid_pdrop": 0.0, "rotary": true, "rotary_dim": 64,
        "scale_attn_weights": true, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true}},
        "tie_word_embeddings": false, "tokenizer_class": "GPT2Tokenizer",
        "transformers_version": "4.18.0", "use_cache": true, "vocab_size": 50400})
}

fn codegen() -> Value {
    let mut config = gptj();
    config.as_object_mut().unwrap().remove("rotary");
    for (key, value) in [
        ("model_type", json!("codegen")),
        ("n_ctx", json!(2048)),
        ("n_embd", json!(1024)),
        ("rotary_dim", json!(32)),
        ("vocab_size", json!(51200)),
    ] {
        config[key] = value;
    }
    config
}

fn bloom() -> Value {
    json!({"apply_residual_connection_post_layernorm": false, "attention_dropout": 0.0,
        "architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": true,
        "bias_dropout_fusion": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
        "unk_token_id": 0, "hidden_dropout": 0.0, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": true, "model_type": "bloom",
        "n_embed": 1024, "n_inner": null, "n_layer": 24, "num_attention_heads": 16,
        "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": true,
        "skip_bias_add_qkv": false, "transformers_version": "4.20.0", "use_cache": true,
        "vocab_size": 250880, "slow_but_exact": false})
}

fn llama() -> Value {
    json!({"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": true,
        "vocab_size": 32000})
}

fn llama32() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256})
}

fn mistral() -> Value {
    json!({"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0",
        "use_cache": true, "vocab_size": 32000})
}

fn qwen2() -> Value {
    json!({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "use_mrope": false, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936})
}

fn qwen3() -> Value {
    json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})
}

fn gemma2() -> Value {
    json!({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "torch_dtype": "float32", "transformers_version": "4.42.4", "use_cache": true,
        "vocab_size": 256000})
}

fn phi3() -> Value {
    json!({"_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
        "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
        "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064})
}

#[test]
fn published_configs_of_every_family_need_no_warning() {
    let all = [
        opt(),
        gpt2(),
        gpt_neo(),
        gpt_neox(),
        gptj(),
        codegen(),
        bloom(),
        llama(),
        llama32(),
        mistral(),
        qwen2(),
        qwen3(),
        gemma2(),
        phi3(),
    ];
    let mut families = std::collections::BTreeSet::new();
    for config in &all {
        let (arch, notes) = read(config).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        families.insert(arch.family.model_type);
        // As transformers 5 writes them, and as DeepSpeed-Chat does.
        let new = with(&with(config, "dtype", json!("bfloat16")), "end_token_id", json!(2));
        assert!(read(&new).unwrap().1.is_empty());
    }
    assert_eq!(families.len(), crate::arch::FAMILIES.len());
}

#[test]
fn keys_that_make_another_model_are_refused() {
    for (config, key, value) in [
        (mistral(), "attention_bias", json!(true)),
        (gpt2(), "rope_scaling", json!({"type": "linear", "factor": 2.0})),
        (llama(), "sliding_window", json!(1024)),
        (llama(), "rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        (llama(), "attn_logit_softcapping", json!(50.0)),
        (llama(), "quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        (qwen2(), "text_config", json!({"hidden_size": 5})),
        (qwen2(), "num_experts", json!(60)),
        (qwen2(), "use_mrope", json!(true)),
        (qwen3(), "num_local_experts", json!(8)),
        (phi3(), "mlp_bias", json!(true)),
        (llama32(), "logits_scaling", json!(8.0)),
        (llama32(), "embedding_multiplier", json!(12)),
        (llama32(), "is_encoder_decoder", json!(true)),
        (llama32(), "use_qk_norm", json!(true)),
        (gpt2(), "word_embed_proj_dim", json!(512)),
        (gpt2(), "scale_attn_by_inverse_layer_idx", json!(true)),
        (gptj(), "rotary", json!(false)),
        (gptj(), "scale_attn_weights", json!(false)),
        (llama(), "layer_types", json!(["full_attention", "sliding_attention"])),
        (gpt_neox(), "head_dim", json!(128)),
        (bloom(), "n_inner", json!(100)),
        (opt(), "num_key_value_heads", json!(2)),
    ] {
        let e = read(&with(&config, key, value)).unwrap_err().to_string();
        assert!(e.contains(&format!("config.json: {key}")), "{key}: {e}");
    }
    // Their neutral values say nothing.
    for (key, value) in [
        ("attention_bias", json!(false)),
        ("sliding_window", json!(4096)),
        ("logits_scaling", json!(1.0)),
        ("head_dim", json!(128)),
        ("quantization_config", json!(null)),
        ("pruned_heads", json!({})),
        ("is_encoder_decoder", json!(false)),
        ("layer_types", json!(["full_attention"])),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e4})),
    ] {
        assert!(read(&with(&llama(), key, value)).unwrap().1.is_empty(), "{key}");
    }
}

#[test]
fn parts_of_heads_turn_only_where_the_reference_lets_them() {
    let part = "partial_rotary_factor";
    for config in [llama(), mistral(), qwen2(), qwen3(), gemma2()] {
        let (plain, _) = read(&config).unwrap();
        let beside = with(&config, part, json!(0.5));
        let inside = with(&config, "rope_parameters", json!({"rope_theta": 1e4, part: 0.25}));
        for (odd, name) in [(beside, part), (inside, "rope_parameters.partial_rotary_factor")] {
            let mut odd = odd;
            if name != part {
                odd.as_object_mut().unwrap().remove("rope_scaling");
                odd["rope_theta"] = json!(1e4);
            }
            let (arch, notes) = read(&odd).unwrap();
            let turned = |arch: &Arch| match &arch.position {
                Position::Rotary(r) => r.inv_freq.len(),
                _ => 0,
            };
            assert_eq!(turned(&arch), turned(&plain));
            assert!(notes.len() == 1 && notes[0].ends_with(name), "{notes:?}");
        }
        assert!(read(&with(&config, part, json!(1.0))).unwrap().1.is_empty());
    }
    let scaled =
        with(&llama(), "rope_scaling", json!({"type": "linear", "factor": 2.0, part: 0.5}));
    assert!(read(&scaled).unwrap_err().to_string().contains("beside linear positions"));
    let (arch, notes) = read(&with(&phi3(), part, json!(0.5))).unwrap();
    assert!(matches!(&arch.position, Position::Rotary(r) if r.inv_freq.len() == 24));
    assert!(notes.is_empty());
    // GPT-NeoX reads it among the rotary settings alone; beside them it has rotary_pct.
    let inside = with(&gpt_neox(), "rope_parameters", json!({"rope_theta": 1e4, part: 0.5}));
    for (config, dims, count) in [(with(&gpt_neox(), part, json!(0.5)), 16, 1), (inside, 32, 0)] {
        let (arch, notes) = read(&config).unwrap();
        assert!(matches!(&arch.position, Position::Rotary(r) if 2 * r.inv_freq.len() == dims));
        assert_eq!(notes.len(), count, "{notes:?}");
    }
}

#[test]
fn values_that_the_reference_refuses_are_refused() {
    for (config, key, value) in [
        (llama(), "rope_scaling", json!("linear")),
        (gpt_neox(), "rope_scaling", json!("linear")),
        (gpt2(), "rope_scaling", json!("linear")),
        (llama(), "hidden_act", json!(null)),
        (gemma2(), "hidden_activation", json!(null)),
        (opt(), "activation_function", json!(null)),
        (llama(), "is_causal", json!(false)),
        (gpt2(), "is_causal", json!(false)),
        (gpt2(), "is_causal", json!(null)),
    ] {
        let e = read(&with(&config, key, value)).unwrap_err().to_string();
        assert!(e.contains(&format!("config.json: {key}")), "{key}: {e}");
    }
    // Gemma 2 does not look at this one.
    assert!(read(&with(&gemma2(), "hidden_act", json!(null))).is_ok());
    assert!(read(&with(&llama(), "is_causal", json!(true))).unwrap().1.is_empty());
}

#[test]
fn keys_without_a_meaning_are_counted_in_one_line() {
    let odd = with(&with(&llama(), "my_tool", json!({"a": 1})), "another_key", json!(7));
    let (_, notes) = read(&odd).unwrap();
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].contains("2 keys without effect") && notes[0].contains("my_tool, another_key"),
        "{notes:?}"
    );
    let own = with(
        &with(&llama(), "model_type", json!("mamba9")),
        "auto_map",
        json!({"AutoModel": "m.M"}),
    );
    let e = read(&own).unwrap_err().to_string();
    assert!(e.contains("mamba9") && e.contains("auto_map"), "{e}");
}
