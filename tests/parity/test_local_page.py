"""The page of `npgpt export --to html` in a real headless Chromium: from a file, without a network."""

import re

import pytest

import npgpt
from npgpt import export, train
from npgpt.engine import kernels
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling
from npgpt.text import examples
from tests.browser import CHROMIUM, Browser
from tests.firefox import FIREFOX, Firefox
from tests.models import model_with_roles, random_model
from tests.server.process import ROOT

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here"),
    pytest.mark.skipif(kernels.library() is None, reason="libnpgpt is not built here"),
]
TEXT = ROOT / "data" / "textosdetreinamento.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run `praia`, a model `oi` with roles; of each the page and the GGUF file in it."""
    folder = tmp_path_factory.mktemp("pages")
    flags = "--n-layer 2 --n-head 2 --n-embd 64 --block-size 64 --steps 80".split()
    assert train.main([str(TEXT), *flags, "--out", str(folder / "praia")]) == 0
    model_with_roles().save_pretrained(folder / "oi")
    for name in ("praia", "oi"):
        for to in (["html"], ["gguf", "--type", "q8_0"]):
            command = [str(folder / name), "--to", *to, "-o", str(folder / f"{name}.{to[0]}")]
            assert export.main(command) == 0
    return folder


@pytest.fixture
def browser():
    browser = Browser("--window-size=1180,1000", "--lang=en-US")
    browser("Network.enable")
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser("Network.emulateNetworkConditions", offline=True, **network)
    yield browser
    asked = browser.js("performance.getEntriesByType('resource').map((e) => e.name)")
    browser.close()
    assert browser.errors == [] and all(name.startswith("blob:") for name in asked)


def open_page(browser, path):
    browser("Page.navigate", url=path.as_uri())
    browser.until("document.readyState === 'complete' && (about || !document.getElementById('error').hidden)")


class Native:
    """A GGUF file in libnpgpt, with the kernels that are compiled into the page: what C programs write."""

    def __init__(self, path, tokenizer):
        self.model, self.tokenizer = libnpgpt.Model.open(path), tokenizer
        self.model.use_kernels("baseline")

    def ids(self, prompt, n=200, seed=0, **how):
        how = Sampling(**({"temperature": 0.8} | how))
        return [*libnpgpt.generate_ids(self.model, prompt, n, how, self.tokenizer.ends, seed=seed)]

    def text(self, *args, **how):
        stream, ids = self.tokenizer.stream(), self.ids(*args, **how)
        return stream.push(*ids) + stream.close()


@pytest.fixture(scope="module")
def praia(folder):
    return Native(folder / "praia.gguf", npgpt.load(folder / "praia").tokenizer)


def test_the_ids_are_those_of_the_native_program(folder, browser, praia):
    open_page(browser, folder / "praia.html")
    how = "{prompt: 'O sol ', max_tokens: 200, temperature: %s, seed: %s, top_k: %s, top_p: %s}"
    prompt = praia.tokenizer.encode_prompt("O sol ").tolist()
    for temperature, seed, top_k, top_p in (0.8, 5, 0, 1), (1.3, 2**40, 0, 0.9), (0, 0, 0, 1), (1, 3, 7, 1):
        got = browser.js(f"npgpt.generate({how % (temperature, seed, top_k, top_p)})")
        more = {"seed": seed, "top_k": top_k or None, "top_p": top_p}
        assert got["ids"] == praia.ids(prompt, temperature=temperature, **more)
        assert got["text"] == praia.text(prompt, temperature=temperature, **more)
    assert len(got["ids"]) == 200  # more than the context
    both = "Promise.all([1, 2].map((seed) => npgpt.generate({prompt: 'O', seed, max_tokens: 40})))"
    prompt = praia.tokenizer.encode_prompt("O").tolist()
    assert [one["ids"] for one in browser.js(both)] == [praia.ids(prompt, 40, seed) for seed in (1, 2)]
    composed = browser.js("npgpt.generate({prompt: '\\ufeffA\\u0301gua\\r\\n', max_tokens: 40})")
    assert composed["ids"] == praia.ids(praia.tokenizer.encode_prompt("Água\n").tolist(), 40)
    first = browser.js("npgpt.generate({prompt: '', max_tokens: 40})")
    assert first["ids"] == praia.ids([praia.tokenizer.end_of_text], 40)
    refused = browser.js("npgpt.generate({temperature: -1}).catch((error) => error.message)")
    assert refused == "sampling: temperature must be at least 0, got -1"


