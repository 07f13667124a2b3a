"""Who may import whom: a layer of npgpt knows only those below it, and no two modules need each other."""

import ast
import sys
from pathlib import Path

import pytest

from tests import structure
from tests.structure import COMMANDS

ROOT = Path(__file__).parents[1]
BELOW_TRAINING = {"engine", "distributed", "text", "interop", "runtime"}

# package or module -> what of npgpt it may import besides itself. `engine.types` is that one file alone.
MAY_IMPORT = {
    "version": set(),
    "engine": set(),
    "distributed": {"engine"},
    "text": {"engine.kernels", "engine.names", "engine.notebooks", "engine.types", "distributed"},
    "interop": {"engine", "text"},
    "runtime": {"engine", "text"},
    "training": {*BELOW_TRAINING, "version"},
    "explaining": {"engine", "text", "runtime"},
    "console": {*BELOW_TRAINING, "training", "explaining", "version"},
    "measure": {*BELOW_TRAINING, "version"},
    "server": {"runtime", "text", "engine.disk", "engine.locks", "engine.names", "engine.types"},
    "api": {*BELOW_TRAINING, "training", "explaining", "console"},
    "compat": {*BELOW_TRAINING, "training", "explaining", "console", "api"},
    "__init__": {"api", "compat", "console", "engine", "text", "version"},  # by name and lazily
    "__main__": {"console", "engine.names"},  # finds the commands by name
    **{
        command: {*BELOW_TRAINING, "training", "explaining", "measure", "console", "server", "api", "version"}
        for command in COMMANDS
    },
}
OUTSIDE = {"numpy", "tqdm", "cffi"}  # what `pip install npgpt` brings
ENGINE_OUTSIDE = {"numpy"}
SERVER = {"starlette", "uvicorn"}  # a package that its own command alone imports, inside a function
EXTRAS = {  # file -> what it may import besides, inside a function
    "compat/transformers.py": {"torch"},
    "console/locale/make.py": {"polib"},
    "console/report.py": {"matplotlib"},
    "distributed/mpi.py": {"mpi4py"},
    "measure/decoding.py": {"ctranslate2", "xllamacpp"},
    "measure/serving.py": {"xllamacpp"},
    "measure/tokenizing.py": {"tiktoken", "tokenizers"},
    "measure/training.py": {"torch"},
    "interop/hub.py": {"huggingface_hub"},
    "interop/pickle_file.py": {"torch"},
    "interop/tensorflow.py": {"tensorflow"},
    "text/chat_worker.py": {"jinja2"},
    "text/forms/markup.py": {"pypdf"},
}
FILES = structure.files(ROOT)


# files that only those load who have what these import
FOR_OTHERS = {"compat/lm_eval.py": {"lm_eval"}}


def inside(path: Path) -> Path:
    return path.relative_to(structure.package(ROOT))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(inside(path)))
def test_a_file_imports_only_what_its_layer_may(path):
    file = inside(path)
    here = file.parts[0] if len(file.parts) > 1 else file.stem
    assert here in MAY_IMPORT, f"{file} is in no known layer"
    for module, in_function in structure.imports(path, ROOT):
        top, *rest = module.split(".")
        if module == "npgpt._kernels":
            assert file == Path("engine/kernels.py"), f"{file} imports _kernels; engine/kernels.py alone may"
        elif top == "npgpt":
            assert rest, f"{file} imports npgpt itself, which is for its users"
            allowed = MAY_IMPORT[here] | {here}
            assert rest[0] in allowed or ".".join(rest[:2]) in allowed, f"{file} may not import {module}"
            assert (here, rest[0]) != ("api", "console") or in_function, "import npgpt loads no console"
        elif top not in sys.stdlib_module_names:
            allowed = ENGINE_OUTSIDE if here == "engine" else OUTSIDE | EXTRAS.get(file.as_posix(), set())
            allowed = allowed | SERVER if here == "server" else allowed
            allowed = allowed | FOR_OTHERS.get(file.as_posix(), set())
            assert top in allowed, f"{file} imports {top}, which npgpt does not bring"
            assert top not in EXTRAS.get(file.as_posix(), ()) or in_function, f"{file} needs {top} to load"
        else:
            assert (here, top) != ("engine", "gettext"), f"{file} imports gettext"


def test_no_two_modules_import_each_other():
    assert structure.circles(ROOT) == []


def test_no_module_imports_a_layer_above():
    assert structure.upward(ROOT) == []


def test_what_computes_prints_nothing():
    for path in FILES:  # distributed does, where it ends all processes
        if inside(path).parts[0] in BELOW_TRAINING - {"distributed"} | {"training", "explaining", "server"}:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
                assert name != "print", f"{inside(path)} prints in line {node.lineno}"


def test_functions_and_classes_are_short():
    assert structure.long_functions(ROOT) == []
    assert [name for _, name, _ in structure.long_classes(ROOT)] == ["GPT"]  # the engine's
