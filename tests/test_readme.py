"""The pages say what is so: README and docs/ name files, commands and flags that are there.

The code that README shows runs, the op that design.md walks through is the source's, and a page and its
Portuguese twin have the same headings, commands, links and tables.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections import Counter
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

import pytest

from tests import structure
from tests.test_layers import COMMANDS, MAY_IMPORT

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"^<!-- figures: .*?^<!-- /figures -->$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
}
README, DESIGN = PAGES["README.md"], PAGES["docs/design.md"]
TWINS = {"README.md": "README.pt-BR.md"} | {
    page.replace("docs/pt/", "docs/"): page for page in PAGES if re.fullmatch(r"docs/pt/(?!index).*", page)
}


def block_under(heading: str, page: str) -> str:
    """The first fenced block of the section."""
    return page.split(f"\n## {heading}\n")[1].split("```")[1]


def code(page: str, language: str) -> list[str]:
    """What stands in the fenced blocks of a language that are written by hand."""
    blocks = FENCED.findall(GENERATED.sub("", page))
    return [block.split("\n", 1)[1][:-3] for block in blocks if block.split("\n")[0] == f"```{language}"]


@pytest.mark.parametrize("page", ["README.md", "README.pt-BR.md"])
def test_readme_is_short(page):
    assert len(PAGES[page].splitlines()) <= 180


# ---------------------------------------------------------------------------- files and layers


def folders_of(tree: str) -> set[str]:
    """The folders that head a line of a drawn tree, and those that the line of tests/ names."""
    found, top = set(), ""
    for line in tree.strip().splitlines():
        drawn, name, clause = re.fullmatch(r"([├└─ ]*)([\w.]+/) +(.*)", line).groups()
        top = top if drawn else name
        found.add(top + name if drawn else name)
        if name == "tests/":
            found |= {name + folder for folder in re.findall(r"\b(\w+/)(?= |$)", clause)}
    return found


def folders() -> set[str]:
    """The top folders, those of npgpt/ and csrc/, and those of tests/ that mirror none of npgpt/."""

    def below(folder: Path, hidden: str) -> set[str]:
        found = [path for path in folder.iterdir() if path.is_dir() and not re.match(hidden, path.name)]
        return {
            path.relative_to(ROOT).as_posix() + "/" for path in found if any(map(is_source, path.iterdir()))
        }

    def is_source(path: Path) -> bool:
        return path.suffix in {".py", ".cpp", ".h", ".inl", ".c", ".md", ".txt", ".sh"}

    built = r"[._]|build$|dist$|runs$|lib$|include$|.*egg-info$"
    tops = below(ROOT, built)
    packages = below(ROOT / "npgpt", built) | below(ROOT / "csrc", built)
    mirrors = {re.sub("^npgpt/", "tests/", folder) for folder in packages}
    return tops | packages | (below(ROOT / "tests", built) - mirrors)


@pytest.mark.parametrize("page, heading", [("README.md", "The tree"), ("README.pt-BR.md", "A árvore")])
def test_the_tree_is_the_tree(page, heading):
    assert folders_of(block_under(heading, PAGES[page])) == folders()


LINKS = [
    (page, link)
    for page, text in PAGES.items()
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    if "://" not in link
]


@pytest.mark.parametrize("page, link", LINKS)
def test_what_a_link_names_is_there(page, link):
    target = (ROOT / page).parent / link
    assert target.exists(), f"{page} links to {link}, which is not there"


def test_the_anchors_of_links_are_headings():
    for page, text in PAGES.items():
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
            target = ((ROOT / page).parent / link if link else ROOT / page).read_text(encoding="utf-8")
            headings = {
                re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", target, re.MULTILINE)
            }
            assert anchor in headings, f"{page} links to {link}#{anchor}"


NAMED = re.compile(r"`((?:npgpt|csrc|tests|benchmarks|docs|examples|\.ci)/[\w./-]*|(?:\w+/)?\w+\.py)`")
PATHS = [(page, path) for page, text in PAGES.items() for path in NAMED.findall(text)]


@pytest.mark.parametrize("page, path", PATHS)
def test_paths_in_prose_are_there(page, path):
    built = ("npgpt/lib", "npgpt/include")  # by setup.py
    there = (ROOT / path).exists() or (ROOT / "npgpt" / path).exists() or path.startswith(built)
    assert there, f"{page} names {path}, which is not there"


def test_every_layer_is_in_the_table_of_the_design():
    table = DESIGN.split("\n## Layers\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `([\w]+)(?:/|\.py)`", table, re.MULTILINE)) | set(COMMANDS)
    assert named == {layer for layer in MAY_IMPORT if not layer.startswith("__")} - {"version"}


QUOTED = re.findall(r"^# ([\w/.]+).*\n(.+)$", block_under("How one op is written", DESIGN), re.MULTILINE)


@pytest.mark.parametrize("file, line", QUOTED, ids=[file for file, _ in QUOTED])
def test_the_op_that_is_shown_is_the_source(file, line):
    assert line in (ROOT / file).read_text(encoding="utf-8").splitlines()


def test_the_op_is_shown_in_each_of_its_places():
    places = ("npgpt/engine/", "csrc/kernels/", "csrc/parallel/", "csrc/python/", "tests/engine/")
    assert all(any(file.startswith(place) for file, _ in QUOTED) for place in places)


# ---------------------------------------------------------------------------- commands


def command_lines(page: str) -> list[str]:
    """Every command that a page gives: lines of sh blocks, and code in prose and tables."""
    text = GENERATED.sub("", page)
    lines = [line for block in code(text, "sh") for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]*(?:python -m npgpt\.|npgpt )[^`\n]*)`", FENCED.sub("", text))


USES = [
    (page, name, flags)
    for page, text in PAGES.items()
    for line in command_lines(text)
    for name, flags in re.findall(r"python -m npgpt\.(\w+)([^&|#$)]*)", line)
]


def help_of(name: str) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        import_module(f"npgpt.{name}").main(["--help"])
    return told.getvalue()


def test_the_commands_of_the_pages_have_these_flags():
    assert USES
    helps = {name: help_of(name) for _, name, _ in USES}
    for page, name, flags in USES:
        for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"\"[^\"]*\"", "", flags)):
            assert re.search(rf"(?<![\w-]){flag}\b", helps[name]), f"{page}: {name} has no {flag}"


def test_every_command_is_in_readme():
    assert {name for page, name, _ in USES if page == "README.md"} == set(COMMANDS)


def test_flags_in_prose_belong_to_some_command():
    every = "".join(help_of(name) for name in COMMANDS)
    for page in ("getting-started", "training", "tasks", "serving", "machines", "formats"):
        text = GENERATED.sub("", FENCED.sub("", PAGES[f"docs/{page}.md"]))
        for flag in re.findall(r"(?<=`)--[a-z][\w-]*", text):
            assert re.search(rf"{flag}\b", every), f"{page}: no command has {flag}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder where README's commands may run: the data and the examples, and a small run under its name."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("data", "examples"):
        (folder / name).symlink_to(ROOT / name)
    run(["-m", "npgpt.train", "data/textosdetreinamento.txt", "--steps", "3"], folder)
    return folder


def variables():
    given = {name: value for name, value in os.environ.items() if not name.startswith("NPGPT_")}
    return given | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def run(words, folder, **more):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=variables(), check=True, timeout=240, **more
    )


def test_what_readme_shows_runs(workplace):
    """The commands of "Use the model" in their order, then its Python; serve only where its extra is."""
    section = README.split("\n## Use the model\n")[1].split("\n## ")[0]
    commands = [line for block in code(section, "sh") for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        words = shlex.split(line.split("&& ")[-1], comments=True)
        assert words[:2] == ["python", "-m"], line
        if words[2] == "npgpt.serve":
            pytest.importorskip("starlette") and pytest.importorskip("uvicorn")
            serve(words[1:], workplace)
        else:
            run(words[1:], workplace, input=b"Bom dia!\n/quit\n")
    for block in code(section, "python"):
        run(["-c", block], workplace)


def serve(words, folder):
    """Start the server, ask it for its health, end it."""
    how = {"cwd": folder, "env": variables(), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *words, "--port", "0"], **how) as server:
        try:
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.:]+", line)))
            with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
                assert answer.status == 200
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.parametrize(
    "block", code(PAGES["docs/python.md"], "python"), ids=lambda block: block.splitlines()[0]
)
def test_the_python_of_the_guide_runs(workplace, block):
    shorter = block.replace("epochs=100", "epochs=1").replace("max_length=200", "max_length=20")
    if not (workplace / "folder").exists():
        run(
            ["-c", 'import npgpt; npgpt.load("runs/textosdetreinamento").save_pretrained("folder")'],
            workplace,
        )
    run(["-c", shorter], workplace)


# ---------------------------------------------------------------------------- language


WORDS_AT_MOST = 20  # in a sentence, on average


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page):
    lengths = [len(sentence.split()) for sentence in structure.sentences(GENERATED.sub("", PAGES[page]))]
    assert not lengths or sum(lengths) / len(lengths) < WORDS_AT_MOST, (
        f"{page}: {sum(lengths) / len(lengths):.1f} words"
    )


# ---------------------------------------------------------------------------- in Portuguese


def sections(page: str) -> list[str]:
    """The parts that begin with a heading, without the head of the page."""
    return re.split(r"^(?=##+ )", FENCED.sub("", GENERATED.sub("", page)), flags=re.MULTILINE)[1:]


def targets(page: str, text: str) -> Counter[str]:
    """Where the links of a text lead, a Portuguese page and its twin being one."""
    found = (
        os.path.normpath(ROOT / Path(page).parent / link) for link in re.findall(r"\]\(([^)#\s]+)\)", text)
    )
    named = (os.path.relpath(path, ROOT) for path in found)
    back = {portuguese: english for english, portuguese in TWINS.items()}
    return Counter(back.get(name, name) for name in named)


def without_comments(block: str) -> str:
    """A fenced block as far as no translation may touch it; of a tree the folders."""
    if "├──" in block:
        return str(sorted(folders_of(block[3:-3])))
    return re.sub(r"(^|  )# .*", "", block, flags=re.MULTILINE)


@pytest.mark.parametrize("page, twin", TWINS.items())
def test_both_have_the_same_headings(page, twin):
    levels = [[re.match("#+", section).group() for section in sections(PAGES[name])] for name in (page, twin)]
    assert levels[0] == levels[1], f"{page} and {twin} differ in number or level of headings"


IN_WORDS = "docs/lesson.md"  # its code has texts in the page's language: see tests/parity/test_lesson.py


@pytest.mark.parametrize("page, twin", [pair for pair in TWINS.items() if IN_WORDS not in pair])
def test_both_have_the_same_blocks(page, twin):
    english, portuguese = (
        [without_comments(block) for block in FENCED.findall(GENERATED.sub("", PAGES[name]))]
        for name in (page, twin)
    )
    for n, (ours, theirs) in enumerate(zip_longest(english, portuguese, fillvalue="(none)"), 1):
        assert theirs == ours, f"block {n} of {twin} is not that of {page} (comments apart)"
    asked = [re.findall(r"<!-- figures: .* -->", PAGES[name]) for name in (page, twin)]
    assert asked[0] == asked[1], f"{page} and {twin} show different figures"


PAIRS = [
    (page, twin, *pair)
    for page, twin in TWINS.items()
    for pair in zip_longest(sections(PAGES[page]), sections(PAGES[twin]), fillvalue="")
]


@pytest.mark.parametrize(
    "page, twin, english, portuguese", PAIRS, ids=[f"{p[0]} {p[2].splitlines()[0]}" for p in PAIRS]
)
def test_both_say_the_same(page, twin, english, portuguese):
    patterns = {
        "figures": r"(?<![\w/])\d[\d.,]*\d|\d",
        "words in code": r"`[^`]+`",
        "table rows and points": r"^(?:\||- |\d\. )",
    }
    text = [re.sub(r"\]\([^)]*\)", "]", part) for part in (english, portuguese)]
    for what, pattern in patterns.items():
        ours, theirs = (
            Counter(" ".join(f.split()) for f in re.findall(pattern, part, re.MULTILINE)) for part in text
        )
        assert theirs == ours, (
            f"{what}: {twin} lacks {dict(ours - theirs)}, and alone has {dict(theirs - ours)}"
        )
    assert targets(twin, portuguese) == targets(page, english), "links"
