"""Generation with transformers: `generate` as users call it, and a compiled step over a static cache."""

import time

import torch
from transformers import StaticCache


def prompts(batch, tokens, vocab):
    return torch.randint(0, vocab, (batch, tokens))


class Generate:
    """`generate` with its dynamic cache: draws from the whole distribution, never ends early."""

    def __init__(self, model, new):
        self.model, self.new = model, new

    @torch.no_grad()
    def __call__(self, ids):
        return self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=self.new, max_new_tokens=self.new, pad_token_id=0,
        )


class Static:
    """A loop over a compiled decode step, which ends with the drawn token: no logits leave it, nothing is
    allocated for the cache, and tokens stay where they are. The prefill is compiled too."""

    def __init__(self, model, batch, prompt, new):
        self.model, self.prompt, self.new = model, prompt, new
        self.eos = model.config.eos_token_id
        self.cache = StaticCache(config=model.config, max_cache_len=prompt + new)
        first = next(model.parameters())
        kv_heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        self.cache.early_initialization(batch, kv_heads, head_dim, first.dtype, first.device)
        self.mask = torch.ones(batch, prompt + new, dtype=torch.long)
        self.step = torch.compile(self.one_step, dynamic=False)

    def one_step(self, ids, positions):
        out = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )
        logits = out.logits[:, -1].float()
        logits[:, self.eos] = -torch.inf
        # The largest of p / e with exponential e is a draw from p: one pass, no sorting and no sums.
        noise = torch.empty_like(logits).exponential_(1)
        return (torch.softmax(logits, -1) / noise).argmax(-1, keepdim=True)

    @torch.no_grad()
    def __call__(self, ids):
        self.cache.reset()
        token = self.step(ids, torch.arange(self.prompt)[None])
        made = [ids, token]
        for i in range(self.new - 1):
            token = self.step(token, torch.tensor([[self.prompt + i]]))
            made.append(token)
        return torch.cat(made, -1)


class Case:
    """Timed generation."""

    def __init__(self, make_model, config, variant, batch, prompt, new):
        dtype = torch.float32 if variant == "hf-f32" else torch.bfloat16
        model = make_model(config, dtype).eval()
        if variant.startswith("hf"):
            self.generate = Generate(model, new)
        else:
            # Weights become constants in the layout their products want.
            torch._inductor.config.freezing = variant.startswith("frozen")
            # Also tries inductor's own product kernels for every size, and keeps what is fastest.
            torch._inductor.config.max_autotune = variant == "frozen-tuned"
            self.generate = Static(model, batch, prompt, new)
        self.ids = prompts(batch, prompt, config.vocab_size)
        self.tokens = batch * new

    def run(self):
        clock = time.perf_counter()
        made = self.generate(self.ids)
        seconds = time.perf_counter() - clock
        assert made.shape[-1] * made.shape[0] == self.tokens + self.ids.numel(), made.shape
        return {"seconds": seconds, "tokens": self.tokens}
