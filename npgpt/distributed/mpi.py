"""Data-parallel training: the ranks that mpiexec started train one model, each on its share of every batch.

The only importer of mpi4py. MPI carries numbers and never adds them: sums go in the order of the ranks, so
that their bits depend on how many ranks there are, not on their hosts or on which message came first. Who
waits gives way, as the core may be another rank's, and nothing that comes from another rank is a pickle.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npgpt.distributed.world import SINGLE, World
from npgpt.engine import kernels
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, Floats, Integers, Tensors

T = TypeVar("T")
PIECE = 1 << 18  # floats: the gradients of so many parameters at least are worth a message of their own
ROOM = 1 << 22  # floats of a message at most, which bounds the memory beside the gradients
GRACE = 1.0  # seconds that an error waits for rank 0's, which is likely the same
BEAT, MISSED = 0.5, 12  # seconds between two signs of life; so many missing ones mean that a rank is lost


class MPIWorld(World):
    """This process as one of several."""

    def __init__(self, size: int) -> None:
        """ValueError unless MPI counts as many ranks as mpiexec, which `size` is from."""
        from mpi4py import MPI

        self._mpi, world = MPI, MPI.COMM_WORLD
        if size != world.size:
            library = MPI.Get_library_version().split("\n")[0].strip()
            raise ValueError(f"mpiexec must belong to the MPI that mpi4py uses, which is {library}")
        self.rank, self.size, self.host = world.rank, world.size, socket.gethostname()
        self._comm, self._gradients, self._beats = (world.Dup() for _ in range(3))  # each for one thread
        self._host = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = self._host.rank, self._host.size
        self._sums: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (piece, factor), (event, None)
        self._main_waits, self._unsaid = threading.Event(), io.BytesIO()
        self._out, self._err = sys.stdout, sys.stderr
        self._ended, self._over = threading.Lock(), threading.Event()
        for work in (self._add_up, self._listen):
            threading.Thread(target=self._or_end, args=(work,), daemon=True).start()

    # ------------------------------------------------------------------------ agreeing

    def all_gather(self, *values: float) -> list[list[float]]:
        table = np.empty((self.size, len(values)))
        self._wait(self._comm.Iallgather(np.array(values, np.float64), table))
        return table.tolist()

    def barrier(self) -> None:
        self._wait(self._comm.Ibarrier())

    def all_gather_arrays(self, array: Array) -> list[Array]:
        lengths = np.array(self.all_gather(len(array)), np.int64)[:, 0]
        whole = np.empty(lengths.sum(), array.dtype)
        self._wait(self._comm.Iallgatherv(np.ascontiguousarray(array), [whole, _layout(lengths)]))
        return np.split(whole, np.cumsum(lengths)[:-1])

    def check_equal(self, **facts: object) -> None:
        mine = json.dumps(facts | {"host": self.host}).encode()
        ours, *others = (
            json.loads(bytes(text)) for text in self.all_gather_arrays(np.frombuffer(mine, np.uint8))
        )
        for rank, theirs in enumerate(others, 1):
            for name, value in ours.items():
                if name != "host" and theirs[name] != value:
                    raise ValueError(
                        f"rank {rank} on {theirs['host']} is not like rank 0 on {ours['host']}, "
                        f"{name.replace('_', ' ')}: {theirs[name]} there, {value} here"
                    )

    def map(self, function: Callable[[T], Array], items: Iterable[T]) -> Iterator[Array]:
        """Each rank works on every size-th item; function returns a 1-D array, on all ranks of one dtype."""
        items = iter(items)
        while turn := list(islice(items, self.size)):
            mine = function(turn[self.rank]) if self.rank < len(turn) else function(turn[0])[:0]
            yield from self.all_gather_arrays(mine)[: len(turn)]

    def _wait(self, request: Any, computing: Callable[[], bool] = lambda: False) -> None:
        """Until `request` is done. It moves only while it is asked; seldom, where there is better to do."""
        begun = time.perf_counter()
        while not request.Test():
            if computing():
                if any(request.Test() for _ in range(16)):
                    return
                time.sleep(5e-5)
            elif time.perf_counter() - begun < 1:
                os.sched_yield()
            else:  # another rank is busy alone, maybe with a checkpoint
                time.sleep(2e-4)

    def set_threads(self, wanted: int | None) -> str:
        cpus = np.zeros(os.cpu_count() or 1)
        cpus[list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ...] = 1
        users = self._of_host(*cpus).sum(axis=0)  # ranks that may use each CPU
        share = kernels.get_num_threads() * (cpus / np.maximum(users, 1)).sum() / cpus.sum()
        threads = wanted or max(1, int(share + 1e-6))
        kernels.set_num_threads(threads)
        used, there = self._of_host(threads, share).sum(axis=0)
        worst = max(self.all_gather(used / there, used, there, self.local_size))
        if worst[0] < 1.01:
            return ""
        _, used, there, local_size = (round(n) for n in worst)
        return f"{local_size} ranks with {used} threads share {there} CPUs of a host, and wait for each other"

    def _of_host(self, *values: float) -> Array:
        """(ranks of this host, len(values)): theirs."""
        table = np.empty((self.local_size, len(values)))
        self._wait(self._host.Iallgather(np.array(values, np.float64), table))
        return table

    # ------------------------------------------------------------------------ gradients

    def all_reduce(self, piece: Floats, factor: float) -> None:
        for start in range(0, len(piece), ROOM):
            self._sums.put((piece[start : start + ROOM], factor))

    def wait(self) -> None:
        done = threading.Event()
        self._sums.put((done, None))
        self._main_waits.set()
        done.wait()
        self._main_waits.clear()

    def _add_up(self) -> None:
        def computing() -> bool:
            return not self._main_waits.is_set()

        room = np.empty(0)
        while True:
            piece, factor = self._sums.get()
            if factor is None:
                piece.set()
                continue
            super().all_reduce(piece, factor)
            ends = len(piece) * np.arange(self.size + 1) // self.size
            layout, mine = _layout(np.diff(ends)), piece[self.shard(len(piece))]
            if room.size < len(mine) * self.size or room.dtype != piece.dtype:
                room = np.empty(len(mine) * self.size, piece.dtype)
            rows = room[: len(mine) * self.size]
            into = [rows, _layout(np.full(self.size, len(mine)))]
            self._wait(self._gradients.Ialltoallv([piece, layout], into), computing)
            rows = rows.reshape(self.size, -1)  # what each rank has of this rank's part
            np.add(rows[0], rows[1], out=mine)
            for row in rows[2:]:
                np.add(mine, row, out=mine)
            self._wait(self._gradients.Iallgatherv(self._mpi.IN_PLACE, [piece, layout]), computing)

    # ------------------------------------------------------------------------ parts of one model

    def all_gather_shards(self, whole: Floats, cuts: list[int]) -> None:
        self._wait(self._comm.Iallgatherv(self._mpi.IN_PLACE, [whole, _layout(np.diff(cuts))]))

    def gather(self, parts: Tensors) -> Tensors:
        whole: Tensors = {}
        for name, part in parts.items():
            lengths = np.array(self.all_gather(len(part)), np.int64)[:, 0]
            if self.rank == 0:
                whole[name] = np.empty(lengths.sum(), part.dtype)
            self._wait(self._comm.Igatherv(part, [whole[name], _layout(lengths)] if whole else None))
        return whole

    # ------------------------------------------------------------------------ living and ending together

    @contextlib.contextmanager
    def abort_on_failure(self) -> Iterator[None]:
        if self.rank:  # one rank speaks for all while all is well
            sys.stdout = sys.stderr = io.TextIOWrapper(self._unsaid, errors="replace")
        try:
            yield
            self.barrier()  # nobody leaves while another may need it
            self._over.set()
        except SystemExit as end:
            if end.code:
                self._end(self._said(), end.code if isinstance(end.code, int) else 1)
            raise
        except BaseException:
            self._end(traceback.format_exc().strip(), 1)

    def _said(self) -> str:
        """The last line that a silent rank would have said; rank 0 said it."""
        if not self.rank:
            return ""
        sys.stderr.flush()
        return (self._unsaid.getvalue().decode().strip().split("\n") or [""])[-1]

    def _end(self, line: str, code: int) -> None:
        """End all ranks, with one line on stderr that tells which one began it, and why."""
        self._ended.acquire()  # by the first thread that wants it
        if self.rank:
            time.sleep(GRACE)
            line += f" (rank {self.rank} of {self.size}, on {self.host})"
        if line:
            print(line, file=self._err, flush=True)
        threading.Timer(2.0, os._exit, (code,)).start()  # should the MPI library hang
        with open(os.devnull, "w") as nowhere:  # it would say it in its own words too
            os.dup2(nowhere.fileno(), 2)
        self._mpi.COMM_WORLD.Abort(code)

    def _or_end(self, work: Callable[[], None]) -> None:
        """work(), in a thread of its own; an error in it ends the job."""
        try:
            work()
        except BaseException as error:
            self._end(f"npgpt: the connection to another rank failed: {error}", 1)

    def _listen(self) -> None:
        """Tell the others now and then that this rank lives; end the job when one of them no longer does.

        Counted in turns, not in seconds: a machine that was suspended has lost nobody.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent: dict[int, Any] = {}  # requests
        missed, beat = dict.fromkeys(others, 0), bytearray(1)
        while not self._over.wait(BEAT):
            for rank in others:
                missed[rank] += 1
                if rank not in sent or sent[rank].Test():
                    sent[rank] = self._beats.Isend(beat, rank)
            status = self._mpi.Status()
            while self._beats.Iprobe(status=status):
                self._beats.Recv(bytearray(1), status.Get_source())
                missed[status.Get_source()] = 0
            if lost := [rank for rank in others if missed[rank] > MISSED]:
                which = ", ".join(map(str, lost[:8]))
                self._end(f"npgpt: nothing was heard of rank {which} for {BEAT * MISSED:.0f} s", 1)


