"""Names of types for signatures. An array's shape is in the docstring."""

import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]  # float32, or float64 in the reference
Integers: TypeAlias = NDArray[np.integer[Any]]
Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = dict[str, Floats]  # by the parameters' names
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, Shape]
PathLike: TypeAlias = str | os.PathLike[str]
Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]
Text: TypeAlias = str | Buffer
Fields: TypeAlias = dict[str, Any]  # by name, unchecked: settings, an object of JSON
