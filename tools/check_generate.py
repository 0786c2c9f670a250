#!/usr/bin/env python3
"""Checks that `generate` of transformers stops at the turn's end of an exported chat model.

    check_generate.py DIR QUESTION...       answers each question; greedy
    check_generate.py DIR --adapter QUESTION...    the same with DIR/adapter on its base model

The turn's end is the first special or added token that the chat template writes behind an answer. The exit status is 1
when an answer runs to --max-new-tokens, ends with another token, or holds the turn's end in its middle, and when
generation_config.json does not name the turn's end.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def turn_end(tokenizer):
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    behind = tokenizer(text.rsplit("ANSWER", 1)[1], add_special_tokens=False).input_ids
    control = set(tokenizer.added_tokens_decoder)
    return next((i for i in behind if i in control), tokenizer.eos_token_id)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("dir", type=Path)
    args.add_argument("questions", nargs="+")
    args.add_argument("--adapter", action="store_true")
    args.add_argument("--max-new-tokens", type=int, default=64)
    args = args.parse_args()
    folder = args.dir / "adapter" if args.adapter else args.dir
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    settings = GenerationConfig.from_pretrained(folder)
    end = turn_end(tokenizer)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    print(f"turn end {end} {tokenizer.decode([end])!r}, eos_token_id {settings.eos_token_id}")
    bad = end not in ends
    for question in args.questions:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        more = {"generation_config": settings} if args.adapter else {}
        out = model.generate(**ids, **more, do_sample=False, max_new_tokens=args.max_new_tokens)
        new = out[0, ids["input_ids"].shape[1] :].tolist()
        stopped = new[-1] == end and end not in new[:-1]
        print(f"{'ok  ' if stopped else 'BAD '} {len(new)} tokens: {tokenizer.decode(new)!r}")
        bad |= not stopped
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
