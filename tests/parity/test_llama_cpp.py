"""Our GGUF files in llama.cpp and in the gguf package: the same probabilities, tokens and blocks."""

import ctypes
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine.config import Rope
from npgpt.interop import blocks
from npgpt.interop.gguf import write_gguf
from npgpt.interop.quantise import quantise
from npgpt.runtime import libnpgpt
from npgpt.text.tokenizer import BPETokenizer
from tests.models import LLAMA, random_model

xllamacpp = pytest.importorskip("xllamacpp")
gguf = pytest.importorskip("gguf")

TEXT = (
    "Olá! O rato roeu a roupa do rei de Roma; não é?\n\n  It's 12 345 — naïve façade, 'll 'S don't 😀  \t x"
)


SHAPES = {
    "untied": {"tied": False},
    "llama": LLAMA | {"n_head": 6, "n_kv_head": 2, "head_size": 8},
    "llama, untied": LLAMA | {"tied": False, "bias": True},
    "llama, biases of the MLP": LLAMA | {"mlp_bias": True, "n_kv_head": 1},
    "llama, linear": LLAMA | {"rope": Rope(1e4, "linear", 3.0)},
    "llama, of Llama 3.1": LLAMA | {"rope": Rope(5e4, "llama3", 8.0, 1.0, 4.0, 100)},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{kind: (model, path of its f32 file)}"""
    folder, made = tmp_path_factory.mktemp("gguf"), {}
    kinds = {
        "bytes": random_model(n_embd=128, n_head=2, block_size=64),
        "no bias": random_model(n_embd=64, n_head=4, block_size=64, bias=False),
        "unscaled": random_model(n_embd=96, n_head=3, block_size=64, scale_attn_weights=False),
        "wide window": random_model(n_embd=96, n_head=3, block_size=64, window=64),
    }
    kinds |= {kind: random_model(**SHAPES[kind]) for kind in SHAPES}
    tokenizer = BPETokenizer.train([TEXT.encode() * 3], 290)
    kinds["bpe"] = random_model(n_embd=64, block_size=64, vocab_size=300)
    kinds["bpe"].tokenizer = tokenizer
    for kind, model in kinds.items():
        path = folder / f"{kind.replace(' ', '-')}.gguf"
        write_gguf(path, model, model.tokenizer)
        made[kind] = model, path
    return made


class Llama:
    """llama.cpp's server, in this process."""

    def __init__(self, path, context=64):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = context, 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # its flash attention rounds to float16, whatever the cache
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def ask(self, path, **body):
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, data, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def log_probabilities(self, ids, n) -> dict[int, float]:
        """{id: log p} of the n most likely after ids."""
        # A token that ends no character is not told of; the bias acts on the choice, not on what is told.
        bias = [[i, False] for i in range(128, 257)]
        asked = {"n_predict": 1, "n_probs": n, "temperature": 0, "cache_prompt": False, "logit_bias": bias}
        answer = self.ask("/completion", prompt=list(map(int, ids)), **asked)
        found = answer["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in found}

    def tokenize(self, text) -> list[int]:
        return self.ask("/tokenize", content=text)["tokens"]


def log_softmax(logits):
    z = logits.astype(np.float64) - logits.max()
    return z - np.log(np.exp(z).sum())


@pytest.mark.parametrize("kind", ["bytes", "no bias", "unscaled", "wide window", "bpe", *SHAPES])
def test_llama_cpp_computes_the_same(models, kind, measured):
    model, path = models[kind]
    llama = Llama(path)
    ids = np.random.default_rng(2).integers(0, 256, 21)
    ours = log_softmax(model.logits(ids[None])[0, -1])
    for token, theirs in llama.log_probabilities(ids, 20).items():
        if "llama" in kind:
            measured("log-probabilities in llama.cpp, F32, Llama", abs(theirs - ours[token]), 2e-5)
        else:  # its GELU is a float16 table
            measured("log-probabilities in llama.cpp, F32", abs(theirs - ours[token]), 5e-3)


@pytest.mark.parametrize("type, allowed", [("f16", 2e-2), ("q8_0", 0.1), ("q4_0", 0.2)])
def test_llama_cpp_rounds_as_we_do(models, type, allowed, tmp_path, measured):
    """Against our own computation with the same rounded weights: what is left is how it rounds x."""
    model, _ = models["bytes"]
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer, type)
    ids = np.random.default_rng(2).integers(0, 256, 21)
    session = libnpgpt.Session(libnpgpt.Model.open(tmp_path / "m.gguf"))
    session.feed(ids)
    ours = log_softmax(session.logits())
    for token, theirs in Llama(tmp_path / "m.gguf").log_probabilities(ids, 20).items():
        measured(f"log-probabilities in llama.cpp, {type}", abs(theirs - ours[token]), allowed)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_llama_cpp_tokenizes_the_same(models, kind):
    model, path = models[kind]
    llama, runtime = Llama(path), libnpgpt.Model.open(path)
    for text in (TEXT, "a", " ", "não  há", "\n", "🙂🙂", "a\u0301e"):
        ids = model.tokenizer.encode(text).tolist()
        assert llama.tokenize(text) == ids == runtime.encode(text.encode())


def test_the_gguf_package_reads_our_files(models):
    model, path = models["bytes"]
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "gpt2"
    assert reader.get_field("gpt2.block_count").contents() == 3
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 257
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(model.params)
    np.testing.assert_array_equal(tensors["token_embd.weight"].data, model.params["wte.weight"])
    np.testing.assert_array_equal(
        tensors["blk.1.attn_qkv.weight"].data, model.params["h.1.attn.c_attn.weight"].T
    )


@pytest.mark.parametrize("type", blocks.TYPES)
def test_numbers_of_a_block_are_theirs_to_the_bit(type, rng):
    """Of any bytes, for every type that llama.cpp's quantizer makes for such models."""
    ours, number = blocks.TYPES[type], gguf.GGMLQuantizationType[type.upper()]
    assert (ours.number, (ours.n, ours.size)) == (number.value, gguf.GGML_QUANT_SIZES[number])
    data = rng.integers(0, 256, (500, ours.size), dtype=np.uint8)
    with np.errstate(all="ignore"):  # some scales are not finite
        found = ours.dequantise(data).reshape(-1)
        expected = gguf.quants.dequantize(data, number).astype(np.float32).reshape(-1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)  # NaN equals NaN


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_0", "q4_1", "q5_0"])
def test_blocks_are_those_of_ggml(type, rng):
    x = rng.normal(0, 1, (7, 96)).astype(np.float32)
    x[0, :32], x[1, 5], x[2] = 0, 1e4, np.abs(x[2])
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[type.upper()])
    assert np.array_equal(quantise(x, type), theirs.view(np.uint8).reshape(7, -1))