class GradientSum:
    """The gradients of a step, summed over the ranks while the backward pass of lower layers goes on."""

    def __init__(self, world: World, model: GPT) -> None:
        self._world, self._model = world, model
        self.flat = (model.adapters or model).flat_grads
        self.factor = 1.0  # what this rank's gradients count
        self._sent_from = model.n_decay  # down to here, the layers' matrices are on their way
        self._layer = model.config.n_layer

    def layer_done(self, layer: int) -> None:
        """A layer's gradients are final; backward calls it from the last layer to the first."""
        self._layer = layer
        if self._model.adapters:  # small, so one message at the end does
            return
        start = self._model.layer_start(layer)
        if self._sent_from - start >= PIECE or layer == 0:
            self._send(start, self._sent_from)
            self._sent_from = start

    def finish(self) -> None:
        """Sum up what is left, and wait for all of it."""
        for layer in reversed(range(self._layer)):  # a rank without a share of the batch had no backward
            self.layer_done(layer)
        if self._model.adapters:
            self._sent_from = len(self.flat)
        else:
            self._send(self._model.n_decay, len(self.flat))  # biases and layernorms
        self._send(0, self._sent_from)  # the embeddings, which the head and the first layer both add to
        self._world.wait()

    def _send(self, start: int, stop: int) -> None:
        self._world.all_reduce(self.flat[start:stop], self.factor)


