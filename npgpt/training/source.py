"""Finding the text of a run again, also where the run was moved, with its text or without it."""

import os
from collections.abc import Iterator
from pathlib import Path

from npgpt.engine.types import Fields
from npgpt.text.distinct import DistinctCorpus


def find_text(
    run: Path, config: Fields, key: str = "text", advice: str | None = None
) -> tuple[DistinctCorpus, str | None]:
    """Return a text of a run with this config.toml, and its first file where that is not where it was.

    key: text or val, the one that it was validated by. The sha256 in the config decides. FileNotFoundError
    where no such files are there, ValueError where all that are there hold another text; `advice` ends their
    line (default: to give the text, as the commands take it).
    """
    there = [paths for paths in _places(run, config, key) if all(map(os.path.exists, paths))]
    advice = advice or f"give {'TEXT' if key == 'text' else '--val'}"
    how = {"clean": config["clean"], "encoding": config.get("encoding"), "field": config.get("field")}
    dedupe = config.get("dedupe") if key == "text" else None
    for paths in there:
        corpus = DistinctCorpus(paths, dedupe, config.get("documents") == "apart", **how)
        if corpus.sha256 == config["about"].get(f"{key}_sha256"):
            return corpus, None if paths == names_of(config, key) else paths[0]
    if there:
        raise ValueError(f"{there[0][0]}: has changed since the run was trained on it; {advice}")
    where = f"No such file, nor any of this name in or beside {run}; {advice}"
    raise FileNotFoundError(2, where, names_of(config, key)[0])


def _places(run: Path, config: Fields, key: str) -> Iterator[list[str]]:
    """Yield the lists of paths at which a text may be: where it was, as it lay from the run, and near."""
    texts = names_of(config, key)
    yield texts
    if relative := names_of(config, f"{key}_from_run"):
        yield [os.path.normpath(run / path) for path in relative]
    for folder in (run, run.resolve().parent, Path()):
        yield [str(folder / os.path.basename(text)) for text in texts]


def names_of(config: Fields, key: str) -> list[str]:
    """Return the paths of a key; [about] has the bytes of those that are not UTF-8."""
    about = config["about"]
    if odd := about.get(f"{key}_bytes"):
        return [os.fsdecode(bytes.fromhex(name)) for name in odd]
    found = config.get(key) or about.get(key) or []
    return [found] if isinstance(found, str) else [str(path) for path in found]
