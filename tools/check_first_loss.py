"""Compares the loss of the first step with transformers, on the same rows of a real model.

    python tools/check_first_loss.py DUPLEX MODEL SFT_ROWS PAIR_ROWS [--rows 8]

Takes the first rows of the two files (`messages`; `prompt`, `chosen`, `rejected`), runs one SFT step
and one reward step of f32 on them at a learning rate of next to nothing, and computes both losses
with transformers: SFT on the tokens of the last answer, the reward model's at the ends of the
answers, with the exported model. They must agree within 1%. The template must write an
answer behind its generation prompt.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


def read(path, rows):
    return [json.loads(line) for line in open(path)][:rows]


def run(duplex, command, model, rows, out, *more):
    path = out / f"{command}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = out / command
    subprocess.run(
        [duplex, command, "--actor-model", model, "--data-path", path, "--output-dir", run_dir]
        + ["--eval-fraction", "0", "--dtype", "f32", "--max-steps", "1", "--quiet"]
        + ["--learning-rate", "1e-12", "--per-device-train-batch-size", str(len(rows))]
        + ["--max-seq-len", "2000", "--max-prompt-seq-len", "1000"]
        + list(more),
        check=True,
    )
    for line in open(run_dir / "metrics.jsonl"):
        event = json.loads(line)
        if event["event"] == "metrics":
            return event["values"]["loss"], run_dir
    raise SystemExit(f"{run_dir} has no metrics")


def ids(tokenizer, messages, **more):
    return tokenizer.apply_chat_template(messages, return_dict=True, **more)["input_ids"]


def without_tail(sequence, ends):
    """A sequence up to the last token that ends a turn."""
    return sequence[: max(k for k, i in enumerate(sequence) if i in ends) + 1]


def sft_loss(model, tokenizer, rows, ends):
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, count = 0.0, 0
    for row in rows:
        whole = without_tail(ids(tokenizer, row["messages"]), ends)
        prompt = ids(tokenizer, row["messages"][:-1], add_generation_prompt=True)
        assert whole[: len(prompt)] == prompt
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        for t in range(len(prompt), len(whole)):
            total -= logits[t - 1, whole[t]].item()
            count += 1
    return total / count


def reward_loss(run_dir, tokenizer, rows, ends):
    model = AutoModelForSequenceClassification.from_pretrained(
        run_dir / "reward", dtype=torch.float32
    )
    losses = []
    for row in rows:
        scores = []
        for answer in ("chosen", "rejected"):
            whole = without_tail(ids(tokenizer, row["prompt"] + row[answer]), ends)
            with torch.no_grad():
                hidden = model.model(torch.tensor([whole])).last_hidden_state
                scores.append(model.score(hidden)[0, -1, 0])
        c, r = scores
        losses.append(-torch.nn.functional.logsigmoid(c - r).item())
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("duplex")
    parser.add_argument("model")
    parser.add_argument("sft_rows")
    parser.add_argument("pair_rows")
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    example = ids(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    ends = {tokenizer.eos_token_id} | {i for i in example[-2:] if i in tokenizer.all_special_ids}
    with tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out)
        rows = read(args.sft_rows, args.rows)
        ours, _ = run(args.duplex, "sft", args.model, rows, out)
        pairs = [("sft", ours, sft_loss(args.model, tokenizer, rows, ends))]
        rows = read(args.pair_rows, args.rows)
        ours, run_dir = run(args.duplex, "reward", args.model, rows, out)
        pairs.append(("reward", ours, reward_loss(run_dir, tokenizer, rows, ends)))
    for step, ours, theirs in pairs:
        off = abs(ours / theirs - 1)
        print(f"{step}: {ours:.6f}, transformers {theirs:.6f}, {100 * off:.3f}% apart")
        if off > 0.01:
            raise SystemExit(f"{step}: more than 1% apart")


if __name__ == "__main__":
    main()
