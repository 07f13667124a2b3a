"""llama.cpp reads these files of tests/gguf_files.py to the same probabilities and ids as npgpt."""

import numpy as np
import pytest

import npgpt
from npgpt.interop.blocks import TYPES
from npgpt.interop.gguf import read_gguf
from tests.gguf_files import READ, REFUSED

pytest.importorskip("xllamacpp")

from tests.parity.test_llama_cpp import Llama, log_softmax


def rounding(case):
    """What llama.cpp rounds activations to in front of such matrices: (its name, the difference allowed)."""
    types = case.types()
    if any(TYPES[type].n == 256 for type in types):
        return "blocks of 256", 0.3
    if case.in_blocks():
        return "blocks", 0.1
    if types != {"f32"}:
        return ("BF16", 5e-2) if "bf16" in types else ("F16", 2e-2)
    return ("F32, Llama", 1e-5) if case.arch == "llama" else ("F32", 5e-3)  # its GELU is a float16 table


@pytest.mark.parametrize("case", [case for case in READ if case.llama], ids=lambda case: case.name)
def test_llama_cpp_reads_the_same_model(case, tmp_path, measured):
    path = case.write(tmp_path)
    model, llama = npgpt.GPT.of(read_gguf(path)), Llama(path)
    ids = np.random.default_rng(2).integers(33, 127, 12)
    ours = log_softmax(model.logits(ids[None])[0, -1])
    what, allowed = rounding(case)
    for token, theirs in llama.log_probabilities(ids, 20).items():
        measured(f"log-probabilities in llama.cpp, {what}", abs(theirs - ours[token]), allowed)
    for text in ("a 1", " 1 1 11", "ação\n\n 12 's"):
        assert llama.tokenize(text) == model.tokenizer.encode(text).tolist()


def test_llama_cpp_masks_nothing_where_a_file_says_so(tmp_path):
    """Why attention.causal is refused when it is false: the same tensors give other probabilities."""
    plain, other = READ[0], next(case for case in REFUSED if case.name == "not causal")
    first, second = (
        Llama(case.write(tmp_path)).log_probabilities([40, 50, 60], 3) for case in (plain, other)
    )
    assert first != second
