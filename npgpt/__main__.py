"""`npgpt NAME ...` and `python -m npgpt NAME ...`: the same commands as `python -m npgpt.NAME`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from npgpt.console.language import N_, _, set_language
from npgpt.console.process import command
from npgpt.engine.names import hint

COMMANDS = {
    "train": N_("train a GPT on text"),
    "prepare": N_("make clean text of files of any form"),
    "tune": N_("find better settings for a text"),
    "evaluate": N_("measure a trained GPT on text"),
    "compare": N_("show runs side by side"),
    "generate": N_("let a trained GPT write"),
    "explain": N_("show why it writes what it writes next"),
    "finetune": N_("teach it a task: conversations, labels, prompts and completions"),
    "chat": N_("talk with it"),
    "serve": N_("serve it as OpenAI's HTTP API, with a page to try it"),
    "export": N_("write it as other programs read it"),
    "embed": N_("what a C compiler needs to build against libnpgpt"),
    "bench": N_("measure how fast this machine trains"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command, or list the commands; return the exit code, 2 for an unknown name."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return int(import_module(f"npgpt.{argv[0]}").main(argv[1:]))
    return _list(argv)


@command("--help")
def _list(argv: Sequence[str] | None) -> int:
    set_language()
    if argv and argv[0] not in ("-h", "--help"):
        end = hint(argv[0], COMMANDS)
        print(f"npgpt: NAME must be one of {', '.join(COMMANDS)}, got {argv[0]}{end}", file=sys.stderr)
        return 2
    print(_("npgpt NAME ..., where NAME is one of"))
    for name, what in COMMANDS.items():
        print(f"  {name:10}{_(what)}")
    print(_("npgpt NAME --help shows more."))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
