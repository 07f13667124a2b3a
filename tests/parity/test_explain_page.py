"""page.html of npgpt.explain in a real headless Chromium: pointed at, without a mouse, in both languages."""

import base64
import re

import numpy as np
import pytest

from npgpt.explaining import page
from npgpt.explaining.reading import Token, token_of
from npgpt.text.tokenizer import BPETokenizer
from tests.browser import CHROMIUM, Browser
from tests.models import random_model

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
TEXT = "o gato subiu no telhado"
EVIL = "<script>document.title='!'</script><img src=x onerror=document.title='!'>"


@pytest.fixture(scope="module")
def model():
    """Twelve layers of twelve heads."""
    model = random_model(n_layer=12, n_head=12, n_embd=48, vocab_size=270)
    model.tokenizer = BPETokenizer.train([(TEXT + ". o rato subiu no muro. ").encode() * 20], 270)
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    found = model.explain(TEXT, "o", "a", method="grad_x_input")
    path.write_text(page.write(model, model.tokenizer, found, "gatos"), encoding="utf-8")
    return path


@pytest.fixture
def browser(file):
    browser = Browser("--window-size=1180,1000", "--lang=en-US")
    open_page(browser, file)
    yield browser
    assert browser.js("performance.getEntriesByType('resource').length") == 0  # nothing is asked for
    browser.close()
    assert browser.errors == []


def open_page(browser, file):
    browser("Page.navigate", url=file.as_uri())
    browser.until("document.readyState === 'complete' && typeof speak === 'function'")


def size(browser, width):
    how = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser("Emulation.setDeviceMetricsOverride", **how)
    browser.until(f"innerWidth === {width}")


SHARES = "[...document.querySelectorAll('#text .token')].map((t) => +t.style.getPropertyValue('--share'))"
TOKENS = "[...document.querySelectorAll('#text .token')].map((t) => t.textContent)"


def test_a_token_is_made_the_target_by_keys_alone(browser, model, file):
    found = model.explain(TEXT, "o", "a", method="grad_x_input")
    assert browser.js(TOKENS) == [*found.tokens, "o"]
    shares = np.abs(found.scores) / np.abs(found.scores).max()
    np.testing.assert_allclose(browser.js(SHARES)[:-1], shares, atol=6e-4)
    assert browser.js("document.getElementById('why').textContent") == "Why “o” rather than “a”?"
    browser.js("document.activeElement.blur()")
    for _ in range(9):
        browser.press("Tab")
        if browser.js("document.activeElement.dataset.at"):
            break
    assert browser.js("document.activeElement.dataset.at") == str(len(found.ids))
    browser.press("ArrowLeft"), browser.press("ArrowLeft")  # to look at
    at = len(found.ids) - 2
    alone = model.explain(found.ids[:at], found.ids[at], method="grad_x_input")
    shares = np.abs(alone.scores) / np.abs(alone.scores).max()
    np.testing.assert_allclose(browser.js(SHARES)[:at], shares, atol=6e-4)
    assert browser.js(SHARES)[at:] == [0, 0, 0]
    browser.js("document.activeElement.blur()")
    browser.js("document.getElementById('layer').focus()")
    assert browser.js("target().at") == at + 2  # it was looked at, not chosen
    browser.js(f"document.querySelector('#text [data-at=\"{at}\"]').focus()")
    browser.press("Enter")
    browser.js("document.getElementById('layer').focus()")
    assert browser.js("target().at") == at
    browser.press("ArrowLeft")  # the slider
    lens = model.lens(TEXT)
    said = [token_of(model.tokenizer, id).text for id in lens.top[10, :, 0]]
    shown = browser.js("[...document.querySelectorAll('#said small')].map((t) => t.textContent)")
    assert browser.js("layer") == 10 and [name.replace("␣", " ") for name in shown[1:]] == said
    row = browser.js("document.querySelector('#layers tbody tr:nth-child(11)').innerText")
    assert f"{100 * lens.shares[10, at - 1, 0]:.1f}"[:3] in row


def test_heads_are_legible_and_chosen_by_keys(browser, model):
    weights = model.attention(TEXT)
    for width in (1180, 360):
        size(browser, width)
        assert browser.js("document.documentElement.scrollWidth") <= width
        boxes = browser.js(
            "[...document.querySelectorAll('#maps button')].map((b) => b.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == 144 and all(box["width"] >= 60 and box["height"] >= 60 for box in boxes)
        assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
        least = "[...document.querySelectorAll('body *')].filter((e) => e.innerText && e.offsetParent)"
        assert browser.js(f"Math.min(...{least}.map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 11
        widest = "(e.textContent = '< 0.01 %', e.scrollWidth <= e.clientWidth)"  # of all shares
        assert browser.js(f"[...document.querySelectorAll('#layers td.end')].every((e) => {widest})")
        browser.look(f"explain-{width}")
    canvas = "document.querySelectorAll('#maps canvas')[5 * 12 + 7]"
    pixels = f"{canvas}.getContext('2d').getImageData(0, 0, T, N).data"
    alpha = np.array(browser.js(f"[...{pixels}]")).reshape(*weights.shape[2:], 4)[..., 3]
    np.testing.assert_allclose((alpha / 255) ** 2, weights[5, 7], atol=0.004)
    browser.js("document.querySelector('#maps button[tabindex=\"0\"]').focus()")
    for key in ("ArrowUp", "ArrowRight"):
        browser.press(key)
    assert browser.js("[layer, head, document.activeElement.dataset.layer]") == [10, 1, "10"]
    looks = browser.js("document.getElementById('looks').textContent")
    name = re.search("most at “(.+?)” ", looks)[1].replace("␣", " ")
    best = max(w for t, w in zip(model.lens(TEXT).tokens, weights[10, 1, -1], strict=True) if t == name)
    assert best == pytest.approx(weights[10, 1, -1].max(), abs=0.004)


def test_two_languages_and_a_dark_page(browser, file):
    assert browser.js("Object.keys(WORDS.en).sort().join() === Object.keys(WORDS.pt).sort().join()")
    browser.tab_to("language")
    browser.press("Enter")
    assert browser.js("document.documentElement.lang") == "pt-BR"
    assert browser.js("document.getElementById('why').textContent") == "Por que “o” e não “a”?"
    light = browser.look("explain-light")
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    pixel = "[...document.querySelectorAll('#maps canvas')[0].getContext('2d').getImageData(0, 0, 1, 1).data]"
    assert browser.until(f"String({pixel}) === '108,178,238,255'")  # the maps are painted anew
    assert browser.look("explain-dark") != light
    pdf = base64.b64decode(browser("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 4
    browser("Emulation.setUserAgentOverride", userAgent="Chromium", acceptLanguage="pt-BR")
    open_page(browser, file)
    browser.until("document.querySelector('#why').textContent.startsWith('Por que')")


def test_what_a_model_says_is_never_a_part_of_the_page(browser, model, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "token_of", lambda tokenizer, id: Token(id, EVIL))
    found = model.explain("gato", method="gradient")
    (tmp_path / "evil.html").write_text(page.write(model, model.tokenizer, found, EVIL), encoding="utf-8")
    open_page(browser, tmp_path / "evil.html")
    browser.js("document.querySelectorAll('.token').forEach((t) => t.focus())")
    assert browser.js("document.title") == EVIL == browser.js("document.querySelector('h1').textContent")
    assert EVIL in browser.js("document.getElementById('text').textContent")
    assert EVIL.replace(" ", "␣") in browser.js("document.getElementById('layers').textContent")
    assert browser.js("document.querySelectorAll('img, main script').length") == 0