@pytest.mark.skipif(not FIREFOX, reason="there is no Firefox here")
def test_firefox_draws_the_same_in_portuguese(folder, praia):
    firefox = Firefox("pt-BR, pt")
    firefox("WebDriver:Navigate", url=(folder / "praia.html").as_uri())
    firefox.until("document.getElementById('about').textContent.includes('contexto 64')")
    ask = "npgpt.generate({prompt: 'O sol ', max_tokens: 90, seed: 5})"
    ids = firefox.js(ask)["ids"]
    assert ids == praia.ids(praia.tokenizer.encode_prompt("O sol ").tolist(), 90, 5)
    firefox.js("document.getElementById('go').click()")
    firefox.until("!document.getElementById('keep').disabled")
    assert firefox.js("document.querySelectorAll('#output .token').length") > 50
    assert firefox.js("document.getElementById('go').textContent") == "Continuar"
    assert firefox.js("document.getElementById('error').textContent") == ""
    firefox.close()


def test_a_text_is_written_by_keys_alone(folder, browser, praia):
    open_page(browser, folder / "praia.html")
    assert browser.js("document.title") == "praia" == browser.js("document.querySelector('h1').textContent")
    browser.write_by_keys(" não é", seed="5")
    prompt = praia.tokenizer.encode_prompt("O sol não é").tolist()
    expected = "O sol não é" + praia.text(prompt, seed=5)
    assert browser.js("document.getElementById('output').textContent") == expected
    tokens = "[...document.querySelectorAll('#output .token')]"
    shades = browser.js(f"{tokens}.map((t) => t.style.getPropertyValue('--surprise'))")
    assert len(shades) > 100 and all(0 <= float(shade) <= 1 for shade in shades) and len(set(shades)) > 20
    browser.js("document.getElementById('keep').focus()")
    browser.press("Tab")  # to the first token
    rows = browser.js("[...document.querySelectorAll('#tip tr')].map((row) => row.innerText)")
    assert 6 <= len(rows) <= 7 and all("%" in row for row in rows)
    shares = [float(row.split("\t")[-1].rstrip(" %").lstrip("< ")) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=3)
    browser.press("Tab", modifiers=8)
    browser.js("document.getElementById('max_tokens').value = 1000")
    browser.js("document.getElementById('go').focus()")
    browser.press("Enter")
    browser.until("document.querySelector('#output .token')")
    browser.press("Escape")
    browser.until("document.getElementById('stop').disabled")
    assert 0 < browser.js(f"{tokens}.length") < 1000
    browser.press("Enter")  # what was stopped leaves the model free
    browser.until("document.querySelector('#output .token')")
    browser.press("Escape")


def test_two_languages_light_and_dark_and_a_telephone(folder, browser):
    open_page(browser, folder / "praia.html")
    assert browser.js("Object.keys(WORDS.en).sort().join() === Object.keys(WORDS.pt).sort().join()")
    assert browser.js("document.getElementById('tab-inside').hidden")
    browser.js("document.getElementById('seed').value = 1, document.getElementById('go').click()")
    browser.until("!document.getElementById('keep').disabled")
    browser.js("document.querySelectorAll('#output .token')[9].focus()")
    light = browser.look("local-light")
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    assert browser.look("local-dark") != light
    browser("Emulation.setDeviceMetricsOverride", width=360, height=780, deviceScaleFactor=1, mobile=True)
    width = "document.documentElement"
    browser.until(f"{width}.clientWidth === 360 && {width}.scrollWidth <= 360")
    browser.look("local-telephone")
    assert browser.js("document.querySelector('#go').textContent") == "Write on"
    browser("Emulation.setUserAgentOverride", userAgent="Chromium", acceptLanguage="pt-BR")
    open_page(browser, folder / "praia.html")
    assert browser.js("document.querySelector('#go').textContent") == "Continuar"
    assert browser.js("document.documentElement.lang") == "pt-BR"


