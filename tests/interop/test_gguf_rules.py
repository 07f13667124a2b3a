"""One table of rules for GGUF files, to which Python's reader and libnpgpt are held."""

import re

import numpy as np
import pytest

import npgpt
from npgpt.interop.gguf import read_gguf
from npgpt.runtime import libnpgpt
from tests.conftest import COMPILED
from tests.gguf_files import READ, REFUSED

TEXTS = ("a 1", " 1 1", "<|endoftext|><x>[PAD]", "ação\n\n 12 's", "")


def named(case):
    return case.name


def readers():
    return [read_gguf, libnpgpt.Model.open] if COMPILED else [read_gguf]


@pytest.mark.parametrize("case", READ, ids=named)
def test_what_both_read_is_the_same_model(case, tmp_path, measured):
    path = case.write(tmp_path)
    model = npgpt.GPT.of(read_gguf(path))
    ids = np.random.default_rng(4).integers(0, 256, 16)
    logits = model.logits(ids[None])[0]
    assert np.isfinite(logits).all() and logits.std() > 0.5
    if COMPILED:
        runtime = libnpgpt.Model.open(path)
        in_blocks = any(type == "q8_0" for type in case.types())
        error = np.abs(libnpgpt.Session(runtime).feed(ids, every=True) - logits).max()
        measured(f"libnpgpt on a file{' in blocks' * in_blocks}", error, 0.1 if in_blocks else 1e-4)
        assert runtime.vocab_size == model.config.vocab_size
        for text in TEXTS if model.tokenizer else ():
            assert runtime.encode(text.encode()) == model.tokenizer.encode(text).tolist()
        if model.tokenizer:
            assert (
                libnpgpt.library()[1].npgpt_end_of_text(runtime.handle) == model.tokenizer.end_of_text == 257
            )


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_what_both_refuse_is_named_alike(case, tmp_path):
    path = case.write(tmp_path)
    for reader in readers():
        with pytest.raises(ValueError) as error:
            reader(path)
        assert re.search(case.refused, str(error.value)) and "\n" not in str(error.value)


def test_every_rule_is_for_a_file_of_its_own():
    names = [case.name for case in (*READ, *REFUSED)]
    assert len(set(names)) == len(names) > 80
