"""What people give and get: texts, targets, the explanation, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

import npgpt
from npgpt.explaining.reading import Token
from npgpt.text.tokenizer import BPETokenizer
from tests.models import model_with_roles, random_model

TEXT = b"o gato subiu no telhado. o rato subiu no muro. " * 20


@pytest.fixture(scope="module")
def model():
    tokenizer = BPETokenizer.train([TEXT], 270)
    model = random_model(vocab_size=270)
    model.tokenizer = tokenizer
    return model


def test_an_explanation_says_what_it_is_of(model):
    found = model.explain("o gato subiu no", " ", method="Saliency", of="prob")
    ids = model.tokenizer.encode("o gato subiu no").tolist()
    assert found.ids == ids and "".join(found.tokens) == "o gato subiu no"
    assert len(found.tokens) == len(found.scores) == len(ids)
    assert (found.method, found.of, found.against) == ("gradient", "prob", None)
    logits = model.logits([ids])[0, -1].astype(np.float64)
    p = np.exp(logits - logits.max())
    assert found.value == pytest.approx((p / p.sum())[found.target.id])


def test_what_a_notebook_shows(model):
    found = model.explain("o gato subiu no", " ", "a")
    shown = found._repr_html_()
    spans = re.findall(
        r'<span title="(.+?)" style="background:rgba\((.+?),(\d\.\d+)\);.*?">(.+?)</span>', shown
    )
    assert [token for *_, token in spans] == found.tokens
    for (title, colour, share, _), score in zip(spans, found.scores, strict=True):
        assert float(title) == pytest.approx(score, rel=1e-3) and (colour == "11,98,164") == (score > 0)
        assert float(share) == pytest.approx(0.66 * abs(score) / np.abs(found.scores).max(), abs=1e-3)
    evil = replace(found, tokens=["<script>"] * len(found.ids), target=Token(7, "<img src=x>"))
    assert "<script" not in evil._repr_html_() and "<img" not in evil._repr_html_()


def test_the_most_probable_token_is_the_target_by_default(model):
    found = model.explain("o gato", method="gradient")
    assert found.target.id == model.logits([found.ids])[0, -1].argmax()
    bytes_ = model.tokenizer.decode_bytes([found.target.id])
    assert found.target.text.encode("ascii").decode("unicode_escape").encode("latin-1") == bytes_


def test_a_target_is_a_text_or_an_id(model):
    id = int(model.tokenizer.encode("a")[0])
    found = [model.explain("o gato", target, method="gradient") for target in ("a", b"a", id, f"id:{id}")]
    assert {one.target for one in found} == {found[0].target} and found[0].target.id == id
    other = model.explain("o gato", "a", "o", method="gradient")
    assert other.against.text == "o"
    parts = [model.explain("o gato", name, method="gradient").value for name in ("a", "o")]
    assert other.value == pytest.approx(parts[0] - parts[1])


def test_a_half_of_a_character_is_shown(model):
    found = npgpt.GPT(npgpt.GPTConfig(2, 2, 16, 16, 257)).explain("ã", method="gradient")
    assert found.tokens == ["\\xc3", "\\xa3"]


def test_allennlp_reads_its_object(model):
    found = model.explain("o gato", "a")
    sizes = found.allennlp()["instance_1"]["grad_input_1"]
    assert sum(sizes) == pytest.approx(1) and len(sizes) == len(found.scores)
    np.testing.assert_allclose(sizes, np.abs(found.scores) / np.abs(found.scores).sum())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("",), "text must not be empty"),
        (("a" * 100,), "text must have 1 to 48 tokens, the model's context, got "),
        (([],), "text must have 1 to 48 tokens"),
        (([1, 270],), r"ids must be in 0..269, got 1..270"),
        (
            ("o gato", "xyz"),
            r"target must be one token of the vocabulary, got 'xyz', which is 3: 'x', 'y', 'z'",
        ),
        (("o gato", ""), "target must be one token of the vocabulary, got '', which is none"),
        (("o gato", 270), r"target must be in 0..269, got 270"),
        (("o gato", "id:270"), r"target must be in 0..269, got 270"),
        (("o gato", "a", "xyz"), "against must be one token"),
        (("o gato", "a", "a"), "against must be another token than the target, got 'a' for both"),
        (("o gato", "a", None, "lime"), "method must be one of gradient, grad_x_input, .*, got 'lime'"),
        (("o gato", "a", None, "gradient", "loss"), "of must be one of logprob, logit, prob, got 'loss'"),
    ],
)
def test_what_cannot_be_explained_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=f"^explain: {message}"):
        model.explain(*arguments)


def test_wrong_types_are_refused(model):
    for arguments in (["o gato"],), ("o gato", 1.5), ("o gato", True), (7,):
        with pytest.raises(TypeError, match=r"^explain: "):
            model.explain(*arguments)


def test_a_model_without_a_tokenizer_takes_ids():
    model = npgpt.GPT(npgpt.GPTConfig(2, 2, 16, 16, 99))
    assert model.explain([1, 2, 3], 5).tokens == ["", "", ""]
    with pytest.raises(ValueError, match="text must be token ids for a model without a tokenizer"):
        model.explain("a")
    with pytest.raises(ValueError, match="target must be an id for a model without a tokenizer, got 'a'"):
        model.explain([1, 2, 3], "a")


# ---------------------------------------------------------------------------- labels


LABELS = ["bom", "ruim", "nem bom nem ruim"]


@pytest.fixture(scope="module")
def classifier():
    return model_with_roles()


def test_a_label_is_explained_as_classify_has_it(classifier):
    shares = classifier.classify("gostei muito", LABELS)
    best, *_, worst = shares
    for target in (None, worst, worst.encode()):
        found = classifier.explain("gostei muito", target, of="prob", labels=LABELS, method="gradient")
        assert found.target.text == LABELS[found.target.id] == (worst if target else best)
        assert found.value == pytest.approx(shares[found.target.text], rel=1e-5) and found.labels == LABELS
    both = classifier.explain("gostei muito", best, worst, of="logit", labels=LABELS, method="gradient")
    assert both.value == pytest.approx(np.log(shares[best] / shares[worst]), rel=1e-4)
    assert both.against.text == worst and "".join(both.tokens[1:13]) == "gostei muito"
    assert classifier.explain("gostei", labels=iter(LABELS), method="gradient").labels == LABELS


def test_of_a_model_without_roles(model):
    shares = model.classify("o gato", ["subiu", "no"])
    found = model.explain("o gato", "no", of="prob", labels=["subiu", "no"])
    assert found.value == pytest.approx(shares["no"], rel=1e-5) and "".join(found.tokens) == "o gato\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("",), "text must not be empty"),
        (("a" * 200,), "text and label must have at most 128 tokens, the model's context, got "),
        (("a", "mau"), "target must be one of the labels bom, ruim, nem bom nem ruim, got 'mau'"),
        (("a", "bom", 3), "against must be one of the labels bom, ruim, nem bom nem ruim, got 3"),
        (("a", "bom", "bom"), "against must be another label than the target, got 'bom' for both"),
    ],
)
def test_labels_that_cannot_be_explained_are_refused(classifier, arguments, message):
    with pytest.raises(ValueError, match=f"^explain: {message}"):
        classifier.explain(*arguments, labels=LABELS)


def test_labels_are_two_texts_at_least(classifier):
    with pytest.raises(ValueError, match=r"^explain: labels must be two at least, got \['bom'\]"):
        classifier.explain("a", labels=["bom"])
    with pytest.raises(ValueError, match=r"^explain: labels must differ, got \['bom', b'bom'\]"):
        classifier.explain("a", labels=["bom", b"bom"])
    with pytest.raises(ValueError, match=r"^classify: labels must differ, got \['bom', 'bom'\]"):
        classifier.classify("a", ["bom", "bom"])
    with pytest.raises(TypeError, match=r"^explain: labels must be a list of texts, got the text 'bom'"):
        classifier.explain("a", labels="bom")
    with pytest.raises(TypeError, match=r"^explain: text must be a text where there are labels, got list"):
        classifier.explain([1, 2], labels=LABELS)
    with pytest.raises(ValueError, match=r"^explain: the model must have a tokenizer"):
        npgpt.GPT(npgpt.GPTConfig(1, 2, 16, 16, 99)).explain("a", labels=LABELS)
