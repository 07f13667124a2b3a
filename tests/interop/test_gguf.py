"""GGUF files: written, read by Python and by libnpgpt, and refused in a line where they are malformed."""

import struct

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels, ops
from npgpt.interop.gguf import dequantise, quantise, read_gguf, write_gguf
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.text.tokenizer import BPETokenizer
from tests.conftest import COMPILED
from tests.models import FAMILY, random_model, steps


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    model = random_model(n_layer=1, n_embd=32, n_head=1, block_size=4)
    write_gguf(path, model, model.tokenizer)
    return path


GGUF_HAS = [kind for kind, fields in FAMILY.items() if "rope" not in fields]


@pytest.mark.parametrize("kind", GGUF_HAS)
def test_f32_comes_back_as_it_was(kind, tmp_path):
    model = random_model(**FAMILY[kind])
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer)
    again = npgpt.load(tmp_path / "m.gguf")
    assert again.tokenizer == model.tokenizer
    ids = np.arange(40)[None] % model.config.vocab_size
    np.testing.assert_allclose(again.logits(ids), model.logits(ids), atol=1e-5)
    if kind != "unscaled":  # whose scale goes into the weights, as GPT-2's form has none
        assert again.config == model.config
        assert np.array_equal(again.flat_params, model.flat_params)


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
@pytest.mark.parametrize("kind", GGUF_HAS)
@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0"])
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
        for compute in (wide, steps):
            measured("libnpgpt on a file in blocks", error(ids, compute), 0.1)
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
    for type, share in (("f16", 2**-11), ("q8_0", 0.51 / 127), ("q4_0", 0.51 / 8)):
        data = quantise(x, type)
        assert data.nbytes == {"f16": 192, "q8_0": 102, "q4_0": 54}[type] * 5
        error = np.abs(dequantise(data, type, x.shape) - x).reshape(5, 3, 32).max(-1)
        largest = np.abs(x).reshape(5, 3, 32).max(-1)
        # q4_0 has 8 steps to one side and 7 to the other: the far end of that one is cut
        assert (error <= share * largest * (2.1 if type == "q4_0" else 1.05)).all()
        assert not dequantise(data, type, x.shape)[0, :32].any()


def test_what_has_no_form_is_refused(tmp_path):
    from npgpt.text.tokenizer_json import Vocabulary

    model = random_model()
    with pytest.raises(ValueError, match="type must be one of f32, f16, q8_0, q4_0, got 'q3'"):
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
        (b"general.architecture", 12, b"gptX", "must be gpt2 or npgpt, got gptX"),
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
        (b"token_embd.weight", 20, struct.pack("<I", 30), "token_embd.weight is of type 30"),
        (b"token_embd.weight", 24, struct.pack("<Q", 2**50), r"token_embd.weight \(F32\) needs .* bytes at"),
        (b"token_embd.weight", 24, struct.pack("<Q", 4), "aligned to 32"),
        (b"blk.0.ffn_up.weight", 4, struct.pack("<Q", 16), r"must be \(32, 128\), got \(16, 128\)"),
        (b"blk.0.ffn_up.bia", 0, b"t", "blk.0.ffn_up.biat is none of a GPT's"),
    ],
)
def test_what_is_wrong_is_said_where(key, offset, value, line, small_file, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(patched(small_file.read_bytes(), key, offset, value))
    with pytest.raises(ValueError, match=line):
        libnpgpt.Model.open(path)


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(ValueError, match=str(path)):
            libnpgpt.Model.open(path)


def test_llama_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"^write_gguf: engine must be .*, got llama, which --to hf holds"):
        write_gguf(tmp_path / "m.gguf", random_model(**FAMILY["llama"]))
    assert not list(tmp_path.iterdir())
