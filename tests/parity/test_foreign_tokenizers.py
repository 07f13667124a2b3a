"""What a folder says of its tokenizer, in each of its files: Transformers' ids, or a refusal by name."""

import json
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine.config import GPTConfig
from npgpt.interop.huggingface import read_pretrained, write_pretrained
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import BPETokenizer
from tests.models import random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

END = "<|endoftext|>"
TEXTS = (
    *("um dois", "hello", " um", f"um{END} dois", "um<x>dois <x> um", "[PAD] O rato", "UM <a><b><c>"),
    *(
        "a \u3000\n<x> \t\u00a0 b",
        "<x><x> <x>",
        "_<x> \u0301<x>\u200d <x>\u00b2 \u24b6<x>",
        "  <x>",
        "<x>\r\n",
        "",
    ),
)
FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)


@pytest.fixture(scope="module")
def ours():
    text = "um dois três O rato roeu a roupa do rei de Roma; um dois " * 9
    return BPETokenizer.train([text.encode()], 280)


@pytest.fixture(params=["tokenizer.json", "vocab.json"])
def folder(request, ours, tmp_path):
    """A folder with our tokenizer, in one file or in the older two."""
    ours.save(tmp_path, 64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    if request.param == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
    return tmp_path


def edit(folder: Path, name: str, **changes):
    """Change the keys of a JSON file, which is made; None leaves one out."""
    path = folder / name
    settings = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def token(**changes):
    return {"content": "<x>", **FLAGS, "special": True} | changes


def decoder(**changes):
    return {"added_tokens_decoder": {"280": token(**changes)}}


def same(folder):
    """npgpt's tokenizer has the ids, the size and the end of Transformers'."""
    theirs, mine = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert len(theirs) == mine.vocab_size and theirs.eos_token_id == mine.end_of_text
    for text in TEXTS:
        ids = [*mine.begin, *mine.encode(text, special_tokens=True).tolist()]
        assert ids == theirs(text)["input_ids"], text
        ids = theirs(text)["input_ids"]
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
READ = {
    "nothing more": {},
    "a special token in the decoder": {CONFIG: decoder()},
    "a pad token": {CONFIG: {"pad_token": "[PAD]"}},
    "an end of its own": {CONFIG: {"eos_token": "<x>"}},
    "an end as an object": {CONFIG: {"eos_token": token(content="<x>", __type="AddedToken")}},
    "several names": {CONFIG: {"cls_token": "<c>", "pad_token": "<b>", "bos_token": "<a>"}},
    "more special tokens": {CONFIG: {"additional_special_tokens": ["<x>", "<a>"]}},
    "extra special tokens": {CONFIG: {"extra_special_tokens": {"x_token": "<x>"}}},
    "a map": {MAP: {"pad_token": "[PAD]", "additional_special_tokens": ["<x>"]}},
    "a list before that of the map": {
        CONFIG: {"additional_special_tokens": ["<x>", "<a>"]},
        MAP: {"additional_special_tokens": ["<b>", "<a>"]},
    },
    "a map before the config": {CONFIG: {"eos_token": "<a>"}, MAP: {"eos_token": "<x>"}},
    "a map that a decoder hides": {CONFIG: decoder() | {"eos_token": "<x>"}, MAP: {"eos_token": "<b>"}},
    "added tokens": {ADDED: {"[PAD]": 281, "<x>": 280}, MAP: {"pad_token": "[PAD]", "mask_token": "<x>"}},
    "added tokens that a decoder hides": {ADDED: {"[PAD]": 281}, CONFIG: decoder()},
    "an added token": {CONFIG: decoder(special=False)},
    "an added token of an older file": {ADDED: {"<x>": 280}},
    "an added token that is normalized": {CONFIG: decoder(special=False, normalized=True)},
    "a special token that is normalized": {CONFIG: decoder(normalized=True)},
    "blanks before a token": {CONFIG: decoder(lstrip=True)},
    "blanks behind a token": {CONFIG: decoder(rstrip=True)},
    "blanks on both sides": {CONFIG: decoder(lstrip=True, rstrip=True, special=False)},
    "a token that is a word": {CONFIG: decoder(single_word=True)},
    "a word with blanks": {CONFIG: decoder(single_word=True, lstrip=True, special=False, normalized=True)},
    "flags in the map": {MAP: {"pad_token": token(content="<x>", rstrip=True)}},
    "flags of a name": {CONFIG: {"pad_token": token(content="<x>", lstrip=True, __type="AddedToken")}},
    "an end that nobody names": {CONFIG: dict.fromkeys(("eos_token", "bos_token", "unk_token"))},
    "flags that say no": {CONFIG: {"add_prefix_space": False, "add_bos_token": False}},
    "keys of no effect": {CONFIG: {"do_lower_case": True, "model_max_length": 9, "padding_side": "left"}},
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_transformers_does(name, folder):
    for file, changes in READ[name].items():
        edit(folder, file, **changes)
    same(folder)


REFUSED = {
    "add_prefix_space must be false": {CONFIG: {"add_prefix_space": True}},
    "split_special_tokens must be false": {CONFIG: {"split_special_tokens": True}},
    "tokenizer_class must be one of .* got 'RobertaTokenizer'": {
        CONFIG: {"tokenizer_class": "RobertaTokenizer"}
    },
    "lstrip of the token '<x>' must be true or false, got 'yes'": {CONFIG: decoder(lstrip="yes")},
    "special of the token '<x>' must be true or false, got 1": {CONFIG: decoder(special=1)},
    "rstrip of the token '<a>' must be true or false": {MAP: {"pad_token": token(content="<a>", rstrip=0)}},
    "eos_token must be a token that no text spells, got 'u'": {CONFIG: {"eos_token": "u"}},
    "pad_token must be a token that no text spells, got '!'": {MAP: {"pad_token": "!"}},
    "additional_special_tokens must be a list": {CONFIG: {"additional_special_tokens": "<x>"}},
    "additional_special_tokens must be a token, got 7": {CONFIG: {"additional_special_tokens": [7]}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_done_is_refused_by_name(message, folder):
    for file, changes in REFUSED[message].items():
        edit(folder, file, **changes)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token"])
def test_additions_count_only_without_tokenizer_json(key, folder):
    edit(folder, CONFIG, **{key: True})
    if (folder / "tokenizer.json").exists() or key == "add_bos_token":
        same(folder)
        assert (
            len(load_tokenizer(folder).begin)
            == (folder / "vocab.json").exists() - (folder / "tokenizer.json").exists()
        )
    else:
        with pytest.raises(ValueError, match=f"{key} must be false, got True"):
            load_tokenizer(folder)


ALONE = {"Sequence": {"id": "A", "type_id": 0}}
BEGIN = {"SpecialToken": {"id": END, "type_id": 0}}
PAIR = [ALONE, {"Sequence": {"id": "B", "type_id": 1}}]
KNOWN = {END: {"id": END, "ids": [279], "tokens": [END]}}
TEMPLATE = {"type": "TemplateProcessing", "single": [BEGIN, ALONE], "pair": PAIR, "special_tokens": KNOWN}
LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"post_processor": TEMPLATE | {"single": [ALONE]}},
        {"post_processor": TEMPLATE},
        {"post_processor": {"type": "Sequence", "processors": [LEVEL, TEMPLATE]}},
        {"post_processor": {"type": "Sequence", "processors": [LEVEL]}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
    ],
    ids=str,
)
def test_steps_that_are_followed(changes, ours, tmp_path):
    ours.save(tmp_path, 64)
    edit(tmp_path, "tokenizer.json", **changes)
    same(tmp_path)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"post_processor": TEMPLATE | {"single": [BEGIN, BEGIN, ALONE]}}, "post_processor"),
        ({"post_processor": TEMPLATE | {"single": [ALONE, BEGIN]}}, "post_processor"),
        ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}}, "post_processor"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder"),
    ],
)
def test_steps_that_change_ids_are_refused(changes, name, ours, tmp_path):
    ours.save(tmp_path, 64)
    edit(tmp_path, "tokenizer.json", **changes)
    with pytest.raises(ValueError, match=f"must split and merge as GPT-1, .* does, but for .*{name}"):
        load_tokenizer(tmp_path)


