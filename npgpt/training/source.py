"""Finding the text of a run again, also where the run was moved, with its text or without it."""

import os
from collections.abc import Iterator
from pathlib import Path

from npgpt.engine.types import Fields
from npgpt.text.corpus import Corpus


def find_text(run: Path, config: Fields) -> tuple[Corpus, str | None]:
    """Return the text of a run with this config.toml, and its first file where that is not where it was.

    The sha256 in the config decides. FileNotFoundError where no such files are there, ValueError where all
    that are there hold another text.
    """
    there = [paths for paths in _places(run, config) if all(map(os.path.exists, paths))]
    for paths in there:
        corpus = Corpus(paths, config["clean"])
        if corpus.sha256 == config["about"].get("text_sha256"):
            return corpus, None if paths == _names(config, "text") else paths[0]
    if there:
        raise ValueError(f"{there[0][0]}: has changed since the run was trained on it; give TEXT")
    where = f"No such file, nor any of this name in or beside {run}; give TEXT"
    raise FileNotFoundError(2, where, config["text"][0])


def _places(run: Path, config: Fields) -> Iterator[list[str]]:
    """Yield the lists of paths at which the text may be: where it was, as it lay from the run, and near."""
    texts = _names(config, "text")
    yield texts
    if relative := _names(config, "text_from_run"):
        yield [os.path.normpath(run / path) for path in relative]
    for folder in (run, run.resolve().parent, Path()):
        yield [str(folder / os.path.basename(text)) for text in texts]


def _names(config: Fields, key: str) -> list[str]:
    """Return the paths of a key; [about] has the bytes of those that are not UTF-8."""
    about = config["about"]
    if odd := about.get(f"{key}_bytes"):
        return [os.fsdecode(bytes.fromhex(name)) for name in odd]
    return [str(path) for path in config.get(key) or about.get(key) or []]
