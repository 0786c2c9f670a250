"""The families of tests/golden/ beyond OPT, GPT-2 and LLaMA: for each one tiny config, the same config as published
checkpoints spell it, and the tensors whose gradients are kept. `make_goldens.py` turns them into folders."""

from collections import namedtuple

from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# `drop` and `add` turn the config as saved today into the one of published checkpoints.
# `std` and `norm_std` spread the weights: deep tied models without position embeddings say one token for ever if the
# embedding outweighs the blocks.
Family = namedtuple("Family", "name seed cls config drop add grads std norm_std", defaults=(0.15, 0.15))

# Keys of today's files that published ones lack; those have `torch_dtype` and put rotary settings at the top.
TODAY = ("dtype", "rope_parameters", "layer_types")
POSITIONS = 64
WINDOW = 6


def published(saved, family):
    """The saved config.json of a family, in the spelling of published checkpoints."""
    kept = {k: v for k, v in saved.items() if k not in TODAY + family.drop}
    return dict(sorted((kept | {"torch_dtype": "float32", "transformers_version": "4.30.0"} | family.add).items()))


def rope(theta, **more):
    return {"rope_type": "default", "rope_theta": theta} | more


def opt_350m(common):
    """OPT-350m: norms after the residual sums, none at the end, embeddings narrower than the body."""
    block = "model.decoder.layers.0."
    config = OPTConfig(
        hidden_size=32, word_embed_proj_dim=24, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=POSITIONS, do_layer_norm_before=False, activation_function="relu", dropout=0.0,
        **common,
    )
    grads = [
        "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight",
        "model.decoder.project_in.weight", "model.decoder.project_out.weight", block + "self_attn.q_proj.weight",
        block + "self_attn.k_proj.weight", block + "fc1.weight", block + "self_attn_layer_norm.weight",
        block + "final_layer_norm.weight", block + "final_layer_norm.bias",
    ]
    add = {"output_projection": True, "share_decoder_input_output_embed": True, "activation_dropout": 0.0}
    drop = ("enable_bias", "layer_norm_elementwise_affine", "tie_word_embeddings")
    return Family("opt_350m", 900, OPTForCausalLM, config, drop, add, grads)


def bloom(common, name, seed, heads, hidden, drop, add):
    """BLOOM: ALiBi, a norm on the embeddings, rows of query_key_value ordered head, then q/k/v."""
    block = "transformer.h.0."
    config = BloomConfig(hidden_size=hidden, n_layer=2, n_head=heads, **common)
    grads = [
        "transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.weight",
        "transformer.word_embeddings_layernorm.bias", block + "self_attention.query_key_value.weight",
        block + "self_attention.query_key_value.bias", block + "mlp.dense_h_to_4h.weight",
        block + "input_layernorm.weight", "transformer.ln_f.weight",
    ]
    add = {"masked_softmax_fusion": True, "offset_alibi": 100, "seq_length": 2048, "n_inner": None} | add
    drop = ("tie_word_embeddings", "slow_but_exact") + drop
    return Family(name, seed, BloomForCausalLM, config, drop, add, grads, std=0.25, norm_std=1.0)


def gpt_neox(common, name, seed, pct, theta, grads, drop=(), **values):
    """GPT-NeoX and Pythia: part of each head rotated, rows of query_key_value ordered head, then q/k/v."""
    block = "gpt_neox.layers.0."
    config = GPTNeoXConfig(
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, max_position_embeddings=POSITIONS,
        rope_parameters=rope(theta, partial_rotary_factor=pct), **values, **common,
    )
    grads = [
        "gpt_neox.embed_in.weight", block + "attention.query_key_value.weight", block + "mlp.dense_h_to_4h.weight",
        block + "input_layernorm.weight", block + "post_attention_layernorm.weight",
        "gpt_neox.final_layer_norm.weight",
    ] + [block + g if g.startswith("attention") else g for g in grads]
    add = {"rotary_pct": pct, "rotary_emb_base": int(theta)}
    drop = ("attention_dropout", "hidden_dropout", "classifier_dropout", "is_decoder") + drop
    return Family(name, seed, GPTNeoXForCausalLM, config, drop, add, grads, 0.25, 0.25)


def gptj(common):
    """GPT-J: one norm for attention and MLP side by side, pairs of neighbours rotated, a head with a bias."""
    block = "transformer.h.0."
    config = GPTJConfig(n_embd=24, n_layer=2, n_head=2, n_positions=POSITIONS, rotary_dim=8, **common)
    grads = [
        "transformer.wte.weight", block + "attn.q_proj.weight", block + "attn.k_proj.weight",
        block + "mlp.fc_in.weight", block + "ln_1.weight", "transformer.ln_f.weight", "lm_head.weight",
        "lm_head.bias",
    ]
    add = {"rotary": True, "scale_attn_weights": True, "gradient_checkpointing": False}
    return Family("gptj", 1500, GPTJForCausalLM, config, (), add, grads)


def gpt_neo(common):
    """GPT-Neo: global and local layers in turn, scores not scaled, no bias on q, k and v."""
    block = "transformer.h.1."
    config = GPTNeoConfig(
        hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=POSITIONS, window_size=WINDOW,
        attention_types=[[["global", "local"], 1]], **common,
    )
    grads = [
        "transformer.wte.weight", "transformer.wpe.weight", block + "attn.attention.q_proj.weight",
        block + "attn.attention.k_proj.weight", block + "attn.attention.out_proj.bias", block + "mlp.c_fc.weight",
        block + "ln_2.weight", "transformer.ln_f.weight",
    ]
    add = {"gradient_checkpointing": False, "attention_dropout": 0, "embed_dropout": 0, "resid_dropout": 0}
    drop = ("tie_word_embeddings", "classifier_dropout")
    return Family("gpt_neo", 1600, GPTNeoForCausalLM, config, drop, add, grads)


