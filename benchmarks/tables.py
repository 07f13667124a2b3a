"""Write the generated blocks of README.md, README.pt-BR.md, docs/ and benchmarks/README.md.

    python -m benchmarks.tables [--check]

A block begins with a line `<!-- figures: KIND [ARGUMENTS] -->` and ends with a line `<!-- /figures -->`; what
stands between is made from benchmarks/results/*.json. benchmarks/README.md lists the kinds.
"""

import argparse
import re
import shlex
from pathlib import Path

from benchmarks.blocks import KINDS, Page
from benchmarks.record import ROOT

BEGIN, END = re.compile(r"<!-- figures: (.+?) -->\s*"), re.compile(r"<!-- /figures -->\s*")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")


def pages() -> list[Path]:
    """Every page that may hold blocks."""
    return [*figure_pages(), ROOT / "benchmarks" / "README.md"]


def figure_pages() -> list[Path]:
    """Those that may hold measured figures in blocks alone: the READMEs and docs/."""
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def parts(text: str) -> list[tuple[str | None, list[str]]]:
    """The page in order as (None, lines of prose) and (what a block asks for, lines of the block).

    Marks belong to the prose. A mark inside a fence is an example, not a block. ValueError: a block without
    end or an end without block.
    """
    found: list[tuple[str | None, list[str]]] = [(None, [])]
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        asked = found[-1][0]
        if asked is None:
            mark = FENCE.match(line)
            if mark and not fence:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            found[-1][1].append(line)
            if not fence and (begin := BEGIN.fullmatch(line)):
                found.append((begin[1], []))
            elif not fence and END.fullmatch(line):
                raise ValueError(f"line {number} ends a block that did not begin")
        elif END.fullmatch(line):
            found.append((None, [line]))
        elif BEGIN.fullmatch(line):
            raise ValueError(f"line {number} begins a block inside the block {asked}")
        else:
            found[-1][1].append(line)
    if found[-1][0] is not None:
        raise ValueError(f"the block {found[-1][0]} has no end")
    return found


def block(asked: str, page: Page) -> list[str]:
    """The lines of a block, asked for as "KIND value key=value"."""
    kind, *words = shlex.split(asked)
    if kind not in KINDS:
        raise ValueError(f"{kind} is no kind of block: {', '.join(KINDS)}")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    return KINDS[kind](page, *(word for word in words if "=" not in word), **given)


def written(text: str, page: Page) -> str:
    """The page with its blocks made anew."""
    lines = []
    for asked, inside in parts(text):
        lines += inside if asked is None else block(asked, page)
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if one would change")
    args = parser.parse_args()
    changed = 0
    for path in pages():
        text = path.read_text(encoding="utf-8")
        new = written(text, Page(path))
        if new != text:
            changed += 1
            print(path.relative_to(ROOT), "would change" if args.check else "written")
            if not args.check:
                path.write_text(new, encoding="utf-8")
    return int(args.check and changed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
