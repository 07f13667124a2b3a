"""`python tests/structure.py [TREE]`: circles, imports upward, long functions, docstrings, size of README.

It reads the source alone, so it can count any tree. tests/test_layers.py holds this one to the figures.
Before and after: `git worktree add ../before b7b067b`, then this on `../before` and on this tree.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LONG_FUNCTION, LONG_CLASS = 60, 300  # lines
FRAGMENT = re.compile(r"(Of|As|What|Whether)\b")  # how a docstring begins that leans on the signature

COMMANDS = {
    "train",
    "prepare",
    "tune",
    "evaluate",
    "compare",
    "generate",
    "bench",
    "export",
    "embed",
    "serve",
    "finetune",
    "chat",
    "explain",
}
LAYERS = [  # from the lowest up
    {"version"},
    {"engine"},
    {"distributed"},
    {"text"},
    {"interop", "runtime"},
    {"training", "server", "measure", "explaining"},
    {"console"},
    {"api"},
    {"compat"},
    {"__init__", "__main__", *COMMANDS},
]
FORMER_LAYERS = [  # of version 0.1.0, as its own test has them
    {"engine"},
    {"language"},
    {"text"},
    {"interop", "runtime"},
    {"training"},
    {"server"},
    {"api", "cli"},
    {"__init__", "__main__", "locale", *COMMANDS},
]


class Import(NamedTuple):
    """One import statement of a file: 'npgpt.text.dataset' or 'numpy'; whether it stands in a function."""

    module: str
    in_function: bool


def package(tree: Path) -> Path:
    return tree / "npgpt"


def files(tree: Path) -> list[Path]:
    return sorted(package(tree).rglob("*.py"))


def module_of(path: Path, tree: Path) -> str:
    """npgpt/text/dataset.py -> npgpt.text.dataset"""
    parts = path.relative_to(tree).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, tree: Path) -> Iterator[Import]:
    """Every import of a file, those in functions and those for type checkers alone too."""
    source = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(source) if isinstance(node, FUNCTIONS)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, id(node) in inside)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            assert node.module
            for alias in node.names:
                target = tree.joinpath(*node.module.split("."), alias.name)
                is_module = target.with_suffix(".py").exists() or target.is_dir() or alias.name == "_kernels"
                name = f"{node.module}.{alias.name}" if is_module else node.module
                yield Import(name, id(node) in inside)


def graph(tree: Path) -> dict[str, set[str]]:
    """module of npgpt -> the modules of npgpt that it imports."""
    names = {module_of(path, tree) for path in files(tree)}
    found: dict[str, set[str]] = {}
    for path in files(tree):
        module = module_of(path, tree)
        found[module] = {name for name, _ in imports(path, tree) if name in names} - {module}
    return found


def circles(tree: Path) -> list[list[str]]:
    """The sets of modules that import one another, directly or by others (Tarjan 1972)."""
    edges, index, low = graph(tree), {}, {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            circle = []
            while not circle or circle[-1] != module:
                circle.append(stack.pop())
            if len(circle) > 1:
                found.append(sorted(circle))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return found


def pairs(tree: Path) -> list[tuple[str, str]]:
    """The pairs of modules that import each other."""
    edges = graph(tree)
    return sorted((a, b) for a in edges for b in edges[a] if a < b and a in edges[b])


def layer(module: str) -> str:
    """npgpt.text.dataset -> text"""
    return module.split(".")[1] if "." in module else "__init__"


def upward(tree: Path) -> list[tuple[str, str]]:
    """(module, what it imports) of every import of a layer above."""
    layers = LAYERS if (package(tree) / "console").exists() else FORMER_LAYERS
    height = {name: n for n, names in enumerate(layers) for name in names}
    return sorted(
        (module, other)
        for module, others in graph(tree).items()
        for other in others
        if height[layer(other)] > height[layer(module)]
    )


def docstrings(tree: Path) -> Iterator[str]:
    """The docstrings of all modules, classes and functions."""
    for path in files(tree):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | FUNCTIONS) and (text := ast.get_docstring(node)):
                yield text


def sentences(page: str) -> list[str]:
    """The sentences of a Markdown page: no code, tables, headings or comments."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"^(\||#|\s*<!--).*$", "", page, flags=re.MULTILINE)
    page = re.sub(r"\]\([^)]*\)", "]", page)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))", page)
    found = [s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+", " ".join(p.split()))]
    return [s for s in found if re.search(r"\w{2}", s)]


def long_functions(tree: Path) -> list[tuple[str, str, int]]:
    """(file, function, lines) of those with more than LONG_FUNCTION lines."""
    return _long(tree, FUNCTIONS, LONG_FUNCTION)


def long_classes(tree: Path) -> list[tuple[str, str, int]]:
    """(file, class, lines) of those with more than LONG_CLASS lines."""
    return _long(tree, ast.ClassDef, LONG_CLASS)


def _long(tree: Path, kinds: Any, limit: int) -> list[tuple[str, str, int]]:
    found = []
    for path in files(tree):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (lines := node.end_lineno - node.lineno + 1) > limit:
                found.append((str(path.relative_to(tree)), node.name, lines))
    return found


def main() -> None:
    tree = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    readme = (tree / "README.md").read_text(encoding="utf-8")
    imports_up = upward(tree)
    rows = {
        "circles": circles(tree),
        "pairs that import each other": pairs(tree),
        "imports of a layer above": imports_up,
        "arrows up between layers": sorted({(layer(a), layer(b)) for a, b in imports_up}),
        f"functions over {LONG_FUNCTION} lines": long_functions(tree),
        f"classes over {LONG_CLASS} lines": long_classes(tree),
    }
    for what, found in rows.items():
        print(f"{what}: {len(found)}")
        for one in found:
            print("   ", *one)
    texts = list(docstrings(tree))
    fragments = sum(bool(FRAGMENT.match(text)) for text in texts)
    print(f"docstrings: {len(texts)}, of which {fragments} begin with Of, As, What or Whether")
    print(f"README.md: {len(readme.splitlines())} lines, {len(readme.split())} words")
    lengths = [len(sentence.split()) for sentence in sentences(readme)]
    print(f"its prose: {sum(lengths) / len(lengths):.1f} words a sentence")


if __name__ == "__main__":
    main()
