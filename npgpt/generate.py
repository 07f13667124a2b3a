"""`python -m npgpt.generate RUN "prompt"`: let a trained GPT write."""

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from npgpt.console.messages import log_cleaned, start_command
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

HOW = (  # the flags that are arguments of the model's generate()
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "ignore_eos",
    "schema", "regex",
)  # fmt: skip


def _text_of(path: str) -> str:
    """Return the text of a file, as argparse's type."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ArgumentTypeError(f"{path}: {why}") from None


@command("generate")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the texts and return exit code 0; exit with 2 for bad input."""
    parser = make_parser("generate", "Let a trained GPT write.")
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint folder, a Hugging Face folder or a .gguf file")
    add(
        "prompt",
        nargs="?",
        type=str,
        default="",
        help="text to continue (default: the beginning of a document)",
    )
    add(
        "--max-new-tokens", type=count_or_zero, default=200, help="maximum number of new tokens (default 200)"
    )
    add("--temperature", type=not_negative, default=0.8, help="0: always the most likely token (default 0.8)")
    add("--top-k", type=count, help="only the K most likely tokens (default: all)")
    add("--top-p", type=float, default=1.0, help="only the most likely that reach probability P (default 1)")
    add("--min-p", type=float, default=0.0, help="minimum probability, relative to the maximum (default 0)")
    add("--repetition-penalty", type=positive, default=1.0, help="above 1: less repetition (default 1)")
    add("--stop", action="append", default=[], metavar="S", help="end before this text; may be repeated")
    add("--ignore-eos", action="store_true", help="never draw the end of text, which ends the text early")
    add("--schema", type=_text_of, metavar="FILE", help="write only JSON that meets the JSON Schema in FILE")
    add("--regex", help="write only text that matches this regular expression as a whole")
    add("--num-samples", type=count, default=1, help="texts to write, seeds S, S + 1, ... (default 1)")
    add("--seed", type=count_or_zero, help="same seed, same text (default: another each time)")
    add("--stream", action="store_true", help="show the text as it is written")
    add_adapter(parser)
    add("--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_intermixed_args(argv)

    with errors_as_lines("generate"):
        from npgpt.api import load

        model = load(args.model, args.adapter)
        how = {name: getattr(args, name) for name in HOW}
        seeds = [None if args.seed is None else args.seed + number for number in range(args.num_samples)]
        # iterators, which draw no token yet
        samples = [model.generate(args.prompt, seed=seed, stream=True, **how) for seed in seeds]
        start_command(args.threads, out=sys.stderr)  # stdout is for the text alone
        log_cleaned(model.tokenizer, args.prompt)
        if args.json:
            texts = ["".join(chunks) for chunks in samples]
            more = {"texts": texts} if len(texts) > 1 else {}
            print(
                json.dumps(
                    {"model": args.model, "prompt": args.prompt, "text": texts[0], **more}, allow_nan=False
                )
            )
            return 0
        for number, chunks in enumerate(samples):
            if number:
                print("-" * 70)
            print(args.prompt, end="", flush=True)
            for chunk in chunks if args.stream else ["".join(chunks)]:
                print(chunk, end="", flush=True)
            print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
