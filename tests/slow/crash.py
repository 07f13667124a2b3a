"""Every state of the disk that a power cut may leave while npgpt writes: nothing is lost, and all goes on.

Each kind of work is done once under strace. Of its calls the states are built that two models of a file
system allow (crash/states.py) at every moment, as many as --states; each is laid out and looked at, and some
of those that differ go on to the end.
"""

import argparse
import functools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "crash"), str(Path(__file__).resolve().parents[2])]
from calls import MARKS, record  # noqa: E402
from kinds import KINDS, ROOT, Refused, Violation  # noqa: E402
from states import MODELS, states  # noqa: E402

SHOWN = 5  # violations of a kind, each of another wording


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--states", type=int, default=22000, metavar="N", help="states to build in all, about (default 22000)"
    )
    add(
        "--ends",
        type=int,
        default=150,
        metavar="N",
        help="different states that go on to the end (default 150)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the states that are drawn where there are too many (default 0)",
    )
    add("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of work (default: all)")
    add("--model", nargs="+", choices=MODELS, default=list(MODELS), help="models of the disk (default: all)")
    args = parser.parse_args()
    if not shutil.which("strace"):
        parser.error("strace must be installed (apt-get install strace)")
    shares = sum(KINDS[kind].share for kind in args.kind)
    all_, began = Counter(), time.monotonic()
    for kind in args.kind:
        share = KINDS[kind].share / shares
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as work:
            found = Search(KINDS[kind](Path(work).resolve()), args, kind).run(
                args.states * share, args.ends * share
            )
        all_.update(found)
    print(line("in all", all_, time.monotonic() - began))
    raise SystemExit(1 if all_["violations"] else 0)


def line(name: str, found: Counter, seconds: float) -> str:
    return (
        f"{name}: {found['states']:,} states, {found['distinct']:,} of them distinct, "
        f"{found['ended']:,} taken to the end; "
        f"{found['refused']:,} of {found['emptied']:,} with an emptied file refused by name; "
        f"{found['violations']:,} violations ({seconds:.0f} s)"
    )


class Search:
    """The states of one kind of work."""

    def __init__(self, kind, args, name: str):
        self.kind, self.args, self.name = kind, args, name
        self.rng = random.Random(f"{args.seed} {name}")
        self.found, self.shown, self.known = Counter(), Counter(), {}
        self.laid = None  # the state that lies there
        self.began = self.told = time.monotonic()

    def run(self, most: float, ends: float) -> Counter:
        kind = self.kind
        kind.work.joinpath(MARKS).mkdir()
        kind.disk.mkdir()
        kind.prepare()
        os.chdir(kind.work)
        command = [
            sys.executable,
            str(ROOT / "tests" / "slow" / "crash" / "kinds.py"),
            self.name,
            str(kind.work),
        ]
        os.environ |= {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(kind.work),
            "LC_ALL": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }
        recording = record(command, kind.disk, kind.work)
        kind.learn(recording)
        models = self.args.model
        each = max(2, int(most / len(models) / (len(recording.ops) + 1)))
        self.tell(
            f"{len(recording.ops)} calls recorded; up to {each} states after each, in {len(models)} models"
        )
        for model in models:
            for n, state in states(recording, model, each, self.rng):
                self.take(n, state, model == "emptied")
        self.finish_some(int(ends))
        print(line(self.name, self.found, time.monotonic() - self.began), flush=True)
        os.chdir("/")
        return self.found

    def take(self, n: int, state, emptied: bool):
        """Look at a state, once for each content, and judge it at this moment."""
        self.found["states"] += 1
        self.found["emptied"] += emptied
        key = frozenset(state.items()), emptied
        if key not in self.known:
            self.found["distinct"] += 1
            self.lay_out(state)
            self.known[key] = self.attempt(lambda: self.kind.look(emptied)), state, n
            self.laid = state if self.kind.only_reads else None
        (seen, problem), *_ = self.known[key]
        if isinstance(problem, Refused) and emptied:
            self.found["refused"] += 1
        elif problem or (problem := self.kind.judge(n, seen, emptied)):
            self.violation(f"after call {n}{', a file emptied' * emptied}: {problem}", state)
        if time.monotonic() - self.told > 10:
            self.tell(f"{self.found['states']:,} states, {self.found['distinct']:,} distinct")

    def lay_out(self, state):
        """Make the disk hold a state, and nothing else; what lies there already stays."""
        disk, laid = self.kind.disk, self.laid
        if laid is None:
            laid = {}
            shutil.rmtree(disk)
            disk.mkdir()
        for path, data in sorted(laid.items(), reverse=True):
            if path not in state or (data is None) != (state[path] is None):
                (disk / path).rmdir() if data is None else (disk / path).unlink()
        for path, data in sorted(state.items()):
            if path not in laid or laid[path] != data:
                (disk / path).mkdir(exist_ok=True) if data is None else (disk / path).write_bytes(data)

    def attempt(self, work):
        """(what work() returns, None), or (None, the Violation or the error of the program)"""
        try:
            return work(), None
        except Violation as error:
            return None, error
        except (OSError, ValueError) as error:  # what a command prints in one line, with exit code 2
            return None, Refused(str(error))
        except Exception as error:
            return None, Violation(f"{type(error).__name__}: {error}")

    def finish_some(self, most: int):
        """Go on to the end from some of the states that differ and could be read."""
        left = [(key, state, n) for key, ((_, problem), state, n) in self.known.items() if problem is None]
        for (_, emptied), state, n in self.rng.sample(left, min(most, len(left))):
            self.lay_out(state)
            self.laid = None
            _, problem = self.attempt(functools.partial(self.kind.finish, emptied))
            self.found["ended"] += 1
            if isinstance(problem, Refused) and emptied:
                self.found["refused"] += 1
            elif problem:
                self.violation(f"after call {n}{', a file emptied' * emptied}, at the end: {problem}", state)
            if time.monotonic() - self.told > 10:
                self.tell(f"{self.found['ended']:,} of {min(most, len(left)):,} taken to the end")

    def violation(self, what: str, state):
        self.found["violations"] += 1
        wording = what.partition(": ")[2]
        self.shown[wording] += 1
        if self.shown[wording] == 1 and len(self.shown) <= SHOWN:
            print(f"{self.name}: {what}", flush=True)
            listed = ", ".join(
                f"{path} {'/' if data is None else len(data)}" for path, data in sorted(state.items())
            )
            print(f"    the disk: {listed[:1500]}", flush=True)

    def tell(self, what: str):
        self.told = time.monotonic()
        print(f"{self.name}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
