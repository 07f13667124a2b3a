"""What a run measured, beside the table of sources: record.json, evaluation.txt, tables of pages."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .sources import KINDS, Source

MARK = "<!-- {}: written by text.py --record -->"
HEADS = {
    "README.md": "source|kind|variety|era|from|licence|files|read, MB|kept, MB|sha256",
    "README.pt-BR.md": "fonte|gênero|variedade|época|origem|licença|arquivos|lido, MB|ficou, MB|sha256",
}
TOTAL = {"README.md": "all", "README.pt-BR.md": "tudo"}
OUT = {"README.md": "paragraphs left out", "README.pt-BR.md": "parágrafos fora"}


def record(
    here: Path, table: list[Source], measured: dict[str, Any], taken: dict[str, str], digest: str, out: Path
) -> None:
    """Write what a run measured into the folder `here`."""
    index = out.with_name(out.name + ".tsv")
    whole = {
        "sha256": digest,
        "bytes": out.stat().st_size,
        "documents": len(index.read_text().splitlines()) - 1,
    }
    text = json.dumps({"text": whole, "sources": measured}, indent=1, ensure_ascii=False)
    (here / "record.json").write_text(text + "\n", encoding="utf-8")
    (here / "evaluation.txt").write_text("".join(f"{mark} {name}\n" for mark, name in sorted(taken.items())))
    for name in HEADS:
        page = here / name
        content = page.read_text(encoding="utf-8")
        for block, rows in blocks(name, table, measured, taken, whole).items():
            content = replace(content, MARK.format(block), rows)
        page.write_text(content, encoding="utf-8")


def blocks(
    page: str, table: list[Source], measured: dict[str, Any], taken: dict[str, str], whole: dict[str, Any]
) -> dict[str, list[str]]:
    """Return the lines of each generated block of a page, by its name."""
    head = tuple(HEADS[page].split("|"))
    out: Counter[str] = Counter()
    for row in measured.values():
        out.update(row["dropped"])
    sums = {kind: sum(measured[s.name]["kept"] for s in table if s.kind == kind) for kind in KINDS}
    varieties = sorted({source.variety for source in table})
    of = {v: sum(measured[s.name]["kept"] for s in table if s.variety == v) for v in varieties}
    sets = Counter(taken.values())
    return {
        "sources": grid(head, [cells(source, measured[source.name]) for source in table]),
        "kinds": grid(
            (head[1], "MB"),
            [(name, megabytes(size)) for name, size in [*sums.items(), *of.items()] if size]
            + [(TOTAL[page], megabytes(sum(sums.values())))],
        ),
        "dropped": grid((OUT[page], ""), sorted((reason, f"{n:,}") for reason, n in out.items() if n)),
        "evaluation": grid((OUT[page], ""), sorted((name, str(n)) for name, n in sets.items())),
        "hash": [f"sha256 `{whole['sha256']}`, {whole['bytes']:,} bytes, {whole['documents']:,} documents"],
    }


def cells(source: Source, row: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of the table for one source."""
    if source.repository:
        place = f"[{source.repository}](https://github.com/{source.repository}/tree/{source.commit})"
    else:
        names = [
            name.removesuffix("_all.deb").replace("_", " ").replace("%3a", ":") for name in source.packages
        ]
        place = "Debian: " + ", ".join(names)
    licence = f"{source.licence}: {source.licence_at}"
    sizes = (str(row["files"]), megabytes(row["bytes"]), megabytes(row["kept"]))
    return (
        source.name,
        source.kind,
        source.variety,
        source.era,
        place,
        licence,
        *sizes,
        f"`{row['sha256']}`",
    )


def megabytes(size: int) -> str:
    """Return a size in MB of 10^6 bytes with two digits after the point."""
    return f"{size / 1e6:.2f}"


def grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


def replace(content: str, mark: str, lines: list[str]) -> str:
    """Return a page with new lines between two marks."""
    before, _, after = content.split(mark)
    return mark.join((before, "\n" + "\n".join(lines) + "\n", after))
