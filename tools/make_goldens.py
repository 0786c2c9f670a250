#!/usr/bin/env python3
"""Writes tests/golden/: tiny random models as transformers and peft save them, and what PyTorch computes with them.

    pip install -r tools/dev-requirements.txt
    python tools/make_goldens.py [OUT_DIR]

Everything is float32 on one CPU thread from fixed seeds, so a second run gives the same numbers.
tests/golden/README.md says what each folder and tensor is.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from golden_adapters import adapters
from golden_families import families, published
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.utils import logging

VOCAB = 113
LENGTHS = (17, 9, 13)
PROMPT, NEW = 5, 16
# Above this a float32 rounding difference cannot change a greedy token.
MIN_GAP = 1e-2
# bos, eos and pad lie below; rows avoid them because transformers gives padding no embedding gradient.
FIRST_ID = 4
SPECIAL = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
EAGER = {"attn_implementation": "eager", "dtype": torch.float32}
# Folders of the goldens that other tools write.
OTHERS = ("templates", "tokenizers", "tokens", "preferences")


def opt():
    """OPT-1.3b's layout: pre-norm, no projection, learned positions offset by two, tied head."""
    return OPTConfig(
        vocab_size=VOCAB, hidden_size=48, word_embed_proj_dim=48, ffn_dim=104, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, do_layer_norm_before=True,
        activation_function="relu", dropout=0.0, attention_dropout=0.0, **SPECIAL,
    )


def gpt2():
    """GPT-2: Conv1D weights [in, out], fused qkv, tanh GELU, tied head."""
    return GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_inner=88, n_layer=2, n_head=4, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SPECIAL,
    )


def llama(**changes):
    """LLaMA with grouped queries: 4 query heads share 2 key and value heads."""
    values = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **SPECIAL,
    )
    return LlamaConfig(**(values | changes))


def llama_untied():
    """LLaMA with its own head, biases everywhere it can have them, and another rotary base."""
    return llama(
        hidden_size=40, intermediate_size=88, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )


def randomise(model, seed, std=0.15, norm_std=0.15):
    """Draws every parameter anew: norm weights about one, all others (biases too) about zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = p.dim() == 1 and name.endswith("weight")
            p.copy_(torch.randn(p.shape, generator=generator) * (norm_std if norm else std) + (1.0 if norm else 0.0))
    return model.eval()


def rows(seed):
    """Token rows of unequal lengths."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(FIRST_ID, VOCAB, (n,), generator=generator) for n in LENGTHS]


def logits_of(model, ids):
    """[T, vocab], the row alone: no padding, no cache."""
    return model(input_ids=ids[None], use_cache=False).logits[0]


def mean_loss(model, all_ids):
    """Cross-entropy over all next-token predictions of all rows: sum of nll / number of predictions."""
    nll, count = 0.0, 0
    for ids in all_ids:
        nll = nll + torch.nn.functional.cross_entropy(logits_of(model, ids)[:-1], ids[1:], reduction="sum")
        count += len(ids) - 1
    return nll / count


def greedy(model, ids):
    """The tokens after `ids` and the smallest lead of a chosen token over the second best."""
    ids, gap = ids.clone(), float("inf")
    for _ in range(NEW):
        best = logits_of(model, ids)[-1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, best.indices[:1]])
    return ids[-NEW:], gap


def generated(model, ids):
    """What transformers generates with its cache; no token ends a row."""
    out = model.generate(
        ids[None], attention_mask=torch.ones_like(ids[None]), do_sample=False, min_new_tokens=NEW,
        max_new_tokens=NEW, eos_token_id=None, pad_token_id=SPECIAL["pad_token_id"],
    )
    return out[0, len(ids):]


def usable_gap(model, seed):
    """The smallest gap of the greedy rows, or None where one is near a tie or little more than one token repeated."""
    smallest = float("inf")
    for ids in rows(seed):
        out, gap = greedy(model, ids[:PROMPT])
        if gap <= MIN_GAP or len(set(out.tolist())) < 6:
            return None
        smallest = min(smallest, gap)
    return smallest


def find_seed(make, seed):
    """The first seed from `seed` up whose model has usable greedy rows, and their smallest gap."""
    for s in range(seed, seed + 1000):
        model = make(s)
        with torch.no_grad():
            gap = usable_gap(model, s)
        if gap is not None:
            return s, gap
    raise SystemExit(f"no seed from {seed} gives usable greedy rows")


