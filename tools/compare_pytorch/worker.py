"""One case in one PyTorch variant, kept ready in a process of its own: builds it and runs it until it is warm, prints
a line, then runs it once for each line it reads and prints what was measured as JSON."""

import argparse
import json
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import generation
import ppo
import training


def read_config(path):
    with open(path) as file:
        fields = json.load(file)
    return AutoConfig.for_model(**fields)


def make_model(config, dtype, auto=AutoModelForCausalLM):
    """A model with random weights."""
    return auto.from_config(config, dtype=dtype, attn_implementation="sdpa")


def peak_bytes(reset=False):
    """Largest resident memory of this process since it was last reset."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def build(args):
    config = read_config(args.model)
    kind, n = args.case.split("-")
    n = int(n)
    if kind == "generate":
        return generation.Case(make_model, config, args.variant, n, args.prompt_tokens, args.new_tokens)
    if kind == "train":
        return training.Case(make_model, config, args.variant, args.train_sequences, n)
    critic = read_config(args.critic)
    critic.vocab_size = config.vocab_size
    return ppo.Case(make_model, config, critic, args.variant, n, args.prompt_tokens, args.new_tokens)


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "critic", "case", "variant"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("prompt-tokens", "new-tokens", "train-sequences", "threads", "warm-up"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    # What libraries print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1234)
    case = build(args)
    for _ in range(args.warm_up):
        case.run()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), file=answers, flush=True)
    for _ in sys.stdin:
        peak_bytes(reset=True)
        result = case.run()
        result["peak_bytes"] = peak_bytes()
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
