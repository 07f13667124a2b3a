"""GGUF files: written, read by Python and by libnpgpt, and refused in a line where they are malformed."""

import re
import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels, ops
from npgpt.engine.config import Rope
from npgpt.interop.blocks import dequantise
from npgpt.interop.gguf import open_gguf, read_gguf, write_gguf
from npgpt.interop.gguf_file import read_file
from npgpt.interop.layout import tensor_specs
from npgpt.interop.quantise import quantise, type_in_file
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.text.tokenizer import BPETokenizer
from tests.conftest import COMPILED
from tests.gguf_files import both, keys, llama, typed
from tests.models import FAMILY, LLAMA, random_model, steps


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    model = random_model(n_layer=1, n_embd=32, n_head=1, block_size=4)
    write_gguf(path, model, model.tokenizer)
    return path


@pytest.mark.parametrize("kind", FAMILY)
def test_f32_comes_back_as_it_was(kind, tmp_path):
    model = random_model(**FAMILY[kind])
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer)
    again = npgpt.GPT.of(read_gguf(tmp_path / "m.gguf"))
    assert again.tokenizer == model.tokenizer
    ids = np.arange(40)[None] % model.config.vocab_size
    np.testing.assert_allclose(again.logits(ids), model.logits(ids), atol=1e-5)
    if kind != "unscaled":  # whose scale goes into the weights, as GPT-2's form has none
        assert again.config == model.config
        assert np.array_equal(again.flat_params, model.flat_params)


TURNS = {
    "linear": Rope(500.0, "linear", 2.5),
    "llama3": Rope(500_000.0, "llama3", 32.0, 1.0, 4.0, 8192),
    "llama3, of a short context": Rope(1e4, "llama3", 8.0, 1.0, 4.0, 100),
    "llama3, one number above 2^24": Rope(12_345_678.0, "llama3", 8.0, 1.0, 4.0, 8192),
}


@pytest.mark.parametrize("kind", TURNS)
def test_rotary_positions_come_back(kind, tmp_path):
    model = random_model(**LLAMA | {"rope": TURNS[kind], "head_size": 64})
    write_gguf(tmp_path / "m.gguf", model)
    again = read_gguf(tmp_path / "m.gguf")
    assert again.config == model.config and np.array_equal(again.weights, model.flat_params)


@pytest.mark.parametrize("D", [8, 16, 64])
@pytest.mark.parametrize("low, high", [(1.0, 4.0), (1.5, 3.0), (0.3, 0.31), (2.0, 40.0), (1.0, 400.0)])
@pytest.mark.parametrize("context", [7, 100, 8192])
def test_other_factors_of_llama3_come_back_as_the_same_angles(D, low, high, context, tmp_path):
    """The factors tell less than the scaling's numbers: others may give the same."""
    rope = Rope(1e4, "llama3", 4.0, low, high, context)
    small = {"n_layer": 1, "n_head": 1, "n_embd": D, "vocab_size": 9}
    config = npgpt.GPTConfig(**LLAMA | {"rope": rope} | small)
    write_gguf(tmp_path / "m.gguf", npgpt.GPT(config))
    again = read_gguf(tmp_path / "m.gguf").config
    assert replace(again, rope=rope) == config
    expected, found = (c.rope.angles(50, D, np.float64) for c in (config, again))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_of_queries_and_keys_stand_as_pairs_turn(tmp_path):
    model = random_model(**LLAMA | {"n_head": 4, "n_kv_head": 2, "head_size": 6, "bias": True})
    write_gguf(tmp_path / "m.gguf", model)
    _, tensors = read_file(tmp_path / "m.gguf", "")
    for part, heads, first in (("attn_q", 4, 0), ("attn_k", 2, 24)):
        rows = [first + 6 * head + i for head in range(heads) for i in (0, 3, 1, 4, 2, 5)]
        for kind in ("weight", "bias"):
            w = model.params[f"h.1.attn.c_attn.{kind}"].T
            np.testing.assert_array_equal(tensors[f"blk.1.{part}.{kind}"].read(), w[rows])
    np.testing.assert_array_equal(
        tensors["blk.1.attn_v.weight"].read(), model.params["h.1.attn.c_attn.weight"].T[36:]
    )


