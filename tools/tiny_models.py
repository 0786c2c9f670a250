#!/usr/bin/env python3
"""Writes tiny random models of every family, with a byte-level tokenizer, as Hugging Face directories.

    tiny_models.py OUT        OUT/opt, OUT/gpt2, OUT/llama

They are for trying things out; tools/check_exports trains them.
"""

import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

END = "<|end|>"


def tokenizer(vocab):
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["Human: what is it? Assistant: it is this."], vocab, special_tokens=[END])
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, eos_token=END, pad_token=END)


def main():
    out = Path(sys.argv[1])
    torch.manual_seed(5)
    vocab = 300
    ids = dict(vocab_size=vocab, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    models = {
        "opt": OPTForCausalLM(
            OPTConfig(
                hidden_size=48,
                word_embed_proj_dim=48,
                num_hidden_layers=3,
                ffn_dim=112,
                num_attention_heads=4,
                max_position_embeddings=128,
                **ids,
            )
        ),
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=128, **ids)),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                hidden_size=48,
                intermediate_size=112,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                **ids,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(out / name)
        tokenizer(vocab).save_pretrained(out / name)


if __name__ == "__main__":
    main()
