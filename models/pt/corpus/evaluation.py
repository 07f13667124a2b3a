"""The texts that models are measured on: NPGPT_DATA, none of which may be learnt."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .duplicates import Runs, held_runs

READ = {".txt", ".tsv", ".jsonl"}


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file: of .txt the whole, whose lines may break sentences, else each field."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        for line in content.splitlines():
            yield from strings(json.loads(line))
        return
    if path.suffix == ".txt":
        yield content
        return
    for line in content.splitlines():
        yield from line.split("\t")


def sets(folder: Path, runs: Runs) -> dict[str, set[int]]:
    """Return the runs of words of each set in `folder`, by the name of its folder or file."""
    held: dict[str, set[int]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in READ and path.is_file():
            name = path.relative_to(folder).parts[0]
            held.setdefault(name, set()).update(held_runs(runs, texts(path)))
    return held
