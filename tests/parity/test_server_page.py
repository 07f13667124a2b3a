"""The page in a real headless Chromium: written to, streamed into, looked at, without a mouse."""

from pathlib import Path

import pytest

from npgpt import train
from npgpt.text import examples
from npgpt.text.tokenizer import ByteTokenizer
from tests.browser import CHROMIUM, Browser
from tests.models import random_model, write_speller
from tests.server.process import ROOT, Process

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "praia"
    text = ROOT / "data" / "textosdetreinamento.txt"
    flags = "--n-layer 1 --n-head 2 --n-embd 32 --block-size 64 --steps 60 --split 0.8,0.1,0.1".split()
    assert train.main([str(text), *flags, "--eval-every", "10", "--out", str(run)]) == 0
    with Process(run) as server:
        yield server


@pytest.fixture
def browser(server):
    browser = Browser("--window-size=1180,1000", "--lang=en-US")
    browser("Page.navigate", url=server.url)
    browser.until("document.readyState === 'complete' && document.title === 'praia'")
    yield browser
    browser.close()
    assert browser.errors == []


def test_a_text_is_written_by_keys_alone(server, browser):
    browser.write_by_keys(" não é", seed="5")
    fields = {"model": "praia", "prompt": "O sol não é", "seed": 5, "max_tokens": 200, "temperature": 0.8}
    expected = server.ask("/v1/completions", fields)[1]["choices"][0]["text"]
    assert browser.js("document.getElementById('output').textContent") == "O sol não é" + expected
    tokens = "[...document.querySelectorAll('#output .token')]"
    shades = browser.js(f"{tokens}.map((t) => t.style.getPropertyValue('--surprise'))")
    assert len(shades) > 150 and all(0 <= float(shade) <= 1 for shade in shades) and len(set(shades)) > 20

    assert browser.js("document.getElementById('tip').hidden")
    browser.js("document.getElementById('keep').focus()")
    browser.press("Tab")  # to the first token
    assert browser.js("document.activeElement === document.querySelector('#output .token')")
    assert not browser.js("document.getElementById('tip').hidden")
    rows = browser.js("[...document.querySelectorAll('#tip tr')].map((row) => row.innerText)")
    assert 6 <= len(rows) <= 7 and all("%" in row for row in rows)
    drawn = browser.js("document.querySelector('#tip tr.drawn td').textContent")
    assert drawn.replace("␣", " ") == browser.js("document.activeElement.textContent")
    light = browser.look("write-light")
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.look("write-dark")
    assert light != dark and min(len(light), len(dark)) > 20_000
    paper = "getComputedStyle(document.body).backgroundColor"
    assert browser.js(paper) == "rgb(22, 24, 26)"
    own = browser.js(
        "performance.getEntriesByType('resource').every((e) => e.name.startsWith(location.origin))"
    )
    assert own  # nothing comes from elsewhere


def test_escape_stops_and_frees_the_session(server, browser):
    browser.js("document.getElementById('max_tokens').value = 1000")
    browser.js("document.getElementById('go').focus()")
    for _ in range(3):  # it may have ended by itself
        browser.press("Enter")
        browser.until("document.querySelector('#output .token')")
        browser.press("Escape")
        browser.until("document.getElementById('stop').disabled")
        if browser.js("document.querySelectorAll('#output .token').length") < 1000:
            break
    assert browser.js("document.querySelectorAll('#output .token').length") < 1000
    server.settles("npgpt_sessions", lambda n: n == 0, 2)