def test_a_pad_token_without_a_row_is_left_out(ours, tmp_path):
    """tokenizer.add_special_tokens without model.resize_token_embeddings: common, and no text holds [PAD]."""
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=280)
    write_pretrained(tmp_path, npgpt.GPT(config, tokenizer=ours), ours)
    edit(tmp_path, "config.json", npgpt=None)
    edit(tmp_path, CONFIG, pad_token="[PAD]")
    with pytest.warns(UserWarning, match=r"the model has 280 rows and none for '\[PAD\]' \(280\): left out"):
        assert read_pretrained(tmp_path).tokenizer == ours
    edit(tmp_path, CONFIG, eos_token="<end>")
    with pytest.raises(ValueError, match="must have at most the model's 280 tokens, got 282"):
        read_pretrained(tmp_path)


ENDS = [
    ({}, {"eos_token_id": 65}, [256, 65]),
    ({"eos_token_id": [65, 66]}, {"eos_token_id": 67}, [256, 65, 66]),
    ({"eos_token_id": None}, {"eos_token_id": [67, 256]}, [256, 67]),
    ({"eos_token_id": 256}, {"eos_token_id": 67}, [256]),
    ({}, {"eos_token_id": 50256}, [256]),
    ({}, {}, [256]),
]


@pytest.mark.parametrize("generation, config, ends", ENDS)
def test_a_generation_ends_where_the_files_say(generation, config, ends, tmp_path):
    model = random_model(seed=8, block_size=64)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    edit(tmp_path, "config.json", eos_token_id=None)
    edit(tmp_path, "config.json", **config)
    loaded = npgpt.load(tmp_path)
    assert list(loaded.tokenizer.ends) == ends
    loaded.save_pretrained(tmp_path / "again")
    assert npgpt.load(tmp_path / "again").tokenizer.ends == loaded.tokenizer.ends
    asked = {"prompt": "O sol", "max_new_tokens": 60, "temperature": 1.0, "seed": 1, "return_ids": True}
    free = model.generate(**asked, ignore_eos=True)
    assert loaded.generate(**asked, ignore_eos=True) == free and len(free) == 60
    whole = model.generate(**asked)
    stop = min([i for i, id in enumerate(whole) if id in ends], default=len(whole))
    assert loaded.generate(**asked) == whole[:stop]


