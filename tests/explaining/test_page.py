"""What page.html holds: what the model computes, packed, as far as it goes, and text as text."""

import base64
import json
import re

import numpy as np
import pytest

from npgpt.explaining import page
from npgpt.explaining.reading import Token
from npgpt.text.tokenizer import BPETokenizer
from tests.models import random_model

EVIL = "</script><script>fetch('//x')</script><img src=x onerror=alert(1)>&amp;\u2028"


@pytest.fixture(scope="module")
def model():
    model = random_model(vocab_size=270)
    model.tokenizer = BPETokenizer.train([b"o gato subiu no telhado. " * 20], 270)
    return model


def content(model, *asked):
    return page.content(model, model.tokenizer, model.explain(*asked))


def unpacked(text, kind, *shape):
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


def test_each_token_is_a_target_with_its_attributions(model):
    found = model.explain("o gato subiu no", " ", method="occlusion")
    data, T = page.content(model, model.tokenizer, found), len(found.ids)
    assert [data["texts"][id] for id in data["ids"]] == found.tokens
    assert [one["at"] for one in data["targets"]] == [*[T] * page.NEXT, *range(T - 1, 0, -1)]
    assert len({one["id"] for one in data["targets"][: page.NEXT]}) == page.NEXT
    for one in data["targets"]:
        alone = model.explain(found.ids[: one["at"]], one["id"], method="occlusion")
        scores = unpacked(one["scores"], "<i2", one["at"]) / 32767 * one["largest"]
        np.testing.assert_allclose(scores, alone.scores, atol=1e-4 * one["largest"])
        assert one["value"] == pytest.approx(alone.value, abs=1e-5)
        assert one["id"] == (found.ids[one["at"]] if one["at"] < T else one["id"])


def test_attention_and_layers_are_the_models(model):
    data, text = content(model, "o gato subiu", "o", None, "gradient"), "o gato subiu"
    weights, lens = model.attention(text), model.lens(text)
    L, H, T, _ = weights.shape
    roots = unpacked(data["attention"]["roots"], "u1", L, H, -1)
    np.testing.assert_allclose((roots / 255) ** 2, weights[:, :, np.tri(T, dtype=bool)], atol=0.004)
    k = data["lens"]["k"]
    np.testing.assert_array_equal(unpacked(data["lens"]["top"], "<u4", L, T, k), lens.top[:, :, :k])
    shares = unpacked(data["lens"]["shares"], "<u2", L, T, k)
    np.testing.assert_allclose(shares / 65535, lens.shares[:, :, :k], atol=1e-5)
    said = lens.probabilities([*lens.ids[1:], data["targets"][0]["id"]])
    np.testing.assert_allclose(unpacked(data["lens"]["target"], "<u2", L, T) / 65535, said, atol=1e-5)
    assert sum(n for *_, n in data["parts"]) == model.num_params


def test_a_page_has_its_bounds(model, monkeypatch):
    whole = content(model, "o gato subiu no telhado", None, None, "gradient")
    T, L, H = len(whole["ids"]), whole["layers"], whole["heads"]
    monkeypatch.setattr(page, "MAPS", L * H * (T + T - 1))
    data = content(model, "o gato subiu no telhado", None, None, "gradient")
    assert data["attention"]["rows"] == 2
    last = unpacked(whole["attention"]["roots"], "u1", L, H, -1)[:, :, -(2 * T - 1) :]
    np.testing.assert_array_equal(unpacked(data["attention"]["roots"], "u1", L, H, -1), last)
    # a gradient is three passes, and its value comes with it
    monkeypatch.setattr(page, "WORK", 3 * T * model.num_params * (page.NEXT - 1) + 1)
    data = content(model, "o gato subiu no telhado", None, None, "gradient")
    assert [one["at"] for one in data["targets"]] == [*[T] * page.NEXT, T - 1]


def test_text_stays_text(model, monkeypatch):
    monkeypatch.setattr(page, "token_of", lambda tokenizer, id: Token(id, EVIL))
    written = page.write(model, model.tokenizer, model.explain("o", method="gradient"), EVIL)
    assert written.count("<script") == written.count("</script>") == 2 and "<img" not in written
    data = json.loads(re.search(r'id="data">(.*?)</script>', written, re.DOTALL)[1])
    assert data["model"] == EVIL == data["texts"][str(data["ids"][0])]
