"""Which processes train together: under mpiexec the ranks of mpi.py, else this one alone.

It is light to import, and a process alone pays for nothing: mpi4py is not even looked for.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from npgpt.engine.types import Array, Floats, Tensors

T = TypeVar("T")


class World:
    """A world of size one: the values on which several ranks would have to agree are this process's own."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1  # the same among the ranks on this host
    zero = False  # ZeRO: each rank keeps the optimizer's moments of its own shard alone

    def shard(self, n: int) -> slice:
        """Return the slice of n rows that this rank computes."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def map(self, function: Callable[[T], Array], items: Iterable[T]) -> Iterator[Array]:
        """Yield function(item), a 1-D array, for all items in their order."""
        return map(function, items)

    def all_gather(self, *values: float) -> list[list[float]]:
        """Return the values of all ranks, one list per rank, in the order of the ranks."""
        return [list(values)]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag True where at least one rank has it set."""
        return [any(flag) for flag in zip(*self.all_gather(*flags), strict=True)]

    def broadcast(self, value: float) -> float:
        """Return the value that rank 0 has."""
        return self.all_gather(value)[0][0]

    def barrier(self) -> None:
        """Wait until all ranks have called it."""

    def all_gather_arrays(self, array: Array) -> list[Array]:
        """Return the 1-D arrays of all ranks, in order; they have one dtype and any lengths."""
        return [array]

    def all_reduce(self, chunk: Floats, factor: float) -> None:
        """Start to replace `chunk` (1-D), on every rank, by the sum over the ranks of factor * chunk.

        All ranks call it for the same chunks in the same order. The sum runs while the caller computes;
        wait() ends it.
        """
        if factor != 1:
            chunk *= chunk.dtype.type(factor)

    def wait(self) -> None:
        """Wait for all sums that all_reduce() has started."""

    def all_gather_shards(self, full: Floats, cuts: list[int]) -> None:
        """Fill `full` (1-D) on all ranks; each rank brings the shard full[cuts[rank] : cuts[rank + 1]]."""

    def gather(self, shards: Tensors) -> Tensors:
        """Return on rank 0, by name, the ranks' 1-D shards joined in order; on the others nothing."""
        return shards

    def check_equal(self, **facts: object) -> None:
        """Raise ValueError, with rank and fact, where a rank's facts differ from those of rank 0."""

    def set_threads(self, wanted: int | None) -> str:
        """Set the kernels' threads of several ranks, and return a warning where they are too many, or "".

        Without `wanted`, the ranks of a host divide its CPUs. A process alone keeps the threads that it has.
        """
        return ""

    @contextlib.contextmanager
    def abort_on_failure(self) -> Iterator[None]:
        """Abort all ranks where an error or an interrupt ends one of them within the block."""
        yield


SINGLE = World()
