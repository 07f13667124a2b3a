"""Reading a model from a run, a checkpoint, another project's folder or file, or the Hugging Face Hub."""

import os
import warnings
from pathlib import Path
from typing import Any

from npgpt.engine.names import PATH_LENGTH, missing
from npgpt.engine.types import PathLike
from npgpt.interop import gguf, hub, huggingface, installed, peft, pytorch, tensorflow
from npgpt.interop.layout import Pretrained
from npgpt.text.cleaning import check_cleaning
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import Tokenizer
from npgpt.training import checkpoint, run


def read(path: PathLike, adapter: PathLike | None = None, **fields: Any) -> Pretrained:
    """Return configuration, weights and tokenizer of the model that `path` holds or names.

    npgpt.load describes the arguments. ValueError where there is no such model, OSError where nothing exists.
    """
    if adapter is not None:
        folder = _find_adapter(adapter)
        return peft.apply_adapter(read(path, **fields), folder)
    if path == "":
        raise ValueError("load: path must not be empty")
    path = installed.located(path)
    kind = path.suffix if os.path.isfile(path) else ""
    if kind == ".safetensors":
        return pytorch.read_state_dict(path, **fields)
    if kind in (".pt", ".pth"):
        return pytorch.read_checkpoint(path, **fields)
    if fields:
        raise ValueError(f"load: {', '.join(fields)} must be left out, but for a .safetensors or .pt file")
    if kind == ".gguf":
        return gguf.read_gguf(path)
    folder = find_folder(path)
    if peft.is_adapter(folder):
        return peft.apply_adapter(_read_base(folder), folder)
    if (folder / "config.json").exists():
        loaded = huggingface.read_pretrained(folder)
        if loaded.tokenizer is None:
            return loaded
        return loaded._replace(tokenizer=_cleaning_as_its_run(loaded.tokenizer, folder))
    if (folder / "hparams.json").exists():
        return tensorflow.read_release(folder)
    if found := models_in(folder):
        raise ValueError(
            f"load: path must be one model, got a folder of several; load one: {', '.join(found)}"
        )
    raise ValueError(f"load: path must be a run, a checkpoint or a Hugging Face folder, got {path}")


def _read_base(folder: Path) -> Pretrained:
    """Return the base that an adapter's folder names: from here as PEFT finds it, or from the folder."""
    name = peft.base_of(folder)
    path = folder / name if not Path(name).exists() and (folder / name).exists() else Path(name)
    try:
        if not path.is_file() and peft.is_adapter(find_folder(path)):
            raise ValueError(f"{folder}: its base must be a model, got the adapter {path}")
        return read(path)
    except FileNotFoundError as error:
        how = f"the base of {folder} is not there; give another place of it, and this folder to --adapter"
        raise FileNotFoundError(2, f"{error.strerror}; {how}", str(path)) from None


def _find_adapter(path: PathLike) -> Path:
    """Return the folder of an adapter: `path`, that of a run of npgpt, or one from the Hub."""
    if path == "":
        raise ValueError("load: adapter must not be empty")
    inside = Path(path, "adapter")
    folder = inside if peft.is_adapter(inside) else find_folder(path)
    if not peft.is_adapter(folder):
        raise ValueError(f"load: adapter must be a folder with {peft.CONFIG} and {peft.WEIGHTS}, got {path}")
    return folder


def models_in(folder: Path) -> list[str]:
    """Return the paths of the runs and models in a folder, ten at most."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [p for p in inside if p.suffix == ".gguf" or (p / "config.json").exists() or checkpoint.is_run(p)]
    return [*map(str, found[:10]), *["..."][: len(found) > 10]]


def read_tokenizer(path: PathLike) -> Tokenizer:
    """Return the tokenizer of a run, a checkpoint or a Hugging Face folder.

    FileNotFoundError where there is none, ValueError for files that are faulty or of another kind.
    """
    folder = find_folder(path)
    return _cleaning_as_its_run(load_tokenizer(folder), folder)


def _cleaning_as_its_run(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Return a checkpoint's tokenizer, which cleans text as the run did.

    npgpt 0.1.0 wrote that into the run's config.toml alone.
    """
    config = folder.parent / run.CONFIG
    of_a_run = (folder / checkpoint.MANIFEST).exists() and config.exists()
    if tokenizer.normalizer != "none" or not of_a_run:
        return tokenizer
    how = run.read_table(config).get("clean", "none")
    check_cleaning(how, f"{config}: clean")
    return tokenizer.normalizing(how)


def find_folder(path: PathLike) -> Path:
    """Return the folder of a model's files: a run's best checkpoint, a Hub download, or `path` itself.

    A broken checkpoint is skipped with a warning, and the one before it is used.
    """
    if path == "":
        raise ValueError("load: path must not be empty")
    path = Path(path)
    if len(str(path)) > PATH_LENGTH and not os.path.exists(path):  # which a Path cannot be asked
        raise missing(path)
    if not path.exists():
        if hub.is_name(path):
            return hub.fetch(str(path))
        raise missing(path)
    if checkpoint.is_run(path):
        path, broken = checkpoint.choose(path)
        for line in broken:
            warnings.warn(line, stacklevel=3)
    elif (path / checkpoint.MANIFEST).exists():
        checkpoint.verify(path)
    return path
