"""OpenAI's release of GPT-2, read through TensorFlow.

It is a folder with checkpoint, model.ckpt.*, hparams.json and the tokenizer's encoder.json and vocab.bpe.
"""

import os
import re
from pathlib import Path
from typing import Any

from npgpt.engine.types import PathLike, Shape
from npgpt.interop.huggingface import fit_tokenizer
from npgpt.interop.layout import FLOATS, Pretrained, StoredTensor, config_of, read_weights
from npgpt.text.json_file import read_json
from npgpt.text.tokenizer import BPETokenizer

HPARAMS = {name: name for name in ("n_layer", "n_head", "n_embd")}
HPARAMS |= {"block_size": "n_ctx", "vocab_size": "n_vocab"}


def read_release(folder: PathLike) -> Pretrained:
    """Read the model of a release folder; the tokenizer is None where its two files are not there."""
    folder = Path(folder)
    where = f"read_release: {folder}"
    hparams = read_json(folder / "hparams.json")
    missing = [key for key in HPARAMS.values() if key not in hparams]
    if missing:
        raise ValueError(f"{where}: hparams.json must tell {', '.join(missing)} too")
    config = config_of(where, **{field: hparams[key] for field, key in HPARAMS.items()})
    prefix = folder / _name(folder, where)
    if not os.path.isfile(prefix.with_name(f"{prefix.name}.index")):  # false for a name that is too long, too
        raise ValueError(f"{where} must hold {prefix.name}.index, which its file checkpoint names")
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or it logs that it finds no GPU
        import tensorflow
    except ImportError:
        raise ValueError(f"{where} can only be read through TensorFlow: pip install tensorflow-cpu") from None
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        stored = {name: _tensor(reader, name, shapes[name], dtypes[name].name) for name in shapes}
        weights = read_weights("tensorflow", config, stored, where)
    except tensorflow.errors.OpError as error:
        raise ValueError(
            f"{where}: {prefix.name} must be a TensorFlow checkpoint, got {error.message}"
        ) from None
    files = folder / "encoder.json", folder / "vocab.bpe"
    tokenizer = BPETokenizer.from_files(*files) if all(file.exists() for file in files) else None
    return Pretrained(config, weights, fit_tokenizer(tokenizer, {}, config, where))


def _tensor(reader: Any, name: str, shape: Shape, dtype: str) -> StoredTensor:
    # a convolution of width 1 is how a linear layer was written: (1, in, out)
    squeezed = tuple(shape[1:] if name.endswith("/w") and len(shape) == 3 and shape[0] == 1 else shape)
    return StoredTensor(squeezed, FLOATS.get(dtype, dtype), lambda: reader.get_tensor(name).reshape(squeezed))


def _name(folder: Path, where: str) -> str:
    """Return the checkpoint's name from the file `checkpoint`, or OpenAI's name without that file."""
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "model.ckpt"
    found = re.search(r'^model_checkpoint_path: "(.*)"$', text, re.MULTILINE)
    path = folder / (found[1] if found else "..")  # an absolute one stays as it is
    if path.parent.resolve() != folder.resolve() or path.name == "..":
        raise ValueError(f"{where}: checkpoint must name a file of the folder, got {found and found[1]!r}")
    return path.name
