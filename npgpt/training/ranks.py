"""Which processes train together: under mpiexec the ranks of distributed.py, else this one alone.

Light to import, and a process alone pays for nothing: mpi4py is not even looked for.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from npgpt.engine.types import Array, Floats, Tensors

T = TypeVar("T")


class Alone:
    """One process, which is false: what several ranks would have to agree on is its own."""

    rank, size = 0, 1
    rank_on_host, on_host = 0, 1  # the same of the ranks on this host
    zero = False  # whether each rank keeps the optimizer's moments of its part alone

    def __bool__(self) -> bool:
        return self.size > 1

    def part(self, n: int) -> slice:
        """Those of n rows that are this rank's."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def map(self, function: Callable[[T], Array], items: Iterable[T]) -> Iterator[Array]:
        """function(item) for all items, in their order."""
        return map(function, items)

    def numbers(self, *values: float) -> list[list[float]]:
        """The values of each rank."""
        return [list(values)]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has it set."""
        return [any(flag) for flag in zip(*self.numbers(*flags), strict=True)]

    def first(self, value: float) -> float:
        """Rank 0's value."""
        return self.numbers(value)[0][0]

    def meet(self) -> None:
        """Wait until all ranks are here."""

    def gather(self, array: Array) -> list[Array]:
        """The 1-D arrays of all ranks, which have one dtype and any lengths."""
        return [array]

    def add_up(self, piece: Floats, factor: float) -> None:
        """Begin to make `piece` (1-D), on every rank, the sum over the ranks of factor * piece.

        All ranks call it for the same pieces in the same order; it goes on while the caller computes.
        """
        if factor != 1:
            piece *= piece.dtype.type(factor)

    def added_up(self) -> None:
        """Wait for all sums that were begun."""

    def join(self, whole: Floats, cuts: list[int]) -> None:
        """Each rank has whole[cuts[rank] : cuts[rank + 1]]; afterwards all have all of it."""

    def collect(self, parts: Tensors) -> Tensors:
        """By name, the ranks' 1-D parts one behind the other, on rank 0; nothing on the others."""
        return parts

    def compare(self, **facts: object) -> None:
        """ValueError, naming rank and fact, where a rank's facts are not those of rank 0."""

    def take_threads(self, wanted: int | None) -> str:
        """Of several ranks, set the kernels' threads: those wanted, or a share of the CPUs of the host.

        Returns a warning where they are too many.
        """
        return ""

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within it, whatever ends one rank ends all of them."""
        yield


ALONE = Alone()


def start() -> Alone:
    """The ranks of the job that this process belongs to; ALONE where it was not started by mpiexec."""
    size = max(int(os.environ.get(name) or 1) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if size == 1:
        return ALONE
    try:
        from npgpt.training.distributed import Ranks

        return Ranks(size)
    except (ImportError, RuntimeError):  # which mpi4py raises where there is no MPI
        raise ValueError('mpiexec needs mpi4py and an MPI for it: pip install "npgpt[mpi]"') from None
