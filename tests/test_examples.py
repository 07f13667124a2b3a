"""The examples in docstrings are what happens."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import npgpt

EXTRAS = {"starlette", "uvicorn"}
MODULES = [
    module.name for module in pkgutil.walk_packages(npgpt.__path__, "npgpt.") if "_kernels" not in module.name
]


@pytest.mark.parametrize("name", ["npgpt", *MODULES])
def test_examples(name):
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"needs {error.name}")
    failed, _ = doctest.testmod(module)
    assert not failed, "what they give is above"