def test_two_languages_and_the_curve(browser):
    curve = browser.js("[...document.querySelectorAll('#plot polyline')].map((l) => l.points.length)")
    assert len(curve) == 2 and curve[0] >= 60 and curve[1] >= 6
    assert browser.js("document.querySelector('#go').textContent") == "Write on"
    browser.tab_to("language")
    browser.press("Enter")
    assert browser.js("document.querySelector('#go').textContent") == "Continuar"
    assert browser.js("document.documentElement.lang") == "pt-BR"
    words = "Object.keys(WORDS.en).sort().join() === Object.keys(WORDS.pt).sort().join()"
    assert browser.js(words)
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    # a telephone; a busy machine resizes later, and lays out later still
    browser.until(
        "document.documentElement.clientWidth === 390 && document.documentElement.scrollWidth <= 390"
    )
    browser.look("telephone")


def test_the_text_just_written_is_looked_into(server, browser):
    browser.js("document.getElementById('max_tokens').value = 24")
    browser.js("document.getElementById('go').click()")
    browser.until("!document.getElementById('keep').disabled")
    text = browser.js("document.getElementById('output').textContent")
    browser.js("document.getElementById('tab-write').focus()")
    browser.press("ArrowRight")
    browser.until("typeof document.querySelector('#inside iframe')?.contentWindow.speak === 'function'", 60)
    page = "document.querySelector('#inside iframe').contentDocument"
    browser.until(f"document.querySelector('#inside iframe').offsetHeight > {page}.body.offsetHeight - 2")
    tokens = f"[...{page}.querySelectorAll('#text .token')].map((t) => t.textContent)"
    shown = "".join(browser.js(tokens)[:-1])  # without the next; the bytes of letters are spelt
    assert shown.encode("ascii").decode("unicode_escape").encode("latin-1").decode() == text
    why = f"{page}.getElementById('why').textContent"
    before = browser.js(why)
    browser.js(f"{page}.querySelector('#text [data-at=\"9\"]').focus()")
    browser.press("Enter")
    assert browser.js(why) != before and browser.js(why).startswith("Why “")
    browser.js("document.getElementById('language').click()")
    assert browser.js(why).startswith("Por que “")
    browser.js("document.querySelector('#inside iframe').contentDocument.activeElement.blur()")
    browser.look("server-inside")
    own = "performance.getEntriesByType('resource').every((e) => e.name.startsWith(location.origin))"
    assert browser.js(own)


