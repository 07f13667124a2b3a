"""The examples in docstrings are what happens, and all of them are run."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import npgpt

EXTRAS = {"lm_eval", "starlette", "uvicorn"}
ROOT = Path(npgpt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    try:
        module = import_module(".".join(part for part in parts if part != "__init__"))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"needs {error.name}")
    tests = doctest.DocTestFinder().find(module)
    written = sum(line.lstrip().startswith(">>>") for line in path.read_text(encoding="utf-8").splitlines())
    assert sum(len(test.examples) for test in tests) == written, "an example that doctest does not find"
    assert not doctest.testmod(module).failed, "what they give is above"
