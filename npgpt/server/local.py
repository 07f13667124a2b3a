"""One file with the page, a model and the runtime in it: it opens by double-click, without a network.

The page is index.html, in which local.js asks the model in the file instead of a server. The runtime is
libnpgpt as WebAssembly, made by `python csrc/wasm.py`. Both it and the model stand in the file in base64.
"""

import base64
import gzip
import html
import json
import re
from pathlib import Path
from typing import IO

from npgpt.engine.types import Fields
from npgpt.text import examples
from npgpt.text.cleaning import STEPS
from npgpt.text.tokenizer import Tokenizer
from npgpt.text.tokenizer_json import ROLES

PAGE, SCRIPT = (Path(__file__).with_name(name) for name in ("index.html", "local.js"))
RUNTIME = Path(__file__).parents[1] / "runtime" / "npgpt.wasm.gz"
RULE = "// -{70} "  # begins each part of the page's script
ASKING = re.compile(f"^{RULE}asking the server\n.*?(?=^{RULE})", re.MULTILINE | re.DOTALL)
POLICY = (  # nothing is asked for, whatever a model writes
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "worker-src blob:; img-src data:"
)
NOTICE = (
    "This page needs JavaScript, and the whole of its file.<br>"
    '<span lang="pt-BR">Esta página precisa de JavaScript, e do seu arquivo inteiro.</span>'
)
PART = 3 << 20  # bytes of the model in one element: a browser decodes them at a time
MAX_TOKENS = 1000


def write(out: Path, gguf: Path, tokenizer: Tokenizer, context: int, vocabulary: int, name: str) -> None:
    """Write the page of a model, of which `gguf` is the file, to `out`.

    context is its longest text in tokens, `vocabulary` the number of its ids.
    """
    size = gguf.stat().st_size
    parts = [min(PART, size - at) for at in range(0, size, PART)]
    data = {
        "about": _about(tokenizer, context, vocabulary, name),
        "size": size,
        "parts": [4 * -(-part // 3) for part in parts],  # characters
        "ends": list(tokenizer.ends),
        "special": list(tokenizer.vocabulary.special.values()),
        "roles": _roles(tokenizer),
        "cleaning": [
            [step.pattern.replace("\\A", "^"), step.instead]
            for step in STEPS[tokenizer.vocabulary.normalizer]
        ],
    }
    before, after = _page(name, data)
    with open(gguf, "rb") as model, open(out, "wb") as file:
        file.write(before.encode())
        _write_element(file, "wasm", gzip.decompress(RUNTIME.read_bytes()))
        for part in parts:
            _write_element(file, "model", model.read(part))
        file.write(after.encode())


def chats(tokenizer: Tokenizer) -> bool:
    """Return whether the page can chat: by npgpt's roles, as other templates need Jinja."""
    roles = examples.has_roles(tokenizer) and examples.template_of(tokenizer) is None
    return roles and tokenizer.vocabulary.pieces is None


def _about(tokenizer: Tokenizer, context: int, vocabulary: int, name: str) -> Fields:
    """Return what GET /run of the server tells the page."""
    return {
        "model": name,
        "context": context,
        "vocabulary": vocabulary,
        "max_tokens": MAX_TOKENS,
        "roles": chats(tokenizer),
        "special": list(tokenizer.vocabulary.special),
        "ends": [] if examples.template_of(tokenizer) else tokenizer.end_names,
        "loss": [],
    }


def _roles(tokenizer: Tokenizer) -> Fields:
    """Return the id that begins a turn of each role, and what ends a turn; {} where it cannot chat."""
    if not chats(tokenizer):
        return {}
    special = tokenizer.vocabulary.special
    return {role: special[f"<|{role}|>"] for role in ROLES} | {"end": examples.end_token(tokenizer)}


def _page(name: str, data: Fields) -> tuple[str, str]:
    """Return the page, up to the runtime and the model, and what follows them."""
    page, script = (path.read_text(encoding="utf-8") for path in (PAGE, SCRIPT))
    text = json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    title = f"<title>{html.escape(name)}</title>"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    for old, new in (
        ("<title>npgpt</title>", f"{policy}\n{title}"),
        ('<h1 id="name">npgpt</h1>', f'<h1 id="name">{html.escape(name)}</h1>'),
        ("</header>", f'</header>\n<p id="notice">{NOTICE}</p>'),
        ("<script>", f'<script type="application/json" id="data">{text}</script>\n<script>'),
    ):
        before, found, after = page.partition(old)
        assert found, f"index.html has no {old}"
        page = before + new + after
    page, count = ASKING.subn(lambda _: script, page)
    assert count == 1, "index.html has no part that asks the server"
    before, end, after = page.rpartition("</body>")
    return before, end + after


def _write_element(file: IO[bytes], kind: str, data: bytes) -> None:
    file.write(f'<script type="text/plain" class="{kind}">'.encode())
    file.write(base64.b64encode(data))
    file.write(b"</script>\n")