SMALLEST = """Math.min(...[...document.querySelectorAll('svg text')].filter((t) => t.getClientRects().length)
    .map((t) => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""  # pixels on the screen


def test_text_in_charts_is_legible_on_a_telephone(server, browser):
    run = next(Path(server.process.args[-1].split("main(['")[1].split("'")[0]).parent.iterdir())
    for name, url in ("page", server.url), ("report", (run / "report.html").as_uri()):
        for width in (1180, 700, 360):
            browser(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=800,
                deviceScaleFactor=1,
                mobile=width < 500,
            )
            browser("Page.navigate", url=url)
            browser.until(
                "document.readyState === 'complete' && document.querySelectorAll('svg polyline').length > 1"
            )
            assert browser.js(SMALLEST) >= 11, (name, width)
            assert browser.js("document.documentElement.scrollWidth") <= width, (name, width)
            shown = "[...document.querySelectorAll('svg text')].map((t) => t.getBoundingClientRect())"
            assert browser.js(
                f"{shown}.every((box) => !box.width || (box.left >= 0 && box.right <= {width}))"
            ), (name, width)
            if name == "report":  # the best step's dot is on the curve, which is an SVG of its own
                browser.js(
                    "line = document.querySelector('polyline.two');"
                    "dot = document.querySelector('circle.two').getBoundingClientRect(); 0"
                )
                ends = "[...line.points].map((p) => p.matrixTransform(line.getScreenCTM()))"
                middle = "Math.hypot(p.x - dot.x - dot.width / 2, p.y - dot.y - dot.height / 2)"
                assert browser.js(f"Math.min(...{ends}.map((p) => {middle}))") < 1, width
            browser.look(f"chart-{name}-{width}")


def test_an_end_that_a_model_spells_is_no_part_of_a_reply(tmp_path):
    tokenizer = examples.add_roles(ByteTokenizer())
    before = len(examples.encode_chat(tokenizer, [{"role": "user", "content": "?"}]))
    role = tokenizer.vocabulary.special["<|user|>"]  # it has a name, which is no letter of a reply
    write_speller(tmp_path / "soletra", tokenizer, [*b"si", role, *b"m<|endoftext|>nunca"], before)
    with Process(tmp_path / "soletra") as server:
        browser = Browser("--window-size=1180,800")
        browser("Page.navigate", url=server.url)
        browser.until("document.title === 'soletra' && !document.getElementById('chat').hidden")
        browser.js("document.getElementById('say').focus()")
        browser("Input.insertText", text="?")
        browser.press("Enter")
        browser.until("document.getElementById('stop-chat').disabled && conversation.length === 2")
        assert browser.js("[...document.querySelectorAll('.message .text')].at(-1).textContent") == "sim"
        assert browser.js("conversation[1].content") == "sim"
        browser.close()
        assert browser.errors == []


def test_a_chat(tmp_path):
    tokenizer = examples.add_roles(ByteTokenizer())
    model = random_model(block_size=128, vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "amiga")
    with Process(tmp_path / "amiga") as server:
        browser = Browser("--window-size=1180,800", "--lang=pt-BR")
        browser("Page.navigate", url=server.url)
        browser.until("document.title === 'amiga'")
        browser.until("!document.getElementById('chat').hidden")  # where there are roles, it is in front
        messages, idle = [], "document.getElementById('stop-chat').disabled"

        def say(words, count):
            browser.js("document.getElementById('seed').value = 3")
            browser.js("document.getElementById('say').focus()")
            browser("Input.insertText", text=words)
            browser.press("Enter")
            browser.until(f"document.querySelectorAll('.message').length === {count} && {idle}")

        for words in ("Bom dia!", "Como vai?"):
            messages.append({"role": "user", "content": words})
            say(words, len(messages) + 1)
            fields = {
                "model": "amiga",
                "messages": messages,
                "seed": 3,
                "max_tokens": 200,
                "temperature": 0.8,
            }
            answer = server.ask("/v1/chat/completions", fields)[1]["choices"][0]["message"]
            shown = browser.js("[...document.querySelectorAll('.message .text')].at(-1).textContent")
            assert shown == answer["content"]
            messages.append({"role": "assistant", "content": answer["content"]})
        browser.look("chat")
        say("x" * 60, 6)  # for which there is room only once the first words are forgotten
        assert browser.js("document.getElementById('error').hidden && conversation.length < 6")
        browser.errors.clear()  # the refusal is in the console
        assert browser.js("document.querySelectorAll('.assistant .token').length") > 5
        browser.js("document.getElementById('tab-chat').focus()")
        browser.press("ArrowRight")
        assert browser.js(
            "document.getElementById('chat').hidden && document.activeElement.id === 'tab-write'"
        )
        browser.close()
        assert browser.errors == []


def test_an_error_is_said(server, browser):
    browser.js("document.getElementById('prompt').value = 'a'.repeat(100)")
    browser.js("document.getElementById('go').click()")
    message = browser.until("document.getElementById('error').textContent")
    assert "maximum context length is 64 tokens, got 100" in message
    browser.errors.clear()  # a refused request is in the console too


def test_a_key_is_asked_for(server, tmp_path):
    run = next(Path(server.process.args[-1].split("main(['")[1].split("'")[0]).parent.iterdir())
    with Process(run, "--api-key", "sesame") as server:
        browser = Browser("--lang=pt-BR")
        browser("Page.navigate", url=server.url)
        browser.until("document.getElementById('login')?.hidden === false")
        assert browser.js("document.getElementById('all').hidden")
        browser.js("document.getElementById('key').focus()")
        browser("Input.insertText", text="sesame")
        browser.press("Enter")
        browser.until("document.title === 'praia' && !document.getElementById('all').hidden")
        browser.close()
