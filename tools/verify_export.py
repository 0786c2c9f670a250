#!/usr/bin/env python3
"""Checks that folders written by Duplex mean the same in transformers and peft.

    verify_export.py DIR --expected FILE          logits in transformers against Duplex's own
    verify_export.py DIR DIR...                   every folder against the first
    verify_export.py --base DIR --peft ADAPTER --expected FILE
    verify_export.py MERGED --base DIR --peft ADAPTER    base with adapter against the merged export
    verify_export.py --list LIST                  many: a line each of NAME, DIR, FILE and perhaps ADAPTER, by tabs

FILE is a safetensors file of token rows `ids_0`, `ids_1`, ... (int64 [T]) with `logits_i` [T, vocab], or for a
reward model or critic `scores_i` [T], one per token. The golden.safetensors files under tests/golden are such files.
Without it the rows are random. Every row runs alone, in float32. A line is printed for each model and row; the exit
status is 1 when a relative difference (largest difference / largest reference value) exceeds --tolerance.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging


def load(folder):
    names = AutoConfig.from_pretrained(folder).architectures or [""]
    auto = AutoModelForSequenceClassification if "Classification" in names[0] else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise SystemExit(f"{folder}: {what.replace('_', ' ')}: {sorted(map(str, info[what]))}")
    return model.eval()


def load_peft(base, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), adapter).eval()


def output(model, ids):
    """Logits [T, vocab], or the score of every position [T]: transformers itself gives only the last one."""
    with torch.no_grad():
        if not hasattr(model, "score"):
            return model(input_ids=ids[None], use_cache=False).logits[0]
        body = getattr(model, model.base_model_prefix)
        return model.score(body(input_ids=ids[None], use_cache=False)[0])[0, :, 0]


def random_rows(model):
    config = model.config
    longest = min(48, config.max_position_embeddings)
    special = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
    allowed = torch.tensor([i for i in range(config.vocab_size) if i not in special])
    return [allowed[torch.randint(len(allowed), (n,))] for n in (longest, longest // 2, 7)]


def expected_rows(path):
    """The token rows of a file and what Duplex computed with them."""
    file = load_file(path)
    rows = [file[f"ids_{i}"].long() for i in range(sum(k.startswith("ids_") for k in file))]
    kind = "scores" if "scores_0" in file else "logits"
    return rows, [file[f"{kind}_{i}"].float() for i in range(len(rows))]


def relative_difference(got, want):
    """Largest difference over the largest value wanted."""
    return ((got - want).abs().max() / want.abs().max()).item()


def verify_list(path, tolerance):
    """A line for every model of a list: the worst relative difference of its rows."""
    logging.disable_progress_bar()
    ok = True
    for line in path.read_text().splitlines():
        name, folder, expected, *adapter = line.split("\t")
        model = load_peft(folder, adapter[0]) if adapter else load(folder)
        worst = 0.0
        for ids, want in zip(*expected_rows(expected)):
            got = output(model, ids)
            relative = relative_difference(got, want) if got.shape == want.shape else float("nan")
            # Not max(): it would drop a NaN.
            worst = relative if not relative <= worst else worst
        good = worst <= tolerance
        ok = ok and good
        print(f"{name:<40} {worst:.2e} {'ok' if good else 'FAILED'}", flush=True)
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR")
    parser.add_argument("--expected", type=Path, metavar="FILE")
    parser.add_argument("--base", type=Path, metavar="DIR")
    parser.add_argument("--peft", type=Path, metavar="ADAPTER")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--list", type=Path, metavar="LIST")
    args = parser.parse_args()
    if args.list:
        sys.exit(0 if verify_list(args.list, args.tolerance) else 1)
    logging.disable_progress_bar()
    if (args.base is None) != (args.peft is None):
        parser.error("--base and --peft go together")
    makers = [(str(d), lambda d=d: load(d)) for d in args.dirs]
    if args.peft:
        makers.append((f"{args.base} + {args.peft}", lambda: load_peft(args.base, args.peft)))
    if len(makers) < (1 if args.expected else 2):
        parser.error("nothing to compare: give --expected, or two models")

    reference = None
    if args.expected:
        rows, reference = expected_rows(args.expected)
    worst, compared = 0.0, 0
    print(f"{'row':>4} {'tokens':>6} {'max difference':>15} {'relative':>10} {'relative L2':>12}  model")
    for name, make in makers:
        model = make()
        if reference is None:
            rows = random_rows(model)
            reference = [output(model, ids) for ids in rows]
            print(f"{'':52} {name} (reference)")
            continue
        for i, ids in enumerate(rows):
            got, want = output(model, ids), reference[i]
            if got.shape != want.shape:
                raise SystemExit(f"{name}: row {i} gives {list(got.shape)}, expected {list(want.shape)}")
            diff = (got - want).abs().max().item()
            relative = relative_difference(got, want)
            l2 = ((got - want).norm() / want.norm()).item()
            print(f"{i:>4} {len(ids):>6} {diff:>15.3e} {relative:>10.2e} {l2:>12.2e}  {name}")
            # Not max(): it would drop a NaN.
            worst = relative if not relative <= worst else worst
            compared += 1
    ok = compared > 0 and worst <= args.tolerance
    print(f"worst relative difference {worst:.2e}, tolerance {args.tolerance:.0e}: {'ok' if ok else 'FAILED'}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
