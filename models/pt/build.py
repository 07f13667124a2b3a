"""Build the Portuguese model from its text: one command, which goes on where it was stopped.

    python models/pt/build.py --text pt.txt -o FOLDER

pt.txt and pt.txt.tsv are what text.py writes. recipe.toml says how the model is trained, by a number of
steps. FOLDER gets train.txt and held-out/, the parts of the text; run/, the training with its checkpoints; at
the end pt.gguf, the model in q8_0, and build.json with its sha256. A hash is that of one kernels' name: each
adds in an order of its own. Threads, kills and the speed of a machine change no bit of it.
"""

import argparse
import hashlib
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from corpus import held_out
from corpus.errors import SourceError

import npgpt
from npgpt import train
from npgpt.engine import kernels
from npgpt.engine.config import count_parameters, engine_config
from npgpt.interop.gguf import write_gguf
from npgpt.training.checkpoint import write_atomically, written_whole
from npgpt.training.listener import Step

HERE = Path(__file__).parent
LARGEST = 12_000_000  # bytes of pt.gguf: it comes with the clone
Q8_0 = 34 / 32  # bytes of a weight
SHAPE = ("n_layer", "n_head", "n_embd", "block_size")


class Stop(Exception):
    """Training has reached the step of --until."""


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help="what text.py wrote")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="of the build")
    parser.add_argument(
        "--recipe",
        type=Path,
        default=HERE / "recipe.toml",
        metavar="FILE",
        help="how to train (default: models/pt/recipe.toml)",
    )
    parser.add_argument("--threads", type=int, help="number of threads (default: those of npgpt.train)")
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="stop behind this step; without it the same command goes on"
    )
    return parser.parse_args()


def read_recipe(path: Path) -> dict[str, Any]:
    """Return {"text": sha256, "train": settings of npgpt.train}; SourceError where a file is none."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        settings, _ = recipe["train"], recipe["text"]
        shape = engine_config(
            settings["engine"],
            vocab_size=int(settings["tokenizer"].removeprefix("bpe:")),
            **{name: settings[name] for name in SHAPE},
        )
        settings["steps"]
    except KeyError as error:
        raise SourceError(f"{path}: {error} is missing") from None
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path}: {error}") from None
    if (size := count_parameters(shape) * Q8_0) > LARGEST:
        raise SourceError(
            f"{path}: its model would have {size / 1e6:.1f} MB in q8_0, of at most {LARGEST / 1e6:g}"
        )
    return recipe


def read_text(path: Path, recipe: dict[str, Any]) -> tuple[bytes, list[held_out.Document]]:
    """Return the text and its index; SourceError where the text is not that of the recipe."""
    text = path.read_bytes()
    if (digest := hashlib.sha256(text).hexdigest()) != recipe["text"]:
        raise SourceError(f"{path} has sha256 {digest}, not {recipe['text']} as in the recipe")
    return text, held_out.read_index(path.with_name(path.name + ".tsv"))


def begin(folder: Path, recipe: Path) -> None:
    """Make the folder, or see that what it holds was begun with this recipe."""
    mine, theirs = folder / "recipe.toml", recipe.read_text(encoding="utf-8")
    if mine.exists():
        if mine.read_text(encoding="utf-8") != theirs:
            raise SourceError(f"{folder} was begun with another recipe; give another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise SourceError(f"{folder} is not empty and holds no build")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(mine, theirs)


def write_parts(folder: Path, training: bytes, held: dict[str, bytes]) -> None:
    """Write train.txt, held-out/SOURCE.txt, and validation.txt, which has all that is held out."""
    (folder / "held-out").mkdir(exist_ok=True)
    parts = {f"held-out/{source}.txt": part for source, part in held.items()}
    parts |= {"train.txt": training, "validation.txt": b"".join(held.values())}
    for name, part in parts.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != part:
            with written_whole(path) as new:
                new.write_bytes(part)


def train_by(recipe: dict[str, Any], folder: Path, threads: int | None, until: int | None) -> bool:
    """Train in FOLDER/run by the recipe, from where it was left; return whether it is at its end."""
    words = [str(folder / "train.txt"), "--val", str(folder / "validation.txt"), "--out", str(folder / "run")]
    words += ["--resume", "--split", "1", "--dedupe", "none", "--clean", "none"]
    for name, value in (recipe["train"] | ({"threads": threads} if threads else {})).items():
        words += [f"--{name.replace('_', '-')}", str(value)]

    def stop(step: Step) -> None:
        if until and step.step >= until:
            raise Stop

    os.environ.setdefault("NPGPT_CACHE", str(folder / "cache"))
    try:
        code = train.main(words, on_step=stop)
    except Stop:
        return False
    if code:
        sys.exit(code)
    return True


def export(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write pt.gguf and build.json; return what the latter holds."""
    model, out = npgpt.load(folder / "run"), folder / "pt.gguf"
    write_gguf(out, model, model.tokenizer, "q8_0", "npgpt-pt")
    data = out.read_bytes()
    if len(data) > LARGEST:
        out.unlink()
        raise SourceError(f"the model has {len(data) / 1e6:.1f} MB in q8_0, of at most {LARGEST / 1e6:g}")
    built = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "parameters": model.num_params,
        "kernels": kernels.name(),
        "npgpt": npgpt.__version__,
        **recipe,
    }
    write_atomically(folder / "build.json", json.dumps(built, indent=1, allow_nan=False) + "\n")
    return built


def main() -> None:
    """Run the command."""
    options = arguments()
    try:
        recipe = read_recipe(options.recipe)
        text, index = read_text(options.text, recipe)
        parts = held_out.split(text, index)
        del text
        begin(options.out, options.recipe)
        write_parts(options.out, *parts)
        if not train_by(recipe, options.out, options.threads, options.until):
            print(f"stopped behind step {options.until}; without --until the same command goes on")
            return
        built = export(options.out, recipe)
    except (SourceError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        sys.exit(2)
    told = f"{built['bytes']:,} bytes, sha256 {built['sha256']}, {built['kernels']} kernels"
    print(f"{options.out / 'pt.gguf'}: {told}")


if __name__ == "__main__":
    main()