def fifth_ids(folder, ids):
    """What the model of a folder writes as the fifth id behind each row."""
    free = npgpt.GPT2LMHeadModel.from_pretrained(folder).generate(ids, max_length=13, eos_token_id=-1)
    return sorted({*free[:, 9].tolist()})


def test_a_list_of_ends_ends_rows_and_beams_as_in_transformers(tmp_path):
    model = random_model(seed=8, block_size=64)
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(1).integers(0, 256, (3, 5))
    written = fifth_ids(tmp_path, ids)
    edit(tmp_path, "generation_config.json", eos_token_id=[256, *written], pad_token_id=256)
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    names = npgpt.GPT2LMHeadModel.from_pretrained(tmp_path)
    lengths = set()
    for beams in (1, 3):
        ours = names.generate(ids, max_length=30, num_beams=beams, pad_token_id=256)
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor(ids),
                attention_mask=torch.ones(3, 5),
                max_length=30,
                num_beams=beams,
                do_sample=False,
            )
        np.testing.assert_array_equal(ours, expected.numpy())
        lengths |= {ours.shape[1]}
    assert min(lengths) < 30


def test_ends_that_are_no_ids_are_refused(tmp_path):
    random_model().save_pretrained(tmp_path)
    for value in ("</s>", [1, "2"], True, 1.5):
        edit(tmp_path, "generation_config.json", eos_token_id=value)
        with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id must be ids"):
            read_pretrained(tmp_path)
