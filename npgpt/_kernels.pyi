"""The compiled module as csrc/python/ makes it; a test holds the two together.

The ops have the signatures of their references, and take float32 alone.
"""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from npgpt.engine.ops import adamw_step as adamw_step
from npgpt.engine.ops import attention_backward as attention_backward
from npgpt.engine.ops import attention_forward as attention_forward
from npgpt.engine.ops import cross_entropy as cross_entropy
from npgpt.engine.ops import dropout_backward as dropout_backward
from npgpt.engine.ops import dropout_forward as dropout_forward
from npgpt.engine.ops import embedding_backward as embedding_backward
from npgpt.engine.ops import embedding_forward as embedding_forward
from npgpt.engine.ops import erf_gelu_backward as erf_gelu_backward
from npgpt.engine.ops import erf_gelu_forward as erf_gelu_forward
from npgpt.engine.ops import gelu_backward as gelu_backward
from npgpt.engine.ops import gelu_forward as gelu_forward
from npgpt.engine.ops import gelu_linear_backward as gelu_linear_backward
from npgpt.engine.ops import global_norm as global_norm
from npgpt.engine.ops import head_cross_entropy as head_cross_entropy
from npgpt.engine.ops import layernorm_apply as layernorm_apply
from npgpt.engine.ops import layernorm_backward as layernorm_backward
from npgpt.engine.ops import layernorm_forward as layernorm_forward
from npgpt.engine.ops import linear_backward as linear_backward
from npgpt.engine.ops import linear_forward as linear_forward
from npgpt.engine.ops import linear_gelu_forward as linear_gelu_forward
from npgpt.engine.ops import matmul as matmul
from npgpt.engine.ops import muon_step as muon_step
from npgpt.engine.ops import rmsnorm_apply as rmsnorm_apply
from npgpt.engine.ops import rmsnorm_backward as rmsnorm_backward
from npgpt.engine.ops import rmsnorm_forward as rmsnorm_forward
from npgpt.engine.ops import rope_backward as rope_backward
from npgpt.engine.ops import rope_forward as rope_forward
from npgpt.engine.ops import softmax_backward as softmax_backward
from npgpt.engine.ops import softmax_forward as softmax_forward
from npgpt.engine.ops import swiglu_backward as swiglu_backward
from npgpt.engine.ops import swiglu_forward as swiglu_forward
from npgpt.engine.types import Array, Buffer, Floats, Integers, Shape

__version__: str
LOGITS: int  # floats of them that head_cross_entropy holds at a time
UNPACKED: tuple[str, ...]  # the types of blocks that unpack_rows and matmul_blocks take

class Bpe:
    def __init__(
        self,
        byte_ids: Integers,
        merges: Integers,
        tokens: Sequence[bytes],
        split: str = "gpt-2",
        whole_pieces: ArrayLike = (),
    ) -> None: ...
    def encode(self, text: Buffer) -> Integers: ...
    def decode(self, ids: Integers) -> bytes: ...

class Spm:
    def __init__(
        self,
        symbols: Sequence[bytes],
        n_tokens: int,
        merges: Integers,
        byte_ids: Integers,
        unknown: int = 0xFFFFFFFF,
        fuse: bool = True,
        words: bool = False,
    ) -> None: ...
    def encode(self, text: Buffer, prefix: bool = False) -> Integers: ...

class PieceCounts:
    def __init__(self) -> None: ...
    def add(self, text: Buffer) -> None: ...
    def table(self) -> tuple[Integers, Integers, Integers]: ...
    def add_table(self, text: Integers, lengths: Integers, times: Integers) -> None: ...
    def __len__(self) -> int: ...
    def train(self, byte_ids: Integers, count: int, min_count: int) -> Integers: ...

def sort_suffixes(symbols: Integers, below: int) -> Integers: ...
def unpack_rows(blocks: Array, type: str, out: Floats) -> None: ...
def matmul_blocks(
    a: Floats,
    parts: Sequence[tuple[Array, str]],
    out: Floats,
    b: Floats | None = None,
    residual: Floats | None = None,
    low_rank: tuple[Floats, Floats] | None = None,
    trans_b: bool = False,
    accumulate: bool = False,
) -> None: ...
def empty(shape: Shape, /) -> Floats: ...
def release_blocks() -> None: ...
def available() -> list[str]: ...
def use(name: str, /) -> None: ...
def name() -> str: ...
def num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def peak_gflops(seconds: float, /) -> float: ...
def read_bandwidth(seconds: float, /) -> float: ...
