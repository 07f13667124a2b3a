"""libnpgpt on files of Llama's shape: matrices lie apart, each of its own type, and heads pair by pair."""

import numpy as np
import pytest

from npgpt.engine.config import Rope
from npgpt.interop.blocks import dequantise
from npgpt.interop.quantise import quantise
from npgpt.runtime import libnpgpt
from tests.conftest import COMPILED
from tests.gguf_files import llama_file
from tests.models import FAMILY, LLAMA, random_model, same_in_any_company, steps

pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
KINDS = {name: fields for name, fields in FAMILY.items() if name.startswith("llama")}
KINDS["llama, linear"] = LLAMA | {"rope": Rope(1e4, "linear", 2.5), "n_head": 4, "n_kv_head": 2}


def in_rows(model):
    """libnpgpt's model of the engine's weights, (out, in) as a file has them, and whole."""
    kept = {name: np.ascontiguousarray(w.T) for name, w in model.params.items() if name.startswith("h.")}

    def make(ffi, lib, made, error):
        config = ffi.new("npgpt_config *")
        lib.npgpt_get_config(libnpgpt.Model.of(model).handle, config)
        names = [ffi.new("char[]", name.encode()) for name in model.params]
        tensors = ffi.new("npgpt_tensor[]", len(names))
        for tensor, chars, (name, w) in zip(tensors, names, model.params.items(), strict=True):
            w = kept.get(name, w)
            tensor.name, tensor.data = chars, ffi.cast("float *", w.ctypes.data)
            tensor.rows, tensor.columns = w.shape if w.ndim == 2 else (1, len(w))
            tensor.transposed = name in kept
        return lib.npgpt_from_tensors(config, tensors, len(names), made, error)

    return libnpgpt.Model(make, keeps=(kept, model))


def opened(file, folder, isa):
    runtime = libnpgpt.Model.open(file.write(folder / f"{len(list(folder.iterdir()))}.gguf"))
    runtime.use_kernels(isa)
    return runtime


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_engines_logits(kind, isa, rng, tmp_path, measured):
    model = random_model(**KINDS[kind])
    ids = rng.integers(0, model.config.vocab_size, 45)
    full, runtime = model.logits(ids[None])[0], opened(llama_file(model), tmp_path, isa)
    session = libnpgpt.Session(runtime)
    in_parts = np.concatenate([session.feed(part, every=True) for part in np.split(ids, [3, 13, 14, 22])])
    for logits in (in_parts, steps(libnpgpt.Session(runtime), ids)):
        measured("key-value cache against the full pass", np.abs(logits - full).max(), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_in_the_file_changes_no_bit(kind, isa, rng, tmp_path):
    """Beside the engine's weights, which are whole and have the first of all pairs before the second."""
    model = random_model(**KINDS[kind])
    ids = rng.integers(0, model.config.vocab_size, 30)
    results = []
    for runtime in (opened(llama_file(model), tmp_path, isa), in_rows(model)):
        runtime.use_kernels(isa)
        session = libnpgpt.Session(runtime)
        results.append([*session.feed(ids[:20], every=True), *steps(session, ids[20:])])
    if model.config.rope.type == "llama3":  # whose factors the file has in float32
        np.testing.assert_allclose(*results, rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(*results)


MIXED = {"attn_q": "q8_0", "attn_v": "q4_0", "ffn_gate": "f16", "ffn_up": "q8_0", "ffn_down": "q4_0"}
OF_32 = {"attn_q": "q4_1", "attn_k": "q5_0", "attn_v": "q5_1", "ffn_gate": "iq4_nl", "ffn_up": "bf16"}
OF_256 = {"attn_q": "q4_k", "attn_k": "q2_k", "attn_v": "q6_k", "attn_output": "q3_k", "ffn_gate": "q5_k"}
OF_256 |= {"ffn_up": "iq4_xs", "ffn_down": "q6_k", "token_embd": "q6_k"}
SHAPE = {"n_embd": 256, "n_head": 8, "n_kv_head": 2, "n_inner": 256}
TYPES = {
    "f32": {},
    "f16": {"": "f16"},
    "q8_0": {"": "q8_0"},
    "mixed": MIXED,
    "of 32": OF_32,
    "of 256": OF_256,
}


@pytest.mark.parametrize("types", TYPES)
def test_the_same_bits_in_any_company_and_on_any_threads(types, isa, threads, tmp_path):
    file = llama_file(random_model(**LLAMA | SHAPE | {"tied": types != "mixed"}), **TYPES[types])
    same_in_any_company(opened(file, tmp_path, isa), threads)


@pytest.mark.parametrize("types", TYPES)
def test_guesses_change_no_bit(types, isa, rng, tmp_path):
    """A few tokens read together are as each alone, at any position."""
    file = llama_file(random_model(**LLAMA | SHAPE), **TYPES[types])
    runtime = opened(file, tmp_path, isa)
    ids = [*rng.integers(0, 257, 9), *[7, 8, 9, 10, 11, 12] * 4, *rng.integers(0, 3, 9)]
    plain, guessing = libnpgpt.Session(runtime), libnpgpt.Session(runtime, speculate=True)
    for i in ids:
        plain.feed([i])
        guessing.feed([i])
        np.testing.assert_array_equal(plain.logits(), guessing.logits())


def test_parts_of_several_types_are_what_they_stand_for(isa, rng, tmp_path, measured):
    model = random_model(**LLAMA | {"n_embd": 96, "n_head": 6, "n_kv_head": 2})
    ids = rng.integers(0, 257, 12)
    for names in (MIXED, {"attn_k": "q8_0"}, {"ffn_up": "f16", "attn_v": "f16"}, {"ffn_gate": "q4_0"}):
        file, plain = llama_file(model, **names), llama_file(model)
        for name, type in file.types.items():
            w = file.tensors[name]
            plain.tensors[name] = dequantise(quantise(w, type), type).reshape(w.shape)
        many, few, exact = (libnpgpt.Session(opened(f, tmp_path, isa)) for f in (file, file, plain))
        expected = exact.feed(ids, every=True)
        for logits in (many.feed(ids, every=True), steps(few, ids)):
            error = (logits - expected).std() / expected.std()
            measured("libnpgpt on a file in blocks, of the deviation", error, 0.05)
