"""The training steps that are compared: shape of the model, shape of the batch."""

from dataclasses import dataclass
from functools import cached_property

from npgpt.engine.config import GPTConfig, engine_config, flops_per_token


@dataclass(frozen=True)
class Case:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # of the position table
    vocab_size: int
    batch: int
    time: int
    engine: str = "gpt-2"
    n_kv_head: int | None = None  # None: n_head

    @cached_property
    def config(self) -> GPTConfig:
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "n_kv_head")
        return engine_config(self.engine, **{name: getattr(self, name) for name in names})

    @property
    def gflops(self):
        """One step: of GPT-2 72 L C^2 + 6 C V + 7 L C (T+1) per token, causal attention counted once."""
        return flops_per_token(self.config, self.time) * self.batch * self.time / 1e9


CASES = {
    "4L x 128, B 12, T 64": Case(4, 4, 128, 64, 65, 12, 64),
    "4L x 128, V 8192, B 8, T 128": Case(4, 4, 128, 128, 8192, 8, 128),
    "6L x 384, B 16, T 256": Case(6, 6, 384, 256, 65, 16, 256),
    "124M, B 4, T 64": Case(12, 12, 768, 1024, 50257, 4, 64),
    "124M, B 1, T 1024": Case(12, 12, 768, 1024, 50257, 1, 1024),
    "Llama 135M, B 4, T 64": Case(30, 9, 576, 8192, 49152, 4, 64, "llama", 3),  # SmolLM2's
}
