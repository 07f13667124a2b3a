"""What type checkers read is what is there: _kernels.pyi and the head of the package."""

import ast
import inspect
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import ops

kernels = pytest.importorskip("npgpt._kernels", reason="the kernels are not built")


def arguments(function: ast.FunctionDef) -> list[str]:
    """As pybind11 shows them: names without one are arg0, arg1, ..."""
    unnamed = [f"arg{i}" for i in range(len(function.args.posonlyargs))]
    return unnamed + [a.arg for a in function.args.args if a.arg != "self"]


def compiled_arguments(function) -> list[str]:
    signature = function.__doc__.split("\n")[0]
    return arguments(ast.parse(f"def {signature}: ...").body[0])


def functions(where) -> dict[str, list[str]]:
    found = {name: f for name, f in vars(where).items() if callable(f) and not inspect.isclass(f)}
    return {name: compiled_arguments(f) for name, f in found.items() if name[0] != "_"}


def test_the_stub_has_what_the_compiled_module_has():
    stub = ast.parse(Path(npgpt.__file__).with_name("_kernels.pyi").read_text(encoding="utf-8"))
    of_ops = [n.name for s in stub.body if isinstance(s, ast.ImportFrom) for n in s.names if n.asname]
    told = {name: list(inspect.signature(getattr(ops, name)).parameters) for name in of_ops}
    told |= {f.name: arguments(f) for f in stub.body if isinstance(f, ast.FunctionDef)}
    assert told == functions(kernels)
    values = {s.target.id for s in stub.body if isinstance(s, ast.AnnAssign)}
    assert values == {n for n, v in vars(kernels).items() if isinstance(v, int)} | {"__version__", "UNPACKED"}
    for told in (s for s in stub.body if isinstance(s, ast.ClassDef)):
        methods = {f.name: arguments(f) for f in told.body if f.name[0] != "_"}
        assert methods == functions(getattr(kernels, told.name))


def test_type_checkers_see_the_names_of_the_package():
    imported = ast.parse(Path(npgpt.__file__).read_text(encoding="utf-8"))
    block = next(s for s in imported.body if isinstance(s, ast.If))
    seen = {name.name: s.module for s in block.body for name in s.names}
    assert seen == npgpt._HOME | {"text": "npgpt"}
    assert set(npgpt.__all__) == {*seen, "__version__"}
