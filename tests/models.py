"""Models for tests: small, and far from their initial values, so that every parameter matters."""

import numpy as np
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt.engine.config import Rope
from npgpt.runtime import libnpgpt
from npgpt.text import examples
from npgpt.text.tokenizer import ByteTokenizer

LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "rope": Rope(theta=500.0), "bias": False, "n_inner": 160}
FAMILY = {
    "gpt-2": {},
    "gpt": {"post_norm": True},
    "gelu": {"activation": "gelu"},
    "gpt-3": {"window": 5},
    "no bias": {"bias": False},
    "unscaled": {"scale_attn_weights": False},
    "untied": {"tied": False},
    "odd": {"n_embd": 60, "n_head": 3},
    "one head": {"n_embd": 28, "n_head": 1, "vocab_size": 31},
    "wide": {"n_embd": 384, "n_head": 3, "n_layer": 1, "vocab_size": 300},
    "llama": LLAMA | {"n_head": 6, "n_kv_head": 2, "head_size": 8},
    "llama, biases and a head": LLAMA | {"tied": False, "bias": True},
    "llama, wide": LLAMA | {"n_embd": 576, "n_head": 9, "n_kv_head": 3, "n_layer": 2, "n_inner": 1536},
    "llama, long": LLAMA | {"rope": Rope(1e4, "llama3", 4.0, 1.0, 4.0, 16), "n_kv_head": 1},
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


def model_with_roles(context=128):
    """A random model over bytes whose tokenizer has the roles of conversations."""
    tokenizer = examples.add_roles(ByteTokenizer())
    model = random_model(block_size=context, vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    return model


def write_speller(folder, tokenizer, ids, before):
    """Write a model into `folder` that writes `ids`, the first behind `before` tokens, whatever these are."""
    config = npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=96, vocab_size=tokenizer.vocab_size)
    model = npgpt.GPT(config, seed=0)
    model.tokenizer = tokenizer
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (wte,) = (name for name in weights if name.endswith("wte.weight"))
    for name, w in weights.items():
        if ".c_proj." in name:  # a layer adds nothing: the position alone decides
            w[...] = 0
    weights[wte] *= 50
    weights[wte.replace("wte", "wpe")][before - 1 :][: len(ids)] = 20 * weights[wte][ids]
    save_file(weights, folder / "model.safetensors")


def steps(session, ids):
    """The logits behind each of ids, fed one by one to a session of libnpgpt."""
    logits = []
    for i in ids:
        session.feed([i])
        logits.append(session.logits())
    return np.array(logits)


def same_in_any_company(runtime, threads):
    """Assert that sessions have the same logits, to the bit, on 1 to 3 threads, alone and fed together."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 257, n) for n in (1, 2, 7, 20, 33, 5, 11, 3, 9)]
    told = rng.integers(0, 257, (8, len(prompts)))
    results = []
    for count, together in ((1, False), (2, False), (3, False), (1, True), (2, True), (3, True)):
        threads(count)
        sessions = [libnpgpt.Session(runtime) for _ in prompts]
        for session, prompt in zip(sessions, prompts, strict=True):
            session.feed(prompt)
        for ids in told:
            if together:
                libnpgpt.feed_many(sessions[::-1], ids[::-1])
            else:
                for session, i in zip(sessions, ids, strict=True):
                    session.feed([i])
        results.append(np.array([session.logits() for session in sessions]))
    assert all(np.array_equal(results[0], other) for other in results[1:])
