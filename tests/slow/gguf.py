"""`python tests/slow/gguf.py [--minutes 60]`: libnpgpt's reader of GGUF files under libFuzzer.

With ASan and UBSan; needs clang. Begins with valid files of every type and with what was found before. What
it finds lies in the working folder as crash-*: repair the reader, then keep the file as
tests/fuzz/corpus/gguf-NAME, which test_findings.py reads.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import npgpt  # noqa: E402
from npgpt.engine.config import Rope  # noqa: E402
from npgpt.interop import blocks  # noqa: E402
from npgpt.interop.gguf import TYPES, write_gguf  # noqa: E402
from npgpt.text.tokenizer import BPETokenizer  # noqa: E402
from tests.fuzz.targets import llama_tokenizers  # noqa: E402
from tests.gguf_files import llama_file  # noqa: E402
from tests.models import LLAMA, random_model  # noqa: E402

FLAGS = (
    "-g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -pthread"
)


def write_seeds(folder: Path) -> None:
    """Small files of each type and architecture, and with a tokenizer."""
    for type in TYPES:
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32 if type.startswith("q") else 4, "block_size": 12}
        write_gguf(folder / f"ids-{type}", npgpt.GPT(npgpt.GPTConfig(vocab_size=5, **sizes)), None, type)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 4}
    model = npgpt.GPT(npgpt.GPTConfig(vocab_size=264, window=2, **sizes))
    for name, tokenizer in (("bpe", BPETokenizer.train([b"abc abd abe " * 9], 260)), ("own", None)):
        write_gguf(folder / name, model, tokenizer)
    shape = LLAMA | {
        "n_layer": 1,
        "n_head": 1,
        "head_size": 2,
        "n_inner": 2,
        "vocab_size": 5,
        "block_size": 12,
    }
    ropes = {"plain": Rope(), "linear": Rope(1e4, "linear", 2.0), "llama3": Rope(1e4, "llama3", 4.0)}
    for name, rope in ropes.items():
        file = llama_file(random_model(**shape | {"rope": rope, "n_embd": 8, "bias": True}))
        file.write(folder / f"llama-{name}")
    words = "attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "token_embd"
    for type, of in blocks.TYPES.items():
        model = random_model(**shape | {"n_embd": max(8, of.n), "tied": of.n == 256})
        llama_file(model, **dict.fromkeys(words, type)).write(folder / f"llama-{type}")
    for n, tokenizer in enumerate(llama_tokenizers()):
        write_gguf(
            folder / f"llama-tokens-{n}", npgpt.GPT(npgpt.GPTConfig(vocab_size=12, **sizes)), tokenizer
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder to go on with, and to leave what was found in")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "seeds").mkdir()
        write_seeds(out / "seeds")
        subprocess.run([sys.executable, ROOT / "csrc/amalgamate.py", out], check=True)
        sources = out / "npgpt.cpp", ROOT / "tests/fuzz/gguf.cpp"
        subprocess.run(
            ["clang++", "-std=c++17", *FLAGS.split(), f"-I{out}", *sources, "-o", out / "fuzz"], check=True
        )
        corpus = args.corpus or out / "corpus"
        corpus.mkdir(exist_ok=True)
        how = [
            f"-max_total_time={args.minutes * 60:.0f}",
            f"-seed={args.seed}",
            "-max_len=16384",
            "-timeout=900",
        ]
        how += ["-malloc_limit_mb=64", "-rss_limit_mb=2048", "-print_final_stats=1"]
        run = subprocess.run([out / "fuzz", *how, corpus, out / "seeds", ROOT / "tests/fuzz/corpus"])
    if not run.returncode:
        print(f"{args.minutes:g} minutes: nothing was found")
    return run.returncode


if __name__ == "__main__":
    raise SystemExit(main())
