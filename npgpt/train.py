"""`python -m npgpt.train TEXT...`: train a GPT on text, from reading the files to showing what it writes."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from npgpt.console.messages import start_command
from npgpt.console.process import command, errors_as_lines, exit_with_error
from npgpt.console.settings import Parser, add_settings, count, make_parser, resolve
from npgpt.console.text_job import SETTINGS, experiment, text_job

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.distributed.world import World
    from npgpt.training.listener import OnStep

NO_DRY_RUN = ("resume", "restarts", "launch")


@command("train", goes_on=True)
def main(argv: Sequence[str] | None = None, on_step: OnStep | None = None) -> int:
    """Train on the text and return the exit code.

    0: done; 1: failed, or --target-loss was missed; 2: bad input; 130: interrupted, with a checkpoint saved.
    From Python, on_step(Step) is called after each step; what it raises ends the run, with a checkpoint.
    """
    from npgpt.distributed.mpi import init_world

    started = time.perf_counter()
    parser = _parser()
    with errors_as_lines("train"):
        world = init_world()
    with world.abort_on_failure(), contextlib.ExitStack() as lock:
        args = parser.parse_args(argv)
        world.zero = args.zero and world.size > 1
        if args.dry_run and (with_it := [name for name in NO_DRY_RUN if getattr(args, name)]):
            message = f"--dry-run plans a new run, so --{with_it[0]} cannot be given"
            exit_with_error("train", message, 2, args.json)
        if args.restarts or args.launch:
            if on_step:
                exit_with_error("train", "on_step cannot be called by processes that --restarts begins", 2)
            with errors_as_lines("train", as_json=args.json):
                return _supervise(args, sys.argv[1:] if argv is None else list(argv), world)
        # whatever can be refused is, before anything is written
        with errors_as_lines("train", as_json=args.json):
            job = text_job(args, started, lock, world)
        start_command(None if world.size > 1 else job.settings["threads"])
        return job.tell_plan(args.json) if args.dry_run else job.run(args.json, on_step)


def _parser() -> Parser:
    parser = make_parser(
        "train", "Train a GPT on text. Settings that are not given depend on the text's size alone."
    )
    add = parser.add_argument
    add(
        "text",
        nargs="*",
        metavar="TEXT",
        help="files, folders, archives, or - for stdin: .txt, .md, .jsonl, .json, .csv, .tsv, .html, .docx, "
        ".pdf, .srt, .vtt, also .gz, .bz2, .xz",
    )
    add_settings(parser, SETTINGS)
    add(
        "--resume",
        action="store_true",
        help="go on with the run, to the same bits as a run that never stopped; "
        "a finished one goes on for a larger --steps, --epochs or --minutes",
    )
    add(
        "--config",
        metavar="FILE",
        help="take settings, and TEXT as the key text, from a TOML file, such as a run's config.toml",
    )
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    add(
        "--dry-run",
        action="store_true",
        help="print the plan, with the memory (MB) and time (s) that it needs here, and begin no run",
    )
    add(
        "--zero",
        action="store_true",
        help="under mpiexec: shard the optimizer's moments, each rank keeps one shard",
    )
    add(
        "--restarts",
        metavar="K",
        type=count,
        help="start a failed training again from its last checkpoint, at most K times; for several ranks "
        "this command must start mpiexec itself: --restarts 3 --launch 'mpiexec -n 4'",
    )
    add(
        "--launch",
        metavar="COMMAND",
        help="with --restarts: the command that starts the ranks, as 'mpiexec -n 4' (default: one process)",
    )
    return parser


def _supervise(args: Namespace, argv: list[str], world: World) -> int:
    """Train in processes of its own, and again where they fail."""
    from npgpt.console import restarts
    from npgpt.training import run as runs

    if world.size > 1:
        raise ValueError(
            "--restarts must stand before mpiexec: --restarts 3 --launch 'mpiexec -n 4', got it inside"
        )
    if not args.restarts:
        raise ValueError("--launch is for --restarts, which is missing")
    out = resolve(SETTINGS, args, experiment(args))["out"]
    if "-" in args.text:
        raise ValueError("-: stdin can be read only once, so it cannot be had with --restarts")
    if not (args.text or (args.resume and out)):
        raise ValueError("TEXT must be given (or --resume --out RUN, or --config FILE with text)")
    text = args.text[0] if args.text else ""
    folder = runs.find_folder(out, text, args.resume)
    if not (out or (args.resume and folder.exists())):
        folder = runs.make_numbered(text)[1]
    plain = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--restarts", "--launch", "--out"):
        plain.add_argument(name)
    command = [*shlex.split(args.launch or ""), sys.executable, "-m", "npgpt.train"]
    command += [*plain.parse_known_args(argv)[1], "--out", str(folder)]
    try:
        return restarts.supervise(command, folder, args.restarts)
    finally:
        runs.remove_unused(folder)


if __name__ == "__main__":
    raise SystemExit(main())