def golden(model, all_ids, grads, adapter=""):
    """The tensors of a golden.safetensors of a language model. `adapter` goes into LoRA gradients' names."""
    out = {}
    params = dict(model.named_parameters())
    model.zero_grad()
    loss = mean_loss(model, all_ids)
    loss.backward()
    for name in grads:
        # GPT-NeoX's head is `embed_out` in files, `lm_head` in memory.
        here = name.replace("embed_out", "lm_head").replace(".weight", f"{adapter}.weight")
        out[f"grad.{name}"] = params[here].grad
    model.zero_grad()
    out["loss"] = loss.detach().reshape(1)
    with torch.no_grad():
        for i, ids in enumerate(all_ids):
            out[f"ids_{i}"] = ids
            out[f"logits_{i}"] = logits_of(model, ids)
            out[f"greedy_{i}"], _ = greedy(model, ids[:PROMPT])
            assert torch.equal(out[f"greedy_{i}"], generated(model, ids[:PROMPT]))
    spread = out["logits_0"].std().item()
    assert 0.1 < spread < 20, f"logits spread {spread}"
    return out


def write_golden(folder, tensors, note):
    """golden.safetensors with the seed and margins in its metadata."""
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    save_file(tensors, folder / "golden.safetensors", metadata={"golden": json.dumps(note)})
    print(f"{folder.name}: {note}, {sum(f.stat().st_size for f in folder.iterdir())} bytes")


def check_saved(folder, expected, cls=AutoModelForCausalLM):
    """What was saved loads and gives the golden logits again, bit for bit."""
    model = cls.from_pretrained(folder, **EAGER).eval()
    with torch.no_grad():
        for i in range(len(LENGTHS)):
            assert torch.equal(logits_of(model, expected[f"ids_{i}"]), expected[f"logits_{i}"]), folder


def causal(out, name, cls, config, seed, grads, shards=1, spread=()):
    """One language model: checkpoint in `shards` safetensors files, and golden. `spread` is that of `randomise`."""
    folder = out / name
    model = cls._from_config(config, **EAGER)
    seed, gap = find_seed(lambda s: randomise(model, s, *spread), seed)
    randomise(model, seed, *spread)
    size = sum(p.numel() * 4 for p in model.parameters())
    # A little over an even share, as shards are filled in order of names.
    model.save_pretrained(folder, max_shard_size="1GB" if shards == 1 else int(size / shards * 1.1))
    assert len(list(folder.glob("model*.safetensors"))) == shards
    tensors = golden(model, rows(seed), grads)
    check_saved(folder, tensors)
    write_golden(folder, tensors, {"seed": seed, "smallest_greedy_gap": round(gap, 4)})
    return model, tensors


def other_family(out, family):
    """A model of golden_families.py, and its config in the published spelling, which must mean the same."""
    model, tensors = causal(
        out, family.name, family.cls, family.config, family.seed, family.grads, spread=(family.std, family.norm_std),
    )
    saved = json.loads((out / family.name / "config.json").read_text())
    old = published(saved, family)
    (out / family.name / "config_published.json").write_text(json.dumps(old, indent=2) + "\n")
    again = family.cls._from_config(type(family.config).from_dict(old), **EAGER)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(logits_of(again.eval(), tensors["ids_0"]), tensors["logits_0"]), family.name


def pytorch_bin(out, name, model, expected):
    """The same weights in one `.bin`, as transformers wrote it before safetensors: the tied head is a second
    name of the embedding's storage."""
    folder = out / name
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    check_saved(folder, expected)


