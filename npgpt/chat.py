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
    """Talk until the end of the input and return exit code 0; exit with 2 for a model that cannot chat."""
    parser = make_parser("chat", "Talk with a GPT that was taught to reply.")
    parser.description = f"{parser.description}\n{_(HELP)}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", metavar="RUN", help="a run of npgpt.finetune, or a model with a chat template")
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
        help="maximum number of tokens of a reply (default 512, at most half the context)",
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

        model = load(args.model, args.adapter)
        args.max_new_tokens = args.max_new_tokens or max(1, min(512, model.config.block_size // 2))
        if args.max_new_tokens >= model.config.block_size:
            raise ValueError(f"--max-new-tokens must be below the context, {model.config.block_size} tokens")
        talk = Conversation(model, args)
    start_command(args.threads, out=sys.stderr)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then has history and editing
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
        """Begin with main()'s arguments; ValueError for a bad one, and for a model that cannot chat."""
        from npgpt.runtime.libnpgpt import Talk
        from npgpt.runtime.sampling import Sampling
        from npgpt.text import examples

        if model.tokenizer is None or (why := examples.why_no_chat(model.tokenizer)):
            why = why if model.tokenizer else "has no tokenizer"
            how = f"python -m npgpt.finetune {shell_path(args.model)} DIALOGUES.jsonl"
            raise ValueError(f"{args.model}: {why}; {how} gives it roles")
        self.model, self.tokenizer, self.args, self.replies = model, model.tokenizer, args, 0
        self.how = Sampling(args.temperature, args.top_k, args.top_p, 0.0, args.repetition_penalty)
        self.ends, self.talk = examples.chat_ends(self.tokenizer), Talk()
        # spelt out in what npgpt's roles were taught by, the ends are learnt as letters
        self.stop = [] if examples.template_of(self.tokenizer) else self.tokenizer.end_names
        self.told_cleaning = False  # it is said once that a message was cleaned
        self.begin(args.system)
        if self.system:  # some templates have no place for one
            examples.encode_chat(self.tokenizer, [*self.system, {"role": "user", "content": "?"}])

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
        from npgpt.runtime.generation import generate

        args, chunks = self.args, []
        self.turns.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except ValueError:
            self.turns.pop()
            raise
        seed = None if args.seed is None else args.seed + self.replies
        try:
            for chunk in generate(
                self.model,
                self.tokenizer,
                ids,
                args.max_new_tokens,
                self.how,
                self.stop,
                seed,
                stream=True,
                ends=self.ends,
                talk=self.talk,
            ):
                chunks.append(chunk)
                yield chunk
        finally:
            self.turns.append({"role": "assistant", "content": "".join(chunks)})
            self.replies += 1


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
