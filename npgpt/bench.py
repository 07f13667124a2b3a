"""`python -m npgpt.bench`: how fast npgpt is here, beside the machine's limits and other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.language import N_, _, fill, number
from npgpt.console.messages import log, start_command
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import count, make_parser, thread_count

if TYPE_CHECKING:
    from npgpt.engine.types import Fields

PARTS = ("products", "training", "decoding", "tokenizing", "serving")
TITLES = {
    "limits": N_("limits of the machine"),
    "products": N_("products of matrices"),
    "training": N_("training steps"),
    "decoding": N_("decoding"),
    "tokenizing": N_("tokenizing, on one thread"),
    "serving": N_("serving"),
}


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print rates, or compare two files; return exit code 0."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    parser = make_parser(
        "bench",
        "Measure products, training, decoding, tokenizing and serving in a few minutes, beside this machine's"
        " limits and PyTorch, llama.cpp (xllamacpp), CTranslate2, tiktoken and tokenizers where they are"
        " installed. `compare A B` compares two files that --out wrote, of two machines or two versions.",
    )
    parser.add_argument(
        "--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)"
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="these parts alone")
    parser.add_argument("--turns", type=count, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("-o", "--out", metavar="FILE", help="write all samples, versions and prompts here")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object on the last line of stdout"
    )
    parser.add_argument(
        "--presets",
        action="store_true",
        help="estimate the cost of the published sizes on this machine instead",
    )
    args = parser.parse_args(argv)
    with errors_as_lines("bench"):
        out = _new_file(args.out) if args.out else None
    start_command(args.threads)
    if args.presets:
        return _presets(args.json)

    from npgpt.measure.report import measure
    from npgpt.training.checkpoint import write_atomically

    with errors_as_lines("bench", kinds=(OSError, MemoryError, RuntimeError)):
        content = measure(args.only, args.turns, _Table(), _skip)
        if out:
            write_atomically(out, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if args.json:
        print(json.dumps(content, allow_nan=False))
    return 0


def _new_file(name: str) -> Path:
    """Return the path of a file to write; OSError where that will not do, before anything is measured."""
    path = Path(name)
    if path.exists():
        raise FileExistsError(17, "is there already", name)
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(path.parent))
    return path


def _skip(what: str, why: str) -> None:
    log("{what} is not measured: {why}", to=sys.stderr, what=_(TITLES.get(what, what)), why=why)


class _Table:
    """Prints rows as they come, under the title of their part and the name of their case."""

    def __init__(self) -> None:
        self.part = self.case = ""

    def __call__(self, row: Fields) -> None:
        from npgpt.measure.report import is_rate, typical

        if row["part"] != self.part:
            self.part = row["part"]
            print(f"\n{_(TITLES[self.part])}")
        if row["case"] != self.case:
            self.case = row["case"]
            print(f"  {self.case}")
        ours = typical(row["samples"]["npgpt"])
        for name, turns in row["samples"].items():
            value = typical(turns)
            line = f"    {name:14}{_rounded(value):>10} {row['measure']:24}"
            if name == "npgpt" and row["share_of_peak"] is not None:
                line += fill(_("{share:.0%} of the peak"), share=row["share_of_peak"])
            if name != "npgpt":
                ratio = ours / value if is_rate(row["measure"]) else value / ours
                line += fill(_("npgpt is {ratio:.2f} times as fast"), ratio=ratio)
            print(line.rstrip(), flush=True)


def _rounded(value: float) -> str:
    """Return a number with at least three digits."""
    return number(value, ",.0f" if value >= 100 else ".1f" if value >= 10 else ".2f")


def _compare(argv: Sequence[str]) -> int:
    """Print two files of --out side by side, with how much faster the second is; return exit code 0."""
    parser = make_parser("bench compare", "Compare two files that bench wrote.")
    for name in ("first", "second"):
        parser.add_argument(name, metavar="FILE", help="what bench --out wrote, or printed with --json")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object on the last line of stdout"
    )
    args = parser.parse_args(argv)
    with errors_as_lines("bench"):
        from npgpt.measure.report import compare, read

        files = [read(name) for name in (args.first, args.second)]
    lines = compare(*files)
    for name, content in zip("AB", files, strict=True):
        machine, versions = content["machine"], content["versions"]
        about = f"{machine['cpu']}, {machine['kernels']}, {machine['threads']}"
        print(f"{name}: {content['date']}, npgpt {versions['npgpt']} {content['commit'] or ''}, {about}")
    part = ""
    for line in lines:
        if line.part != part:
            part = line.part
            print(f"\n{_(TITLES[part]):54}{'A':>11}{'B':>11}{'B / A':>10}")
        what = f"  {line.case}, {line.contender}" if line.case else "  " + line.measure
        interval = f"[{number(line.low, '.2f')}, {number(line.high, '.2f')}]"
        print(f"{what:54}{_rounded(line.first):>11}{_rounded(line.second):>11}", end="")
        print(f"{number(line.ratio, '10.2f')} {interval:14}{line.measure}")
    if args.json:
        print(json.dumps([line._asdict() for line in lines], allow_nan=False))
    return 0


def _presets(as_json: bool) -> int:
    """Print a table of what the published sizes would cost here, with as_json also one JSON object."""
    from npgpt.engine import kernels
    from npgpt.engine.config import PRESETS, SHARE, cost, preset

    peak = kernels.peak_gflops(0.3)  # NaN without kernels
    measured = peak == peak
    log(
        "a step: forward, backward and update with one text as long as the context,\n"
        "at {share:.0%} of the {peak:.0f} GFLOP/s of multiply-adds measured here; generating: one such text"
        if measured
        else "a step is not estimated, as NumPy alone cannot reach this machine's limits",
        **{"share": SHARE, "peak": peak},
    )
    print(f"{'':13}{_('parameters'):>16}{_('context'):>9}{_('training'):>13}", end="")
    print(f"{_('generating'):>12}{_('a step'):>11}")
    costs = {name: cost(preset(name), peak) for name in PRESETS}
    for name, c in costs.items():
        training, generating = (
            number(c[key] / 1e9, ",.1f") + " GB" for key in ("training_bytes", "inference_bytes")
        )
        print(f"{name:13}{number(c['parameters'], '16,')}{preset(name).block_size:9}", end="")
        step = number(c["step_seconds"], ",.1f") + " s" if measured else ""
        print(f"{training:>13}{generating:>12}{step:>11}")
    if as_json:
        unknown = {} if measured else {"step_seconds": None}
        print(json.dumps({name: c | unknown for name, c in costs.items()}, allow_nan=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