def codegen(common):
    """CodeGen: GPT-J's block, but rows of qkv_proj in four parts, each q, v, k of a quarter of the heads."""
    block = "transformer.h.0."
    config = CodeGenConfig(
        n_embd=48, n_layer=1, n_head=8, n_inner=24, n_positions=POSITIONS, n_ctx=POSITIONS, rotary_dim=4, **common,
    )
    grads = [
        "transformer.wte.weight", block + "attn.qkv_proj.weight", block + "mlp.fc_in.weight", block + "ln_1.weight",
        "transformer.ln_f.weight", "lm_head.bias",
    ]
    add = {"scale_attn_weights": True, "gradient_checkpointing": False}
    return Family("codegen", 1700, CodeGenForCausalLM, config, (), add, grads)


LLAMA_GRADS = [
    "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.mlp.gate_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight",
]


def llama3(common, shape):
    """LLaMA 3: of the 8 frequencies one stays, two lie between and five are divided by the factor."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    config = LlamaConfig(
        **shape | {"num_attention_heads": 2, "num_key_value_heads": 1}, tie_word_embeddings=True,
        rope_parameters=scaling | {"rope_theta": 500.0}, **common,
    )
    add = {"rope_scaling": scaling, "rope_theta": 500.0}
    return Family("llama3", 1800, LlamaForCausalLM, config, ("head_dim",), add, LLAMA_GRADS, 0.18, 0.18)


def mistral(common, shape):
    """Mistral: every layer sees the last 6 tokens only."""
    config = MistralConfig(**shape, sliding_window=WINDOW, rope_parameters=rope(10000.0), **common)
    add = {"rope_theta": 10000.0}
    return Family("mistral", 1900, MistralForCausalLM, config, ("head_dim", "attention_dropout"), add, LLAMA_GRADS)


def qwen2(common, shape):
    """Qwen2: biases on q, k and v alone; the published window is named but switched off."""
    config = Qwen2Config(**shape, tie_word_embeddings=True, rope_parameters=rope(1000000.0), **common)
    add = {"rope_theta": 1000000.0, "sliding_window": WINDOW, "use_sliding_window": False, "max_window_layers": 1}
    grads = LLAMA_GRADS + [f"model.layers.0.self_attn.{p}_proj.bias" for p in "qkv"]
    return Family("qwen2", 2000, Qwen2ForCausalLM, config, (), add, grads, 0.25, 0.25)


def qwen3(common, shape):
    """Qwen3: a norm on each head of q and k, heads wider than hidden / heads."""
    config = Qwen3Config(
        **shape | {"hidden_size": 24}, head_dim=8, tie_word_embeddings=True, rope_parameters=rope(1000000.0), **common,
    )
    add = {"rope_theta": 1000000, "rope_scaling": None}
    grads = LLAMA_GRADS + [f"model.layers.0.self_attn.{p}_norm.weight" for p in "qk"]
    return Family("qwen3", 2100, Qwen3ForCausalLM, config, (), add, grads, 0.25, 0.25)


def gemma2(common, shape):
    """Gemma 2: scaled embeddings, four norms a block (1 + weight), capped scores and logits, windows in turn."""
    config = Gemma2Config(
        **shape | {"hidden_size": 24, "num_hidden_layers": 3}, head_dim=8, query_pre_attn_scalar=12,
        sliding_window=WINDOW, attn_logit_softcapping=5.0, final_logit_softcapping=4.0,
        rope_parameters=rope(10000.0), **common,
    )
    add = {"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}
    norms = ("post_attention", "pre_feedforward", "post_feedforward")
    grads = LLAMA_GRADS + [f"model.layers.0.{n}_layernorm.weight" for n in norms]
    drop = ("tie_word_embeddings", "use_bidirectional_attention")
    return Family("gemma2", 2200, Gemma2ForCausalLM, config, drop, add, grads, 0.12, 0.12)


def phi3(common, shape):
    """Phi-3: q, k, v in one weight, gate and up in another, half of each head rotated."""
    block = "model.layers.0."
    config = Phi3Config(**shape, rope_parameters=rope(10000.0, partial_rotary_factor=0.5), **common)
    grads = [
        "model.embed_tokens.weight", block + "self_attn.qkv_proj.weight", block + "mlp.gate_up_proj.weight",
        block + "input_layernorm.weight", "model.norm.weight",
    ]
    add = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": None}
    return Family("phi3", 2300, Phi3ForCausalLM, config, (), add, grads)


def families(common):
    """All of them; `common` holds the vocabulary size and the special tokens."""
    shape = dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
    )
    return [
        opt_350m(common),
        # bloom-560m and bloom spell the sizes as here; bloom-7b1 as bloom_5h.
        bloom(common, "bloom", 1090, 4, 24, ("hidden_size", "n_head"), {"n_embed": 24, "num_attention_heads": 4}),
        bloom(common, "bloom_5h", 1230, 5, 20, (), {}),
        gpt_neox(common, "gpt_neox", 1300, 0.25, 10000.0, ["attention.query_key_value.bias"], ("attention_bias",),
                 hidden_size=32),
        gpt_neox(common, "gpt_neox_serial", 1400, 0.5, 500.0, ["embed_out.weight"], hidden_size=24,
                 hidden_act="gelu_fast", use_parallel_residual=False, attention_bias=False),
        gptj(common), gpt_neo(common), codegen(common),
    ] + [make(common, shape) for make in (llama3, mistral, qwen2, qwen3, gemma2, phi3)]