def shard_cuts(model: GPT, parts: int) -> list[int]:
    """Where flat_params is cut into parts of about one size: between tensors, or rows of the embeddings."""
    sizes = [w.size for w in model.params.values()]
    rows = np.arange(0, sum(sizes[:2]) + 1, model.config.n_embd)
    places = np.unique(np.concatenate([rows, np.cumsum(sizes)]))
    even = sum(sizes) * np.arange(parts + 1) / parts
    return [int(places[np.abs(places - place).argmin()]) for place in even]


def _layout(lengths: Integers) -> tuple[Integers, Integers]:
    """Counts and displacements, as MPI's v-collectives want them."""
    return lengths, np.concatenate([[0], np.cumsum(lengths)[:-1]])


def library_versions() -> Fields:
    """What every rank must have alike to compute the same bits, by name."""
    here, whole = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for path in here.rglob("*") if path.suffix in (".py", ".so")):
        whole.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "kernels": kernels.name(),
        "npgpt": whole.hexdigest()[:12],
    }


def init_world() -> World:
    """The ranks of the job that this process belongs to; SINGLE where it was not started by mpiexec."""
    size = max(int(os.environ.get(name) or 1) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if size == 1:
        return SINGLE
    try:
        return MPIWorld(size)
    except (ImportError, RuntimeError):  # which mpi4py raises where there is no MPI
        raise ValueError('mpiexec needs mpi4py and an MPI for it: pip install "npgpt[mpi]"') from None
