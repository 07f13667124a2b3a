"""Weights change through edit() alone; a copy or a pickle is a model, tokenizer or dataset of its own."""

import copy
import pickle

import numpy as np
import pytest

import npgpt
from npgpt.engine.lora import LoRA
from npgpt.interop.gguf import write_gguf
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from tests.models import random_model

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}
IDS = np.arange(12).reshape(2, 6)


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


def written(model):
    return model.generate("O", max_new_tokens=20, seed=5, return_ids=True)


def test_weights_are_read_only_outside_edit():
    model = random_model()
    adapters = LoRA(random_model(), rank=2)
    for owner in (model, adapters):
        arrays = [owner.flat_params, *owner.params.values()]
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        with owner.edit() as params:
            assert params is owner.params and all(array.flags.writeable for array in arrays)
            with owner.edit():
                pass
            assert all(array.flags.writeable for array in arrays), "an inner block must not close the outer"
        assert not any(array.flags.writeable for array in arrays)
    with pytest.raises(ZeroDivisionError), model.edit():
        1 / 0  # noqa: B018
    assert not model.flat_params.flags.writeable
    model.grads["wte.weight"][...] = 1  # gradients are anyone's to write
    assert (model.flat_grads == 1).any()


@pytest.mark.parametrize("training", [False, True])
def test_edited_weights_are_the_new_ones_everywhere(training):
    """Before: the matrices of the first generation stayed, and the vectors beside them were the new ones."""
    model, other = random_model(), random_model(seed=8)
    if training:
        model.zero_grads()
    first, expected = written(model), written(other)
    assert first != expected
    with model.edit() as params:
        for name, w in params.items():
            w[...] = other.params[name]
        assert written(model) == expected, "inside the block too"
        half = params["h.1.mlp.c_fc.weight"]
        half[...] *= 2
        inside = written(model)
        half[...] *= 0.5
    assert written(model) == expected != inside


def test_a_copy_is_a_model_of_its_own(copied):
    model = random_model()
    written(model)  # the compiled runtime holds it
    twin = copied(model)
    assert type(twin) is type(model) and twin.config == model.config and twin.tokenizer == model.tokenizer
    np.testing.assert_array_equal(twin.logits(IDS), model.logits(IDS))
    assert written(twin) == written(model) and twin.generate("a", 9, seed=1) == model.generate("a", 9, seed=1)
    before = model.logits(IDS)
    with twin.edit() as params:
        params["wte.weight"][...] *= 2
    assert not twin.flat_params.flags.writeable
    assert (twin.logits(IDS) != before).any() and twin.flat_params[0] == 2 * model.flat_params[0]
    np.testing.assert_array_equal(model.logits(IDS), before)


@pytest.mark.parametrize("lora", [False, True])
def test_a_copy_trains_to_the_same_bits(copied, lora):
    """In the middle of a step too: the gradients and what backward() needs are copied with the weights."""
    model = random_model(dropout=0.1)
    trained = LoRA(model, rank=2, rows=3) if lora else model
    optimizer = npgpt.AdamW(trained, lr=0.01)

    def step(model, optimizer):
        model.forward(IDS[:, :-1], IDS[:, 1:])
        model.backward()
        optimizer.step(1.0)

    step(model, optimizer)
    model.forward(IDS[:, :-1], IDS[:, 1:])
    twin = copied(optimizer) if copied is not copy.copy else copy.deepcopy(optimizer)
    theirs = twin.model.model if lora else twin.model
    assert theirs is not model and (theirs.adapters is twin.model) == lora
    for one, by in ((model, optimizer), (theirs, twin)):
        one.backward()
        by.step(1.0)
        step(one, by)
    np.testing.assert_array_equal(theirs.flat_params, model.flat_params)
    np.testing.assert_array_equal(theirs.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_0"])
def test_a_copy_of_a_file_generates_by_the_file(copied, tmp_path, type):
    path = tmp_path / "m.gguf"
    model = random_model()
    write_gguf(path, model, model.tokenizer, type)
    loaded = npgpt.load(path)
    expected = written(loaded)
    assert written(copied(loaded)) == expected
    stored = pickle.dumps(loaded)
    path.unlink()
    with pytest.warns(UserWarning, match="is not there as it was; its float32 weights generate"):
        again = pickle.loads(stored)
    np.testing.assert_array_equal(again.logits(IDS), loaded.logits(IDS))
    with loaded.edit():
        pass
    assert written(again) == written(loaded)


def test_tokenizers_datasets_and_configs_are_copied(copied, tmp_path):
    text = "o mar, o sol, o mar e o sol. " * 40
    (tmp_path / "t.txt").write_text(text)
    for tokenizer in (ByteTokenizer(), BPETokenizer.train([text.encode()], 262)):
        twin = copied(tokenizer)
        assert twin == tokenizer and twin.encode(text).tolist() == tokenizer.encode(text).tolist()
        data = Dataset.from_text(tmp_path / "t.txt", tokenizer=tokenizer)
        again = copied(data)
        assert again.tokenizer == data.tokenizer
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, window=3)
    assert copied(config) == config
