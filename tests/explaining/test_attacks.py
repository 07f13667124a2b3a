"""Input reduction and HotFlip: what they promise, seen by forward passes of the model itself."""

import numpy as np
import pytest

from npgpt.explaining import attacks
from npgpt.runtime.sampling import log_softmax
from npgpt.text.tokenizer import BPETokenizer
from tests.models import FAMILY, random_model

IDS = [7, 3, 3, 11, 29, 0, 18, 5, 30]
TEXT = b"o gato subiu no telhado. o rato subiu no muro. " * 20


@pytest.fixture(params=FAMILY)
def model(request):
    return random_model(**FAMILY[request.param])


@pytest.fixture(scope="module")
def speller():
    """A model with a tokenizer of which two tokens side by side may be one."""
    model = random_model(vocab_size=270)
    model.tokenizer = BPETokenizer.train([TEXT], 270)
    return model


def next_of(model, ids):
    return int(model.logits([list(ids)])[0, -1].argmax())


def test_what_is_left_predicts_the_same_and_nothing_more_can_go(model):
    found = model.reduce(IDS)
    left = [IDS[place] for place in found.kept]
    assert found.target.id == next_of(model, IDS) == next_of(model, left)
    assert found.kept == sorted(set(found.kept))
    for at in range(len(left)) if len(left) > 1 else ():
        assert next_of(model, left[:at] + left[at + 1 :]) != found.target.id
    log_p = [log_softmax(model.logits([ids])[0, -1])[found.target.id] for ids in (IDS, left)]
    np.testing.assert_allclose([found.value, found.value_left], log_p, rtol=1e-5)


def test_all_others_are_tried_where_the_gradient_proposes_none_that_can_go(monkeypatch):
    """Where nothing is proposed, all that can go goes nevertheless."""
    usual = random_model(4).reduce(IDS)
    monkeypatch.setattr(attacks, "PROPOSED", 0)
    found = random_model(4).reduce(IDS)
    left = [IDS[place] for place in found.kept]
    assert len(left) < len(IDS) and len(usual.kept) < len(IDS)
    assert all(
        next_of(random_model(4), left[:at] + left[at + 1 :]) != found.target.id for at in range(len(left))
    )


def test_flips_overturn_the_prediction_one_by_one(model):
    found, ids = model.flip(IDS), list(IDS)
    assert found.overturned and found.target.id == next_of(model, IDS)
    for flip in found.flips:
        assert next_of(model, ids) == found.target.id and ids[flip.place] == flip.old.id != flip.new.id
        ids[flip.place] = flip.new.id
        log_p = log_softmax(model.logits([ids])[0, -1])
        assert flip.value == pytest.approx(log_p[found.target.id], rel=1e-4)
    assert next_of(model, ids) == found.predicted.id != found.target.id
    assert len({flip.place for flip in found.flips}) == len(found.flips)


def test_flips_to_another_token(model):
    """The less probable the wanted token, the more flips; it need not be the most probable one."""
    other = int(np.argsort(model.logits([IDS])[0, -1])[-5])
    found = model.flip(IDS, against=other)
    ids = list(IDS)
    for flip in found.flips:
        ids[flip.place] = flip.new.id
    logits = model.logits([ids])[0, -1]
    assert found.overturned == bool(logits[other] >= logits[found.target.id])
    values = [found.value, *(flip.value for flip in found.flips)]
    assert values == sorted(values, reverse=True) and found.overturned


def test_the_gradients_scores_are_those_of_each_replacement_to_first_order():
    """A small step towards another token changes the value by a small part of the score."""
    model = random_model()
    trial = attacks._Trial(model, None, IDS, None, None)
    (place, other), *_ = attacks._replaced(trial, trial.ids, np.ones(len(IDS), bool))
    slopes, e = trial.gradients(trial.ids[None])[0], model.params["wte.weight"]
    scores = slopes @ e.T - (slopes * e[IDS]).sum(axis=1, keepdims=True)
    assert scores[place, other[place]] == pytest.approx(scores.min(), rel=1e-4)
    assert (other != trial.ids).sum() == 1


def test_what_is_found_can_be_typed_in(speller):
    text = "o gato subiu no telhado. o rato"
    reduced, flipped = speller.reduce(text), speller.flip(text)
    left = "".join(reduced.tokens[place] for place in reduced.kept)
    assert speller.explain(left, method="gradient").target == reduced.target
    assert speller.tokenizer.encode(left).tolist() == [reduced.ids[place] for place in reduced.kept]
    written = "".join(flipped.flipped)
    assert speller.explain(written, method="gradient").target == flipped.predicted != flipped.target


def test_halves_of_characters_are_neither_left_nor_put_in():
    model = random_model()
    for text in ("coração", "ação e reação"):
        reduced, flipped = model.reduce(text), model.flip(text)
        kept = {i for i in reduced.kept}
        spelt = bytes(reduced.ids[i] for i in sorted(kept))
        assert (
            spelt.decode()
            and bytes(
                {f.place: f.new.id for f in flipped.flips}.get(i, id) for i, id in enumerate(flipped.ids)
            ).decode()
        )


def test_tokens_that_are_ignored_stay(speller):
    text, some = "o gato subiu no telhado", ("o", " ", " subiu")
    found = speller.flip(text, ignore=some)
    assert found.flips and not {found.tokens[flip.place] for flip in found.flips} & set(some)
    assert not speller.flip(text, ignore=found.tokens).flips
    assert not speller.flip(text, ignore=found.tokens).overturned


def test_allennlp_reads_its_objects(speller):
    reduced, flipped = speller.reduce("o gato subiu"), speller.flip("o gato subiu")
    left = [reduced.tokens[place] for place in reduced.kept]
    assert reduced.allennlp() == {"original": reduced.tokens, "final": [left]}
    of = flipped.allennlp()
    assert of["original"] == flipped.tokens and of["outputs"] == [flipped.predicted.text]
    assert [a != b for a, b in zip(of["final"][0], of["original"], strict=True)] == [
        n in {flip.place for flip in flipped.flips} for n in range(len(flipped.tokens))
    ]


def test_they_are_the_same_on_any_number_of_threads(threads):
    for fields in FAMILY["gpt-2"], FAMILY["llama"], FAMILY["gpt-3"]:
        model, found = random_model(**fields), set()
        for n in (1, 3, 3):
            threads(n)
            found.add((repr(model.reduce(IDS)), repr(model.flip(IDS))))
        assert len(found) == 1


def test_a_prediction_must_hold_at_first(speller):
    text = "o gato"
    best = speller.explain(text, method="gradient").target
    other = next(token for token in ("a", "o", "t") if token != best.text)
    for what in (speller.reduce, speller.flip):
        with pytest.raises(ValueError, match=r"target must be the most probable token, .*, got"):
            what(text, other)
        with pytest.raises(ValueError, match=r"target must be more probable than against, .*, got"):
            what(text, other, best.id)
        with pytest.raises(ValueError, match="text must not be empty"):
            what("")
    assert speller.reduce("o").kept == [0]
