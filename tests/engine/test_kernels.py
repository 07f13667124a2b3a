"""The compiled kernels against the NumPy reference in float64: every instruction set that this machine has,
every op, every size around the edges of tiles, vectors and blocks. How far they may differ: tolerances.py.

The tile of matmul is 6 rows by 16 columns (avx2) or 8 (baseline); K is cut into equal blocks of at most 320.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.engine import kernels, ops
from tests.engine import calls
from tests.tolerances import assert_close

MATMUL_M = (1, 2, 5, 6, 7, 11, 12, 13, 47, 53)
MATMUL_N = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65)
MATMUL_K = (1, 2, 7, 8, 255, 256, 257, 319, 320, 321, 328, 385, 641)
ATTENTION_T = (
    1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 193, 200,
)  # fmt: skip
ROW_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 257, 1000)


def compiled():
    return kernels.ops_for(np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(*arrays):
    """float32 -> float64, the reference's precision; anything else as it is."""
    return [a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in arrays]


# ---------------------------------------------------------------------------- the choice


def test_every_op_of_the_reference_is_there(isa):
    ops_here = compiled()
    assert ops_here is not ops and kernels.name() == isa
    for op in calls.OPS:
        assert getattr(ops_here, op) is not getattr(ops, op), f"{op} is the reference"
    assert {n for n in vars(ops) if n.endswith(("_forward", "_backward"))} <= set(calls.OPS)
    assert kernels.ops_for(np.float64) is ops, "float64 exists in the reference alone"


# ---------------------------------------------------------------------------- matmul, linear


def check_matmul(isa, a, b, trans_a, trans_b, start, expected, scale):
    """a (M,K), b (K,N) as the product reads them; start (M,N): what to add to, or None."""
    (M, K), N = a.shape, b.shape[1]
    out = np.full((M, N), np.nan, np.float32) if start is None else start.copy()
    a_given, b_given = (np.ascontiguousarray(x.T if t else x) for x, t in ((a, trans_a), (b, trans_b)))
    returned = compiled().matmul(a_given, b_given, out, trans_a, trans_b, start is not None)
    assert returned is out
    if start is not None:
        expected, scale = expected + start, scale + np.abs(start)
    where = f"{isa} M={M} N={N} K={K} {trans_a=} {trans_b=} accumulate={start is not None}"
    assert_close("matmul", where, out, expected, scale, terms=K)


def product(a, b):
    """a @ b in float64, and the magnitude of what it sums."""
    a, b = wide(a, b)
    return a @ b, np.abs(a) @ np.abs(b)


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("trans_a", [False, True])
def test_matmul_at_the_edges_of_its_tiles(isa, rng, trans_a, trans_b):
    start = normal(rng, max(MATMUL_M), max(MATMUL_N))
    for K in MATMUL_K:
        a, b = normal(rng, max(MATMUL_M), K), normal(rng, K, max(MATMUL_N))
        expected, scale = product(a, b)  # of which a smaller product is a corner
        for M in MATMUL_M:
            for N in MATMUL_N:
                corner = expected[:M, :N], scale[:M, :N]
                check_matmul(isa, a[:M], b[:, :N], trans_a, trans_b, None, *corner)
                check_matmul(isa, a[:M], b[:, :N], trans_a, trans_b, start[:M, :N], *corner)


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("M, N, K", [(1, 1, 1), (1, 40, 9), (7, 17, 300), (130, 200, 150), (300, 1, 5)])
def test_matmul_of_columns_of_wider_arrays(isa, rng, M, N, K, trans_a):
    """The same bits as from arrays of their own; what lies beside the columns stays."""
    a, b = normal(rng, *((K, M) if trans_a else (M, K))), normal(rng, K, N)
    wide_a, wide_out = normal(rng, a.shape[0], a.shape[1] + 5), normal(rng, M, N + 7)
    before = wide_out.copy()
    wide_a[:, 3:-2] = a
    for accumulate in (False, True):
        expected = before[:, 4:-3].copy()
        compiled().matmul(a, b, expected, trans_a, False, accumulate)
        wide_out[...] = before
        out = wide_out[:, 4:-3]
        assert compiled().matmul(wide_a[:, 3:-2], b, out, trans_a, False, accumulate) is out
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(wide_out[:, :4], before[:, :4])
        np.testing.assert_array_equal(wide_out[:, -3:], before[:, -3:])


