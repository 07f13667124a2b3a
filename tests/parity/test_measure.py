"""The peers that npgpt.measure times do the same work: the same ids, the same loss, from the same weights."""

import numpy as np
import pytest

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.measure import tokenizing, training

torch = pytest.importorskip("torch")
pytest.importorskip("tiktoken"), pytest.importorskip("tokenizers")

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50)


def test_all_tokenizers_give_the_same_ids():
    threads = kernels.get_num_threads()
    try:
        for case in tokenizing.CASES:
            works = [tokenizing.work_of(case, name) for name in ("npgpt", "tiktoken", "tokenizers")]
            assert len({work.digest for work in works}) == 1
            assert all(work.turn()["MB/s"][0] > 0 for work in works)
    finally:
        kernels.set_num_threads(threads)


def test_pytorch_trains_the_same_model():
    ours, theirs = GPT(CONFIG, seed=3), training.torch_gpt2(CONFIG)
    names = {"h.{}.attn.c_attn": "c_attn", "h.{}.attn.c_proj": "attn_proj"}
    names |= {"h.{}.mlp.c_fc": "c_fc", "h.{}.mlp.c_proj": "mlp_proj"}
    weights = {"ln_f.weight": "ln_f.weight", "ln_f.bias": "ln_f.bias"}
    weights |= {"wte.weight": "wte.weight", "wpe.weight": "wpe.weight"}
    for i in range(CONFIG.n_layer):
        for name, there in names.items() | {("h.{}.ln_1", "ln_1"), ("h.{}.ln_2", "ln_2")}:
            for kind in "weight", "bias":
                weights[f"{name.format(i)}.{kind}"] = f"blocks.{i}.{there}.{kind}"
    state = {}
    for name, there in weights.items():
        w = ours.params[name]
        state[there] = torch.from_numpy((w.T if w.ndim == 2 and name.startswith("h.") else w).copy())
    theirs.load_state_dict(state, strict=True)
    steps = training.npgpt_step_of(ours), training.torch_step_of(theirs, compiled=False, fused=True)
    x, y = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 3, CONFIG.block_size))
    losses = [[step(x, y) for step in steps] for _ in range(5)]
    for npgpt_loss, torch_loss in losses:
        assert npgpt_loss == pytest.approx(torch_loss, rel=1e-5)
    assert losses[-1][0] < losses[0][0]
