"""`python -m npgpt.export RUN --to gguf|hf|html -o OUT`: write a trained GPT for other programs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from npgpt.console.language import number
from npgpt.console.messages import log, log_warnings
from npgpt.console.process import command, errors_as_lines
from npgpt.console.settings import add_adapter, make_parser, one_of

if TYPE_CHECKING:
    from npgpt.api import GPT
    from npgpt.engine.config import GPTConfig

POSITIONS = 1024  # of a GPT-2 that Transformers reads from a gguf file, whatever the file says


@command("export")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the file or folder and return exit code 0; exit with 2 where it exists or cannot be written."""
    parser = make_parser("export", "Write a trained GPT as other programs read it.")
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint folder, a Hugging Face folder or a .gguf file")
    add_adapter(parser)
    add(
        "--to",
        required=True,
        type=one_of("gguf", "hf", "html"),
        help="gguf: one file, for libnpgpt and llama.cpp; hf: a folder, for Transformers, with a run's model "
        "card; html: one page that opens by double-click and writes in any browser, offline",
    )
    add(
        "--type",
        type=one_of("f32", "f16", "q8_0", "q4_0", "q4_1", "q6_k", "q4_k"),
        help="number format of the weights in a gguf file (default f32) or an html page (default q8_0)",
    )
    add(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="the file or folder to write, which must not exist yet",
    )
    args = parser.parse_args(argv)
    if args.to == "hf" and args.type:
        parser.error("--type is for gguf and html; a Hugging Face folder is float32")

    with errors_as_lines("export"):
        from npgpt.api import load
        from npgpt.console.card import write as write_card
        from npgpt.interop.gguf import write_gguf
        from npgpt.training.checkpoint import written_whole
        from npgpt.training.run import shown

        out = Path(args.out)
        if out.exists():
            raise FileExistsError(17, "is there already", str(out))
        if not out.parent.is_dir():
            raise FileNotFoundError(2, "No such folder", str(out.parent))
        model = load(args.model, args.adapter)
        name = shown(Path(args.model).resolve().name)
        if args.to == "gguf":
            write_gguf(out, model, model.tokenizer, args.type or "f32", name)
        elif args.to == "html":
            with written_whole(out) as new:
                _write_page(new, model, args.type or "q8_0", name)
        else:
            card = None if args.adapter else _card(args.model, model)
            with written_whole(out) as new:
                model.save_pretrained(new)
                if card:
                    write_card(new, card)
    size = sum(f.stat().st_size for f in out.rglob("*")) if out.is_dir() else out.stat().st_size
    print(f"{out}: {number(size / 1e6, ',.1f')} MB", flush=True)
    if args.to == "gguf":
        _log_readers(out, model.config, model.tokenizer.normalizer if model.tokenizer else "none")
    return 0


def _card(run: str, model: GPT) -> str | None:
    """Return the model card of a run; None for another model, or where a file of the run cannot be read."""
    from npgpt.console.card import card_of
    from npgpt.training.checkpoint import is_run

    if not is_run(Path(run)):
        return None
    try:
        return card_of(Path(run), model)
    except (OSError, ValueError) as error:
        log_warnings([f"{error}; the folder gets no README.md"])
        return None


def _write_page(out: Path, model: GPT, type: str, name: str) -> None:
    """Write the page with the model in it; print on stderr what it cannot do."""
    from npgpt.interop.gguf import write_gguf
    from npgpt.server import local
    from npgpt.text import examples

    if model.tokenizer is None:
        raise ValueError("export: a page needs a model with a tokenizer, this one has none")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        gguf = Path(folder, "model.gguf")
        write_gguf(gguf, model, model.tokenizer, type, name)
        local.write(out, gguf, model.tokenizer, model.config.block_size, model.config.vocab_size, name)
    if not local.chats(model.tokenizer) and examples.template_of(model.tokenizer):
        log("the page cannot chat: it knows npgpt's roles alone, not other chat templates", to=sys.stderr)


def _log_readers(file: Path, config: GPTConfig, normalizer: str) -> None:
    """Print on stderr who reads a gguf file, where that is not everybody, or not as it is."""
    from npgpt.interop.gguf import architecture_of

    arch = architecture_of(config)
    if arch == "npgpt":
        log("{file} is for libnpgpt alone; --to hf is for Transformers", to=sys.stderr, file=file)
    elif arch == "llama":
        if config.rope and config.rope.type != "default":
            log(
                "Transformers does not read from {file} how positions are scaled; --to hf is for it",
                to=sys.stderr,
                file=file,
            )
    elif config.block_size != POSITIONS:
        how = f"gguf_file={file.name!r}, n_positions={config.block_size}"
        log("Transformers reads it with from_pretrained(FOLDER, {how})", to=sys.stderr, how=how)
    if normalizer != "none":
        log(
            "the text was cleaned ({how}): npgpt cleans prompts in the same way; llama.cpp and libnpgpt do "
            "not, so give them text without \\r, composed (NFC)",
            to=sys.stderr,
            how=normalizer,
        )


if __name__ == "__main__":
    raise SystemExit(main())
