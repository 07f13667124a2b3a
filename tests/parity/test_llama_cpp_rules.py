"""llama.cpp reads these files of tests/gguf_files.py to the same probabilities and ids as npgpt."""

import numpy as np
import pytest

import npgpt
from tests.gguf_files import READ, REFUSED

pytest.importorskip("xllamacpp")

from tests.parity.test_llama_cpp import Llama, log_softmax


@pytest.mark.parametrize("case", [case for case in READ if case.llama], ids=lambda case: case.name)
def test_llama_cpp_reads_the_same_model(case, tmp_path, measured):
    path = case.write(tmp_path)
    model, llama = npgpt.load(path), Llama(path)
    ids = np.random.default_rng(2).integers(33, 127, 12)
    ours = log_softmax(model.logits(ids[None])[0, -1])
    what, allowed = ("blocks", 0.1) if case.in_blocks() else ("F32", 5e-3)
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
