"""What is measured of a model whose numbers are not finite: an error that names the first such weight."""

import numpy as np
import pytest

import npgpt
from npgpt.engine.finite import is_finite
from npgpt.interop.gguf import write_gguf
from npgpt.training.evaluation import evaluate
from tests.models import random_model

NAME = "h.1.attn.c_proj.weight"
DOORS = {
    "score": lambda m: m.score("a", "b"),
    "classify": lambda m: m.classify("a", ["b", "c"]),
    "embed": lambda m: m.embed(["a", "bc"]),
    "evaluate": lambda m: evaluate(m, np.arange(9), m.tokenizer),
    "generate": lambda m: m.generate("a", 3),
    "greedy": lambda m: m.generate("a", 3, temperature=0),
    "rows": lambda m: names(m).generate([[1, 2]], max_new_tokens=3),
    "drawn rows": lambda m: names(m).generate([[1, 2]], max_new_tokens=3, do_sample=True),
    "beams": lambda m: names(m).generate([[1, 2]], max_new_tokens=3, num_beams=2),
    "drawn beams": lambda m: names(m).generate([[1, 2]], max_new_tokens=3, num_beams=2, do_sample=True),
}


def names(model):
    same = npgpt.GPT2LMHeadModel(model.config)
    with same.edit():
        same.flat_params[...] = model.flat_params
    return same


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_every_door_refuses(impl, door, value):
    model = random_model()
    with model.edit() as params:
        params[NAME][...] = value
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="must be finite") as refused:
        DOORS[door](model)
    if door in ("score", "classify", "embed", "evaluate"):
        ours = {"classify": "score"}.get(door, door)
        what = "or are too large" if value == 3e38 else f"{ours}: {NAME} must be finite, got {value}"
        assert what in str(refused.value)


@pytest.mark.parametrize("write", ["gguf", "folder", "state_dict"])
def test_nothing_is_written_of_it(tmp_path, write):
    from npgpt.interop.pytorch import write_state_dict

    model = random_model()
    with model.edit() as params:
        params[NAME][5, 6] = np.nan
    with pytest.raises(ValueError, match=f"{NAME} must be finite, got nan in 1 of its 4096 numbers"):
        if write == "gguf":
            write_gguf(tmp_path / "x", model, model.tokenizer)
        elif write == "folder":
            model.save_pretrained(tmp_path / "x")
        else:
            write_state_dict(tmp_path / "x", model)
    assert not list(tmp_path.iterdir())


def test_the_largest_states_have_a_vector_still():
    model = random_model()
    with model.edit() as params:
        params["ln_f.weight"][...] = 1e30
    assert np.linalg.norm(model.embed("abc")) == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_any_place_counts(bad):
    for at in (0, 5, 11):
        array = np.ones((3, 4), np.float32)
        assert is_finite(array) and is_finite(array[:0])
        array.flat[at] = bad
        assert not is_finite(array) and not is_finite(array.T)