def test_a_stored_tensor_is_its_bytes_too(tmp_path):
    model = random_model(**LLAMA)
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer, "q4_1")
    config, tensors, tokenizer, _ = open_gguf(tmp_path / "m.gguf", "test")
    assert config == model.config and tokenizer == model.tokenizer
    one = tensors["blk.0.ffn_up.weight"]
    assert one.shape == (160, 64) and one.dtype == "Q4_1" and len(one.raw) == 160 * 64 // 32 * 20
    np.testing.assert_array_equal(one.read().ravel(), dequantise(one.raw, "q4_1"))


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    def edit(file):
        keys({"llama.rope.freq_base": 0.0, "llama.x": 1, "llama.block_count": None})(file)

    case = llama("faults of keys", edit, "x")
    with pytest.raises(ValueError, match=r"(?=.*no llama.block_count)(?=.*freq_base must be)(?=.*llama.x)"):
        read_gguf(case.write(tmp_path))
    types = both(typed("iq1_s", "ffn_down"), typed("tq2_0", "1.ffn_up", "0.ffn_gate"))
    case = llama("faults of types", types, "x", width=256)
    with pytest.raises(
        ValueError, match=r"ffn_gate.weight' \(and 1 more\) .* got TQ2_0; .*ffn_down.* got IQ1_S"
    ):
        read_gguf(case.write(tmp_path))


def test_a_bpe_vocabulary_comes_back_and_encodes_alike(tmp_path):
    text = "O rato roeu a roupa do rei de Roma, e a rainha riu: ãéõ ção 12345 😀!\n\t" * 5
    tokenizer = BPETokenizer.train([text.encode()], 300)
    model = npgpt.GPT(
        npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=32, block_size=16, vocab_size=310), tokenizer=tokenizer
    )
    write_gguf(tmp_path / "m.gguf", model, tokenizer, "q8_0")
    again = npgpt.load(tmp_path / "m.gguf")
    assert again.tokenizer == tokenizer and again.config.vocab_size == 310  # ten of them padding
    if COMPILED:
        runtime = libnpgpt.Model.open(tmp_path / "m.gguf")
        for some in (text, "", "a", "\x00\xff" * 9, " " * 40, "não " * 300):
            assert runtime.encode(some.encode()) == tokenizer.encode(some).tolist()
        assert runtime.encode(b"\xff\xc3") == tokenizer.encode(b"\xff\xc3").tolist()
        assert [runtime.token_bytes(i) for i in range(300)] == [
            tokenizer.decode_bytes([i], skip_special_tokens=False) for i in range(300)
        ]


def rounded(x):
    """x as libnpgpt rounds it in front of weights in blocks: q * d, q of int8, d the largest of 32 by 127."""
    if x.shape[-1] % 32:  # such rows are F16 in a file
        return x
    blocks = x.reshape(-1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (np.rint(blocks * inverse) * (most / np.float32(127))).reshape(x.shape)


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"])
def test_libnpgpt_computes_with_the_weights_that_the_file_holds(
    type, kind, isa, tmp_path, rng, measured, monkeypatch
):
    model = random_model(**FAMILY[kind])
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer, type)
    unpacked = npgpt.load(tmp_path / "m.gguf")
    ids = rng.integers(0, model.config.vocab_size, 40)
    runtime = libnpgpt.Model.open(tmp_path / "m.gguf")
    runtime.use_kernels(isa)
    if type != "f16":
        linear, matmul = ops.linear_forward, ops.matmul
        monkeypatch.setattr(ops, "linear_forward", lambda x, *more, **kw: linear(rounded(x), *more, **kw))
        monkeypatch.setattr(ops, "matmul", lambda x, *more, **kw: matmul(rounded(x), *more, **kw))

    def error(some, compute):
        with kernels.use("numpy"):
            full = unpacked.logits(some[None])[0]
        return np.abs(compute(libnpgpt.Session(runtime), some) - full).max()

    def wide(session, some):
        return session.feed(some, every=True)

    if type == "f16":
        for compute in (wide, steps):
            measured("libnpgpt on a file", error(ids, compute), 1e-4)
    else:  # a sum's last bit may tip a rounding, and that one others behind it: rarely within two tokens
        deviation = unpacked.logits(ids[None]).std()
        for compute in (wide, steps):
            share = error(ids, compute) / deviation
            measured("libnpgpt on a file in blocks, of the deviation, at most", share, 0.08)
        pairs = [error(ids[i : i + 2], steps) for i in range(0, 40, 2)]
        measured("libnpgpt on a file in blocks, two tokens, median", np.median(pairs), 1e-4)


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_a_loaded_file_generates_as_it_is_until_it_is_edited(tmp_path):
    model = random_model()
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer, "q4_0")
    session, drawn = libnpgpt.Session(libnpgpt.Model.open(tmp_path / "m.gguf")), []
    session.feed(list(b"O sol"))
    how = libnpgpt.sampling_struct(Sampling(1.0), banned=256, seed=3)
    for _ in range(60):
        drawn.append(session.sample(how))
        session.feed(drawn[-1:])
    loaded = npgpt.load(tmp_path / "m.gguf")
    asked = {"prompt": "O sol", "max_new_tokens": 60, "temperature": 1, "seed": 3, "ignore_eos": True}
    assert loaded.generate(**asked, return_ids=True) == drawn
    with loaded.edit():
        loaded.flat_params[...] = model.flat_params
    again = loaded.generate(**asked, return_ids=True)
    assert again == model.generate(**asked, return_ids=True) != drawn


