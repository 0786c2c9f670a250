#!/usr/bin/env python3
"""Writes tests/golden/preferences/: the DPO loss of trl on a few pairs, and its gradients.

    pip install -r tools/dev-requirements.txt
    python tools/golden_preferences.py [OUT_DIR]

The policy is tests/golden/llama_tied, which tools/make_goldens.py writes. The reference is the same with noise on its
weights. Everything is float32 on one CPU thread from a fixed seed, so a second run gives the same bytes.
tests/golden/README.md says what each tensor is.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from make_goldens import EAGER, FIRST_ID, SPECIAL, VOCAB
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
POLICY = GOLDEN / "llama_tied"
SEED = 900
PAIRS = 5
KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")
NOISE = 0.05
A = {"loss_type": "sigmoid", "beta": 0.1}
# trl's `sigmoid` knows no label smoothing and its `robust` divides by 1 - 2e. `aot_unpaired` has the formula wanted,
# -(1 - e) logsigmoid(d) - e logsigmoid(-d), but sorts the batch: a batch of one pair leaves nothing to sort.
B = {"loss_type": "aot_unpaired", "beta": 0.5, "label_smoothing": 0.1}


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **(EAGER | options)).eval()


def save_reference(folder):
    """The policy's weights plus noise, in the policy's layout."""
    generator = torch.Generator().manual_seed(SEED)
    model = load(POLICY)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=generator) * NOISE
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()


def draw_pairs():
    """Prompts and two answers each, of unequal lengths; one bad answer is a single token."""
    generator = torch.Generator().manual_seed(SEED + 1)

    def below(low, high, shape=()):
        return torch.randint(low, high, shape, generator=generator)

    for i in range(PAIRS):
        prompt, chosen, rejected = int(below(2, 8)), int(below(1, 10)), 1 if i == 3 else int(below(2, 10))
        while chosen == rejected:
            chosen = int(below(1, 10))
        yield {k: below(FIRST_ID, VOCAB, (n,)).tolist() for k, n in zip(KEYS, (prompt, chosen, rejected))}


def tokenizer():
    """Word `<5>` is token 5. The chat template adds nothing, so trl adds no end token either."""
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {key.removesuffix("_id"): f"<{i}>" for key, i in SPECIAL.items()}
    template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **special)


def make_trainer(pairs, reference, settings):
    """trl's trainer, and the pairs as it has tokenized them."""
    def said(role, ids):
        return [{"role": role, "content": " ".join(f"<{i}>" for i in ids)}]

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{name: said(role, pair[f"{name}_ids"]) for name, role in roles.items()} for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder, use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none", disable_tqdm=True,
            **settings,
        )
        made = DPOTrainer(
            load(POLICY), load(reference), config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
        )
    tokenized = [{key: row[key] for key in KEYS} for row in made.train_dataset]
    assert tokenized == pairs, tokenized
    made.model.eval()
    return made, tokenized


def loss_and_grads(trainer, batches):
    """Mean loss of the batches, and the gradient of every parameter."""
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch)) / len(batches)
        loss.backward()
        total += loss.detach()
    return total, {name: p.grad for name, p in trainer.model.named_parameters()}


def check(pairs, reference, beta, smoothing, loss, grads):
    """The same in a few lines of float64, each answer alone without padding."""
    policy, reference = (load(folder, dtype=torch.float64) for folder in (POLICY, reference))

    def logp(model, prompt, answer):
        logps = model(torch.tensor([prompt + answer])).logits[0, :-1].log_softmax(-1)
        return logps[len(prompt) - 1:].gather(1, torch.tensor(answer)[:, None]).sum()

    def lead(prompt, answer):
        with torch.no_grad():
            ref = logp(reference, prompt, answer)
        return logp(policy, prompt, answer) - ref

    d = beta * torch.stack([lead(p, chosen) - lead(p, rejected) for p, chosen, rejected in map(dict.values, pairs)])
    expected = (-(1 - smoothing) * logsigmoid(d) - smoothing * logsigmoid(-d)).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0.0)
    for name, p in policy.named_parameters():
        error = (grads[name] - p.grad).norm() / p.grad.norm()
        assert error < 1e-5, f"{name}: {error}"


def main():
    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else GOLDEN) / "preferences"
    if out.exists():
        shutil.rmtree(out)
    reference = out / "reference"
    reference.mkdir(parents=True)
    save_reference(reference)
    pairs = list(draw_pairs())
    tensors = {f"{key[:-4]}_{i}": torch.tensor(pair[key]) for i, pair in enumerate(pairs) for key in KEYS}

    made, rows = make_trainer(pairs, reference, A)
    loss, grads = loss_and_grads(made, [rows])
    check(pairs, reference, A["beta"], 0.0, loss, grads)
    metrics = {key: value for key, [value] in made._metrics["eval"].items()}
    batch = made.data_collator(rows)
    tensors["logps_chosen"], tensors["logps_rejected"] = made.compute_ref_log_probs(made.model, batch)
    tensors["ref_logps_chosen"], tensors["ref_logps_rejected"] = made.compute_ref_log_probs(made.ref_model, batch)
    for side in ("chosen", "rejected"):
        rewards = A["beta"] * (tensors[f"logps_{side}"] - tensors[f"ref_logps_{side}"])
        assert rewards.mean().item() == metrics[f"rewards/{side}"]
        tensors[f"rewards_{side}_a"] = rewards
    scalars = {"loss_a": loss, "accuracy_a": metrics["rewards/accuracies"], "margin_a": metrics["rewards/margins"]}
    tensors |= {f"grad_a.{name}": g for name, g in grads.items()}

    made, rows = make_trainer(pairs, reference, B)
    loss, grads = loss_and_grads(made, [[row] for row in rows])
    check(pairs, reference, B["beta"], B["label_smoothing"], loss, grads)
    scalars["loss_b"] = loss
    tensors |= {f"grad_b.{name}": g for name, g in grads.items()}

    tensors |= {name: torch.tensor([float(value)]) for name, value in scalars.items()}
    assert {n[7:] for n in tensors if n.startswith("grad_")} == set(load_file(POLICY / "model.safetensors"))
    assert 0.0 < scalars["accuracy_a"] < 1.0
    note = {"seed": SEED, "a": A, "b": B}
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "golden.safetensors", {"golden": json.dumps(note)})
    total = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    assert total < 300_000, total
    print(f"{out.name}: {({k: float(v) for k, v in scalars.items()})}, {total} bytes")


if __name__ == "__main__":
    main()
