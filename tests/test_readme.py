"""README holds what it says: its map is the tree, and the op that it walks through is the source's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUILT = ("npgpt/lib/", "npgpt/include/")  # by setup.py, in place
SOURCE = (".py", ".pyi", ".cpp", ".h", ".inl", ".c", ".html", ".sh")


TESTS = {path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("*.py")}


def block_under(heading: str, readme: str = README) -> str:
    """The first fenced block of the section."""
    return readme.split(f"\n## {heading}\n")[1].split("```")[1]


def tree() -> set[str]:
    """Every source file of the rooms, '__init__.py' apart; tests/ is named by its folders."""
    rooms = [ROOT / room for room in ("npgpt", "csrc", "benchmarks", "examples")]
    files = [path for room in rooms for path in room.rglob("*") if path.suffix in SOURCE]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    return {name for name in names if not name.startswith(BUILT)}


def on_the_map(block: str) -> tuple[set[str], set[str]]:
    """The paths that head a line of the map, and those named in its clauses, in the folder of the line."""
    heads, named, folders = set(), set(), []
    for line in block.strip().splitlines():
        drawn, entry = re.match(r"([│├└─ ]*)(.*)", line).groups()
        folders = folders[: len(drawn) // 4]
        first = entry.split()[0]
        if "/" in first:
            folders.append(first if first.endswith("/") else first.rpartition("/")[0] + "/")
        in_head = True
        for column in re.split(" {2,}", entry):
            words = [word.rpartition("/")[2] for word in re.findall(r"[\w/.]*[\w/]", column)]
            in_head = in_head and all(word == "" or word.endswith(SOURCE) for word in words)
            paths = {"".join(folders) + word for word in words if word.endswith(SOURCE)}
            (heads if in_head else named).update(paths)
    return heads, named


def test_the_map_is_the_tree():
    found = tree()
    heads, named = on_the_map(block_under("The map"))
    lacking, gone = sorted(found - heads - named), sorted(heads - found - {f"tests/{path}" for path in TESTS})
    assert not lacking, f"the map in README lacks a clause for {lacking}"
    assert not gone, f"the map in README names what is not there: {gone}"
    there = {path.rpartition("/")[2] for path in found | TESTS} | {"report.html", "llama.cpp"}
    gone = sorted(path for path in named if path.rpartition("/")[2] not in there)
    assert not gone, f"a clause of the map in README mentions what is not there: {gone}"


def test_the_map_names_the_folders_of_the_tests_that_mirror_no_room():
    rooms = {path.name for path in (ROOT / "npgpt").iterdir()}
    folders = {path.rpartition("/")[0] for path in TESTS} - {""} - rooms
    clause = block_under("The map").split("\ntests/")[1].split("\nbenchmarks/")[0]
    assert folders == set(re.findall(r"(\w+)/", clause))


QUOTED = re.findall(r"^# ([\w/.]+).*\n(.+)$", block_under("How one op is written"), re.MULTILINE)


@pytest.mark.parametrize("file, line", QUOTED, ids=[file for file, _ in QUOTED])
def test_the_op_that_is_shown_is_the_source(file, line):
    assert line in (ROOT / file).read_text(encoding="utf-8").splitlines()
