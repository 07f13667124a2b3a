"""`python -m npgpt.serve RUN`: serve a trained GPT as OpenAI's HTTP API, with a page to try it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from npgpt.console.messages import log, start_command
from npgpt.console.process import command, errors_as_lines, exit_with_error
from npgpt.console.settings import add_adapter, count, count_or_zero, make_parser, not_negative, thread_count

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from asyncio.subprocess import Process

    from npgpt.engine.types import Fields, PathLike
    from npgpt.runtime import libnpgpt
    from npgpt.server.job import FinetuneArguments
    from npgpt.text.tokenizer import Tokenizer

Adapters: TypeAlias = "Mapping[Path, str | None]"  # the adapter that is merged into the model of a path
NONE: Adapters = {}
FREE_SECONDS = 60  # for a process to save a checkpoint and end
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@command("serve", goes_on=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal and return exit code 0; exit with 2 for a bad model or address."""
    args = _parser().parse_args(argv)
    if not args.api_key and (key := os.environ.get("NPGPT_API_KEY")) is not None:
        if not key:  # a variable that was not filled, not a wish for no key
            exit_with_error("serve", "argument --api-key: must not be empty, as NPGPT_API_KEY is", 2)
        args.api_key = [key]
    if args.host not in LOOPBACK and not args.api_key:
        exit_with_error("serve", f"--api-key must be given where others can connect (--host {args.host})", 2)
    if args.port > 65535:
        exit_with_error("serve", f"--port must be in 0..65535, got {args.port}", 2)
    with errors_as_lines("serve"):
        try:
            from npgpt.server import app, connections, guard, origins
        except ImportError as error:
            raise ValueError(f"needs {error.name}: pip install 'npgpt[server]'") from None
        from npgpt.interop.installed import installed, located
        from npgpt.training.run import shown
        from npgpt.version import __version__

        settings = guard.Settings(
            api_keys=tuple(args.api_key),
            origins=tuple(map(origins.check_origin, args.allow_origin)),
            loopback=args.host in LOOPBACK,
            sessions=args.sessions,
            queue=args.queue,
            max_tokens=args.max_tokens,
            cache_bytes=args.cache_mb << 20,
            shared_cache=args.cache_scope == "all",
            store=args.store and Path(args.store),
            grace=args.grace,
        )
        model = located(args.model) if args.model else Path(args.model)
        path = model.resolve()
        name = shown(path.stem if path.suffix == ".gguf" else path.name)
        adapters = {model: args.adapter, path: args.adapter}  # of the models that jobs make: none
        application = app.App(
            model,
            name,
            settings,
            __version__,
            installed={name: file for name, file in installed().items() if file.resolve() != path},
            open_model=functools.partial(open_model, adapters=adapters),
            start_finetune=functools.partial(start_finetune, adapters=adapters),
            start_explain=functools.partial(start_explain, adapters=adapters),
        )
        server = connections.make_server(application, args.host, args.port)
        listening = connections.listen(args.host, args.port)
    sys.setswitchinterval(0.0005)  # the scheduler's thread gets the interpreter back soon after each step
    start_command(args.threads)
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    log("serving {name} at {url} (Ctrl-C ends it)", name=name, url=url)
    server.run(sockets=[listening])
    return 0


def _parser() -> ArgumentParser:
    parser = make_parser("serve", "Serve a trained GPT as OpenAI's HTTP API, with a page to try it.")
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint folder, a Hugging Face folder or a .gguf file")
    add(
        "--host", default="127.0.0.1", help="address; a key is needed beyond this machine (default 127.0.0.1)"
    )
    add("--port", type=count_or_zero, default=8000, help="port to serve at; 0: any free port (default 8000)")
    add(
        "--api-key",
        action="append",
        default=[],
        help="key of a client; may be given several times (or one in NPGPT_API_KEY)",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this site ask, as https://example.org; * for all; may be given several times",
    )
    add("--sessions", type=count, default=64, help="texts computed at once (default 64)")
    add("--queue", type=count, default=256, help="texts that may wait; more get status 429 (default 256)")
    add("--max-tokens", type=count, default=4096, help="maximum number of tokens of a reply (default 4096)")
    add(
        "--cache-mb",
        type=count_or_zero,
        default=512,
        metavar="MB",
        help="memory for prompts that were read, for those that begin so; 0: none (default 512)",
    )
    add(
        "--cache-scope",
        choices=("key", "all"),
        default="key",
        help="who shares it: the requests of one API key, or all, who can see then what others asked "
        "(default key)",
    )
    add(
        "--store",
        metavar="FOLDER",
        help="where answers of /v1/responses are kept, for 30 days at most (default: until the server ends)",
    )
    add("--grace", type=not_negative, default=30.0, help="seconds left to streams after SIGTERM (default 30)")
    add_adapter(parser)
    add("--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)")
    return parser