def by_ggml(x, type):
    """The numbers that are left of x by llama.cpp's own quantizer."""
    chunk = ctypes.CDLL(next(Path(xllamacpp.__file__).parent.glob("*.so"))).ggml_quantize_chunk
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    of, x = blocks.TYPES[type], np.ascontiguousarray(x)
    out = np.zeros((x.size // of.n, of.size), np.uint8)
    chunk(of.number, x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    return blocks.dequantise(out, type).reshape(x.shape)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "positive", "rows and columns", "sparse"])
@pytest.mark.parametrize("type", ["q4_k", "q6_k"])
def test_blocks_of_256_are_nearer_than_those_of_ggml(type, kind, rng, measured):
    """By the mean square of the errors, and by one that counts large weights more, as both quantizers do."""
    shape = 256, 1024
    x = rng.standard_t(4, shape) if kind == "heavy tails" else rng.normal(0, 1, shape)
    x = np.abs(x) if kind == "positive" else x
    x = x * (rng.random(shape) < 0.3) if kind == "sparse" else x
    if kind == "rows and columns":
        x = x * np.exp(rng.normal(0, 1, (256, 1)) + rng.normal(0, 0.5, (1, 1024)))
    x = (0.02 * x).astype(np.float32)
    ours, theirs = blocks.dequantise(quantise(x, type), type).reshape(shape), by_ggml(x, type)
    groups = np.abs(x).reshape(-1, 16 if type == "q6_k" else 32)
    weights = groups + np.sqrt(np.square(groups).mean(-1, keepdims=True))
    for name, w in (("square", 1), ("weighted square", weights.reshape(shape))):
        error, allowed = ((w * np.square(found - x)).mean() for found in (ours, theirs))
        measured(f"{name} of {type}'s error by ggml's", error / allowed, 1.001)


def test_our_reader_reads_theirs(tmp_path):
    """A file by the gguf package, as llama.cpp's converter writes one."""
    model = random_model(n_embd=64, block_size=16)
    write_gguf(tmp_path / "ours.gguf", model, model.tokenizer)
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "gpt2")
    writer.add_context_length(16), writer.add_embedding_length(64), writer.add_block_count(3)
    writer.add_feed_forward_length(256), writer.add_head_count(2), writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(reader.get_field("tokenizer.ggml.tokens").contents())
    writer.add_token_merges(
        ["<|endoftext|> <|endoftext|>"]
    )  # as npgpt 0.1.0; the package writes no empty list
    writer.add_token_types([1] * 256 + [3]), writer.add_eos_token_id(256)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    (
        writer.write_header_to_file(),
        writer.write_kv_data_to_file(),
        writer.write_tensors_to_file(),
        writer.close(),
    )
    again = npgpt.load(tmp_path / "theirs.gguf")
    assert again.config == model.config and np.array_equal(again.flat_params, model.flat_params)
    assert libnpgpt.Model.open(tmp_path / "theirs.gguf").vocab_size == 257
