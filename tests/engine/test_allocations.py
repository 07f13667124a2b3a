"""Every allocation of the kernels fails once: a MemoryError, and the same call then does its work."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npgpt.engine import kernels
from tests.engine import calls

HERE = Path(__file__).parent
MOST = 1 << 40  # more allocations than there are


# Work as (prepare, run): prepare() makes what run takes, with memory for all. Objects are made there, as
# pybind11 notes each, and a process ends where it finds no memory for that.


def op_work(op):
    arguments = calls.arguments(op, np.random.default_rng(0), calls.LARGE)
    return lambda: arguments, lambda arguments: calls.run(kernels.ops_for(np.float32), op, arguments)


def prepare_bpe():
    merges, tokens = learn(kernels.compiled("PieceCounts")())[0], [bytes([i]) for i in range(256)]
    for left, right, _ in merges:
        tokens.append(tokens[left] + tokens[right])
    return kernels.compiled("Bpe")(BYTE_IDS, merges, tokens)


def learn(counts):
    counts.add(TEXT)
    return [counts.train(BYTE_IDS, 6, 2)]


def encode(bpe):
    ids = bpe.encode(TEXT)
    return [ids, np.frombuffer(bpe.decode(ids), np.uint8)]


def sort(symbols):
    return [kernels.compiled("sort_suffixes")(symbols, 256)]


TEXT, BYTE_IDS = b"o sol e a lua, o mar e o sol " * 50, np.arange(256, dtype=np.uint32)
WORK = {op: op_work(op) for op in calls.OPS} | {
    "learn": (lambda: kernels.compiled("PieceCounts")(), learn),
    "encode": (prepare_bpe, encode),
    "sort": (lambda: np.frombuffer(TEXT, np.uint8).astype(np.uint16), sort),
}


def same(a, b):
    a, b = ([*x.values()] if isinstance(x, dict) else x for x in (a, b))
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def hold(op):
    """Let each allocation of a call fail, once and from then on; print how many there are."""
    fail_allocations = ctypes.CDLL(os.environ["LD_PRELOAD"]).fail_allocations
    fail_allocations.argtypes = [ctypes.c_long, ctypes.c_long]
    prepare, run = WORK[op]
    run(prepare())
    expected, total = run(prepare()), 0
    for last in (0, MOST):
        for n in range(MOST):
            given = prepare()
            fail_allocations(n, n + last)
            try:
                got = run(given)
            except MemoryError:
                got = expected
            failed = fail_allocations(-1, -1)
            assert same(got, expected), (op, n, last, failed)
            assert same(run(prepare()), expected), (op, n, last)
            if not failed:
                break
            total += failed > 0
    print(op, total)


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    if not kernels.compiled("Bpe") or not sys.platform.startswith("linux"):
        pytest.skip("needs compiled kernels, on Linux")
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler here")
    library = tmp_path_factory.mktemp("failing") / "failing.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run(["c++", *flags, HERE / "allocations.cpp", "-o", library], check=True)
    return library


def test_each_allocation_that_fails_is_a_memory_error(failing):
    code = "import sys; from tests.engine import test_allocations as t; [t.hold(op) for op in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", code, *WORK],
        env=os.environ | {"LD_PRELOAD": str(failing), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert all(int(counts[name]) > 0 for name in ("matmul", "muon_step", "learn", "encode", "sort"))
