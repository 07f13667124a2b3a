"""`python -m npgpt.finetune RUN DATA.jsonl -o NEW`: teach a trained GPT a task from examples."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from npgpt.console.example_job import SETTINGS, example_job
from npgpt.console.messages import start_command
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import add_adapter, add_settings, make_parser

if TYPE_CHECKING:
    from npgpt.training.listener import OnStep


@command("finetune", goes_on=True)
def main(argv: Sequence[str] | None = None, on_step: OnStep | None = None) -> int:
    """Train on the examples and return the exit code.

    0: done; 1: failed; 2: bad input; 130: interrupted, with a checkpoint saved.
    From Python, on_step(Step) is called after each step; what it raises ends the run, with a checkpoint.
    """
    from npgpt.distributed.mpi import init_world

    parser = make_parser("finetune", "Teach a trained GPT a task from examples, a JSON object a line.")
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="RUN",
        help="the model to begin with: a run, a checkpoint, a Hugging Face folder or a .gguf file",
    )
    add(
        "data",
        nargs="?",
        metavar="DATA.jsonl",
        help='lines of {"prompt", "completion"}, {"messages": [{"role", "content"}]} or {"text", "label"}',
    )
    add_adapter(parser)
    add("-o", "--out", metavar="NEW", help="the new run's folder (default: runs/ and the data's name)")
    add_settings(parser, SETTINGS)
    add(
        "--skip-bad",
        action="store_true",
        help="leave out lines that are at fault, up to a tenth of all, and print their number",
    )
    add("--balance", action="store_true", help="show each label equally often, the rarer ones repeatedly")
    add(
        "--resume",
        action="store_true",
        help="go on with NEW, to the same bits as a run that never stopped; "
        "a finished one goes on for a larger --epochs",
    )
    add(
        "--config",
        metavar="FILE",
        help="take settings, RUN as the key init_from and DATA.jsonl as text, from a TOML file, such as a "
        "run's config.toml",
    )
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    with errors_as_lines("finetune"):
        world = init_world()
    with world.abort_on_failure(), contextlib.ExitStack() as lock:
        args = parser.parse_intermixed_args(argv)
        # all input is checked before anything is written
        with errors_as_lines("finetune", as_json=args.json):
            job = example_job(args, lock, world)
        start_command(None if world.size > 1 else job.settings["threads"])
        return job.run(args.json, on_step)


def of_server() -> int:
    """Do main() for a server, and stop as by SIGTERM, with a checkpoint saved, when that ends.

    stdin is a pipe that the server holds open: the system closes it, however the server ends.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    return main()


if __name__ == "__main__":
    raise SystemExit(main())
