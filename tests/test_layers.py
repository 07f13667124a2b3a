"""Who may import whom: the rooms of npgpt know only what is below them."""

import ast
import sys
from pathlib import Path

import pytest

import npgpt

PACKAGE = Path(npgpt.__file__).parent
DOORS = {"train", "tune", "evaluate", "generate", "bench", "export", "embed", "serve", "finetune", "chat"}

# room -> what of npgpt it may import. `engine.kernels` stands for that one file of the room.
MAY_IMPORT = {
    "engine": {"engine", "language"},
    "text": {"text", "engine.kernels", "engine.types", "language"},
    "interop": {"interop", "engine", "text"},
    "training": {
        "training",
        "engine",
        "text",
        "interop",
        "language",
        "__init__",
    },  # __init__: the version, for config.toml
    "runtime": {"runtime", "engine", "text"},
    "server": {"server", "runtime", "text", "engine.types"},
    "__init__": {"api", "engine", "text"},  # by name and lazily
    "api": {"engine", "text", "interop", "training", "runtime"},
    "cli": {"engine", "language"},
    "language": set(),
    "locale": set(),  # make.py, a tool
    "__main__": {"language"},  # opens the doors by name
    **{
        door: {"__init__", "api", "cli", "engine", "language", "text", "training", "interop"}
        for door in DOORS
    },
    "serve": {"__init__", "cli", "engine.kernels", "engine.types", "interop", "runtime", "server"},
}
OUTSIDE = {"numpy", "safetensors", "tqdm", "cffi"}  # what `pip install npgpt` brings
ENGINE_OUTSIDE = {"numpy"}
SERVER = {"starlette", "uvicorn"}  # a room that its own door alone opens, inside a function
EXTRAS = {  # file -> what it may import besides, inside a function
    "api.py": {"torch"},
    "interop/hub.py": {"huggingface_hub"},
    "interop/pytorch.py": {"torch"},
    "interop/tensorflow.py": {"tensorflow"},
    "training/distributed.py": {"mpi4py"},
    "training/report.py": {"matplotlib"},
}


def imports(path: Path):
    """Every module that a file imports, at its head or inside a function: 'npgpt.text.data', 'numpy', ...

    What it imports for type checkers alone, no import of the program brings.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            for alias in node.names:
                inside = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inside.with_suffix(".py").exists() or inside.is_dir() or alias.name == "_kernels"
                yield f"{node.module}.{alias.name}" if is_module else node.module


def room(module: str) -> str:
    """'npgpt.text.data' -> 'text', 'npgpt' -> '__init__'."""
    return module.split(".")[1] if "." in module else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_walls(path):
    inside = path.relative_to(PACKAGE)
    here = inside.parts[0] if len(inside.parts) > 1 else inside.stem
    assert here in MAY_IMPORT, f"{inside} is in no room that DESIGN knows"
    for module in imports(path):
        top = module.split(".")[0]
        if module == "npgpt._kernels":
            assert inside == Path("engine/kernels.py"), (
                f"{inside} imports _kernels; engine/kernels.py alone may"
            )
        elif top == "npgpt":
            file = ".".join(module.split(".")[1:3])  # room.file
            allowed = MAY_IMPORT[here]
            assert room(module) in allowed or file in allowed, f"{inside} may not import {module}"
        elif top not in sys.stdlib_module_names:
            allowed = ENGINE_OUTSIDE if here == "engine" else OUTSIDE | EXTRAS.get(inside.as_posix(), set())
            allowed = allowed | SERVER if here == "server" else allowed
            assert top in allowed, f"{inside} imports {top}, which npgpt does not bring"


def test_extras_are_imported_in_functions_alone():
    for name, extras in EXTRAS.items():
        heads = ast.Module(ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body, [])
        at_head = {alias.name for node in heads.body if isinstance(node, ast.Import) for alias in node.names}
        at_head |= {node.module for node in heads.body if isinstance(node, ast.ImportFrom)}
        assert not extras & at_head


def test_nobody_imports_a_door():
    for path in FILES:
        for module in imports(path):
            assert room(module) not in DOORS or not module.startswith("npgpt."), f"{path} imports {module}"
