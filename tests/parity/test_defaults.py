"""What is not said: each default of Transformers' names beside the real one, by signature and by result.

A parameter of theirs that ours does not have is refused by its name. What differs has a test of its own.
"""

import inspect
import json

import numpy as np
import pytest

import npgpt
from npgpt.compat.transformers import DEFAULTS
from npgpt.text.examples import add_roles
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import ByteTokenizer
from tests.models import random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

FAMILY = {"gpt": {"post_norm": True}, "gpt-2": {}, "gpt-3": {"window": 7}}
V, CONTEXT = 61, 40


@pytest.fixture(scope="module", params=FAMILY)
def pair(request, tmp_path_factory):
    """(our model, theirs) of one folder, where 5 ends a text."""
    folder = tmp_path_factory.mktemp("pair")
    model = random_model(vocab_size=V, block_size=CONTEXT, **FAMILY[request.param])
    with model.edit() as params:
        params["wte.weight"][...] *= 0.2  # else a text repeats one token
        params["wpe.weight"][...] *= 5
    model.save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    return opened(folder, settings | {"eos_token_id": 5, "bos_token_id": 3})


def opened(folder, generation):
    (folder / "generation_config.json").write_text(json.dumps(generation))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return npgpt.GPT2LMHeadModel.from_pretrained(folder), theirs


def same(pair, ids=None, **settings):
    """Assert that both generate the same, and return it; where theirs refuses, ours does -> None."""
    ours, theirs = pair
    tensors = {name: torch.tensor(value) for name, value in settings.items() if name == "attention_mask"}
    try:
        expected = theirs.generate(ids if ids is None else torch.tensor(ids), **settings | tensors).numpy()
    except (ValueError, TypeError):
        with pytest.raises(ValueError):
            ours.generate(ids, **settings)
        return None
    got = ours.generate(ids, **settings)
    np.testing.assert_array_equal(got, expected, str(settings))
    return got


# ---------------------------------------------------------------------------- generate


def test_the_settings_of_generate_have_their_defaults():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    nothing = transformers.GenerationConfig().to_dict()
    for name, value in DEFAULTS.items():
        assert name in nothing and (name == "max_length" or theirs.get(name) == value), name
    assert theirs["max_length"] == npgpt.compat.transformers.NEW_IDS  # new ones, as the next test shows


def test_every_other_setting_is_refused_by_name(pair):
    theirs = [*transformers.GenerationConfig().to_dict(), *inspect.signature(pair[1].generate).parameters]
    others = set(theirs) - set(DEFAULTS) - {"kwargs"}
    assert len(others) > 50 and "seed" not in theirs, "npgpt's own"
    for name in others:
        with pytest.raises(TypeError, match=f"^generate: there is no {name}"):
            pair[0].generate([[1]], **{name: None})


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
@pytest.mark.parametrize("n", [1, 9, 19, 20, 21, 30, CONTEXT - 1, CONTEXT, CONTEXT + 3])
def test_without_a_length_come_twenty_within_the_context(pair, rng, n):
    """And nothing where the prompt fills it: both refuse that."""
    rows = same(pair, rng.integers(6, V, (1, n)), eos_token_id=None)
    assert (rows is None) == (n >= CONTEXT)
    assert rows is None or rows.shape == (1, min(n + 20, CONTEXT))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
def test_lengths(pair, rng):
    ids = rng.integers(6, V, (2, 9))
    assert same(pair, ids, max_length=9) is None and same(pair, ids, max_length=3) is None
    assert same(pair, ids, max_new_tokens=0) is None and same(pair, ids, max_length="12") is None
    assert same(pair, ids, max_length=12, eos_token_id=None).shape == (2, 12)
    assert same(pair, ids, max_new_tokens=None, eos_token_id=None).shape == (2, 29)
    assert same(pair)[0, 0] == 3, "without ids it begins with bos_token_id"


def test_ends(pair, rng):
    """The folder's end, none, one, a list; what follows it is the first of them, or pad_token_id."""
    ids = rng.integers(6, V, (6, 9))
    free = same(pair, ids, max_new_tokens=30, eos_token_id=None)
    seen = [int(token) for token in (free[0, 12], free[1, 14], free[2, 11])]
    for ends in (seen[0], seen[:1], seen, [seen[1], 60], -1):
        rows = same(pair, ids, max_new_tokens=30, eos_token_id=ends)
        assert (ends == -1) == np.array_equal(rows, free)
        same(pair, ids, max_new_tokens=30, eos_token_id=ends, pad_token_id=7)
        for beams in (2, 3):
            same(pair, ids, max_new_tokens=12, eos_token_id=ends, num_beams=beams)
    same(pair, ids, max_new_tokens=30)


