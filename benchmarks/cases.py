"""The training steps that are compared: shape of the model, shape of the batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # of the position table
    vocab_size: int
    batch: int
    time: int

    @property
    def gflops(self):
        """One step: 72 L C^2 + 6 C V + 7 L C (T+1) per token, causal attention counted once."""
        L, C, V, T = self.n_layer, self.n_embd, self.vocab_size, self.time
        return (72 * L * C * C + 6 * C * V + 7 * L * C * (T + 1)) * self.batch * T / 1e9


CASES = {
    "4L x 128, B 12, T 64": Case(4, 4, 128, 64, 65, 12, 64),
    "6L x 384, B 16, T 256": Case(6, 6, 384, 256, 65, 16, 256),
    "124M, B 4, T 64": Case(12, 12, 768, 1024, 50257, 4, 64),
    "124M, B 1, T 1024": Case(12, 12, 768, 1024, 50257, 1, 1024),
}
