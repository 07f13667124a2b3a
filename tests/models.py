"""Models for tests: small, and far from their initial values, so that every parameter matters."""

import numpy as np

import npgpt

FAMILY = {
    "gpt-2": {},
    "gpt": {"post_norm": True},
    "gelu": {"activation": "gelu"},
    "gpt-3": {"window": 5},
    "no bias": {"bias": False},
    "unscaled": {"scale_attn_weights": False},
    "odd": {"n_embd": 60, "n_head": 3},
    "one head": {"n_embd": 28, "n_head": 1, "vocab_size": 31},
    "wide": {"n_embd": 384, "n_head": 3, "n_layer": 1, "vocab_size": 300},
}


def random_model(seed=3, **fields):
    """A model of 3 layers and 64 channels, or of other `fields` of GPTConfig, with the tokens of bytes."""
    shape = {"n_layer": 3, "n_head": 2, "n_embd": 64, "block_size": 48, "vocab_size": 257}
    model = npgpt.GPT(npgpt.GPTConfig(**(shape | fields)), seed=seed)
    rng = np.random.default_rng(seed)
    with model.edit() as params:
        for name, w in params.items():
            if w.ndim == 2:
                w *= 5
            else:
                w[...] = (not name.endswith("bias")) + rng.normal(0, 0.2, w.shape)
    return model


def steps(session, ids):
    """The logits behind each of ids, fed one by one to a session of libnpgpt."""
    logits = []
    for i in ids:
        session.feed([i])
        logits.append(session.logits())
    return np.array(logits)
