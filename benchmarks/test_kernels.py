"""Every op by itself, on each implementation that this machine has: `pytest benchmarks`.

The sizes are those of a small model's step: 12 x 64 tokens, 128 channels. Before an op is timed its result is
held against the reference: a fast wrong kernel has no speed.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from npgpt.engine import kernels
from tests.engine.calls import OPS, arguments, run

SIZES = SimpleNamespace(B=12, T=64, C=128, H=4, V=257, N=512)


@pytest.mark.parametrize("choice", kernels.available())
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark, op, choice):
    given = arguments(op, np.random.default_rng(0), SIZES)
    with kernels.use("numpy"):
        expected = run(kernels.ops_for(np.float32), op, given)
    with kernels.use(choice):
        ops = kernels.ops_for(np.float32)
        for name, result in run(ops, op, given).items():
            np.testing.assert_allclose(result, expected[name], rtol=1e-3, atol=1e-3)
        benchmark(getattr(ops, op), *given.values())


@pytest.mark.parametrize("choice", kernels.available())
@pytest.mark.parametrize("shape", [(384, 384, 384), (1024, 1024, 1024), (768, 512, 128), (4096, 1536, 384)])
def test_matmul(benchmark, shape, choice):
    M, N, K = shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    with kernels.use(choice):
        c = benchmark(kernels.ops_for(np.float32).matmul, a, b)
        peak = kernels.peak_gflops()
    np.testing.assert_allclose(c, a @ b, rtol=1e-3, atol=1e-2)
    benchmark.extra_info["share_of_peak"] = 2e-9 * M * N * K / benchmark.stats.stats.median / peak
