"""One contender in a process of its own, driven by compare.py.

`python -m benchmarks.peers NAME CASE` reads numbers of steps from stdin and answers each with one JSON line
{"seconds": [per step], "rss": peak bytes}. An idle contender waits in read(): its threads disturb nobody.

Every contender does the same step: forward, mean cross-entropy, backward, clip to norm 1, AdamW; float32. The
tokens are as frequent as words (Zipf's law), on which the cost of npgpt's sampled softmax depends.
"""

import math
import sys
import time

import numpy as np

from benchmarks import record
from benchmarks.cases import CASES
from npgpt.measure import contender as process
from npgpt.measure.training import BETAS, DECAY, LR, torch_gpt2, torch_step_of


def npgpt_step(case, choice="auto", sampled=False):
    from npgpt.engine import kernels
    from npgpt.engine.model import GPT
    from npgpt.engine.optim import AdamW
    from npgpt.training.updater import step_classes

    kernels._choose(choice)
    model = GPT(case.config)
    optimizer = AdamW(model, lr=LR, betas=BETAS, weight_decay=DECAY)

    def step(x, y):
        if sampled:
            model.step += 1
            model.classes = step_classes(model, y)
        loss = model.forward(x, targets=y)
        model.backward()
        optimizer.step(max_grad_norm=1.0)
        return loss

    return step


def torch_llama(case):
    """Llama's shape as a PyTorch user writes it: fused attention and norms, tied head."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    config = case.config
    C, D, inner, eps = case.n_embd, config.D, config.F, config.layer_norm_epsilon
    sizes = [config.n_head * D, config.K * D, config.K * D]
    angles = torch.from_numpy(config.rope.angles(case.time, D, np.float32))
    cos, sin = angles.cos(), angles.sin()

    def rotated(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.RMSNorm(C, eps), nn.RMSNorm(C, eps)
            self.c_attn, self.attn_proj = nn.Linear(C, sum(sizes), False), nn.Linear(sizes[0], C, False)
            self.c_fc, self.mlp_proj = nn.Linear(C, 2 * inner, False), nn.Linear(inner, C, False)

        def forward(self, x):
            B, T, _ = x.shape
            parts = self.c_attn(self.ln_1(x)).split(sizes, -1)
            q, k, v = (part.view(B, T, -1, D).transpose(1, 2) for part in parts)
            out = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)
            x = x + self.attn_proj(out.transpose(1, 2).reshape(B, T, -1))
            gate, up = self.c_fc(self.ln_2(x)).chunk(2, -1)
            return x + self.mlp_proj(F.silu(gate) * up)

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.ln_f = nn.Embedding(case.vocab_size, C), nn.RMSNorm(C, eps)
            self.blocks = nn.ModuleList(Block() for _ in range(case.n_layer))
            nn.init.normal_(self.wte.weight, std=0.02)

        def forward(self, x, y):
            h = self.wte(x)
            for block in self.blocks:
                h = block(h)
            logits = self.ln_f(h) @ self.wte.weight.T
            return F.cross_entropy(logits.view(-1, case.vocab_size), y.view(-1))

    return Llama()


def torch_step(case, compiled=False, fused=False):
    """A training step as PyTorch's users take it."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = torch_llama(case) if case.engine == "llama" else torch_gpt2(case.config)
    return torch_step_of(model, compiled, fused)


SAMPLED = "npgpt, sampled softmax"
PEERS = {
    "npgpt": npgpt_step,
    SAMPLED: lambda case: npgpt_step(case, sampled=True),
    "npgpt on NumPy": lambda case: npgpt_step(case, "numpy"),
    "PyTorch": torch_step,
    "PyTorch, fused AdamW": lambda case: torch_step(case, fused=True),
    "PyTorch, compiled, fused AdamW": lambda case: torch_step(case, compiled=True, fused=True),
}


def main():
    name, case = sys.argv[1], CASES[sys.argv[2]]
    step = PEERS[name](case)
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, case.vocab_size + 1)
    x, y = rng.choice(case.vocab_size, (2, case.batch, case.time), p=share / share.sum())
    answer(lambda: step(x, y), record.peak_memory)


def answer(step, peak):
    """Do as many steps as each line of stdin says; answer with seconds, peak() bytes and the last loss."""

    def steps(line):
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - start)
            assert math.isfinite(loss)
        return {"seconds": seconds, "rss": peak(), "loss": loss}

    process.answer(steps)


if __name__ == "__main__":
    main()
