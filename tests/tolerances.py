"""How far a float32 kernel may be from the float64 reference, and why: {op: (rtol, atol, why)}.

allowed = rtol * scale + atol, element by element. The scale is what rounding errors are proportional to: not
the result, where terms cancel: for a sum of products it is the sum of their magnitudes, |a| @ |b|, as in
gemma.cpp's matmul_test. A test passes the scale; without one it is |expected|.

Rounding errors of a sum of K terms are random, so they grow like sqrt(K), not K (Higham, Mary: A new approach
to probabilistic rounding error analysis, 2019). With u = EPS / 2, an error above 4 u sqrt(K) |a|.|b| has a
probability below 1e-3 by their loose bound, and stays far below it in practice. A forgotten term is about
1/K of |a|.|b|: a thousand times more than allowed.
"""

import numpy as np

EPS = 2.0**-23
TINY = 2.0**-126  # below it float32 has no full precision, and kernels may give 0

TOLERANCES = {
    "embedding": (2 * EPS, 0, "one addition, or per row of dwte as many as its id occurs"),
    "matmul": (2 * EPS, 0, "per sqrt(K): K products and K additions, scale |a| @ |b| (+ |out|)"),
    "linear": (2 * EPS, 0, "per sqrt(K): a matmul, then two additions of bias and residual"),
    "layernorm": (4 * EPS, 0, "some eight roundings of values of the size of the row's largest term"),
    "rmsnorm": (4 * EPS, 0, "some six roundings of values of the size of the row's largest term"),
    "swiglu": (
        6 * EPS,
        TINY,
        "an exponential (2 ulp), a sum, a division and four products; scale |u v|, or for the gradients "
        "(1 + |u|) |v dy| and |u dy|",
    ),
    "rope": (2 * EPS, 0, "two products and a sum; scale |x1| + |x2|"),
    "gelu": (2 * EPS, TINY, "x * sigmoid: an exponential (2 ulp), a sum, a division, a product; scale |x|"),
    "erf_gelu": (
        4 * EPS,
        TINY,
        "x Phi(x): the fit of Phi (EPS / 2), an exponential (2 ulp) and four products of at most 1/2 each, a "
        "difference, a product; scale |x|, or for the slope (1 + |x phi(x)|) |dy|: below 2 |dy|",
    ),
    "gelu_slope": (
        32 * EPS,
        TINY,
        "2 x s (1 - s) z' with z' up to 7 where 1 - s still has an error of EPS: about 20 EPS; scale |dy|",
    ),
    "muon": (
        256 * EPS,
        TINY,
        "per sqrt(K) of the products: an error in the matrix grows with the slopes of the polynomials "
        "at 0, 8.2 * 4.1 * 3.8 = 128, and comes in twice, with the matrix and with its square",
    ),
    "exponential": (3 * EPS, 0, "2 ulp, and half of one for each of the two products with 1 / sum"),
    "softmax": (
        EPS,
        TINY,
        "an exponential (2 ulp) of an x - max that is itself off by EPS / 2 of it, the sum, a division; "
        "scale (2 + |x - max| + sqrt(N)) y",
    ),
    "softmax_backward": (2 * EPS, TINY, "per sqrt(N): y * (dy - sum), scale y (|dy| + sum |dy| y)"),
    "attention": (
        EPS / 2,
        TINY,
        "per sqrt(D + T): an error of a score is one of the weight's exponent: scale (2 + |q|.|k|) times "
        "the sum of the magnitudes that the result adds up",
    ),
    "cross_entropy": (
        EPS,
        TINY,
        "per sqrt(C): as attention, scale (2 + |x|.|wte|) p + one-hot, divided by the tokens that count",
    ),
    "dropout": (EPS, 0, "one product; the mask itself must be the same"),
    "global_norm": (EPS, 0, "summed in float64, rounded once"),
    "adamw": (
        8 * EPS,
        0,
        "ten roundings, among them 1 - beta in float32 (EPS / 0.05 of v); scale |p| + lr, |m| + |g|, v + g^2",
    ),
}


def assert_close(op, where, actual, expected, scale=None, terms=1):
    """actual (float32) is within TOLERANCES[op] of expected (float64). terms: the K of a sum over K.

    A failure names op, `where` (implementation, sizes), the worst index, both numbers, what was allowed.
    """
    rtol, atol, _ = TOLERANCES[op]
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{op} {where}: {actual.shape}, not {expected.shape}"
    scale = np.abs(expected) if scale is None else scale
    allowed = np.broadcast_to(rtol * np.sqrt(terms) * scale + atol, expected.shape)
    error = np.abs(actual - expected)
    if not (error <= allowed).all():  # a NaN is not <= anything
        excess = np.where(np.isnan(error), np.inf, error - allowed)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{op} {where}: worst at {tuple(map(int, worst))} of {expected.shape}: "
            f"got {actual[worst]!r}, expected {expected[worst]!r}, "
            f"error {error[worst]:.2e}, allowed {allowed[worst]:.2e}"
        )