def pytorch_bin_sharded(out, name, model, expected):
    """The same weights in two `.bin` shards named as in the published gpt2: no `transformer.` prefix, no head,
    and the causal mask of every block kept as a tensor that is not a parameter."""
    folder = out / name
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = {k.removeprefix("transformer."): v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    positions = model.config.n_positions
    for i in range(model.config.n_layer):
        state[f"h.{i}.attn.bias"] = torch.ones(positions, positions).tril()[None, None]
    names, weight_map = sorted(state), {}
    half = len(names) // 2
    for part, keys in enumerate((names[:half], names[half:]), 1):
        file = f"pytorch_model-{part:05}-of-00002.bin"
        torch.save({k: state[k] for k in keys}, folder / file)
        weight_map |= dict.fromkeys(keys, file)
    total = sum(v.numel() * 4 for v in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    check_saved(folder, expected)


def reward(out, name, seed):
    """LLaMA with a one-label classifier (`score.weight`, no bias), as reward models are kept."""
    folder = out / name
    model = randomise(LlamaForSequenceClassification._from_config(llama(num_labels=1), **EAGER), seed)
    model.save_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, **EAGER).eval()
    tensors = {}
    total = 0.0
    for i, ids in enumerate(rows(seed)):
        score = model(input_ids=ids[None], use_cache=False).logits[0]
        values = model.score(model.model(input_ids=ids[None], use_cache=False)[0])[0, :, 0]
        assert torch.equal(score, loaded(input_ids=ids[None], use_cache=False).logits[0])
        torch.testing.assert_close(values[-1:], score)
        tensors |= {f"ids_{i}": ids, f"score_{i}": score, f"scores_{i}": values}
        total = total + score.sum()
    total.backward()
    for key in ("score.weight", "model.norm.weight", "model.layers.1.self_attn.k_proj.weight"):
        tensors[f"grad.{key}"] = model.get_parameter(key).grad
    write_golden(folder, tensors, {"seed": seed})


def randomise_adapter(model, seed):
    """Draws A and B anew; peft starts B at zero, where it changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def save_adapter(model, folder, base):
    """As peft saves it, less its model card, the base's absolute path and the chance order of a set."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = base
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def lora(out, name, base, modules, seed, grads):
    """A LoRA adapter on the saved model `base`."""
    folder = out / name
    model = AutoModelForCausalLM.from_pretrained(out / base, **EAGER)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    seed, gap = find_seed(lambda s: randomise_adapter(model, s), seed)
    randomise_adapter(model, seed)
    save_adapter(model, folder, base)
    all_ids = rows(seed)
    tensors = golden(model, all_ids, grads, adapter=".default")
    again = AutoModelForCausalLM.from_pretrained(out / base, **EAGER)
    again = PeftModel.from_pretrained(again, folder).eval()
    with torch.no_grad():
        assert torch.equal(logits_of(again, all_ids[0]), tensors["logits_0"])
        with again.disable_adapter():
            assert not torch.allclose(logits_of(again, all_ids[0]), tensors["logits_0"], atol=0.1)
    assert {g.removeprefix("grad.") for g in tensors if "lora" in g} <= set(load_file(folder / "adapter_model.safetensors"))
    write_golden(folder, tensors, {"seed": seed, "smallest_greedy_gap": round(gap, 4)})


def main():
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests" / "golden")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        if old.is_dir() and old.name not in OTHERS:
            shutil.rmtree(old)

    block = "model.decoder.layers.0."
    causal(out, "opt", OPTForCausalLM, opt(), 100, [
        "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight",
        block + "self_attn.q_proj.weight", block + "self_attn.v_proj.bias", block + "fc1.weight",
        block + "fc2.bias", block + "self_attn_layer_norm.weight", "model.decoder.final_layer_norm.weight",
        "model.decoder.final_layer_norm.bias",
    ])
    block = "transformer.h.0."
    model, expected = causal(out, "gpt2", GPT2LMHeadModel, gpt2(), 200, [
        "transformer.wte.weight", "transformer.wpe.weight", block + "attn.c_attn.weight",
        block + "attn.c_attn.bias", block + "mlp.c_fc.weight", block + "ln_1.weight",
        "transformer.ln_f.weight", "transformer.ln_f.bias",
    ])
    pytorch_bin(out, "gpt2_bin", model, expected)
    pytorch_bin_sharded(out, "gpt2_bin_sharded", model, expected)
    block = "model.layers.0."
    grads = [
        "model.embed_tokens.weight", block + "self_attn.q_proj.weight", block + "self_attn.k_proj.weight",
        block + "mlp.gate_proj.weight", block + "mlp.down_proj.weight", block + "input_layernorm.weight",
        "model.norm.weight",
    ]
    causal(out, "llama_tied", LlamaForCausalLM, llama(), 300, grads)
    extra = [block + "self_attn.v_proj.bias", "lm_head.weight"]
    causal(out, "llama_untied", LlamaForCausalLM, llama_untied(), 400, grads + extra, shards=2)
    reward(out, "llama_reward", 500)

    block = "base_model.model.model.decoder.layers.0."
    both = ("lora_A.weight", "lora_B.weight")
    lora(out, "opt_lora", "opt", ["q_proj", "v_proj"], 600, [f"{block}self_attn.v_proj.{m}" for m in both])
    lora(out, "opt_lora_mlp", "opt", ["fc1", "fc2"], 700, [f"{block}fc1.{m}" for m in both])
    block = "base_model.model.model.layers.0."
    lora(out, "llama_lora", "llama_tied", ["q_proj", "gate_proj"], 800,
         [f"{block}{p}.{m}" for p in ("self_attn.q_proj", "mlp.gate_proj") for m in both])

    for family in families({"vocab_size": VOCAB} | SPECIAL):
        other_family(out, family)
    adapters(out)
    ours = (f for f in out.rglob("*") if f.is_file() and f.relative_to(out).parts[0] not in OTHERS)
    total = sum(f.stat().st_size for f in ours)
    assert total < 3.5 * 2**20, total
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()