def test_blocks_are_as_exact_as_their_bits(rng):
    x = rng.normal(0, 1, (5, 96)).astype(np.float32)
    x[0, :32] = 0
    shares = {"f16": 2**-11, "q8_0": 0.51 / 127, "q4_0": 0.51 / 8, "q4_1": 1.02 / 15, "q5_0": 0.51 / 16}
    for type, share in shares.items():
        data = quantise(x, type)
        assert data.nbytes == {"f16": 192, "q8_0": 102, "q4_0": 54, "q4_1": 60, "q5_0": 66}[type] * 5
        error = np.abs(dequantise(data, type).reshape(x.shape) - x).reshape(5, 3, 32).max(-1)
        largest = np.abs(x).reshape(5, 3, 32).max(-1)
        # q4_0 has 8 steps to one side and 7 to the other: the far end of that one is cut
        assert (error <= share * largest * (2.1 if type in ("q4_0", "q5_0") else 1.05)).all()
        assert not dequantise(data, type)[:32].any()


@pytest.mark.parametrize("type, size, share", [("q4_k", 144, 0.08), ("q6_k", 210, 0.02)])
def test_blocks_of_256_are_as_exact_as_their_bits(type, size, share, rng):
    """Of any sign and size, and all alike, where a group has no spread to be scaled by."""
    x = rng.normal(0, 1, (12, 512)).astype(np.float32)
    x[0], x[1], x[2], x[3], x[4] = 0, -3, 3, np.abs(x[3]), -np.abs(x[4])
    x[5] *= 0.1
    x[6] *= 1e4
    x[7, :32], x[8, 5], x[9, ::2] = 0, 100, 0
    data = quantise(x, type)
    assert data.shape == (12, 2 * size)
    found = dequantise(data, type).reshape(x.shape)
    assert np.isfinite(found).all() and not found[0].any() and not found[7, :32].any()
    largest = np.abs(x).max(-1)
    # scales are a sixty-third or a hundredth of the largest in a block
    error = np.abs(found - x).max(-1)
    assert (error <= share * largest + 1e-7).all(), error / largest
    assert (np.sqrt(np.square(found - x).mean(-1)) <= share / 2 * largest + 1e-7).all()


@pytest.mark.parametrize("type", ["q4_1", "q5_0", "q4_k", "q6_k"])
@pytest.mark.parametrize("value", [1e9, -1e9, 3e38, -3e38])
def test_what_a_block_cannot_hold_is_refused(type, value):
    x = np.ones((2, 256), np.float32)
    x[1, 7] = value
    with pytest.raises(OverflowError, match=rf"{re.escape(f'{value:.6g}')}, which {type} cannot; choose"):
        quantise(x, type)


