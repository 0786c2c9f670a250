#!/usr/bin/env python3
"""Writes tests/golden/tokenizers/: small tokenizers in the layouts that are published, and the ids that transformers gives to odd strings.

    pip install -r tools/dev-requirements.txt
    python tools/tokenizer_goldens.py [OUT_DIR]

Each folder holds a tokenizer's files and `expected.json`: the ids of its special tokens, what it puts before a text, and
a checksum of the ids of each string in `strings.json`, without special tokens added. The tokenizers are trained here,
on text made here. A second run gives the same files.
"""

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

STRINGS = 2000
WORDS = "the a of sound light river answer question model reward house tree don't we're I'll they've it's can't über naïve café 123 4567 3.14".split()
SPECIAL = ["</s>", "<s>", "<pad>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "<mask>"]
ODD = [
    "e\u0301", "a\u0323\u0302", "\u1ea5", "가각", "\u1100\u1161", "नि", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "שלום", "مرحبا", "\u202eabc\u202c",
    "\ufffd", "\ud7ff", "\ue000", "\uffff", "\U0010ffff", "\x00", "\x01", "\x1b", "\x7f", "\u0085", "漢字", "日本語", "中文",
    " ", "  ", "    ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u200b", "\u200d", "\u2028", "\ufeff",
    "ﬁ", "①", "ａｂｃ", "ß", "İ", "ǆ", "Ω", "½", "!!!", "...", "_", "__init__", "a_b", "'s", "'S", "’s", "▁", "Ġ", "Ċ", "##", "#version: 0.2",
]


def strings():
    rng = random.Random(5)

    def part():
        kind = rng.randrange(12)
        if kind < 3:
            return rng.choice(WORDS) + rng.choice(["", " ", " ", ", "])
        if kind < 7:
            return rng.choice(ODD)
        if kind == 7:
            return rng.choice(SPECIAL)
        if kind == 8:
            token = rng.choice(SPECIAL)
            return token[rng.randrange(3) : rng.randrange(3, len(token) + 1)]
        if kind == 9:
            return rng.choice(["a", " ", "\n", "é", "😀", ".", "0", "漢"]) * rng.randrange(2, 40)
        if kind == 10:
            code = rng.randrange(0x110000)
            return chr(code) if not 0xD800 <= code < 0xE000 else "?"
        return rng.choice(WORDS).upper()

    fixed = ["", *ODD, *SPECIAL]
    return fixed + ["".join(part() for _ in range(rng.randrange(1, 9))) for _ in range(STRINGS - len(fixed))]


def corpus():
    rng = random.Random(6)
    lines = [" ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 20))) for _ in range(600)]
    return lines + [" ".join(rng.choice(ODD[:25]) for _ in range(4)) for _ in range(40)]


def checksum(ids):
    """FNV-1a of the ids as little-endian u32, 64 bits folded to 32."""
    value = 0xCBF29CE484222325
    for id in ids:
        for byte in id.to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return (value >> 32) ^ (value & 0xFFFFFFFF)


def byte_level(out, size, first):
    """vocab.json and merges.txt alone: `first` are the first tokens, then bytes, then merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(corpus(), trainer)
    model = json.loads(inner.to_str())["model"]
    (out / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=True))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return inner


def token(text, **more):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **more}


def write(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def opt(out):
    """facebook/opt-125m ... opt-66b: GPT-2's two files, `</s>` before every text."""
    byte_level(out, 500, ["<s>", "<pad>", "</s>", "<unk>"])
    end = token("</s>")
    write(out / "tokenizer_config.json", {
        "errors": "replace", "unk_token": end, "bos_token": end, "eos_token": end, "pad_token": token("<pad>"), "add_prefix_space": False,
        "add_bos_token": True, "special_tokens_map_file": None, "name_or_path": "patrickvonplaten/opt-30b", "tokenizer_class": "GPT2Tokenizer",
    })
    plain = {k: v for k, v in end.items() if k != "__type"}
    write(out / "special_tokens_map.json", {"bos_token": plain, "eos_token": plain, "unk_token": plain, "pad_token": {**plain, "content": "<pad>"}})
    write(out / "config.json", {"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1})


def gpt2(out):
    """gpt2: no names of special tokens, which the class has; and tokens of its own in added_tokens.json."""
    byte_level(out, 420, ["<|endoftext|>"])
    write(out / "tokenizer_config.json", {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"})
    size = len(json.loads((out / "vocab.json").read_text()))
    write(out / "added_tokens.json", {"<|im_start|>": size, "<|im_end|>": size + 1})
    write(out / "config.json", {"model_type": "gpt2", "eos_token_id": 0})


def prefix_space(out):
    """A byte-level vocabulary with a space before every text, and added tokens with properties."""
    byte_level(out, 420, ["<|endoftext|>"])
    size = len(json.loads((out / "vocab.json").read_text()))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    write(out / "tokenizer_config.json", {
        "add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {
            "0": {"content": "<|endoftext|>", **flags, "special": True},
            str(size): {"content": "<mask>", **flags, "lstrip": True, "special": True},
            str(size + 1): {"content": "<think>", **flags, "rstrip": True},
            str(size + 2): {"content": "über", **flags, "single_word": True, "normalized": True},
        },
    })
    write(out / "config.json", {"model_type": "gpt2", "eos_token_id": 0})


def llama2(out):
    """A SentencePiece BPE as transformers converts it, with tokens that only tokenizer_config.json has."""
    with tempfile.TemporaryDirectory() as work:
        text, model = Path(work, "text"), Path(work, "model")
        text.write_text("\n".join(corpus()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(model), vocab_size=460, model_type="bpe", byte_fallback=True, character_coverage=0.99,
            normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
        )
        source = Path(work, "source")
        source.mkdir()
        shutil.copy(str(model) + ".model", source / "tokenizer.model")
        write(source / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                                                 "legacy": True, "add_bos_token": True, "add_prefix_space": True})
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
    for path in out.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    inner = json.loads((out / "tokenizer.json").read_text())
    (out / "tokenizer.json").write_text(json.dumps(inner, ensure_ascii=False), encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in inner["added_tokens"]}
    size = len(inner["model"]["vocab"])
    decoder[str(size)] = {"content": "<|im_start|>", **flags}
    decoder[str(size + 1)] = {"content": "<|im_end|>", **flags}
    write(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>",
        "added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False,
    })


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests/golden/tokenizers")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    texts = strings()
    lines = ",\n".join(json.dumps(t, ensure_ascii=False) for t in texts)
    (out / "strings.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for make in (opt, gpt2, prefix_space, llama2):
        folder = out / make.__name__
        folder.mkdir()
        make(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        dressed, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        assert dressed[len(dressed) - len(bare) :] == bare
        write(folder / "expected.json", {
            "size": len(tokenizer), "eos": tokenizer.eos_token_id, "prefix": dressed[: len(dressed) - len(bare)],
            "special": {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL if t in tokenizer.get_vocab()},
            "ids": {"first": ids[80], "checksums": "".join(f"{checksum(i):08x}" for i in ids)},
        })


if __name__ == "__main__":
    main()
