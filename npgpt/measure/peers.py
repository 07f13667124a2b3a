"""What is measured, and who takes part.

`python -m npgpt.measure.peers PART CASE NAME THREADS [FILE]` is one contender: it answers each line of stdin
with the samples of a turn.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

from npgpt.engine import kernels
from npgpt.measure import decoding, serving, tokenizing, training
from npgpt.measure.contender import Work, answer

PACKAGES = {  # contender -> what it is imported as
    "NumPy": "numpy",
    "PyTorch": "torch",
    "llama.cpp": "xllamacpp",
    "CTranslate2": "ctranslate2",
    "tiktoken": "tiktoken",
    "tokenizers": "tokenizers",
}


class Part(NamedTuple):
    """One of the things that are measured."""

    cases: Iterable[str]
    work: Callable[[str, str, Path | None], Work]  # of a case, a contender, and its file
    peers: tuple[str, ...]  # beside npgpt, where they are installed
    gflop: Callable[[str], float] | None = (
        None  # of a case: what each unit of its rate takes, where that limits
    )
    needs: tuple[str, ...] = ()  # what npgpt itself cannot do it without
    model: Mapping[str, str] = MappingProxyType({})  # the type of the file that a case's contenders read


COMPILED = "the kernels, which are not built"
PARTS = {
    "products": Part(training.PRODUCTS, training.product, ("NumPy",), lambda case: 1.0),
    "training": Part(training.STEPS, training.steps, ("PyTorch",), training.gflop_per_token),
    "decoding": Part(
        decoding.CASES,
        decoding.work_of,
        ("llama.cpp", "CTranslate2"),
        needs=(COMPILED,),
        model=decoding.CASES,
    ),
    "tokenizing": Part(tokenizing.CASES, tokenizing.work_of, ("tiktoken", "tokenizers")),
    "serving": Part(
        serving.CASES,
        serving.work_of,
        ("llama.cpp",),
        needs=(COMPILED, "starlette", "uvicorn"),
        model=serving.CASES,
    ),
}


def missing(part: str) -> list[str]:
    """Return what a part needs and is not here."""
    compiled = kernels.name() != "numpy"
    return [name for name in PARTS[part].needs if not (compiled if name == COMPILED else _installed(name))]


def contenders(part: str) -> list[str]:
    """Return npgpt, and those of a part's peers that are installed."""
    return ["npgpt", *(name for name in PARTS[part].peers if _installed(PACKAGES[name]))]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextmanager
def file(part: str, case: str) -> Iterator[Path | None]:
    """Yield the file that the contenders of a case read, while the block runs; None where they need none."""
    type = PARTS[part].model.get(case)
    if not type:
        yield None
        return
    with TemporaryDirectory(prefix="npgpt-bench-") as folder:
        path = Path(folder) / f"{type}.gguf"
        decoding.write_model(path, type)
        yield path


def main() -> None:
    """Answer with the samples of a turn, {measure: numbers}, until stdin ends."""
    part, case, name, threads, *path = sys.argv[1:]
    kernels.set_num_threads(int(threads))
    work = PARTS[part].work(case, name, Path(*path) if path else None)
    try:
        answer(lambda line: work.digest if line == "digest" else work.turn())
    finally:
        work.close()


if __name__ == "__main__":
    main()
