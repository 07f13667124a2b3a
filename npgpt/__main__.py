"""`npgpt NAME ...` and `python -m npgpt NAME ...`: the same doors as `python -m npgpt.NAME`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from npgpt.console.language import _, set_language

DOORS = {
    "train": "train a GPT on text",
    "tune": "find better settings for a text",
    "evaluate": "measure a trained GPT on text",
    "generate": "let a trained GPT write",
    "finetune": "teach it a task: conversations, labels, prompts and completions",
    "chat": "talk with it",
    "serve": "serve it as OpenAI's HTTP API, with a page to try it",
    "export": "write it as other programs read it",
    "embed": "what a C compiler needs to build against libnpgpt",
    "bench": "measure how fast this machine trains",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Open the door that is named, or tell which there are -> exit code; 2 for a name of none."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in DOORS:
        return int(import_module(f"npgpt.{argv[0]}").main(argv[1:]))
    set_language()
    if argv and argv[0] not in ("-h", "--help"):
        wrong = _("npgpt: NAME must be one of {doors}, got {name}")
        print(wrong.format(doors=", ".join(DOORS), name=argv[0]), file=sys.stderr)
        return 2
    print(_("npgpt NAME ..., where NAME is one of"))
    for name, what in DOORS.items():
        print(f"  {name:10}{_(what)}")
    print(_("npgpt NAME --help tells more."))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