def test_a_model_with_roles_chats(folder, browser):
    model = npgpt.load(folder / "oi")
    native = Native(folder / "oi.gguf", model.tokenizer)
    open_page(browser, folder / "oi.html")
    browser.js("document.getElementById('seed').value = 4, document.getElementById('max_tokens').value = 20")
    talk = []
    for said in ("Bom dia!", "E a\u0301gua <|end|>?"):
        browser.js("document.getElementById('say').focus()")
        browser("Input.insertText", text=said)
        browser.press("Enter")
        browser.until("document.getElementById('stop-chat').disabled")
        talk.append({"role": "user", "content": said})
        ids = native.ids(examples.encode_chat(model.tokenizer, talk), 20, seed=4)
        answer = "".join(browser.js("conversation.map((turn) => turn.content)")[-1:])
        assert answer == model.tokenizer.decode(ids) != ""
        talk.append({"role": "assistant", "content": answer})
    shown = browser.js("[...document.querySelectorAll('.message.assistant .text')].map((e) => e.textContent)")
    assert shown == [turn["content"] for turn in talk[1::2]]
    browser.js("conversation = [], document.getElementById('say').value = 'longa '.repeat(40)")
    browser.js("document.getElementById('send').click()")
    browser.until("!document.getElementById('error').hidden")
    assert browser.js("document.getElementById('error').textContent") == browser.js("t('long')")


def sentence(browser):
    """The one sentence that is seen; there is nothing to write with."""
    assert browser.js("document.getElementById('all').hidden")
    return browser.js("document.getElementById('error').innerText")


def test_what_is_not_there_is_a_sentence(folder, browser, tmp_path):
    page = (folder / "praia.html").read_bytes()
    first, last = (page.index(f'class="{kind}">'.encode()) for kind in ("wasm", "model"))
    for place in (first + 1000, last + 1000, len(page) - 100):
        (tmp_path / "cut.html").write_bytes(page[:place])
        open_page(browser, tmp_path / "cut.html")
        assert sentence(browser) == "This file is incomplete. Copy it or download it once more."
    (tmp_path / "cut.html").write_bytes(page[: page.index(b"class Writer")])  # nothing runs
    browser("Page.navigate", url=(tmp_path / "cut.html").as_uri())
    browser.until("document.readyState === 'complete'")
    assert "the whole of its file" in browser.js("document.body.innerText")
    hurt = page.replace(b'class="model">R0', b'class="model">AA')
    (tmp_path / "hurt.html").write_bytes(hurt)
    open_page(browser, tmp_path / "hurt.html")
    assert sentence(browser) == "GGUF: byte 0 must begin GGUF"


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--no-enable-sse4-1", "This browser cannot run the model"),
        ("--wasm-max-mem-pages=255", "There is not enough memory for this model"),  # to begin with
        ("--wasm-max-mem-pages=260", "There is not enough memory for this model"),  # for the model
        ("--wasm-max-mem-pages=500", "There is not enough memory for this model"),  # for a text
    ],
)
def test_a_browser_that_cannot(flag, said, tmp_path):
    random_model(n_layer=1, block_size=50_000).save_pretrained(tmp_path / "m")  # 13 MB, and 26 of cache
    assert export.main([str(tmp_path / "m"), "--to", "html", "-o", str(tmp_path / "m.html")]) == 0
    browser = Browser(f"--js-flags={flag}", "--lang=en-US")
    open_page(browser, tmp_path / "m.html")
    assert sentence(browser).startswith(said)
    refused = browser.js("npgpt.generate({prompt: 'O'}).catch((error) => error.message)")
    assert refused.startswith(said)
    browser.close()
    assert browser.errors == []


def test_what_a_model_is_called_is_never_a_part_of_the_page(browser, tmp_path):
    named = tmp_path / "<!--<script><img src=x onerror=document.title='!'>"
    random_model(n_layer=1).save_pretrained(named)
    assert export.main([str(named), "--to", "html", "-o", str(tmp_path / "m.html")]) == 0
    open_page(browser, tmp_path / "m.html")
    assert (
        browser.js("document.title") == named.name == browser.js("document.querySelector('h1').textContent")
    )
    assert browser.js("document.querySelectorAll('img').length") == 0


def test_the_file_is_as_large_as_the_model_and_little_more(folder):
    for name in ("praia", "oi"):
        page, model = ((folder / f"{name}.{kind}").stat().st_size for kind in ("html", "gguf"))
        assert page <= 1.37 * model + 500_000
    text = (folder / "praia.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://", text)  # it knows no other place
