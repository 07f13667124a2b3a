"""Files of torch.save, which are pickles: torch, which must be installed, opens them.

It takes weights and plain values alone (weights_only): what else a pickle asks for is refused, and not run.
"""

import zipfile
from typing import Any

import numpy as np

from npgpt.engine.types import PathLike
from npgpt.interop.layout import FLOATS, StoredTensor


def load(path: PathLike, where: str) -> Any:
    """Return what torch.save wrote to `path`; its tensors stay in the file until they are read.

    ValueError, begun by `where`, without torch 2.6 or newer, and for what is not weights and plain values.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"{where} is a pickle, which torch alone may open: pip install torch") from None
    if [int(n) for n in torch.__version__.split(".")[:2]] < [2, 6]:
        raise ValueError(f"{where} needs torch 2.6 or newer, where weights_only keeps what it promises")
    try:
        mapped = zipfile.is_zipfile(path)  # as of torch 1.6; older files must be read as a whole
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # of any kind, which depends on the file
        reason = str(error).split("\n")[0]
        raise ValueError(f"{where} must hold weights and plain values alone, got {reason}") from None


def tensors_of(state: dict[Any, Any]) -> dict[str, StoredTensor]:
    """Return the tensors of a state_dict from load(), under its names; what is no tensor is of no shape."""
    return {str(name): _tensor(value) for name, value in state.items()}


def _tensor(value: Any) -> StoredTensor:
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if not hasattr(value, "float"):  # never read, as its type fits no tensor
        return StoredTensor((), dtype, lambda: np.empty(0))
    return StoredTensor(tuple(value.shape), FLOATS.get(dtype, dtype), lambda: value.float().numpy())
