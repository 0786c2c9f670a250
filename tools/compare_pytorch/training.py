"""One step of supervised training with transformers: loss, backward, clipping, fused AdamW."""

import time

import torch


class Case:
    """`autocast`: f32 weights, bf16 products. `bf16`: everything in bf16, the optimizer's state included.
    Either as it is, or with `-compiled`."""

    def __init__(self, make_model, config, variant, sequences, tokens):
        kind, _, compiled = variant.partition("-")
        self.autocast = kind == "autocast"
        model = make_model(config, torch.float32 if self.autocast else torch.bfloat16).train()
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.model = torch.compile(model, dynamic=False) if compiled else model
        self.ids = torch.randint(0, config.vocab_size, (sequences, tokens))

    def run(self):
        clock = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - clock
        assert torch.isfinite(loss)
        return {"seconds": seconds, "tokens": self.ids.numel()}
