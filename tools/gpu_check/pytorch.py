# Times of PyTorch on this card at the sizes of gpu-check: one line each, name and microseconds.
import statistics

import torch
import torch.nn.functional as F


def median(run):
    for i in range(3):
        run(i)
    times = []
    for i in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(i)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def attention():
    sets = [
        [torch.randn(8, 32, 512, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        for _ in range(3)
    ]
    grad = torch.randn(8, 32, 512, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        print("attention bf16", median(lambda i: F.scaled_dot_product_attention(*sets[i % 3], is_causal=True)))
    outs = [F.scaled_dot_product_attention(*s, is_causal=True) for s in sets]
    back = lambda i: torch.autograd.grad(outs[i % 3], sets[i % 3], grad, retain_graph=True)
    print("attention bf16 backward", median(back))


def adamw():
    # bf16 weights on an f32 master copy is not what it does; f32 weights move 4 bytes less per element.
    w = torch.randn(50_000_000, device="cuda", requires_grad=True)
    w.grad = torch.randn_like(w)
    optimizer = torch.optim.AdamW([w], fused=True)
    print("adamw f32 fused", median(lambda i: optimizer.step()))


attention()
adamw()
