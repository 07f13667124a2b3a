"""`python -m npgpt.compare RUN RUN...`: a table of runs, and from Python npgpt.compare([RUN, RUN...])."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from npgpt.console.messages import log, log_warnings
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import make_parser

if TYPE_CHECKING:
    from npgpt.console.comparison import Comparison
    from npgpt.engine.types import PathLike


@command("compare")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the files that are asked for, and return exit code 0; exit with 2 for bad input.

    Exit with 1 where a file cannot be written.
    """
    parser = make_parser(
        "compare", "Show runs side by side: the settings that differ, losses, bits per byte, time."
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs, of npgpt.train or npgpt.finetune")
    add("--csv", metavar="FILE", help="write the table as CSV, with all digits")
    add("--html", metavar="FILE", help="write a page with the table and the curves of all runs")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    args = parser.parse_args(argv)

    with errors_as_lines("compare", as_json=args.json):
        from npgpt.console.comparison import compare
        from npgpt.training.checkpoint import write_atomically

        files = {name: Path(file) for name in ("csv", "html") if (file := getattr(args, name))}
        for name, file in files.items():
            if file.is_dir() or not file.parent.is_dir():
                raise ValueError(f"--{name}: must be a file in a folder that is there, got {file}")
        found = compare(args.runs)
        log_warnings(found.warnings)
        print(found, flush=True)
        with errors_as_lines("compare", 1, (OSError,), args.json):
            for name, file in files.items():
                write_atomically(file, found.csv() if name == "csv" else found.html())
                log("saved to {file}", file=file)
    if args.json:
        print(json.dumps(found.fields(), allow_nan=False))
    return 0


class _Compare(ModuleType):
    """This module, which can be called, as npgpt.compare is both the command and the function."""

    def __call__(self, runs: PathLike | Iterable[PathLike]) -> Comparison:
        from npgpt.console.comparison import compare

        return compare(runs)


if __name__ == "__main__":
    raise SystemExit(main())
sys.modules[__name__].__class__ = _Compare
