"""Data-parallel training: the ranks that mpiexec started train one model, each on its shard of every batch.

This is the only importer of mpi4py. MPI carries numbers and never adds them: sums go in the order of the
ranks, so that their bits depend on the number of ranks, not on hosts or on which message came first. A rank
that waits yields its core, which another rank may need. No message is a pickle.
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
from npgpt.engine.config import embedding_size
from npgpt.engine.model import GPT
from npgpt.engine.types import Array, Fields, Floats, Integers, Tensors

T = TypeVar("T")
MIN_MESSAGE = 1 << 18  # floats: fewer gradients are not worth a message of their own
MAX_MESSAGE = 1 << 22  # floats, which bounds the memory beside the gradients
GRACE_SECONDS = 1.0  # that an error waits for rank 0's, which is likely the same
FORWARD_SECONDS = 0.5  # for the launcher to pass the line on: on a busy machine it kills all before it does
HEARTBEAT_SECONDS, MAX_MISSED = 0.5, 12  # a rank that misses more heartbeats in a row is lost


class MPIWorld(World):
    """A world of several ranks, of which this process is one."""

    def __init__(self) -> None:
        """Join the ranks."""
        from mpi4py import MPI

        self._mpi, world = MPI, MPI.COMM_WORLD
        self.rank, self.size, self.host = world.rank, world.size, socket.gethostname()
        self._comm, self._gradients, self._heartbeats = (world.Dup() for _ in range(3))  # one for each thread
        self._host = world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = self._host.rank, self._host.size
        self._reductions: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (chunk, factor), (event, None)
        self._main_waits, self._captured = threading.Event(), io.BytesIO()
        self._out, self._err = sys.stdout, sys.stderr
        self._aborting, self._finished = threading.Lock(), threading.Event()
        for work in (self._reduce, self._watch):
            threading.Thread(target=self._or_abort, args=(work,), daemon=True).start()

    # ------------------------------------------------------------------------ values

    def all_gather(self, *values: float) -> list[list[float]]:
        table = np.empty((self.size, len(values)))
        self._wait(self._comm.Iallgather(np.array(values, np.float64), table))
        return table.tolist()

    def barrier(self) -> None:
        self._wait(self._comm.Ibarrier())

    def all_gather_arrays(self, array: Array) -> list[Array]:
        lengths = np.array(self.all_gather(len(array)), np.int64)[:, 0]
        joined = np.empty(lengths.sum(), array.dtype)
        self._wait(self._comm.Iallgatherv(np.ascontiguousarray(array), [joined, _layout(lengths)]))
        return np.split(joined, np.cumsum(lengths)[:-1])

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
        """Yield function(item) for all items; each rank computes every size-th of them.

        The function returns 1-D arrays, which have one dtype on all ranks.
        """
        items = iter(items)
        while turn := list(islice(items, self.size)):
            mine = function(turn[self.rank]) if self.rank < len(turn) else function(turn[0])[:0]
            yield from self.all_gather_arrays(mine)[: len(turn)]

    def _wait(self, request: Any, computing: Callable[[], bool] = lambda: False) -> None:
        """Wait for an MPI request, which moves only while it is tested: seldom, where computing() is true."""
        begun = time.perf_counter()
        while not request.Test():
            if computing():
                if any(request.Test() for _ in range(16)):
                    return
                time.sleep(5e-5)
            elif time.perf_counter() - begun < 1:
                os.sched_yield()
            else:  # another rank works alone, maybe on a checkpoint
                time.sleep(2e-4)

    def set_threads(self, wanted: int | None) -> str:
        cpus = np.zeros(os.cpu_count() or 1)
        cpus[list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ...] = 1
        users = self._gather_on_host(*cpus).sum(axis=0)  # ranks that may use each CPU
        fair = kernels.get_num_threads() * (cpus / np.maximum(users, 1)).sum() / cpus.sum()
        threads = wanted or max(1, int(fair + 1e-6))
        kernels.set_num_threads(threads)
        used, there = self._gather_on_host(threads, fair).sum(axis=0)
        worst = max(self.all_gather(used / there, used, there, self.local_size))
        if worst[0] < 1.01:
            return ""
        _, used, there, local_size = (round(n) for n in worst)
        return f"{local_size} ranks with {used} threads share {there} CPUs of a host, and wait for each other"

    def _gather_on_host(self, *values: float) -> Array:
        """Return the values (local_size, len(values)) of the ranks on this host."""
        table = np.empty((self.local_size, len(values)))
        self._wait(self._host.Iallgather(np.array(values, np.float64), table))
        return table

    # ------------------------------------------------------------------------ gradients

    def all_reduce(self, chunk: Floats, factor: float) -> None:
        for start in range(0, len(chunk), MAX_MESSAGE):
            self._reductions.put((chunk[start : start + MAX_MESSAGE], factor))

    def wait(self) -> None:
        done = threading.Event()
        self._reductions.put((done, None))
        self._main_waits.set()
        done.wait()
        self._main_waits.clear()

    def _reduce(self) -> None:
        """Work through the reductions, in a thread of its own."""

        def computing() -> bool:
            return not self._main_waits.is_set()

        buffer = np.empty(0)
        while True:
            chunk, factor = self._reductions.get()
            if factor is None:
                chunk.set()
                continue
            super().all_reduce(chunk, factor)
            ends = len(chunk) * np.arange(self.size + 1) // self.size
            layout, mine = _layout(np.diff(ends)), chunk[self.shard(len(chunk))]
            if buffer.size < len(mine) * self.size or buffer.dtype != chunk.dtype:
                buffer = np.empty(len(mine) * self.size, chunk.dtype)
            rows = buffer[: len(mine) * self.size]
            into = [rows, _layout(np.full(self.size, len(mine)))]
            self._wait(self._gradients.Ialltoallv([chunk, layout], into), computing)
            rows = rows.reshape(self.size, -1)  # this rank's shard, as each rank has it
            np.add(rows[0], rows[1], out=mine)
            for row in rows[2:]:
                np.add(mine, row, out=mine)
            self._wait(self._gradients.Iallgatherv(self._mpi.IN_PLACE, [chunk, layout]), computing)

    # ------------------------------------------------------------------------ shards of one model

    def all_gather_shards(self, full: Floats, cuts: list[int]) -> None:
        self._wait(self._comm.Iallgatherv(self._mpi.IN_PLACE, [full, _layout(np.diff(cuts))]))

    def gather(self, shards: Tensors) -> Tensors:
        joined: Tensors = {}
        for name, shard in shards.items():
            lengths = np.array(self.all_gather(len(shard)), np.int64)[:, 0]
            if self.rank == 0:
                joined[name] = np.empty(lengths.sum(), shard.dtype)
            self._wait(self._comm.Igatherv(shard, [joined[name], _layout(lengths)] if joined else None))
        return joined

    # ------------------------------------------------------------------------ failures

    @contextlib.contextmanager
    def abort_on_failure(self) -> Iterator[None]:
        if self.rank:  # rank 0 prints for all of them
            sys.stdout = sys.stderr = io.TextIOWrapper(self._captured, errors="replace")
        try:
            yield
            self.barrier()  # no rank leaves while another may need it
            self._finished.set()
        except SystemExit as end:
            if end.code:
                self._abort(self._last_line(), end.code if isinstance(end.code, int) else 1)
            raise
        except BaseException:
            self._abort(traceback.format_exc().strip(), 1)

    def _last_line(self) -> str:
        """Return the last line of a silent rank's output; rank 0 has printed its own."""
        if not self.rank:
            return ""
        sys.stderr.flush()
        return (self._captured.getvalue().decode().strip().split("\n") or [""])[-1]

    def _abort(self, line: str, code: int) -> None:
        """End all ranks, with one line on stderr that names the rank that failed, and why."""
        self._aborting.acquire()  # by the first thread that comes, and never released
        if self.rank:
            time.sleep(GRACE_SECONDS)
            line += f" (rank {self.rank} of {self.size}, on {self.host})"
        if line:
            print(line, file=self._err, flush=True)
            time.sleep(FORWARD_SECONDS)
        threading.Timer(2.0, os._exit, (code,)).start()  # should the MPI library hang
        with open(os.devnull, "w") as nowhere:  # the MPI library would print it too
            os.dup2(nowhere.fileno(), 2)
        self._mpi.COMM_WORLD.Abort(code)

    def _or_abort(self, work: Callable[[], None]) -> None:
        """Do `work`, in a thread of its own; an error in it ends all ranks."""
        try:
            work()
        except BaseException as error:
            self._abort(f"npgpt: the connection to another rank failed: {error}", 1)

    def _watch(self) -> None:
        """Send heartbeats to the other ranks, and end all ranks when one of them sends none any more.

        Turns are counted, not seconds: a machine that was suspended has lost no rank.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        sent: dict[int, Any] = {}  # requests
        missed, beat = dict.fromkeys(others, 0), bytearray(1)
        while not self._finished.wait(HEARTBEAT_SECONDS):
            for rank in others:
                missed[rank] += 1
                if rank not in sent or sent[rank].Test():
                    sent[rank] = self._heartbeats.Isend(beat, rank)
            status = self._mpi.Status()
            while self._heartbeats.Iprobe(status=status):
                self._heartbeats.Recv(bytearray(1), status.Get_source())
                missed[status.Get_source()] = 0
            if lost := [rank for rank in others if missed[rank] > MAX_MISSED]:
                which = ", ".join(map(str, lost[:8]))
                seconds = HEARTBEAT_SECONDS * MAX_MISSED
                self._abort(f"npgpt: nothing was heard of rank {which} for {seconds:.0f} s", 1)


class GradientAllReduce:
    """Sums the gradients of a step over the ranks, while the backward pass of lower layers runs."""

    def __init__(self, world: World, model: GPT) -> None:
        self._world, self._model = world, model
        self.flat = (model.adapters or model).flat_grads
        self.factor = 1.0  # the weight of this rank's gradients in the sum
        self._sent_from = model.n_decay  # from here on, the layers' matrices have been sent
        self._layer = model.config.n_layer

    def layer_done(self, layer: int) -> None:
        """Send the final gradients of a layer; backward() calls it from the last layer to the first."""
        self._layer = layer
        if self._model.adapters:  # small: one message at the end is enough
            return
        start = self._model.layer_start(layer)
        if self._sent_from - start >= MIN_MESSAGE or layer == 0:
            self._send(start, self._sent_from)
            self._sent_from = start

    def finish(self) -> None:
        """Send the gradients that are left, and wait until all are summed."""
        for layer in reversed(range(self._layer)):  # a rank without rows of the batch had no backward
            self.layer_done(layer)
        if self._model.adapters:
            self._sent_from = len(self.flat)
        else:
            self._send(self._model.n_decay, len(self.flat))  # biases and layernorms
        self._send(0, self._sent_from)  # the embeddings, which the head and the first layer both add to
        self._world.wait()

    def _send(self, start: int, stop: int) -> None:
        self._world.all_reduce(self.flat[start:stop], self.factor)


def shard_cuts(model: GPT, n_shards: int) -> list[int]:
    """Return the n_shards + 1 positions that cut flat_params into shards of about one size.

    Cuts fall between tensors, or between rows of the embeddings.
    """
    sizes = [w.size for w in model.params.values()]
    rows = np.arange(0, embedding_size(model.config) + 1, model.config.n_embd)
    allowed = np.unique(np.concatenate([rows, np.cumsum(sizes)]))
    even = sum(sizes) * np.arange(n_shards + 1) / n_shards
    return [int(allowed[np.abs(allowed - cut).argmin()]) for cut in even]


def _layout(lengths: Integers) -> tuple[Integers, Integers]:
    """Return counts and displacements, as MPI's v-collectives take them."""
    return lengths, np.concatenate([[0], np.cumsum(lengths)[:-1]])


