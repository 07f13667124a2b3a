"""Which processes train together: under mpiexec the ranks of mpi.py, else this one alone.

Light to import, and a process alone pays for nothing: mpi4py is not even looked for.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from npgpt.engine.types import Array, Floats, Tensors

T = TypeVar("T")


class World:
    """A world of size one: what several ranks would have to agree on is this process's own."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1  # the same of the ranks on this host
    zero = False  # whether each rank keeps the optimizer's moments of its part alone

    def shard(self, n: int) -> slice:
        """Those of n rows that are this rank's."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def map(self, function: Callable[[T], Array], items: Iterable[T]) -> Iterator[Array]:
        """function(item) for all items, in their order."""
        return map(function, items)

    def all_gather(self, *values: float) -> list[list[float]]:
        """The values of each rank."""
        return [list(values)]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has it set."""
        return [any(flag) for flag in zip(*self.all_gather(*flags), strict=True)]

    def broadcast(self, value: float) -> float:
        """Rank 0's value."""
        return self.all_gather(value)[0][0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def all_gather_arrays(self, array: Array) -> list[Array]:
        """The 1-D arrays of all ranks, which have one dtype and any lengths."""
        return [array]

    def all_reduce(self, piece: Floats, factor: float) -> None:
        """Begin to make `piece` (1-D), on every rank, the sum over the ranks of factor * piece.

        All ranks call it for the same pieces in the same order; it goes on while the caller computes.
        """
        if factor != 1:
            piece *= piece.dtype.type(factor)

    def wait(self) -> None:
        """Wait for all sums that were begun."""

    def all_gather_shards(self, whole: Floats, cuts: list[int]) -> None:
        """Each rank has whole[cuts[rank] : cuts[rank + 1]]; afterwards all have all of it."""

    def gather(self, parts: Tensors) -> Tensors:
        """By name, the ranks' 1-D parts one behind the other, on rank 0; nothing on the others."""
        return parts

    def check_equal(self, **facts: object) -> None:
        """ValueError, naming rank and fact, where a rank's facts are not those of rank 0."""

    def set_threads(self, wanted: int | None) -> str:
        """Of several ranks, set the kernels' threads: those wanted, or a share of the CPUs of the host.

        Returns a warning where they are too many.
        """
        return ""

    @contextlib.contextmanager
    def abort_on_failure(self) -> Iterator[None]:
        """Within it, whatever ends one rank ends all of them."""
        yield


SINGLE = World()
