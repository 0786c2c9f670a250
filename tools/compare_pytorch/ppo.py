"""One PPO iteration on transformers models, as DeepSpeed-Chat does it: answers are drawn; reference, reward model,
critic and the actor itself score them; actor and critic take one step each on clipped losses."""

import time

import torch
from transformers import AutoModel

from generation import Generate, Static, prompts

KL, CLIP_REWARD, CLIP, CLIP_VALUE, GAMMA, LAMBDA = 0.1, 5.0, 0.2, 0.2, 1.0, 0.95


class Scores(torch.nn.Module):
    """A base model with one number per token on top: critic and reward model."""

    def __init__(self, make_model, config, dtype):
        super().__init__()
        self.base = make_model(config, dtype, AutoModel)
        self.head = torch.nn.Linear(config.hidden_size, 1, bias=False, dtype=dtype)

    def forward(self, ids):
        return self.head(self.base(input_ids=ids, use_cache=False).last_hidden_state).squeeze(-1).float()


class AdamW:
    """Fused AdamW; with `master`, on f32 copies of bf16 weights, as mixed-precision engines keep them."""

    def __init__(self, model, master):
        self.weights = list(model.parameters())
        self.master = [p.detach().float() for p in self.weights] if master else None
        targets = self.master or self.weights
        self.adamw = torch.optim.AdamW(targets, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        if self.master is None:
            self.adamw.step()
        else:
            for m, w in zip(self.master, self.weights):
                m.grad = w.grad.float()
                w.grad = None
            self.adamw.step()
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.master)
        self.adamw.zero_grad(set_to_none=True)


def token_logprobs(model, ids):
    """Log-probability of every token but the first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def advantages(rewards, values):
    """GAE over the answer."""
    last, out = torch.zeros(len(rewards)), []
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
        last = rewards[:, t] + GAMMA * after - values[:, t] + GAMMA * LAMBDA * last
        out.append(last)
    out = torch.stack(out[::-1], 1)
    return out, out + values


class Case:
    """`hf`: `generate`, bf16 throughout. `master`: the same with f32 master weights. `static`: generation over a
    static cache, and everything compiled."""

    def __init__(self, make_model, config, critic_config, variant, batch, prompt, new):
        bf16 = torch.bfloat16
        self.prompt, self.new = prompt, new
        self.actor, self.reference = make_model(config, bf16), make_model(config, bf16).eval()
        self.critic = Scores(make_model, critic_config, bf16)
        self.reward = Scores(make_model, critic_config, bf16).eval()
        self.reference.load_state_dict(self.actor.state_dict())
        self.reward.load_state_dict(self.critic.state_dict())
        self.steps = [AdamW(m, variant == "master") for m in (self.actor, self.critic)]
        self.ids = prompts(batch, prompt, config.vocab_size)
        self.logprobs_of, self.scores_of = token_logprobs, lambda model, ids: model(ids)
        if variant == "static":
            self.generate = Static(self.actor, batch, prompt, new)
            self.logprobs_of = torch.compile(self.logprobs_of, dynamic=False)
            self.scores_of = torch.compile(self.scores_of, dynamic=False)
        else:
            self.generate = Generate(self.actor, new)

    @torch.no_grad()
    def score(self, ids):
        first = self.prompt - 1
        old = self.logprobs_of(self.actor, ids)[:, first:]
        reference = self.logprobs_of(self.reference, ids)[:, first:]
        values = self.scores_of(self.critic, ids)[:, first:-1]
        score = self.scores_of(self.reward, ids)[:, -1]
        rewards = -KL * (old - reference)
        rewards[:, -1] += score.clamp(-CLIP_REWARD, CLIP_REWARD)
        gained, returns = advantages(rewards, values)
        gained = (gained - gained.mean()) / (gained.std() + 1e-8)
        return old, values, gained, returns

    def train(self, ids, old, values, gained, returns):
        first = self.prompt - 1
        ratio = (self.logprobs_of(self.actor, ids)[:, first:] - old).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        actor_loss = torch.max(-gained * ratio, -gained * clipped).mean()
        actor_loss.backward()
        self.steps[0].step()
        new_values = self.scores_of(self.critic, ids)[:, first:-1]
        near = values + (new_values - values).clamp(-CLIP_VALUE, CLIP_VALUE)
        critic_loss = 0.5 * torch.max((new_values - returns) ** 2, (near - returns) ** 2).mean()
        critic_loss.backward()
        self.steps[1].step()
        assert torch.isfinite(actor_loss + critic_loss)

    def run(self):
        times = [time.perf_counter()]
        self.actor.eval()
        ids = self.generate(self.ids)
        times.append(time.perf_counter())
        experience = self.score(ids)
        times.append(time.perf_counter())
        self.actor.train()
        self.train(ids, *experience)
        times.append(time.perf_counter())
        seconds = [b - a for a, b in zip(times, times[1:])]
        phases = dict(zip(("generate", "score", "train"), seconds))
        return {"seconds": sum(seconds), "phases": phases, "tokens": len(ids) * self.new}
