"""What `npgpt.bench` measures, as rows of raw samples, and two of its files side by side.

A row is {"part", "case", "measure", "samples", "share_of_peak"}. The samples are a list for each turn of each
contender. All measures but those that begin with "ms" are rates, of which more is better. npgpt's share of
the peak is None where arithmetic is not what limits.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.types import Fields, Floats, PathLike
from npgpt.measure import decoding, machine, peers, serving
from npgpt.measure.contender import Contender, Samples

FORMAT = 1  # of the file, which other versions of this module refuse
RESAMPLED = 2000


def measure(
    parts: Iterable[str], turns: int, tell: Callable[[Fields], None], skip: Callable[[str, str], None]
) -> Fields:
    """Return the content of a file: the parts, measured in so many turns of each contender.

    tell(row) hears of each row as it is there, skip(what, why) of what cannot be measured.
    """
    limits: list[tuple[float, float]] = []
    rows: list[Fields] = []
    for part in parts:
        if lacking := peers.missing(part):
            skip(part, ", ".join(lacking))
            continue
        for case in peers.PARTS[part].cases:
            for row in _case(part, case, turns, limits, skip):
                rows.append(row)
                tell(row)
    packages = [package for package in peers.PACKAGES.values() if package != "numpy"]
    return {
        "npgpt.bench": FORMAT,
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.machine(),
        "versions": machine.versions(packages),
        "turns": turns,
        "prompts": {
            "decoding": {"ids": decoding.IDS.tolist(), "new": decoding.NEW},
            "serving": {"texts": [serving.prompt(i) for i in range(serving.CLIENTS)], "new": serving.NEW},
        },
        "limits": {
            "GFLOP/s": [[peak] for peak, _ in limits],
            "GB/s": [[read] for _, read in limits],
        },
        "rows": rows,
    }


def _case(
    part: str, case: str, turns: int, limits: list[tuple[float, float]], skip: Callable[[str, str], None]
) -> Iterator[Fields]:
    """Let the contenders of a case take turns; yield a row for each measure."""
    with ExitStack() as stack:
        file = stack.enter_context(peers.file(part, case))
        found: dict[str, tuple[Contender, list[Samples]]] = {}
        digests: set[str | None] = set()
        for name in peers.contenders(part):
            threads, words = kernels.get_num_threads(), [file] if file else []
            contender = Contender("npgpt.measure.peers", part, case, name, threads, *words, threads=threads)
            stack.callback(contender.close)
            try:
                digests.add(contender.ask("digest"))
                contender.ask("turn")  # memory, caches
            except RuntimeError as error:
                if name == "npgpt":
                    raise
                skip(f"{case}: {name}", str(error))
                continue
            found[name] = contender, []
        if len(digests) > 1:
            raise RuntimeError(f"{case}: {' and '.join(found)} give different results")
        here: list[tuple[float, float]] = []
        for _ in range(turns):
            if kernels.name() != "numpy":
                here.append(kernels.limits(0.05))
            for contender, seen in found.values():
                seen.append(contender.ask("turn"))
    limits += here
    for what in found["npgpt"][1][0]:
        samples = {name: [turn[what] for turn in seen] for name, (_, seen) in found.items()}
        row = {"part": part, "case": case, "measure": what, "samples": samples}
        share, gflop = None, peers.PARTS[part].gflop
        if here and gflop:
            share = typical(samples["npgpt"]) * gflop(case) / float(np.median([peak for peak, _ in here]))
        yield row | {"share_of_peak": share}


def typical(turns: Sequence[Sequence[float]]) -> float:
    """Return the median of the turns' medians."""
    return float(np.median([np.median(samples) for samples in turns]))


def is_rate(measure: str) -> bool:
    """Return whether more of a measure is better."""
    return measure.split()[0] != "ms"


def read(path: PathLike) -> Fields:
    """Return the content of a file, or of the last line of what was printed; ValueError for another file."""
    text = Path(path).read_text(encoding="utf-8")
    for part in text, text.rstrip().rpartition("\n")[2]:
        try:
            content = json.loads(part)
        except ValueError:
            continue
        if isinstance(content, dict) and content.get("npgpt.bench") == FORMAT:
            return content
    raise ValueError(f"{path}: must be a file that bench wrote, of format {FORMAT}")


class Line(NamedTuple):
    """A measure of two files: medians, and how many times better the second is."""

    part: str
    case: str
    measure: str
    contender: str
    first: float
    second: float
    ratio: float
    low: float  # of its interval of 95 %
    high: float

    @property
    def differs(self) -> bool:
        """Return whether the interval says that they differ."""
        return not self.low <= 1 <= self.high


def compare(first: Fields, second: Fields) -> list[Line]:
    """Return a line for each measure and contender that both files have, the machines' limits first."""
    lines = []
    there = {_key(row): row["samples"] for row in _rows(second)}
    for row in _rows(first):
        others = there.get(_key(row), {})
        for contender, samples in row["samples"].items():
            if samples and others.get(contender):
                lines.append(_line(*_key(row), contender, samples, others[contender]))
    return lines


def _rows(content: Fields) -> list[Fields]:
    limits = [
        {"part": "limits", "case": "", "measure": what, "samples": {"": samples}}
        for what, samples in content["limits"].items()
    ]
    return limits + list(content["rows"])


def _key(row: Fields) -> tuple[str, str, str]:
    return row["part"], row["case"], row["measure"]


def _line(
    part: str, case: str, measure: str, contender: str, first: list[list[float]], second: list[list[float]]
) -> Line:
    """Return a line whose interval comes from drawing turns of both sides again (bootstrap, percentiles).

    Whole turns are drawn, as the samples of one turn share its minute.
    """
    rng = np.random.default_rng(0)
    a, b = typical(first), typical(second)
    drawn = _medians(rng, second) / _medians(rng, first)
    ratio = b / a
    if not is_rate(measure):
        ratio, drawn = 1 / ratio, 1 / drawn
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Line(part, case, measure, contender, a, b, ratio, float(low), float(high))


def _medians(rng: np.random.Generator, turns: list[list[float]]) -> Floats:
    """Return the medians of RESAMPLED draws of as many turns, each by its own median (RESAMPLED,)."""
    medians: Floats = np.array([np.median(samples) for samples in turns])
    drawn: Floats = np.median(rng.choice(medians, (RESAMPLED, len(medians))), axis=1)
    return drawn
