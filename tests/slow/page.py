"""`python tests/slow/page.py [WLLAMA]`: how fast the page of `npgpt export --to html` opens and writes.

With a model of 11 MB, in Chromium, from a file; beside libnpgpt's baseline kernels on one thread, in turns.
Allowed: 2 s to open, half of the native tokens a second, 1.37 times the model's size and 0.5 MB, 350 kB of
WebAssembly. WLLAMA: npm's folder node_modules/@wllama/wllama. Twice its tokens a second are needed, on the
same GGUF file and one thread.
"""

import contextlib
import functools
import gzip
import http.server
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from npgpt import export  # noqa: E402
from npgpt.engine import kernels  # noqa: E402
from npgpt.runtime import libnpgpt  # noqa: E402
from npgpt.runtime.sampling import Sampling  # noqa: E402
from npgpt.server.local import RUNTIME  # noqa: E402
from tests.browser import Browser  # noqa: E402
from tests.models import random_model  # noqa: E402

TOKENS, TURNS, SEED = 300, 5, 7
ASK = f"""(async () => {{
  const begin = performance.now(), asked = {{ prompt: "O sol", max_tokens: {TOKENS}, seed: {SEED} }};
  const {{ ids }} = await npgpt.generate(asked);
  return {{ ids, seconds: (performance.now() - begin) / 1000 }};
}})()"""


PEER = """<!doctype html><script type="module">
import { Wllama } from "/wllama/esm/index.js";
let peer;
window.begin = async () => {
  peer = new Wllama({ default: "/wllama/esm/wasm/wllama.wasm" }, { suppressNativeLog: true });
  const model = await (await fetch("/m.gguf")).blob();
  await peer.loadModel([model], { n_threads: 1, n_ctx: 512, n_gpu_layers: 0 });
  return true;
};
window.write = async (n) => {
  const begin = performance.now();
  await peer.createCompletion({ prompt: "O sol", max_tokens: n, temperature: 0.8, ignore_eos: true });
  return (performance.now() - begin) / 1000;
};
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def peer_page(folder: Path, wllama: Path) -> Iterator[Browser]:
    """A browser with wllama and m.gguf of the folder in it, by HTTP, which its modules need."""
    (folder / "wllama").symlink_to(wllama.resolve())
    (folder / "index.html").write_text(PEER, encoding="utf-8")
    (folder / "favicon.ico").touch()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = Browser()
        browser("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
        browser.until("typeof begin === 'function'")
        assert browser.js("begin()")
        yield browser
        browser.close()
        server.shutdown()


def speaks_letters(model) -> None:
    """Make the model write a to z: wllama fails on bytes that are no UTF-8. It computes as much as before."""
    with model.edit() as params:
        params["ln_f.weight"][...], params["ln_f.bias"][...] = 0, 1
        wte = params["wte.weight"]
        wte -= wte.mean(1, keepdims=True)
        wte[97:123] += 0.05


def opening(browser, page: Path) -> float:
    """Seconds until a text can be asked for."""
    browser("Page.navigate", url="about:blank")
    begin = time.perf_counter()
    browser("Page.navigate", url=page.as_uri())
    browser.until("typeof npgpt === 'object' && about !== null")
    return time.perf_counter() - begin


def native(model, prompt: list[int]) -> tuple[list[int], float]:
    begin = time.perf_counter()
    ids = [*libnpgpt.generate_ids(model, prompt, TOKENS, Sampling(temperature=0.8), seed=SEED)]
    return ids, time.perf_counter() - begin


def beside_wllama(folder: Path, wllama: Path, page: Path) -> float:
    """How many times as fast as wllama the page is: the median of turns."""
    browser, shares = Browser(), []
    opening(browser, page)
    with peer_page(folder, wllama) as peer:
        for _ in range(TURNS):
            ours = browser.js(ASK)["seconds"]
            theirs = peer.js(f"write({TOKENS})")
            shares.append(theirs / ours)
            print(f"page {TOKENS / ours:.0f} tokens/s, wllama {TOKENS / theirs:.0f}", flush=True)
    browser.close()
    print(f"{statistics.median(shares):.1f} times wllama's tokens a second (2 needed)")
    return statistics.median(shares)


def main() -> int:
    kernels.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run, page, gguf = (Path(folder, name) for name in ("run", "m.html", "m.gguf"))
        model = random_model(n_layer=6, n_embd=384, n_head=6, block_size=512)
        speaks_letters(model)
        prompt = model.tokenizer.encode_prompt("O sol").tolist()
        model.save_pretrained(run)
        for out, more in (page, ["html"]), (gguf, ["gguf", "--type", "q8_0"]):
            assert export.main([str(run), "--to", *more, "-o", str(out)]) == 0
        compiled = libnpgpt.Model.open(gguf)
        compiled.use_kernels("baseline")
        sizes = page.stat().st_size, 1.37 * gguf.stat().st_size + 5e5
        browser, opens, ours, theirs, times = Browser(), [], [], [], 2.0
        for _ in range(TURNS):
            opens.append(opening(browser, page))
            got = browser.js(ASK)
            ids, seconds = native(compiled, prompt)
            assert got["ids"] == ids, "the page draws other ids"
            ours.append(TOKENS / got["seconds"])
            theirs.append(TOKENS / seconds)
        browser.close()
        if len(sys.argv) > 1:
            times = beside_wllama(Path(folder), Path(sys.argv[1]), page)
    took, share = (
        statistics.median(opens),
        statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    )
    wasm, speeds = len(gzip.decompress(RUNTIME.read_bytes())), f"{statistics.median(ours):.0f} tokens/s"
    print(f"page: {sizes[0] / 1e6:.1f} MB ({sizes[1] / 1e6:.1f} allowed)")
    print(f"WebAssembly: {wasm / 1e3:.0f} kB (350 allowed)")
    print(f"opens in {took:.2f} s (2 allowed)")
    print(f"writes {speeds}, native {statistics.median(theirs):.0f}: {share:.2f} of it (0.5 needed)")
    return int(times < 2 or sizes[0] > sizes[1] or wasm > 350_000 or took > 2 or share < 0.5)


if __name__ == "__main__":
    raise SystemExit(main())