def test_types_are_those_of_q4_k_m():
    """As llama.cpp's quantizer chooses them for these sizes."""
    small = {"n_layer": 4, "n_embd": 128, "n_head": 4}
    found = types_in(npgpt.GPTConfig(**small), "q4_k")
    assert found["token_embd.weight"] == "q8_0" and found["position_embd.weight"] == "f32"
    assert count(found, "attn_qkv") == {"q5_0": 2, "q8_0": 2} and count(found, "ffn_up") == {"q5_0": 4}
    assert count(found, "attn_output") == {"q5_0": 4} and count(found, "ffn_down") == {"q4_k": 2, "q6_k": 2}

    found = types_in(npgpt.GPTConfig(), "q4_k")  # GPT-2's smallest
    assert found["token_embd.weight"] == "q6_k" and count(found, "ffn_up") == {"q4_k": 12}
    assert count(found, "attn_qkv") == count(found, "ffn_down") == {"q4_k": 6, "q6_k": 6}
    assert [i for i in range(12) if found[f"blk.{i}.attn_qkv.weight"] == "q6_k"] == [0, 3, 6, 9, 10, 11]

    smol = LLAMA | {"n_embd": 576, "n_inner": 1536, "n_layer": 30, "n_head": 9, "n_kv_head": 3}
    found = types_in(npgpt.GPTConfig(**smol), "q4_k")
    assert found["token_embd.weight"] == "q8_0" and count(found, "attn_v") == {"q5_0": 16, "q8_0": 14}
    assert count(found, "ffn_down") == {"q4_k": 16, "q6_k": 14}
    assert all(count(found, part) == {"q5_0": 30} for part in ("attn_q", "attn_k", "attn_output", "ffn_gate"))
    found = types_in(npgpt.GPTConfig(**smol), "q4_1")
    assert found["token_embd.weight"] == "q8_0" and count(found, "ffn_down") == {"q4_1": 30}
    found = types_in(npgpt.GPTConfig(**smol, tied=False), "q6_k")
    assert found["token_embd.weight"] == found["output.weight"] == "q8_0"
    assert count(found, "ffn_down") == {"q6_k": 30}
    found = types_in(npgpt.GPTConfig(tied=False), "q4_k")
    assert (found["token_embd.weight"], found["output.weight"]) == ("q4_k", "q6_k")
    assert set(types_in(npgpt.GPTConfig(n_embd=60), "q4_k").values()) == {"f32", "f16"}


def types_in(config, type):
    """{name: type} of a file's tensors."""
    head = "token_embd.weight" if config.tied else "output.weight"
    specs = tensor_specs("gguf", config)
    return {name: type_in_file(name, spec.shape, type, config.n_layer, head) for name, spec in specs.items()}


def count(types, part):
    """{type: how many layers have it} of one of their matrices."""
    return dict(sorted(Counter(of for name, of in types.items() if f".{part}.weight" in name).items()))


def test_what_has_no_form_is_refused(tmp_path):
    from npgpt.text.tokenizer_json import Vocabulary

    model = random_model()
    with pytest.raises(
        ValueError, match="type must be one of f32, f16, q8_0, q4_0, q4_1, q4_k, q6_k, got 'q3'"
    ):
        write_gguf(tmp_path / "m.gguf", model, None, "q3")

    class Words:
        vocabulary = Vocabulary("", {}, [], {}, None, words=True)

    with pytest.raises(ValueError, match="got GPT-1's"):
        write_gguf(tmp_path / "m.gguf", model, Words())
    assert not list(tmp_path.iterdir())


def readers():
    def python(path):
        read_gguf(path)

    def compiled(path):
        libnpgpt.Model.open(path)

    return [python, compiled] if COMPILED else [python]


def refused(path, data, reader):
    """The line with which `data` is refused, '' where it is read."""
    path.write_bytes(data)
    try:
        reader(path)
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("reader", readers())
def test_a_file_cut_short_is_refused(reader, small_file, tmp_path):
    data = small_file.read_bytes()
    assert not refused(tmp_path / "m.gguf", data, reader)
    for size in [*range(0, 200), *range(200, len(data), 997), len(data) - 33]:
        assert refused(tmp_path / "m.gguf", data[:size], reader), size