def open_model(path: PathLike, adapters: Adapters = NONE) -> tuple[libnpgpt.Model, Tokenizer]:
    """Return libnpgpt's model and its tokenizer: a GGUF file as it is, the weights of anything else.

    An adapter is merged into the weights, which are float32 then, those of a GGUF file too. Raise ValueError
    or OSError if there is no model to serve.
    """
    from npgpt.api import load
    from npgpt.engine import kernels
    from npgpt.interop.gguf import read_tokenizer
    from npgpt.runtime import libnpgpt

    if kernels.library() is None:
        raise ValueError("serving needs libnpgpt, and it was not built here")
    path = Path(path)
    adapter = adapters.get(path)
    if path.suffix == ".gguf" and adapter is None:
        runtime, tokenizer = libnpgpt.Model.open(path), read_tokenizer(path)
    else:
        model = load(path, adapter)
        runtime, tokenizer = libnpgpt.Model.of(model), model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{path}: the model must have a tokenizer")
    return runtime, tokenizer


async def start_finetune(arguments: FinetuneArguments, adapters: Adapters) -> Process:
    """Start `python -m npgpt.finetune --resume` for a job of the server; its streams are pipes.

    It runs in the folder of the examples, so that its errors name the file without its path. Ctrl-C at a
    terminal is for the server, which lets it save a checkpoint.
    """
    from asyncio.subprocess import PIPE, create_subprocess_exec

    from npgpt.server.jobs import LINE_LIMIT
    from npgpt.training.finetuning import default_rate

    code = "from npgpt.finetune import of_server; raise SystemExit(of_server())"
    command = [sys.executable, "-P", "-c", code]
    command += [str(arguments.base), arguments.data.name, "-o", str(arguments.out), "--resume", "--json"]
    adapter, multiplier = adapters.get(arguments.base), arguments.multiplier
    for flag, value in (
        ("--seed", arguments.seed),
        ("--epochs", arguments.epochs),
        ("--batch-size", arguments.batch_size),
        ("--lr", multiplier and multiplier * default_rate(arguments.n_embd)),
        ("--val", arguments.validation and arguments.validation.name),
        ("--adapter", adapter and os.path.abspath(adapter)),
    ):
        command += [flag, str(value)] if value is not None else []
    await _free(arguments.out)
    return await create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=LINE_LIMIT,
        cwd=arguments.data.parent,
        env=_environment(),
        start_new_session=True,
    )


async def _free(run: Path) -> None:
    """Wait for the process of a server that was killed, which saves a checkpoint of this run and ends."""
    import asyncio

    from npgpt.training.run import locked

    for _ in range(FREE_SECONDS * 10 if run.exists() else 0):
        with contextlib.suppress(BlockingIOError), locked(run):
            return
        await asyncio.sleep(0.1)


async def start_explain(path: Path, asked: Fields, adapters: Adapters) -> tuple[Process, bytes]:
    """Start npgpt.explain.answer() for the page of a text; return its process, and what it reads.

    It gives way to the texts that are being written.
    """
    from asyncio.subprocess import PIPE, create_subprocess_exec

    adapter = adapters.get(path)
    asked |= {"path": os.path.abspath(path), "adapter": adapter and os.path.abspath(adapter)}
    code = "import os; getattr(os, 'nice', int)(10); from npgpt.explain import answer; answer()"
    process = await create_subprocess_exec(
        sys.executable, "-P", "-c", code, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_environment()
    )
    return process, json.dumps(asked, allow_nan=False).encode()


def _environment() -> dict[str, str]:
    """Return that of a process of the server: clients read English, and it imports what this one does.

    The path, with -P, keeps what the folder holds from being imported as a module.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    return {**os.environ, "LANGUAGE": "en", "PYTHONPATH": path}


if __name__ == "__main__":
    raise SystemExit(main())
