"""`python -m npgpt.chat RUN`: talk in the terminal with a GPT that was taught to reply."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from npgpt.console.language import N_, _
from npgpt.console.messages import log, log_cleaned, shell_path, start_command
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import (
    add_adapter,
    count,
    count_or_zero,
    make_parser,
    not_negative,
    positive,
    thread_count,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.api import GPT

HELP = N_("""\
/system TEXT   begin a new conversation with the system message TEXT (without TEXT: none)
/reset         forget the conversation
/save FILE     append it to a JSONL file that npgpt.finetune reads
/quit          end, as Ctrl-D does; Ctrl-C ends a reply""")


@command("chat")
def main(argv: Sequence[str] | None = None) -> int:
    """Talk until the end of the input and return exit code 0; exit with 2 for a model without roles."""
    parser = make_parser("chat", "Talk with a GPT that was taught to reply.")
    parser.description = f"{parser.description}\n{_(HELP)}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", metavar="RUN", help="a run of npgpt.finetune, or another model with roles")
    add(
        "--system",
        type=str,
        default="",
        metavar="TEXT",
        help="system message of the conversation (default: none)",
    )
    add(
        "--max-new-tokens",
        type=count,
        help="maximum number of tokens of a reply (default 100, at most half the context)",
    )
    add("--temperature", type=not_negative, default=0.7, help="0: always the most likely token (default 0.7)")
    add("--top-k", type=count, help="only the K most likely tokens (default: all)")
    add(
        "--top-p",
        type=float,
        default=0.95,
        help="only the most likely that reach probability P (default 0.95)",
    )
    add("--repetition-penalty", type=positive, default=1.0, help="above 1: less repetition (default 1)")
    add("--seed", type=count_or_zero, help="same seed, same replies (default: others each time)")
    add_adapter(parser)
    add("--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)")
    args = parser.parse_args(argv)

    with errors_as_lines("chat"):
        from npgpt.api import load
        from npgpt.text.examples import has_roles

        model = load(args.model, args.adapter)
        if model.tokenizer is None or not has_roles(model.tokenizer):
            how = f"python -m npgpt.finetune {shell_path(args.model)} DIALOGUES.jsonl"
            raise ValueError(f"{args.model}: has no roles, so it cannot chat; {how} gives it some")
        args.max_new_tokens = args.max_new_tokens or max(1, min(100, model.config.block_size // 2))
        if args.max_new_tokens >= model.config.block_size:
            raise ValueError(f"--max-new-tokens must be below the context, {model.config.block_size} tokens")
        model.generate("", 0, *_how(args))  # raises for a bad setting
    start_command(args.threads, out=sys.stderr)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then has history and editing
    talk = Conversation(model, args)
    if sys.stdin.isatty():
        log("/help lists the commands", to=sys.stderr)
    while (line := _line()) is not None:
        if line in ("/quit", "/exit"):
            break
        if line.startswith("/"):
            _command(talk, line)
        elif line:
            _reply(talk, line)
    return 0


class Conversation:
    """A conversation with a model, which sees the latest complete turns that fit its context."""

    def __init__(self, model: GPT, args: Namespace) -> None:
        assert model.tokenizer  # main() refuses a model without roles
        self.model, self.tokenizer, self.args, self.replies = model, model.tokenizer, args, 0
        self.told_cleaning = False  # it is said once that a message was cleaned
        self.begin(args.system)

    def begin(self, system: str) -> None:
        """Begin a new conversation with the system message `system`, '' for none."""
        self.system = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the messages so far as {"role", "content"}, the system message first."""
        return self.system + self.turns

    def prompt(self) -> list[int]:
        """Return the ids of the latest messages that fit the context beside a reply.

        ValueError where not even the last message fits.
        """
        from npgpt.text.examples import encode_chat

        room = self.model.config.block_size - self.args.max_new_tokens
        for begin in range(0, len(self.turns), 2):
            ids = encode_chat(self.tokenizer, self.system + self.turns[begin:])
            if len(ids) <= room:
                return ids
        raise ValueError(f"this message must fit {room} tokens beside a reply, got {len(ids)}")

    def reply(self, text: str) -> Generator[str]:
        """Yield the reply to `text` in chunks; a reply that is interrupted stays as far as it came."""
        args, chunks = self.args, []
        self.turns.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except ValueError:
            self.turns.pop()
            raise
        seed = None if args.seed is None else args.seed + self.replies
        try:
            # the ends are stop strings too: spelt out in what it was taught by, they are learnt as letters
            stop, n = self.tokenizer.end_names, args.max_new_tokens
            for chunk in self.model.generate(ids, n, *_how(args), stop=stop, seed=seed, stream=True):
                chunks.append(chunk)
                yield chunk
        finally:
            self.turns.append({"role": "assistant", "content": "".join(chunks)})
            self.replies += 1


def _how(args: Namespace) -> tuple[float, int | None, float, float, float]:
    return args.temperature, args.top_k, args.top_p, 0.0, args.repetition_penalty


def _line() -> str | None:
    """Return the next line of input, None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _reply(talk: Conversation, text: str) -> None:
    talk.told_cleaning = talk.told_cleaning or log_cleaned(
        talk.tokenizer, *(message["content"] for message in talk.system), text
    )
    try:
        with contextlib.closing(talk.reply(text)) as chunks:
            for chunk in chunks:
                print(chunk, end="", flush=True)
    except ValueError as error:
        print(f"npgpt chat: {error}", file=sys.stderr)
        return
    except KeyboardInterrupt:
        pass
    print(flush=True)


def _command(talk: Conversation, line: str) -> None:
    name, *rest_of = line.split(" ", 1)
    rest = "".join(rest_of).strip()
    if name == "/reset":
        talk.turns = []
    elif name == "/system":
        talk.begin(rest)
    elif name == "/save" and rest and talk.turns:
        try:
            with open(rest, "a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": talk.messages}, ensure_ascii=False) + "\n")
            log("{n} messages added to {file}", n=len(talk.messages), file=rest, to=sys.stderr)
        except OSError as error:
            print(f"npgpt chat: {rest}: {error.strerror}", file=sys.stderr)
    elif name == "/save":
        lacking = "/save must have a FILE" if talk.turns else "/save must have something to save"
        print(f"npgpt chat: {lacking}", file=sys.stderr)
    else:
        print(_(HELP), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
