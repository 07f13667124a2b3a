"""Prompts and new tokens of one model of random weights: libnpgpt, llama.cpp and CTranslate2.

Each is asked for the likeliest token again and again. llama.cpp reads the very file; CTranslate2 has the same
weights as its own int8 or float32.
"""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.interop.gguf import read_gguf, write_gguf
from npgpt.measure.contender import Samples, Work
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.text.tokenizer import ByteTokenizer

PROMPT, NEW = 128, 64
PROMPT_RATE, NEW_RATE = "prompt, tokens/s", "new tokens/s"
IDS = np.random.default_rng(0).integers(0, 256, PROMPT)
CASES = {"GPT-2 124M, Q8_0": "q8_0"}
COMPUTE = {"f32": "float32", "q8_0": "int8"}  # CTranslate2's; it has no other types on such a CPU


def write_model(path: Path, type: str) -> None:
    """Write GPT-2 124M with random weights as a GGUF file. It has bytes as tokens, so that it writes text."""
    model = GPT(GPTConfig())
    with model.edit() as params:
        params["wte.weight"][128:] = 0  # what it writes is ASCII: each token is a character
    write_gguf(path, model, ByteTokenizer(), type)


def work_of(case: str, name: str, path: Path | None) -> Work:
    """Return the work of a contender, in tokens/s."""
    assert path
    return {"npgpt": npgpt, "llama.cpp": llama_cpp, "CTranslate2": ctranslate2}[name](path)


def npgpt(path: Path) -> Work:
    """Return libnpgpt's work."""
    session = libnpgpt.Session(libnpgpt.Model.open(path))
    how = libnpgpt.sampling_struct(Sampling(0), 256)  # the end of text never comes

    def turn() -> Samples:
        session.reset()
        start = time.perf_counter()
        session.feed(IDS)
        read = time.perf_counter()
        for _ in range(NEW):
            session.feed([session.sample(how)])
        return rates(PROMPT / (read - start), NEW / (time.perf_counter() - read))

    return Work(turn)


def llama_cpp(path: Path) -> Work:
    """Return the work of llama.cpp, from the xllamacpp wheel, without its cache of prompts."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = kernels.get_num_threads()
    server = xllamacpp.Server(params)

    def turn() -> Samples:
        asked = {"prompt": IDS.tolist(), "n_predict": NEW, "temperature": 0, "ignore_eos": True}
        data = json.dumps(asked | {"cache_prompt": False}, allow_nan=False).encode()
        url = f"{server.listening_address}/completion"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            times = json.load(answer)["timings"]
        return rates(times["prompt_per_second"], times["predicted_per_second"])

    return Work(turn)


def ctranslate2(path: Path) -> Work:
    """Return CTranslate2's work. A folder beside the file, which is named by its type, gets the model."""
    import ctranslate2

    threads, compute = kernels.get_num_threads(), COMPUTE[path.stem]
    folder = path.with_name(f"ctranslate2-{compute}")
    write_ctranslate2(folder, path, compute)
    generator = ctranslate2.Generator(str(folder), compute_type=compute, intra_threads=threads)
    how = {"sampling_topk": 1, "include_prompt_in_result": False}

    def seconds(n: int) -> float:
        start = time.perf_counter()
        done = generator.generate_batch([[f"<{i}>" for i in IDS]], max_length=n, min_length=n, **how)
        assert len(done[0].sequences_ids[0]) == n
        return time.perf_counter() - start

    def turn() -> Samples:
        first = seconds(1)
        return rates(PROMPT / first, NEW / (seconds(1 + NEW) - first))

    return Work(turn)


def rates(reading: float, writing: float) -> Samples:
    """Return the samples of a turn, from tokens of the prompt and new ones in a second."""
    return {PROMPT_RATE: [reading], NEW_RATE: [writing]}


def write_ctranslate2(folder: Path, path: Path, compute: str) -> None:
    """Write the model of a GGUF file as CTranslate2 has it, its tokens named <id>."""
    from ctranslate2.specs import common_spec, transformer_spec

    model = read_gguf(path)
    config, params = model.config, model.tensors
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.n_layer,
        config.n_head,
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False

    def norm(to: Any, name: str) -> None:
        to.gamma, to.beta = params[f"{name}.weight"], params[f"{name}.bias"]

    def linear(to: Any, name: str) -> None:
        to.weight, to.bias = np.ascontiguousarray(params[f"{name}.weight"].T), params[f"{name}.bias"]

    decoder.embeddings.weight = params["wte.weight"]
    decoder.position_encodings.encodings = params["wpe.weight"]
    norm(decoder.layer_norm, "ln_f")
    decoder.projection.weight = params["wte.weight"].copy()  # it rounds in place
    for i, layer in enumerate(decoder.layer):
        norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
        linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
        linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    spec.register_vocabulary([f"<{i}>" for i in range(config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = f"<{config.vocab_size - 1}>"
    spec.validate()
    spec.optimize(quantization=compute)
    folder.mkdir()
    spec.save(str(folder))
