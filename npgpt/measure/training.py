"""Training steps, and the products of matrices that most of a step is: npgpt, PyTorch, NumPy.

A step is forward, mean cross-entropy, backward, clip to norm 1 and AdamW, in float32. A contender imports
what it needs itself, as its memory is compared too.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.engine.config import GPTConfig, flops_per_token
from npgpt.measure.contender import Samples, Work

LR, BETAS, DECAY = 1e-3, (0.9, 0.95), 0.1
TURN = 0.5  # seconds of work, about
PRODUCTS = {"256 x 3072 x 768": (256, 3072, 768), "4096 x 1536 x 384": (4096, 1536, 384)}  # M, N, K
STEPS = {  # the model, and how many windows as long as its context
    "4 layers x 128, 12 x 64 tokens": (GPTConfig(4, 4, 128, 64, 257), 12),
    "6 layers x 384, 4 x 256 tokens": (GPTConfig(6, 6, 384, 256, 257), 4),
    "GPT-2 124M, 4 x 64 tokens": (GPTConfig(block_size=64), 4),
}


def product(case: str, name: str, path: Path | None = None) -> Work:
    """Return the work of a product (M,K) (K,N), in GFLOP/s."""
    from npgpt.engine import kernels

    M, N, K = PRODUCTS[case]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (K, N)))
    multiply = np.matmul if name == "NumPy" else kernels.ops_for(np.float32).matmul
    return timed(lambda: multiply(a, b), "GFLOP/s", 2 * M * N * K / 1e9)


def steps(case: str, name: str, path: Path | None = None) -> Work:
    """Return the work of training steps, in tokens/s."""
    (config, batch), rng = STEPS[case], np.random.default_rng(0)
    x, y = rng.integers(0, config.vocab_size, (2, batch, config.block_size))
    step = {"npgpt": npgpt_step, "PyTorch": torch_step}[name](config)
    return timed(lambda: step(x, y), "tokens/s", x.size)


def gflop_per_token(case: str) -> float:
    """Return the arithmetic of a step for each of its tokens, in 1e9 operations."""
    config, _ = STEPS[case]
    return flops_per_token(config, config.block_size) / 1e9


def timed(run: Callable[[], object], unit: str, work: float) -> Work:
    """Return what runs again and again for about TURN seconds a turn, in `work` a second."""

    def turn() -> Samples:
        samples: list[float] = []
        end = time.perf_counter() + TURN
        while not samples or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            samples.append(work / (time.perf_counter() - start))
        return {unit: samples}

    return Work(turn)


def npgpt_step(config: GPTConfig) -> Callable[..., float]:
    """Return npgpt's step of x, y (B,T)."""
    from npgpt.engine.model import GPT

    return npgpt_step_of(GPT(config))


def npgpt_step_of(model: Any) -> Callable[..., float]:
    """Return the step of a model of npgpt."""
    from npgpt.engine.optim import AdamW

    optimizer = AdamW(model, lr=LR, betas=BETAS, weight_decay=DECAY)

    def do(x: Any, y: Any) -> float:
        loss: float = model.forward(x, targets=y)
        model.backward()
        optimizer.step(max_grad_norm=1.0)
        return loss

    return do


def torch_step(config: GPTConfig, compiled: bool = False, fused: bool = True) -> Callable[..., float]:
    """Return PyTorch's step of x, y (B,T), as its users take it; decay on matrices only."""
    import torch

    from npgpt.engine import kernels

    torch.manual_seed(0)
    torch.set_num_threads(kernels.get_num_threads())
    model = torch_gpt2(config)
    return torch_step_of(model, compiled, fused)


def torch_step_of(model: Any, compiled: bool, fused: bool) -> Callable[..., float]:
    """Return the step of a PyTorch model that returns its loss."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=fused)
    run = torch.compile(model) if compiled else model

    def do(x: Any, y: Any) -> float:
        loss = run(torch.from_numpy(x), torch.from_numpy(y))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value: float = loss.item()
        return value

    return do


def torch_gpt2(config: GPTConfig) -> Any:
    """Return GPT-2 as a PyTorch user writes it: fused attention, tied head."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    C, H, V = config.n_embd, config.n_head, config.vocab_size

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.c_attn, self.attn_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = self.c_attn(self.ln_1(x)).view(B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_proj(out.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class GPT2(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(config.block_size, C)
            self.blocks = nn.ModuleList(Block() for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(C)
            nn.init.normal_(self.wte.weight, std=0.02)

        def forward(self, x: Any, y: Any) -> Any:
            h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
            for block in self.blocks:
                h = block(h)
            logits = self.ln_f(h) @ self.wte.weight.T
            return F.cross_entropy(logits.view(-1, V), y.view(-1))

    return GPT2()
