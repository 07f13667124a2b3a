"""Reading a model from a run, a checkpoint, another project's folder or file, or the Hugging Face Hub."""

import warnings
from pathlib import Path
from typing import Any

from npgpt.engine.types import PathLike
from npgpt.interop import gguf, hub, huggingface, pytorch, tensorflow
from npgpt.interop.layout import Pretrained
from npgpt.training import checkpoint


def read(path: PathLike, **fields: Any) -> Pretrained:
    """Return configuration, weights and tokenizer of the model that `path` holds or names.

    npgpt.load describes `path` and `fields`. ValueError where there is no such model, OSError where nothing
    exists.
    """
    kind = Path(path).suffix if Path(path).is_file() else ""
    if kind == ".safetensors":
        return pytorch.read_state_dict(path, **fields)
    if kind in (".pt", ".pth"):
        return pytorch.read_checkpoint(path, **fields)
    if fields:
        raise ValueError(f"load: {', '.join(fields)} must be left out, but for a .safetensors or .pt file")
    if kind == ".gguf":
        return gguf.read_gguf(path)
    folder = find_folder(path)
    if (folder / "config.json").exists():
        return huggingface.read_pretrained(folder)
    if (folder / "hparams.json").exists():
        return tensorflow.read_release(folder)
    raise ValueError(f"load: path must be a run, a checkpoint or a Hugging Face folder, got {path}")


def find_folder(path: PathLike) -> Path:
    """Return the folder of a model's files: a run's best checkpoint, a Hub download, or `path` itself.

    A broken checkpoint is skipped with a warning, and the one before it is used.
    """
    if path == "":
        raise ValueError("load: path must not be empty")
    path = Path(path)
    if not path.exists():
        if hub.is_name(path):
            return hub.fetch(str(path))
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if checkpoint.is_run(path):
        path, broken = checkpoint.choose(path)
        for line in broken:
            warnings.warn(line, stacklevel=3)
    elif (path / checkpoint.MANIFEST).exists():
        checkpoint.verify(path)
    return path
