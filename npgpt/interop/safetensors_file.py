"""Writing safetensors files without a copy in memory (the library first copies all arrays to bytes).

The format (github.com/huggingface/safetensors#format): the header's length, 8 bytes little-endian; the
header, JSON padded with blanks to a multiple of 8; the arrays, one after the other, C order, little-endian.
"""

import json

import numpy as np

from npgpt.engine.types import Fields, PathLike, Tensors


def save_file(tensors: Tensors, path: PathLike, metadata: dict[str, str] | None = None) -> None:
    """Write float32 arrays to `path`. TypeError for other arrays, OSError where the disk is full."""
    header: Fields = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise TypeError(f"save_file: {name} must be float32, got {array.dtype}")
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [start, start := start + array.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, "<f4").data)
