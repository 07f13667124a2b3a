"""npgpt: GPTs on ordinary CPUs, with NumPy and C++ kernels of its own.

`import npgpt` is fast: the module of a public name is imported when the name is first used.

>>> import numpy as np, npgpt
>>> tokenizer = npgpt.text.tokenizer.ByteTokenizer()
>>> ids = tokenizer.encode("ah, o mar! ") [None]  # (1,T)
>>> model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=257))
>>> optimizer = npgpt.AdamW(model, lr=0.01)
>>> for step in range(100):
...     loss = model.forward(ids[:, :-1], targets=ids[:, 1:])
...     model.backward()
...     norm = optimizer.step(max_grad_norm=1.0)
>>> model.generate("ah,", max_new_tokens=7, temperature=0)
' o mar!'
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from npgpt.version import __version__

if TYPE_CHECKING:
    from npgpt import text
    from npgpt.api import GPT, load
    from npgpt.compat.article import ModelEngine, Train
    from npgpt.compat.transformers import GPT2LMHeadModel, GPT2Tokenizer
    from npgpt.console.comparison import compare
    from npgpt.engine.config import GPTConfig, preset
    from npgpt.engine.kernels import set_num_threads
    from npgpt.engine.optim import AdamW, Muon
    from npgpt.text.dataset import Dataset

NEEDED = "numpy", "cffi", "tqdm"


def _refuse(what: str) -> None:
    """Refuse this Python in one line: often it is not the one of the virtual environment."""
    line = "npgpt: this is Python {}.{}, {}: {}".format(*sys.version_info[:2], sys.executable, what)
    line += "; activate the virtual environment of npgpt, or install it: pip install -e . in the source tree"
    if sys.argv[0] == "-m":  # python -m npgpt.train: the command itself is imported after this
        print(line, file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(line)


if sys.version_info < (3, 11):  # noqa: UP036 - the source tree may be used by any Python
    _refuse("npgpt needs 3.11 or newer")
if sys.argv[0] == "-m":
    _lacking = [name for name in NEEDED if find_spec(name) is None]
    if _lacking:
        _refuse("it has no " + ", ".join(_lacking))

_HOME = {
    "GPT": "npgpt.api",
    "GPT2LMHeadModel": "npgpt.compat.transformers",
    "GPT2Tokenizer": "npgpt.compat.transformers",
    "ModelEngine": "npgpt.compat.article",
    "Train": "npgpt.compat.article",
    "load": "npgpt.api",
    "compare": "npgpt.console.comparison",
    "GPTConfig": "npgpt.engine.config",
    "preset": "npgpt.engine.config",
    "AdamW": "npgpt.engine.optim",
    "Muon": "npgpt.engine.optim",
    "set_num_threads": "npgpt.engine.kernels",
    "Dataset": "npgpt.text.dataset",
}

__all__ = [
    "GPT", "AdamW", "Dataset", "GPT2LMHeadModel", "GPT2Tokenizer", "GPTConfig", "ModelEngine", "Muon",
    "Train", "__version__", "compare", "load", "preset", "set_num_threads", "text",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import and return a public name at its first use."""
    if name == "text":
        return import_module("npgpt.text")
    if name not in _HOME:
        raise AttributeError(f"module 'npgpt' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name in NEEDED:
            _refuse(f"it has no {error.name}")
        raise


def __dir__() -> list[str]:
    """Return the public names, those not imported yet included."""
    return __all__