@settings(max_examples=40)
@given(
    M=st.integers(1, 400), N=st.integers(1, 400), K=st.integers(1, 1000), trans_a=st.booleans(),
    trans_b=st.booleans(), accumulate=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_matmul_of_any_shape(isa, M, N, K, trans_a, trans_b, accumulate, seed):
    rng = np.random.default_rng(seed)
    start = normal(rng, M, N) if accumulate else None
    a, b = normal(rng, M, K), normal(rng, K, N)
    check_matmul(isa, a, b, trans_a, trans_b, start, *product(a, b))


@pytest.mark.parametrize(
    "M, N, K, why",
    [
        (1, 5000, 700, "one row, as in decoding: B is packed strip by strip"),
        (1300, 33, 65, "B packed for everybody, A read in place or packed block by block"),
        (1300, 17, 2000, "and in several blocks of K"),
        (1200, 203, 2000, "and so wide that A is always packed"),
        (200, 900, 400, "A packed for everybody"),
        (1100, 1150, 900, "and in chunks of rows"),
        (1300, 530, 2000, "B in chunks of K"),
        (200, 300, 3000, "A in chunks of K, of which each core has its copy"),
        (1200, 1210, 1300, "and in chunks of rows and of K, shared"),
        (3, 2, 5000, "sixteen blocks of K"),
    ],
)
def test_matmul_beyond_its_blocks(isa, rng, M, N, K, why):
    a, b = normal(rng, M, K), normal(rng, K, N)
    start, expected = normal(rng, M, N), product(a, b)
    for trans_a, trans_b in ((False, False), (False, True), (True, False)):
        check_matmul(isa, a, b, trans_a, trans_b, None, *expected)
        check_matmul(isa, a, b, trans_a, trans_b, start, *expected)


def test_matmul_makes_its_own_out(isa, rng):
    a, b = normal(rng, 7, 9), normal(rng, 9, 5)
    out = compiled().matmul(a, b)
    assert out.dtype == np.float32
    assert_close("matmul", isa, out, np.matmul(*wide(a, b)), np.abs(a) @ np.abs(b), terms=9)


def test_matmul_of_nothing(impl):
    """An empty sum is 0; a product of no rows or no columns is empty."""
    here = kernels.ops_for(np.float32)
    for M, N, K in ((3, 4, 0), (0, 4, 5), (3, 0, 5), (0, 0, 0)):
        a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
        np.testing.assert_array_equal(here.matmul(a, b), np.full((M, N), float(K)))
        out = np.full((M, N), 7, np.float32)
        here.matmul(a, b, out, accumulate=True)
        np.testing.assert_array_equal(out, np.full((M, N), 7.0 + K))


LINEAR_SIZES = (  # M, K, N
    (1, 1, 1), (5, 7, 9), (6, 8, 16), (7, 17, 15), (13, 33, 31), (64, 321, 48), (65, 96, 385), (130, 50, 100),
)  # fmt: skip


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(isa, rng, has_bias, has_residual):
    for M, K, N in LINEAR_SIZES:
        x, w, dy = normal(rng, 1, M, K), normal(rng, K, N), normal(rng, 1, M, N)
        b = normal(rng, N) if has_bias else None
        residual = normal(rng, 1, M, N) if has_residual else None
        y = compiled().linear_forward(x, w, b, residual)
        scale = np.abs(x) @ np.abs(w) + sum(np.abs(e) for e in (b, residual) if e is not None)
        where = f"{isa} M={M} K={K} N={N}"
        assert_close("linear", where, y, ops.linear_forward(*wide(x, w, b, residual)), scale, terms=K)
        if has_residual:
            continue  # its gradient is dy itself
        dw, db = normal(rng, K, N), normal(rng, N) if has_bias else None
        dw64, db64 = wide(dw, db) if has_bias else (*wide(dw), None)
        dw_scale, db_scale = np.abs(dw), 0 if db is None else np.abs(db)
        dx = compiled().linear_backward(dy, x, w, dw, db)
        dx64 = ops.linear_backward(*wide(dy, x, w), dw64, db64)
        assert_close("linear", f"{where}, dx", dx, dx64, np.abs(dy) @ np.abs(w).T, terms=N)
        dw_scale = dw_scale + np.abs(x[0]).T @ np.abs(dy[0])
        assert_close("linear", f"{where}, dw", dw, dw64, dw_scale, terms=M)
        if has_bias:
            assert_close("linear", f"{where}, db", db, db64, db_scale + np.abs(dy[0]).sum(0), terms=M)


@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_gelu(isa, rng, has_bias):
    for M, K, N in LINEAR_SIZES:
        x, w = normal(rng, 1, M, K), normal(rng, K, N)
        b = normal(rng, N) if has_bias else None
        y, h = compiled().linear_gelu_forward(x, w, b)
        where, scale = f"{isa} M={M} K={K} N={N}", np.abs(x) @ np.abs(w) + (np.abs(b) if has_bias else 0)
        assert_close("linear", f"{where}, h", h, ops.linear_forward(*wide(x, w, b)), scale, terms=K)
        # y is the gelu of the very h that is returned, whichever way it was computed
        assert_close("gelu", f"{where}, y", y, ops.gelu_forward(*wide(h)), np.abs(h))
        # backward of the linear that reads a gelu: dx times the slope at the gelu's input
        dy, h_in, dw = normal(rng, 1, M, N), 2 * normal(rng, 1, M, K), normal(rng, K, N)
        dw64, dw_scale = wide(dw)[0], np.abs(dw) + np.abs(h_in[0]).T @ np.abs(dy[0])
        dh = compiled().gelu_linear_backward(dy, h_in, w, dw, None)
        ops.gelu_linear_backward(*wide(dy, h_in, w), dw64, None)
        # half of it for gelu(h), half for the product, which is smaller than h's
        assert_close("gelu", f"{where}, dw", dw, dw64, dw_scale, terms=4 * M)
        slope = ops.gelu_backward(np.ones(h_in.shape), *wide(h_in))
        dy64, w64 = wide(dy, w)
        expected, scale = (dy64 @ w64.T) * slope, np.abs(dy64) @ np.abs(w64.T)
        # |slope| is below 1.13; the product is off by that much of its own error and by the slope's
        assert_close("gelu_slope", f"{where}, dh", dh, expected, scale, terms=max(1, N / 64))


# ---------------------------------------------------------------------------- rows and elements


@pytest.mark.parametrize("has_bias", [False, True])
def test_layernorm(isa, rng, has_bias):
    for C in ROW_LENGTHS:
        for rows in (1, 3, 65, 131):  # the sums over rows go in blocks of 64
            x = normal(rng, rows, C) * 2 + 0.5
            w, b = normal(rng, C), normal(rng, C) if has_bias else None
            where = f"{isa} rows={rows} C={C}"
            y, mean, rstd = compiled().layernorm_forward(x, w, b, 1e-5)
            y64, mean64, rstd64 = ops.layernorm_forward(*wide(x, w, b), 1e-5)
            row = np.abs(x).max(axis=-1)
            assert_close("layernorm", f"{where}, mean", mean, mean64, row)
            # rstd^-2 = var + eps, and var is a mean of squares that are off by 2 EPS x^2
            assert_close("layernorm", f"{where}, rstd", rstd, rstd64, rstd64 + row**2 * rstd64**3)
            unit = (1 + row * rstd64 + (row * rstd64) ** 3)[:, None]
            scale = np.abs(w) * unit + (np.abs(b) if has_bias else 0)
            assert_close("layernorm", f"{where}, y", y, y64, scale)
            if C < 3:
                continue  # one value has no variance, two have norms of +-1: dx is rounding alone
            check_layernorm_backward(where, rng, x, w, mean, rstd, has_bias)


def check_layernorm_backward(where, rng, x, w, mean, rstd, has_bias):
    rows, C = x.shape
    dy, residual = normal(rng, rows, C), normal(rng, rows, C)
    dw, db = normal(rng, C), normal(rng, C) if has_bias else None
    dw64, db64 = (*wide(dw, db),) if has_bias else (*wide(dw), None)
    norm = np.abs((x - mean[:, None]) * rstd[:, None])
    dw_scale = np.abs(dw64) + (np.abs(dy) * (norm + 1)).sum(axis=0)
    db_scale = np.abs(db64) + np.abs(dy).sum(axis=0) if has_bias else None
    dx = compiled().layernorm_backward(dy, x, mean, rstd, w, dw, db, residual)
    dx64 = ops.layernorm_backward(*wide(dy, x, mean, rstd, w), dw64, db64, *wide(residual))
    dnorm = np.abs(dy * w)
    terms = dnorm.max(-1, keepdims=True) * (1 + norm + norm * norm.max(-1, keepdims=True))
    dx_scale = np.abs(residual) + rstd[:, None] * terms
    assert_close("layernorm", f"{where}, dx", dx, dx64, dx_scale)
    assert_close("layernorm", f"{where}, dw", dw, dw64, dw_scale)
    if has_bias:
        assert_close("layernorm", f"{where}, db", db, db64, db_scale)
    without = compiled().layernorm_backward(dy, x, mean, rstd, w, np.zeros_like(w), None)
    assert_close("layernorm", f"{where}, without residual", without + residual, dx64, dx_scale)


@pytest.mark.parametrize("op, slope", [("gelu", "gelu_slope"), ("erf_gelu", "erf_gelu")])
def test_gelu(isa, rng, op, slope):
    """slope: which tolerance the backward has."""
    for n in (*ROW_LENGTHS, 20_000):
        x = (rng.standard_normal((1, n)) * rng.choice([0.01, 1, 4, 20], (1, n))).astype(np.float32)
        dy = normal(rng, 1, n)
        y, y64 = (getattr(m, f"{op}_forward") for m in (compiled(), ops))
        assert_close(op, f"{isa} n={n}", y(x), y64(*wide(x)), np.abs(x))
        dx, dx64 = (getattr(m, f"{op}_backward") for m in (compiled(), ops))
        assert_close(slope, f"{isa} n={n}, slope", dx(dy, x), dx64(*wide(dy, x)), np.abs(dy))


def test_rmsnorm(isa, rng):
    for C in ROW_LENGTHS:
        for rows in (1, 3, 65, 131):  # the sums over rows go in blocks of 64
            x, w, dw = normal(rng, rows, C) * 2 + 0.5, normal(rng, C), normal(rng, C)
            where = f"{isa} rows={rows} C={C}"
            y, rstd = compiled().rmsnorm_forward(x, w, 1e-5)
            y64, rstd64 = ops.rmsnorm_forward(*wide(x, w), 1e-5)
            assert_close("rmsnorm", f"{where}, rstd", rstd, rstd64)
            assert_close("rmsnorm", where, y, y64)
            np.testing.assert_array_equal(compiled().rmsnorm_apply(x, rstd, w), y)
            dy, residual, dw64 = normal(rng, rows, C), normal(rng, rows, C), wide(dw)[0]
            norm, dnorm = np.abs(x * rstd[:, None]), np.abs(dy * w)
            dw_scale = np.abs(dw64) + (np.abs(dy) * norm).sum(axis=0)
            dx = compiled().rmsnorm_backward(dy, x, rstd, w, dw, residual)
            dx64 = ops.rmsnorm_backward(*wide(dy, x, rstd, w), dw64, *wide(residual))
            terms = dnorm + norm * np.mean(dnorm * norm, axis=-1, keepdims=True)
            scale = np.abs(residual) + rstd[:, None] * terms
            assert_close("rmsnorm", f"{where}, dx", dx, dx64, scale)
            assert_close("rmsnorm", f"{where}, dw", dw, dw64, dw_scale)
            without = compiled().rmsnorm_backward(dy, x, rstd, w, np.zeros_like(w))
            assert_close("rmsnorm", f"{where}, without residual", without + residual, dx64, scale)


def test_swiglu(isa, rng):
    for F in ROW_LENGTHS:
        for rows in (1, 3, 70):
            h = (rng.standard_normal((rows, 2 * F)) * rng.choice([0.01, 1, 4, 40], (rows, 2 * F))).astype(
                np.float32
            )
            dy, where = normal(rng, rows, F), f"{isa} rows={rows} F={F}"
            u, v = np.abs(wide(h)[0][:, :F]), np.abs(wide(h)[0][:, F:])
            assert_close("swiglu", where, compiled().swiglu_forward(h), ops.swiglu_forward(*wide(h)), u * v)
            dh, dh64 = compiled().swiglu_backward(dy, h), ops.swiglu_backward(*wide(dy, h))
            scale = np.concatenate([(1 + u) * v * np.abs(dy), u * np.abs(dy)], axis=-1)
            assert_close("swiglu", f"{where}, dh", dh, dh64, scale)


@pytest.mark.parametrize("D", [2, 4, 6, 16, 18, 32, 34, 64, 66])
def test_rope(isa, rng, D):
    """Forward, and backward, which undoes it."""
    for B, T, heads, n_rotated in ((1, 1, 3, 2), (2, 7, 5, 4), (3, 70, 4, 0)):
        x, angles = normal(rng, B, T, heads * D), 100 * normal(rng, 71, D // 2)
        rotation = rng.integers(0, 71, (B, T)).astype(np.int32), np.cos(angles), np.sin(angles)
        pairs = np.abs(x).reshape(B, T, heads, 2, D // 2).sum(axis=3, keepdims=True)
        scale = np.broadcast_to(pairs, (B, T, heads, 2, D // 2)).reshape(x.shape)
        for op in ("rope_forward", "rope_backward"):
            y, y64 = x.copy(), wide(x)[0]
            getattr(compiled(), op)(y, *rotation, n_rotated)
            getattr(ops, op)(y64, *wide(*rotation), n_rotated)
            assert_close("rope", f"{isa} {op} B={B} T={T} D={D}", y, y64, scale)
            np.testing.assert_array_equal(y[..., n_rotated * D :], x[..., n_rotated * D :])


def test_softmax(isa, rng):
    for N in ROW_LENGTHS:
        for rows in (1, 3, 70):
            x, dy = 5 * normal(rng, rows, N), normal(rng, rows, N)
            y, y64 = compiled().softmax_forward(x), ops.softmax_forward(*wide(x))
            below = x.max(axis=-1, keepdims=True) - x
            assert_close("softmax", f"{isa} rows={rows} N={N}", y, y64, (2 + below + math.sqrt(N)) * y64)
            dx, dx64 = compiled().softmax_backward(dy, y), ops.softmax_backward(*wide(dy, y))
            total = (np.abs(dy) * y).sum(axis=-1, keepdims=True)
            where = f"{isa} rows={rows} N={N}"
            assert_close("softmax_backward", where, dx, dx64, y * (np.abs(dy) + total), terms=N)


def test_cross_entropy(isa, rng):
    for V in ROW_LENGTHS:
        for rows in (1, 3, 70):
            x, targets = 5 * normal(rng, rows, V), rng.integers(0, V, rows).astype(np.int32)
            targets[1::2] = -7
            (gradient64,), gradient, where = wide(x), x.copy(), f"{isa} rows={rows} V={V}"
            losses = compiled().cross_entropy(gradient, targets, 0.25)
            losses64 = ops.cross_entropy(gradient64, targets, 0.25)
            score = np.abs(x).max(axis=-1)
            assert_close("cross_entropy", where, losses, losses64, 2 + score + math.sqrt(V))
            np.testing.assert_array_equal(losses, compiled().cross_entropy(x.copy(), targets, 0))
            one_hot = np.arange(V) == targets[:, None]
            scale = (2 + 2 * score[:, None] + math.sqrt(V)) * (np.abs(gradient64) + 0.25 * one_hot)
            assert_close("cross_entropy", f"{where}, gradient", gradient, gradient64, scale)
            assert not losses[1::2].any() and not gradient[1::2].any()


def test_the_exponential_of_softmax(isa):
    """The ratio of two results of a row is e to the difference, which is exact where the row's top is 0."""
    for N in (3, 16, 31):  # the tail of a row, whole vectors, both
        x = -np.linspace(0, 85, 20_000 // N * N, dtype=np.float32).reshape(-1, N)
        x[:, 0] = 0
        y = compiled().softmax_forward(x).astype(np.float64)
        assert_close("exponential", f"{isa} N={N}", y / y[:, :1], np.exp(x.astype(np.float64)))


def test_softmax_of_masked_rows(isa):
    """-inf is probability 0 exactly, wherever it stands."""
    for n in range(2, 40):
        x = np.zeros((1, n), np.float32)
        x[0, :-1] = -np.inf
        expected = np.zeros((1, n))
        expected[0, -1] = 1
        np.testing.assert_array_equal(compiled().softmax_forward(x), expected)
        backwards = np.ascontiguousarray(x[:, ::-1])
        np.testing.assert_array_equal(compiled().softmax_forward(backwards), expected[:, ::-1])


def test_embedding(isa, rng):
    for C in ROW_LENGTHS:
        ids, positions = (rng.integers(0, n, (3, 40)).astype(np.int32) for n in (11, 50))
        wte, wpe, dx = normal(rng, 11, C), normal(rng, 50, C), normal(rng, 3, 40, C)
        np.testing.assert_array_equal(
            compiled().embedding_forward(ids, positions, wte, wpe),
            ops.embedding_forward(ids, positions, wte, wpe),
        )
        dwte, dwpe = normal(rng, 11, C), normal(rng, 50, C)
        (dwte64, dwpe64), (dwte_scale, dwpe_scale) = wide(dwte, dwpe), wide(abs(dwte), abs(dwpe))
        compiled().embedding_backward(dx, ids, positions, dwte, dwpe)
        ops.embedding_backward(*wide(dx), ids, positions, dwte64, dwpe64)
        ops.embedding_backward(*wide(np.abs(dx)), ids, positions, dwte_scale, dwpe_scale)
        assert_close("embedding", f"{isa} C={C}, dwte", dwte, dwte64, dwte_scale, terms=20)
        assert_close("embedding", f"{isa} C={C}, dwpe", dwpe, dwpe64, dwpe_scale, terms=20)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99])
def test_dropout_has_the_mask_of_the_reference(isa, rng, p):
    keys = ((1, 2, 3, 0), (2**32 + 5, 7, 0, 2), (0, 2**31, 11, 1))
    for key in keys:
        for shape in ((1, 1), (3, 5), (2, 3, 7), (2, 40_001)):
            x = normal(rng, *shape)
            y, y64 = (o.dropout_forward(e, p, key, 3) for o, e in ((compiled(), x), (ops, *wide(x))))
            np.testing.assert_array_equal(y == 0, y64 == 0)
            assert_close("dropout", f"{isa} {key=} {shape=}", y, y64)
            np.testing.assert_array_equal(compiled().dropout_backward(x, p, key, 3), y)


def test_global_norm(isa, rng):
    for n in (1, 2, 7, 9, 4095, 4097, 70_001):
        g = normal(rng, n)
        assert_close("global_norm", f"{isa} n={n}", compiled().global_norm(g), ops.global_norm(*wide(g)))
    assert compiled().global_norm(np.full(4, 1e25, np.float32)) == pytest.approx(2e25, rel=1e-6)


def test_adamw_step(isa, rng):
    for n in (1, 3, 8, 17, 1001):
        for n_decay in {0, 1, n // 2, n}:
            p, g, m = (normal(rng, n) for _ in range(3))
            v = normal(rng, n) ** 2
            p64, g64, m64, v64 = wide(p, g, m, v)
            scales = np.abs(p) + 0.1, np.abs(m) + np.abs(g), v + g * g
            settings = (n_decay, 0.01, 0.9, 0.95, 1e-8, 0.1, 4, 0.5)
            compiled().adamw_step(p, g, m, v, *settings)
            ops.adamw_step(p64, g64, m64, v64, *settings)
            assert not g.any()
            for name, got, expected, scale in zip("pmv", (p, m, v), (p64, m64, v64), scales, strict=True):
                assert_close("adamw", f"{isa} n={n} n_decay={n_decay}, {name}", got, expected, scale)


# ---------------------------------------------------------------------------- attention


def check_attention(isa, rng, B, H, T, D, first_key, K=None):
    """K heads of keys and values, by default as many as of queries."""
    K, scale = K or H, 1 / math.sqrt(D)
    qkv, dout = normal(rng, B, T, (H + 2 * K) * D), normal(rng, B, T, H * D)
    where = f"{isa} B={B} H={H} K={K} T={T} D={D} first_key={'random' if first_key is not None else None}"
    out, lse = compiled().attention_forward(qkv, H, scale, first_key, K)
    out64, lse64 = ops.attention_forward(*wide(qkv), H, scale, first_key, K)
    # the magnitudes that the sums add up: of scores, of values, and the same for the gradients
    heads = np.float64(qkv).reshape(B, T, H + 2 * K, D).transpose(0, 2, 1, 3)
    q, k, v = heads[:, :H], heads[:, H : H + K], heads[:, H + K :]
    k, v = np.repeat(k, H // K, axis=1), np.repeat(v, H // K, axis=1)  # (B,H,T,D)
    t, first = np.arange(T), 0 if first_key is None else first_key[:, None, :, None]
    seen = (t <= t[:, None]) & (t >= first)
    att = seen * np.exp(np.where(seen, scale * (q @ k.transpose(0, 1, 3, 2)), 0) - lse64[..., None])
    q, k, v = np.abs(q), np.abs(k), np.abs(v)
    score = 2 + scale * (q @ k.transpose(0, 1, 3, 2)).max()

    def merge(x):  # (B,H,T,D) -> (B,T,HD)
        return x.transpose(0, 2, 1, 3).reshape(B, T, -1)

    assert_close("attention", f"{where}, lse", lse, lse64, score + np.abs(lse64), terms=D + T)
    assert_close("attention", where, out, out64, score * merge(att @ v), terms=D + T)

    # the compiled backward starts from the compiled forward's out and lse
    dqkv = compiled().attention_backward(dout, qkv, out, lse, H, scale, first_key, K)
    dqkv64 = ops.attention_backward(*wide(dout, qkv), out64, lse64, H, scale, first_key, K)
    d = np.abs(wide(dout)[0]).reshape(B, T, H, D).transpose(0, 2, 1, 3)
    datt = d @ v.transpose(0, 1, 3, 2)
    dscores = att * (datt + np.sum(att * datt, axis=-1, keepdims=True))
    dq, dk, dv = dscores @ k, dscores.transpose(0, 1, 3, 2) @ q, att.transpose(0, 1, 3, 2) @ d
    dk, dv = (d.reshape(B, K, H // K, T, D).sum(axis=2) for d in (dk, dv))
    magnitude = score * np.concatenate([scale * merge(dq), scale * merge(dk), merge(dv)], axis=-1)
    assert_close("attention", f"{where}, dqkv", dqkv, dqkv64, magnitude, terms=D + T * H // K)


def random_first_key(rng, B, T):
    return rng.integers(0, np.arange(T) + 1, (B, T)).astype(np.int32)


@pytest.mark.parametrize("D", [1, 3, 8, 16, 20, 32, 64])
def test_attention_at_the_edges_of_its_tiles(isa, rng, D):
    for T in ATTENTION_T:
        H = 2 if T < 70 else 1
        check_attention(isa, rng, 1, H, T, D, None)
        check_attention(isa, rng, 1, H, T, D, random_first_key(rng, 1, T))


@pytest.mark.parametrize("H, K", [(2, 1), (6, 2), (9, 3)])
def test_attention_with_fewer_heads_of_keys(isa, rng, H, K):
    for T in (1, 7, 97):
        for D in (3, 16, 64):
            check_attention(isa, rng, 2, H, T, D, None, K)
            check_attention(isa, rng, 2, H, T, D, random_first_key(rng, 2, T), K)


@pytest.mark.parametrize("kind", ["band", "packed", "left padding", "itself"])
def test_attention_masks_in_use(isa, rng, kind):
    """The four things that first_key is for, across more than two blocks of 96 keys."""
    B, T = 2, 230
    t = np.arange(T)
    first_key = {
        "band": np.maximum(0, t - 30),
        "packed": np.where(t < 101, 0, np.where(t < 150, 101, 150)),
        "left padding": np.minimum(t, 120),
        "itself": t,
    }[kind]
    check_attention(isa, rng, B, 3, T, 16, np.tile(first_key.astype(np.int32), (B, 1)))


@settings(max_examples=25)
@given(
    B=st.integers(1, 3), H=st.integers(1, 4), T=st.integers(1, 210), D=st.integers(1, 70),
    has_first_key=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_of_any_shape(isa, B, H, T, D, has_first_key, seed):
    rng = np.random.default_rng(seed)
    check_attention(isa, rng, B, H, T, D, random_first_key(rng, B, T) if has_first_key else None)


# ---------------------------------------------------------------------------- head and loss


@pytest.mark.parametrize("some_do_not_count, shifted", [(False, False), (True, False), (True, True)])
def test_head_cross_entropy(isa, rng, some_do_not_count, shifted):
    sizes = ((1, 1, 1), (3, 5, 7), (7, 17, 9), (65, 33, 257), (12, 64, 1001), (130, 48, 50))
    for N, C, V in (*sizes, (150, 3, 50257)):  # the last in two chunks
        x, wte = normal(rng, 1, N, C), normal(rng, V, C)
        targets = rng.integers(0, V, (1, N)).astype(np.int32)
        if some_do_not_count:
            targets[0, ::3] = -1
            targets[0, 1:2] = -100  # any negative number
        shift = normal(rng, V) if shifted else None
        where = f"{isa} N={N} C={C} V={V}"
        dwte = normal(rng, V, C)
        before, dwte64 = np.abs(dwte), wide(dwte)[0]
        loss, dx = compiled().head_cross_entropy(x, wte, targets, dwte, shift)
        shift64 = wide(shift)[0] if shifted else None
        loss64, dx64 = ops.head_cross_entropy(*wide(x, wte), targets, dwte64, shift64)
        counted = (targets[0] >= 0)[:, None]
        n = max(1, counted.sum())
        score = 2 + (np.abs(x[0]) @ np.abs(wte).T).max(axis=-1, keepdims=True)
        one_hot = np.arange(V) == targets[0][:, None]
        probabilities = ops.softmax_forward(wide(x[0])[0] @ wide(wte)[0].T + (shift64 if shifted else 0))
        # each logit's gradient is off by what its score is off; the products then add up these, and their own
        scale = (score * probabilities + one_hot) * counted / n
        assert_close("cross_entropy", where, loss, loss64, score.max(), terms=C)
        assert compiled().head_cross_entropy(x, wte, targets, shift=shift) == (loss, None)
        assert_close("cross_entropy", f"{where}, dx", dx, dx64, (scale @ np.abs(wte))[None], terms=max(C, V))
        dwte_scale = before + scale.T @ np.abs(x[0])
        assert_close("cross_entropy", f"{where}, dwte", dwte, dwte64, dwte_scale, terms=max(C, N))
        assert not dx[0, ~counted[:, 0]].any()


# ---------------------------------------------------------------------------- muon


def test_muon_step(isa, rng):
    for C, N in ((1, 1), (3, 2), (7, 17), (16, 64), (97, 131)):
        given = calls.muon_step(rng, SimpleNamespace(C=C, N=N))
        settings = {k: given[k] for k in ("lr", "momentum", "weight_decay", "grad_scale")}
        p, g, m = (given[k].copy() for k in "pgm")
        p64, g64, m64 = wide(p, g, m)
        compiled().muon_step(p, g, m, given["matrices"], **settings)
        ops.muon_step(p64, g64, m64, given["matrices"], **settings)
        where, scale = f"{isa} C={C} N={N}", settings["lr"] * max(1, N / C) ** 0.5
        assert_close("muon", where, p, p64, np.abs(given["p"]) + scale, terms=max(C, N))
        np.testing.assert_allclose(m, m64, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(g, g64.astype(np.float32))
        outside = np.ones(p.size, bool)
        for start, rows, columns, distance in given["matrices"]:
            for row in range(rows):
                outside[start + row * distance :][:columns] = False
        assert outside.any()
        np.testing.assert_array_equal(p[outside], given["p"][outside])


# ---------------------------------------------------------------------------- promises that every op makes


@pytest.mark.parametrize("op", calls.OPS)
def test_same_bits_on_any_number_of_threads(isa, rng, threads, op):
    arguments = calls.arguments(op, rng, calls.LARGE)
    threads(1)
    alone = calls.run(compiled(), op, arguments)
    for n in (2, 3, 2, 3):
        threads(n)
        assert kernels.get_num_threads() == n
        for name, array in calls.run(compiled(), op, arguments).items():
            np.testing.assert_array_equal(array, alone[name], f"{op}: {name} with {n} threads", strict=True)


@pytest.mark.parametrize("op", calls.OPS)
@pytest.mark.parametrize("sizes", [calls.SMALL, calls.LARGE], ids=["small", "large"])
def test_misaligned_arrays_give_the_same_bits(isa, rng, op, sizes):
    arguments = calls.arguments(op, rng, sizes)
    aligned = calls.run(compiled(), op, arguments)
    for name, array in calls.run(compiled(), op, arguments, place=calls.off_by_one_float).items():
        np.testing.assert_array_equal(array, aligned[name], f"{op}: {name}", strict=True)


@pytest.mark.parametrize("op", calls.OPS)
def test_the_whole_call_agrees_with_the_reference(isa, rng, op):
    """Arguments, results and what is written in place, all ops alike: a coarse net under the tests above."""
    arguments = calls.arguments(op, rng, calls.LARGE)
    reference = calls.run(ops, op, dict(zip(arguments, wide(*arguments.values()), strict=True)))
    results = calls.run(compiled(), op, arguments)
    assert results.keys() == reference.keys()
    for name, array in results.items():
        assert array.shape == reference[name].shape
        largest = np.abs(reference[name]).max()
        error = np.abs(array.astype(np.float64) - reference[name]).max()
        assert error <= 2e-5 * largest, f"{op}: {name} is off by {error} of {largest}"


@pytest.mark.parametrize("op", calls.OPS)
def test_only_what_the_contract_lets_it_write_is_written(impl, rng, op):
    arguments = calls.arguments(op, rng, calls.SMALL)
    after = calls.run(kernels.ops_for(np.float32), op, arguments)
    for name, array in arguments.items():
        if isinstance(array, np.ndarray):
            changed = (after[name] != array).any()
            assert changed == calls.may_write(op, name), f"{op}: {name} is {'' if changed else 'not '}changed"


@pytest.mark.parametrize("op", calls.OPS)
def test_nothing_outside_the_arrays_is_touched(isa, rng, op):
    """Arrays between guards of NaN: what is read past an end gives NaN, what is written there is seen."""
    arguments = calls.arguments(op, rng, calls.SMALL)
    rooms = []

    def guarded(array):
        if array.dtype != np.float32:
            return array.copy()
        room = np.full(array.size + 64, np.nan, np.float32)
        rooms.append(room)
        view = room[32 : 32 + array.size].reshape(array.shape)
        view[...] = array
        return view

    plain, between = calls.run(compiled(), op, arguments), calls.run(compiled(), op, arguments, guarded)
    for name in plain:
        np.testing.assert_array_equal(between[name], plain[name], name)
    for room in rooms:
        assert np.isnan(room[:32]).all() and np.isnan(room[-32:]).all()


# ---------------------------------------------------------------------------- numbers far out


def test_large_inputs_stay_finite(impl, rng):
    here = kernels.ops_for(np.float32)
    for n in (3, 9, 18, 36):
        x = rng.choice([-1e4, -88, -50, 0, 50, 88, 1e4], (2, 100, 3 * n)).astype(np.float32)
        dy = normal(rng, *x.shape)
        y = here.softmax_forward(x)
        np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-5)
        assert np.isfinite(here.softmax_backward(dy, y)).all()
        np.testing.assert_allclose(here.gelu_forward(x), np.maximum(x, 0), atol=1e-6)
        assert np.isfinite(here.gelu_backward(dy, x)).all()
        np.testing.assert_allclose(here.erf_gelu_forward(x), np.maximum(x, 0), atol=1e-6)
        assert np.isfinite(here.erf_gelu_backward(dy, x)).all()
        out, lse = here.attention_forward(x, 3, 0.5)
        assert np.isfinite(out).all() and np.isfinite(lse).all()
        # each result is an average of values
        assert np.abs(out).max() <= 1e4 * (1 + 1e-5)
        assert np.isfinite(here.attention_backward(dy[..., :n].copy(), x, out, lse, 3, 0.5)).all()
        y, _, _ = here.layernorm_forward(x, x[0, 0], None, 1e-5)
        assert np.isfinite(y).all()
        wte = x[0, :50].copy()
        loss, dx = here.head_cross_entropy(x, wte, np.zeros(x.shape[:2], np.int32), np.zeros_like(wte))
        assert math.isfinite(loss) and np.isfinite(dx).all()


def test_nan_reaches_what_depends_on_it(impl, rng):
    """A NaN is never swallowed by a max, a mask or a branch, whichever lane of a vector it is in."""
    here = kernels.ops_for(np.float32)
    for n in (5, 8, 19):
        for at in range(n):
            x = normal(rng, 2, n)
            x[1, at] = np.nan
            ones = np.ones(n, np.float32)
            lone = np.zeros((2, n), bool)
            lone[1, at] = True
            row = np.array([[False], [True]]) | np.zeros((2, n), bool)
            nan = {
                "matmul": (here.matmul(x, np.eye(n, dtype=np.float32)), row),
                "linear": (here.linear_forward(x, np.eye(n, dtype=np.float32), ones), row),
                "linear_gelu": (here.linear_gelu_forward(x, np.eye(n, dtype=np.float32), ones)[0], row),
                "layernorm": (here.layernorm_forward(x, ones, ones, 1e-5)[0], row),
                "softmax": (here.softmax_forward(x), row),
                "gelu": (here.gelu_forward(x), lone),
                "gelu_backward": (here.gelu_backward(np.ones_like(x), x), lone),
                "erf_gelu": (here.erf_gelu_forward(x), lone),
                "erf_gelu_backward": (here.erf_gelu_backward(np.ones_like(x), x), lone),
                "dropout": (here.dropout_forward(x, 0.0, (0, 0, 0, 0)), lone),
            }
            for op, (y, expected) in nan.items():
                np.testing.assert_array_equal(np.isnan(y), expected, f"{op}, n={n}, NaN at {at}")
            assert np.isnan(here.global_norm(x.reshape(-1)))
            targets = np.zeros((1, 2), np.int32)
            eye = np.eye(n, dtype=np.float32)
            loss, dx = here.head_cross_entropy(x[None], eye, targets, np.zeros_like(eye))
            assert np.isnan(loss) and np.isnan(dx[0, 1]).all() and not np.isnan(dx[0, 0]).any()


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_nan_in_attention_reaches_the_queries_that_see_it(impl, rng, part):
    T, D = 110, 5
    for t in (0, 1, 50, 96, 109):
        qkv = normal(rng, 1, T, 3 * D)
        qkv[0, t, "qkv".index(part) * D + 2] = np.nan
        out, _ = kernels.ops_for(np.float32).attention_forward(qkv, 1, 0.4)
        affected = slice(t, t + 1) if part == "q" else slice(t, T)
        assert np.isnan(out[0, affected]).any(axis=-1).all(), f"NaN in {part} at {t} is lost"


def test_nan_reaches_the_weights(impl):
    p, g, m, v = np.ones((4, 9), np.float32)
    g[4] = np.nan
    kernels.ops_for(np.float32).adamw_step(p, g, m, v, 3, 0.01, 0.9, 0.95, 1e-8, 0.1, 1, 1.0)
    np.testing.assert_array_equal(np.isnan(p), np.arange(9) == 4)