def library_versions() -> Fields:
    """Return {name: version} of whatever all ranks must share to compute the same bits."""
    here, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for path in here.rglob("*") if path.suffix in (".py", ".so")):
        digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "kernels": kernels.name(),
        "npgpt": digest.hexdigest()[:12],
    }


def launched() -> tuple[int | None, int]:
    """Return the number of ranks that a launcher started and this one's, (1, 0) without a launcher.

    The number is None where the launcher tells each rank its own alone, as PMIx does: prterun, srun.
    """
    environment = os.environ
    for size, rank in (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        if environment.get(size):
            return int(environment[size]), int(environment.get(rank) or 0)
    if not environment.get("PMIX_RANK"):
        return 1, 0
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    return int(tasks) if tasks else None, int(environment["PMIX_RANK"])


def init_world() -> World:
    """Return the world that this process belongs to: SINGLE where no launcher started several.

    ValueError without mpi4py, or without the MPI that the launcher belongs to.
    """
    size, rank = launched()
    if size == 1:
        return SINGLE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # which mpi4py raises where there is no MPI
        raise ValueError('mpiexec needs mpi4py and an MPI for it: pip install "npgpt[mpi]"') from None
    there = MPI.COMM_WORLD.size
    if size not in (None, there) or rank >= there:
        library = MPI.Get_library_version().split("\n")[0].strip()
        raise ValueError(f"mpiexec must belong to the MPI that mpi4py uses, which is {library}")
    return SINGLE if there == 1 else MPIWorld()