def test_a_filter_of_none_is_off(pair, rng):
    ids = rng.integers(6, V, (2, 9))
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample"):
        assert same(pair, ids, max_new_tokens=3, **{name: None}) is not None
    ours, _ = pair
    how = {
        "do_sample": True,
        "max_new_tokens": 1,
        "num_return_sequences": 3000,
        "eos_token_id": None,
        "seed": 1,
    }
    flat = {"temperature": 1e6}  # so that every token that is not filtered comes
    counts = [len(np.unique(ours.generate(ids[:1], **how, **flat, **more)[:, -1]))
              for more in ({}, {"top_k": None}, {"top_k": 0})]  # fmt: skip
    assert counts == [50, V, V]


def test_padding_that_no_mask_tells_of(pair, rng):
    """A pad_token_id that ends no text tells where padding is; one that does says nothing."""
    if pair[0].config.post_norm:
        return  # Transformers' GPT takes no mask when it generates
    ids = rng.integers(8, V, (3, 9))
    ids[1, :4] = ids[2, :1] = 7
    inferred = same(pair, ids, max_new_tokens=12, pad_token_id=7)
    np.testing.assert_array_equal(inferred, same(pair, ids, max_new_tokens=12, attention_mask=(ids != 7) * 1,
                                                 pad_token_id=7))  # fmt: skip
    unknown = same(pair, ids, max_new_tokens=12, pad_token_id=7, eos_token_id=7)
    assert (inferred != unknown).any()


SAID = [
    {"max_length": 14, "eos_token_id": None},
    {"max_new_tokens": 5, "eos_token_id": [1, 2]},
    {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "length_penalty": 0.5},
    {"repetition_penalty": 1.7, "max_new_tokens": 9, "pad_token_id": 4, "early_stopping": True},
]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
@pytest.mark.parametrize("said", SAID, ids=str)
def test_what_generation_config_says_is_the_default(said, rng, tmp_path):
    random_model(vocab_size=V, block_size=CONTEXT).save_pretrained(tmp_path)
    pair, ids = opened(tmp_path, said), rng.integers(6, V, (2, 9))
    for call in ({}, {"max_new_tokens": 4}, {"num_beams": 4}, {"repetition_penalty": 1.0}):
        assert same(pair, ids, **call) is not None
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 9, "bos_token_id": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert same((npgpt.GPT2LMHeadModel.from_pretrained(tmp_path), theirs))[0, 0] == 8


def test_a_generation_config_without_an_end_has_none(rng, tmp_path):
    """Whatever the tokenizer's end of text is: here it is what the model writes."""
    model, ids = random_model(block_size=CONTEXT), rng.integers(6, V, (1, 9))
    model.save_pretrained(tmp_path)
    written = int(npgpt.GPT2LMHeadModel.from_pretrained(tmp_path).generate(ids, max_new_tokens=5)[0, 11])
    with model.edit() as params:
        params["wte.weight"][[written, 256]] = params["wte.weight"][[256, written]]
    model.save_pretrained(tmp_path)
    ended = npgpt.GPT2LMHeadModel.from_pretrained(tmp_path).generate(ids, max_new_tokens=25)
    pair = opened(tmp_path, {"bos_token_id": 256})
    rows = same(pair, ids, max_new_tokens=25)
    assert rows.shape == (1, 34) and 256 in rows[0, 9:-1] and ended.shape[1] < 34


def test_weights_are_float32_whatever_the_folder_has(tmp_path):
    """The one default of from_pretrained that differs: theirs computes in the folder's type."""
    random_model().save_pretrained(tmp_path / "ours")
    halves = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").to(torch.float16)
    halves.save_pretrained(tmp_path / "halves")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "halves").dtype == torch.float16
    assert npgpt.GPT2LMHeadModel.from_pretrained(tmp_path / "halves").params["wte.weight"].dtype == np.float32


# ---------------------------------------------------------------------------- the tokenizer


@pytest.fixture(scope="module", params=["bytes", "gpt2", "gpt1", "chat"])
def tokenizers(request, data_dir, tmp_path_factory):
    """(our tokenizer, theirs, their folder)"""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param in ("gpt1", "gpt2"):
        tokenizer = load_tokenizer(data_dir / f"{request.param}-vocab")
    else:
        tokenizer = ByteTokenizer() if request.param == "bytes" else add_roles(ByteTokenizer())
    tokenizer.save(folder, 128)
    return *both_of(folder), folder


