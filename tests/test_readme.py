"""README holds what it says: its map is the tree, the op that it walks through is the source's, and the
Portuguese README has the same headings, commands, outputs and figures."""

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PORTUGUESE = (ROOT / "README.pt-BR.md").read_text(encoding="utf-8")
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


def test_the_largest_files_are_named_with_their_lines():
    section = README.split("\n### The largest files\n")[1].split("\n#")[0]
    named = {
        path: int(lines) for path, lines in re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", section, re.MULTILINE)
    }
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in tree()}
    large = {path for path, n in lines.items() if n >= 400 and path.startswith(("npgpt/", "csrc/"))}
    assert large == set(named)
    for path, said in named.items():
        assert abs(lines[path] - said) <= said / 20, path


QUOTED = re.findall(r"^# ([\w/.]+).*\n(.+)$", block_under("How one op is written"), re.MULTILINE)


@pytest.mark.parametrize("file, line", QUOTED, ids=[file for file, _ in QUOTED])
def test_the_op_that_is_shown_is_the_source(file, line):
    assert line in (ROOT / file).read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------------------- in Portuguese


def sections(readme: str) -> list[str]:
    """The parts that begin with a heading, without the head of the page."""
    return re.split(r"^(?=##+ )", FENCED.sub("", readme), flags=re.MULTILINE)[1:]


FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADINGS = [section.splitlines()[0] for section in sections(README)]
PAIRS = list(zip_longest(sections(README), sections(PORTUGUESE), fillvalue=""))


def code(readme: str) -> list[str]:
    """The fenced blocks as far as no translation may touch them: without comments; of the map the names."""
    blocks = [re.sub(r"(^|  )# .*", "", block, flags=re.MULTILINE) for block in FENCED.findall(readme)]
    return [
        str([sorted(names) for names in on_the_map(block[3:-3])]) if "├──" in block else block
        for block in blocks
    ]


def test_both_have_the_same_headings():
    levels = [
        [re.match("#+", section).group() for section in sections(text)] for text in (README, PORTUGUESE)
    ]
    assert levels[0] == levels[1], "README.md and README.pt-BR.md differ in number or level of headings"


def test_both_have_the_same_commands_and_outputs():
    english, portuguese = code(README), code(PORTUGUESE)
    for n, (ours, theirs) in enumerate(zip_longest(english, portuguese, fillvalue="(none)"), 1):
        assert theirs == ours, f"block {n} of README.pt-BR.md is not that of README.md (comments apart)"


@pytest.mark.parametrize("english, portuguese", PAIRS, ids=HEADINGS)
@pytest.mark.parametrize(
    "what, pattern",
    [
        ("figures", r"\d[\d.,]*\d|\d"),
        ("words in code", r"`[^`]+`"),
        ("links", r"\]\([^)]+\)"),
        ("table rows and points", r"^(?:\||- |\d\. )"),
    ],
)
def test_both_have_the_same(what, pattern, english, portuguese):
    ours, theirs = (
        Counter(" ".join(found.split()) for found in re.findall(pattern, text, re.MULTILINE))
        for text in (english, portuguese)
    )
    assert theirs == ours, (
        f"{what}: README.pt-BR.md lacks {dict(ours - theirs)}, and alone has {dict(theirs - ours)}"
    )
