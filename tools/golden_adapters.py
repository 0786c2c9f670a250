"""LoRA adapters of every kind that peft makes and Duplex reads, on the bases of tests/golden/, and what PyTorch
computes with them. `make_goldens.py` makes them with all others; run alone, this makes tests/golden/peft/ only."""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

EAGER = {"attn_implementation": "eager"}
LENGTH = 9


def bare_logits(model, ids):
    """Logits of a base without a head: its hidden states times the embedding."""
    hidden = model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    return hidden @ model.get_input_embeddings().weight.T


def lm_logits(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0]


def scores(model, ids):
    """The score of every prefix."""
    return torch.cat([model(input_ids=ids[None, : n + 1], use_cache=False).logits[0] for n in range(len(ids))])


KINDS = {
    "CAUSAL_LM": (AutoModelForCausalLM, {}, lm_logits),
    "FEATURE_EXTRACTION": (AutoModel, {}, bare_logits),
    "SEQ_CLS": (AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}, scores),
}


def with_names(state):
    """Names as an adapter's state dict has them before peft shortens them."""
    return {k.replace(".weight", ".default.weight") if ".lora_" in k else k: v for k, v in state.items()}


def adapter(out, name, base, seed, edit=None, pickle=False, **settings):
    """One adapter with random weights. `edit` changes the saved config without changing what it means."""
    folder = out / "peft" / name
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    cls, more, output = KINDS[settings["task_type"]]

    def load():
        torch.manual_seed(seed)
        return cls.from_pretrained(out / base, **EAGER, **more)

    model = get_peft_model(load(), LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                norm = p.dim() == 1 and key.endswith("weight")
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if norm else 0.0))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = f"../{base}"
    if isinstance(saved["target_modules"], list):
        saved["target_modules"] = sorted(saved["target_modules"])
    (edit or (lambda _: None))(saved)
    path.write_text(json.dumps(saved, indent=2) + "\n")
    ids = torch.randint(3, 90, (LENGTH,), generator=generator)
    with torch.no_grad():
        want = output(model, ids)
        again = PeftModel.from_pretrained(load(), folder).eval()
        assert torch.equal(output(again, ids), want), name
        assert not torch.allclose(output(load().eval(), ids), want, atol=0.1), name
    if pickle:
        state = load_file(folder / "adapter_model.safetensors")
        torch.save(with_names(state), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    tensors = {"ids": ids, "scores" if settings["task_type"] == "SEQ_CLS" else "logits": want.contiguous()}
    save_file(tensors, folder / "golden.safetensors", metadata={"golden": json.dumps({"seed": seed})})


def without(*keys):
    return lambda config: [config.pop(key) for key in keys]


def adapters(out):
    """All of them, into `out`/peft."""
    shutil.rmtree(out / "peft", ignore_errors=True)
    patterns = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 3},
        "alpha_pattern": {r"layers\.0.*": 32, "q_proj": 5},
    }
    adapter(out, "patterns", "llama_tied", 1, **patterns)
    adapter(out, "rslora", "llama_tied", 2, use_rslora=True, **patterns)
    adapter(out, "defaults", "llama_tied", 3, r=8, edit=without("r", "lora_alpha", "target_modules", "bias"))
    adapter(out, "regex", "llama_tied", 4, target_modules=r".*\.(?!0)\d\.(self_attn\.[qk]|mlp\.up)_proj")
    adapter(out, "all_linear", "gpt2", 5, target_modules="all-linear", exclude_modules=["h.0.mlp.c_fc"], r=2,
            rank_pattern={"c_attn": 3}, fan_in_fan_out=True)
    adapter(out, "layers", "llama_tied", 6, layers_to_transform=[1], layers_pattern="layers")
    adapter(out, "embedding", "llama_tied", 7, modules_to_save=["embed_tokens"])
    adapter(out, "head", "llama_tied", 8, modules_to_save=["lm_head", "norm"])
    adapter(out, "both", "llama_tied", 9, modules_to_save=["embed_tokens", "lm_head"])
    adapter(out, "both_tied", "llama_tied", 10, modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    adapter(out, "bias_all", "llama_untied", 11, bias="all", target_modules=["q_proj", "up_proj"])
    adapter(out, "bias_lora", "opt", 12, bias="lora_only")
    adapter(out, "pickle", "llama_tied", 13, pickle=True)
    adapter(out, "fused", "gpt_neox", 14, target_modules=["query_key_value", "dense"],
            alpha_pattern={"attention.dense": 3})
    adapter(out, "bare", "llama_tied", 15, task_type="FEATURE_EXTRACTION",
            alpha_pattern={"layers.1.self_attn.q_proj": 1})
    adapter(out, "score", "llama_tied", 16, task_type="SEQ_CLS")
    adapter(out, "whole_module", "gpt2", 17, target_modules=["c_attn"], modules_to_save=["h.1.mlp.c_fc"])


if __name__ == "__main__":
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    adapters(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests" / "golden"))