def both_of(folder):
    return npgpt.GPT2Tokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


METHODS = "__call__", "encode", "decode", "batch_decode"


@pytest.mark.parametrize("name", METHODS)
def test_the_parameters_of_the_tokenizer_have_their_defaults(tokenizers, name):
    ours = tokenizers[0]
    known = inspect.signature(getattr(ours, name)).parameters
    all_of_them = inspect.signature(getattr(transformers.GPT2Tokenizer, name)).parameters
    for parameter, said in known.items():
        if said.default is not inspect.Parameter.empty:
            assert said.default == all_of_them[parameter].default, parameter
        assert parameter in all_of_them
    others = set(all_of_them) - set(known) - {"self", "kwargs"}
    first = [65] if "decode" in name else "A"
    for other in others:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{other}'"):
            getattr(ours, name)(first, **{other: all_of_them[other].default})


def test_its_attributes(tokenizers):
    ours, theirs = tokenizers[:2]
    names = ["padding_side", "model_max_length", "vocab_size", "pad_token", "pad_token_id"]
    if not ours._tokenizer.vocabulary.words:  # GPT-1's has no end of text; npgpt takes its line end
        names += ["bos_token", "bos_token_id", "eos_token", "eos_token_id"]
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)


TEXTS = ["O sol<|endoftext|> nasce ,", "", "naïve  日本語 123", "don't <unk><|end|>"]


def test_what_it_returns(tokenizers):
    ours, theirs = tokenizers[:2]
    for text in TEXTS:
        assert ours(text) == dict(theirs(text)) and ours.encode(text) == theirs.encode(text)
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours(TEXTS) == dict(theirs(TEXTS))
    ids = ours.encode(TEXTS[0])
    for rows in (ids[0], [ids], [ids, ids[:2]], np.array([ids, ids]), torch.tensor([ids]), torch.tensor(ids)):
        assert ours.decode(rows) == theirs.decode(rows)
    assert ours.batch_decode([ids, ids[:2]]) == theirs.batch_decode([ids, ids[:2]])
    for kind, of in (("np", np.ndarray), ("pt", torch.Tensor)):
        for got, expected in zip(ours(TEXTS[0], return_tensors=kind).items(),
                                 theirs(TEXTS[0], return_tensors=kind).items(), strict=True):  # fmt: skip
            assert got[0] == expected[0] and isinstance(got[1], of) and isinstance(expected[1], of)
            assert got[1].dtype == expected[1].dtype and got[1].tolist() == expected[1].tolist()


@pytest.mark.parametrize("padding", [False, True, "longest", "do_not_pad", "nonsense", None])
def test_padding(tokenizers, padding):
    ours, theirs = tokenizers[:2]
    try:
        expected = dict(theirs(TEXTS, padding=padding))
    except ValueError:
        with pytest.raises(ValueError, match="padding must be"):
            ours(TEXTS, padding=padding)
        assert padding in ("nonsense", None)
    else:
        assert ours(TEXTS, padding=padding) == expected


def test_what_its_folder_says(tokenizers, tmp_path):
    ours, _, folder = tokenizers
    names = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    special = ours._tokenizer.vocabulary.special  # of another token texts would be split at it
    other = next((token for token in special if token != ours.pad_token), ours.pad_token)
    said = {"padding_side": "left", "pad_token": other, "model_max_length": 77}
    names["tokenizer_config.json"] = json.dumps(json.loads(names["tokenizer_config.json"]) | said)
    for name, text in names.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ours, theirs = both_of(tmp_path)
    assert ours(TEXTS, padding=True) == dict(theirs(TEXTS, padding=True))
    assert ours.model_max_length == theirs.model_max_length == 77
    ours.pad_token = theirs.pad_token = ours.eos_token
    ours.padding_side = theirs.padding_side = "right"
    assert ours(TEXTS, padding=True) == dict(theirs(TEXTS, padding=True))


def test_a_folder_that_names_no_pad_token(data_dir, tmp_path):
    """OpenAI's own two files: Transformers refuses to pad, npgpt pads with the end of text."""
    for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / new).write_bytes((data_dir / "gpt2-vocab" / old).read_bytes())
    ours = npgpt.GPT2Tokenizer.from_pretrained(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not have a padding token"):
        theirs(TEXTS, padding=True)
    theirs.pad_token = theirs.eos_token
    assert ours(TEXTS, padding=True) == dict(theirs(TEXTS, padding=True))
    assert (ours.padding_side, ours.model_max_length) == (theirs.padding_side, theirs.model_max_length)
