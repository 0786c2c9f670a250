#!/usr/bin/env python3
"""Writes tiny random models of every family, with a byte-level tokenizer, as Hugging Face directories.

    tiny_models.py OUT [FAMILY...]        OUT/opt, OUT/gpt2, OUT/llama, ...

They are for trying things out; tools/check_exports trains them.
"""

import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
VOCAB = 300

OPT = dict(num_hidden_layers=3, ffn_dim=112, num_attention_heads=4, max_position_embeddings=128, hidden_size=48)
GPT2 = dict(n_embd=48, n_layer=3, n_head=4, n_positions=128)
LLAMA = dict(
    hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128,
)
NEOX = dict(
    hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
)
# Name of the folder: model_type and sizes.
FAMILIES = {
    "opt": ("opt", OPT | dict(word_embed_proj_dim=48)),
    "opt_350m": ("opt", OPT | dict(word_embed_proj_dim=32, do_layer_norm_before=False)),
    "gpt2": ("gpt2", GPT2),
    "gpt_neo": (
        "gpt_neo",
        dict(
            hidden_size=48, num_layers=2, num_heads=4, intermediate_size=112, max_position_embeddings=128,
            attention_types=[[["global", "local"], 1]], window_size=8,
        ),
    ),
    "bloom": ("bloom", dict(hidden_size=48, n_layer=3, n_head=6)),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox_serial": ("gpt_neox", NEOX | dict(use_parallel_residual=False)),
    "gptj": ("gptj", GPT2 | dict(rotary_dim=8)),
    "codegen": ("codegen", GPT2 | dict(rotary_dim=8)),
    "llama": ("llama", LLAMA),
    "mistral": ("mistral", LLAMA | dict(sliding_window=8)),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", LLAMA | dict(head_dim=16)),
    "gemma2": ("gemma2", LLAMA | dict(head_dim=16, query_pre_attn_scalar=12, sliding_window=8)),
    "phi3": ("phi3", LLAMA),
}


def tokenizer():
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["Human: what is it? Assistant: it is this."], VOCAB, special_tokens=[END])
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, eos_token=END, pad_token=END)


def main():
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or FAMILIES:
        torch.manual_seed(5)
        kind, sizes = FAMILIES[name]
        config = AutoConfig.for_model(
            kind, vocab_size=VOCAB, bos_token_id=None, eos_token_id=0, pad_token_id=0, **sizes
        )
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out / name)
        tokenizer().save_pretrained(out / name)


if __name__ == "__main__":
    main()