@pytest.mark.parametrize("reader", readers())
def test_any_byte_may_be_wrong(reader, small_file, tmp_path):
    """Refused, or read where the byte was not one that matters; never a crash, a hang or a flood."""
    data = small_file.read_bytes()
    header = data.index(b"blk.0.mlp" if b"blk.0.mlp" in data else b"output_norm.bias") + 64
    rng = np.random.default_rng(5)
    for _ in range(1500):
        mutant = bytearray(data)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            mutant[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        refused(tmp_path / "m.gguf", bytes(mutant), reader)


def patched(data: bytes, key: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(key) + len(key) + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
@pytest.mark.parametrize(
    "key, offset, value, line",
    [
        (b"", 0, b"GGUX", "byte 0 must begin GGUF"),
        (b"GGUF", 0, struct.pack("<I", 9), "version must be 2 or 3, got 9"),
        (b"GGUF", 4, struct.pack("<Q", 2**40), "do not fit a file"),
        (b"GGUF", 12, struct.pack("<Q", 2**62), "do not fit a file"),
        (b"general.architecture", 4, struct.pack("<Q", 2**63), "a string at byte .* are left"),
        (b"general.architecture", 0, struct.pack("<I", 77), "general.architecture at byte .* is of type 77"),
        (b"general.architecture", 12, b"gptX", "must be gpt2, llama or npgpt, got gptX"),
        (b"gpt2.block_count", 4, struct.pack("<I", 2), "tensor blk.1.attn_norm.weight is missing"),
        (b"gpt2.block_count", 4, struct.pack("<I", 2**31), "gpt2.block_count must be in 1..16777216"),
        (b"gpt2.embedding_length", 4, struct.pack("<I", 64), "gpt2.feed_forward_length must be 256, got 128"),
        (b"gpt2.attention.head_count", 4, struct.pack("<I", 5), "n_embd must be a multiple of n_head"),
        (b"gpt2.context_length", 0, struct.pack("<I", 6), "gpt2.context_length must be an integer"),
        (b"tokenizer.ggml.pre", 12, b"gpt-9", "pre must be gpt-2, .*, got gpt-9"),
        (b"tokenizer.ggml.tokens", 8, struct.pack("<Q", 2**60), "a string of an array at byte|needs"),
        (
            b"tokenizer.ggml.eos_token_id",
            4,
            struct.pack("<I", 999),
            "eos_token_id must be in 0..256, got 999",
        ),
        (b"token_embd.weight", 0, struct.pack("<I", 9), "dimensions must be 1 to 4"),
        (b"token_embd.weight", 4, struct.pack("<Q", 0), "a length must be 1 to 2.48 in all, got 0"),
        (b"token_embd.weight", 4, struct.pack("<Q", 2**60), "a length must be"),
        (b"token_embd.weight", 20, struct.pack("<I", 39), "token_embd.weight .*MXFP4"),
        (b"token_embd.weight", 24, struct.pack("<Q", 2**50), r"token_embd.weight \(F32\) needs .* bytes at"),
        (b"token_embd.weight", 24, struct.pack("<Q", 4), "aligned to 32"),
        (b"blk.0.ffn_up.weight", 4, struct.pack("<Q", 16), r"must be \(32, 128\), got \(16, 128\)"),
        (b"blk.0.ffn_up.bia", 0, b"t", "blk.0.ffn_up.biat is none of a model of gpt2"),
    ],
)
def test_what_is_wrong_is_said_where(key, offset, value, line, small_file, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(patched(small_file.read_bytes(), key, offset, value))
    with pytest.raises(ValueError, match=line):
        libnpgpt.Model.open(path)


def test_a_type_that_is_none_is_told_as_it_is(small_file, tmp_path):
    path = tmp_path / "m.gguf"
    for number, name in ((39, "MXFP4"), (77, "type 77, which ggml does not have")):
        path.write_bytes(
            patched(small_file.read_bytes(), b"token_embd.weight", 20, struct.pack("<I", number))
        )
        with pytest.raises(ValueError, match=f"'token_embd.weight' must be F32, .*, got {name}$"):
            npgpt.load(path)


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(ValueError, match=str(path)):
            libnpgpt.Model.open(path)
