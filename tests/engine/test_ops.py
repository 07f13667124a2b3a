"""The NumPy reference: every backward against central differences in float64, every forward against the
formula of its docstring written out another way. Sizes are odd on purpose: B=2, T=3, C=5, never a square.

A case returns (loss, gradients): loss() reads the arrays, gradients = {name: (array, its gradient)}.
The loss is sum(y * dy), so that dy is its gradient with respect to y.
"""

import math

import numpy as np
import pytest

from npgpt.engine import ops
from tests.gradcheck import assert_gradient

B, T, C, V, N = 2, 3, 5, 7, 4
EPS = 1e-5
CASES = {}  # "name of the backward, variant" -> (function, its arguments after rng)


def case(backward, **variants):
    """Registers a case; with variants (name=arguments) once for each."""

    def register(function):
        for name, arguments in (variants or {"": ()}).items():
            CASES[f"{backward} {name}".strip()] = (function, arguments)
        return function

    return register


class Sum:
    """A parameter's gradient: starts from something that is not zero, because backward must add to it."""

    def __init__(self, rng, *shape):
        self.array = rng.standard_normal(shape)
        self.start = self.array.copy()

    @property
    def added(self):
        return self.array - self.start


def normal(rng, *shape):
    return rng.standard_normal(shape)


# ---------------------------------------------------------------------------- one case per backward


@case("embedding_backward", learned_positions=(True,), no_positions=(False,))
def _embedding(rng, has_positions):
    ids = np.array([[1, 6, 1], [0, 1, 3]], np.int32)  # id 1 three times: its gradients add up
    positions = np.array([[0, 1, 2], [2, 3, 3]], np.int32)
    wte, dx, dwte, dwpe = normal(rng, V, C), normal(rng, B, T, C), Sum(rng, V, C), Sum(rng, 6, C)
    wpe = normal(rng, 6, C) if has_positions else None
    ops.embedding_backward(dx, ids, positions, dwte.array, dwpe.array if has_positions else None)

    def loss():
        return np.sum(ops.embedding_forward(ids, positions, wte, wpe) * dx)

    gradients = {"wte": (wte, dwte.added)}
    return loss, gradients | ({"wpe": (wpe, dwpe.added)} if has_positions else {})


@case("layernorm_backward", plain=(True, False), no_bias=(False, False),
      residual=(True, True), no_bias_residual=(False, True))  # fmt: skip
def _layernorm(rng, has_bias, has_residual):
    x, w, dy = normal(rng, B, T, C) * 2 + 1, normal(rng, C), normal(rng, B, T, C)
    b = normal(rng, C) if has_bias else None
    dw, db = Sum(rng, C), Sum(rng, C) if has_bias else None
    residual = normal(rng, B, T, C) if has_residual else None
    _, mean, rstd = ops.layernorm_forward(x, w, b, EPS)
    db_array = db.array if has_bias else None
    dx = ops.layernorm_backward(dy, x, mean, rstd, w, dw.array, db_array, residual)

    def loss():
        past_the_norm = np.sum(x * residual) if has_residual else 0
        return np.sum(ops.layernorm_forward(x, w, b, EPS)[0] * dy) + past_the_norm

    gradients = {"x": (x, dx), "w": (w, dw.added)}
    return loss, gradients | ({"b": (b, db.added)} if has_bias else {})


@case("rmsnorm_backward", plain=(False,), residual=(True,))
def _rmsnorm(rng, has_residual):
    x, w, dy, dw = normal(rng, B, T, C) * 2 + 1, normal(rng, C), normal(rng, B, T, C), Sum(rng, C)
    residual = normal(rng, B, T, C) if has_residual else None
    _, rstd = ops.rmsnorm_forward(x, w, EPS)
    dx = ops.rmsnorm_backward(dy, x, rstd, w, dw.array, residual)

    def loss():
        past_the_norm = np.sum(x * residual) if has_residual else 0
        return np.sum(ops.rmsnorm_forward(x, w, EPS)[0] * dy) + past_the_norm

    return loss, {"x": (x, dx), "w": (w, dw.added)}


@case("linear_backward", plain=(False, False), bias=(True, False),
      residual=(False, True), bias_residual=(True, True))  # fmt: skip
def _linear(rng, has_bias, has_residual):
    x, w, dy = normal(rng, B, T, C), normal(rng, C, N), normal(rng, B, T, N)
    b = normal(rng, N) if has_bias else None
    residual = normal(rng, B, T, N) if has_residual else None
    dw, db = Sum(rng, C, N), Sum(rng, N) if has_bias else None
    dx = ops.linear_backward(dy, x, w, dw.array, db.array if has_bias else None)

    def loss():
        return np.sum(ops.linear_forward(x, w, b, residual) * dy)

    gradients = {"x": (x, dx), "w": (w, dw.added)}
    if has_bias:
        gradients["b"] = (b, db.added)
    if has_residual:
        gradients["residual"] = (residual, dy)
    return loss, gradients


@case("gelu_linear_backward", plain=(False,), bias=(True,))
def _two_linears(rng, has_bias):
    """y, h = linear_gelu(x); z = linear(y): the second's backward gives dh at once."""
    x, w, w2, dz = normal(rng, B, T, C), normal(rng, C, N), normal(rng, N, V), normal(rng, B, T, V)
    b = normal(rng, N) if has_bias else None
    b2 = normal(rng, V) if has_bias else None
    dw, db, dw2, db2 = Sum(rng, C, N), Sum(rng, N), Sum(rng, N, V), Sum(rng, V)
    _, h = ops.linear_gelu_forward(x, w, b)
    dh = ops.gelu_linear_backward(dz, h, w2, dw2.array, db2.array if has_bias else None)
    dx = ops.linear_backward(dh, x, w, dw.array, db.array if has_bias else None)

    def loss():
        return np.sum(ops.linear_forward(ops.linear_gelu_forward(x, w, b)[0], w2, b2) * dz)

    gradients = {"x": (x, dx), "w": (w, dw.added), "w2": (w2, dw2.added)}
    if has_bias:
        gradients |= {"b": (b, db.added), "b2": (b2, db2.added)}
    return loss, gradients


@case("gelu_backward")
def _gelu(rng):
    x, dy = np.linspace(-6, 6, B * T * C).reshape(B, T, C), normal(rng, B, T, C)
    dx = ops.gelu_backward(dy, x)
    return lambda: np.sum(ops.gelu_forward(x) * dy), {"x": (x, dx)}


@case("erf_gelu_backward")
def _erf_gelu(rng):
    x, dy = np.linspace(-6, 6, B * T * C).reshape(B, T, C), normal(rng, B, T, C)
    dx = ops.erf_gelu_backward(dy, x)
    return lambda: np.sum(ops.erf_gelu_forward(x) * dy), {"x": (x, dx)}


@case("swiglu_backward")
def _swiglu(rng):
    h, dy = 3 * normal(rng, B, T, 2 * C), normal(rng, B, T, C)
    dh = ops.swiglu_backward(dy, h)
    return lambda: np.sum(ops.swiglu_forward(h) * dy), {"h": (h, dh)}


@case("rope_backward", whole=(6, 4), some_heads=(6, 2), one_pair=(2, 3))
def _rope(rng, D, n_rotated):
    """A row has four heads, of which the last are not turned."""
    x, dy, angles = normal(rng, B, T, 4 * D), normal(rng, B, T, 4 * D), normal(rng, 5, D // 2)
    positions = np.array([[0, 1, 2], [4, 0, 4]], np.int32)
    rotation = positions, np.cos(angles), np.sin(angles), n_rotated
    dx = dy.copy()
    ops.rope_backward(dx, *rotation)

    def loss():
        y = x.copy()
        ops.rope_forward(y, *rotation)
        return np.sum(y * dy)

    return loss, {"x": (x, dx)}


@case("softmax_backward")
def _softmax(rng):
    x, dy = normal(rng, B, T, C) * 2, normal(rng, B, T, C)
    dx = ops.softmax_backward(dy, ops.softmax_forward(x))
    return lambda: np.sum(ops.softmax_forward(x) * dy), {"x": (x, dx)}


@case("attention_backward", one_head=(1, None, 5, 3, False), three_heads=(3, None, 5, 3, False),
      longer=(2, None, 3, 7, False), head_size_1=(5, None, 1, 4, False), first_key=(3, None, 5, 3, True),
      longer_first_key=(2, None, 3, 7, True), one_key_head=(3, 1, 5, 3, False),
      two_key_heads=(6, 2, 3, 4, False), key_heads_first_key=(4, 2, 5, 3, True))  # fmt: skip
def _attention(rng, H, K, D, T, has_first_key):
    qkv, dout = normal(rng, B, T, (H + 2 * (K or H)) * D), normal(rng, B, T, H * D)
    first_key = rng.integers(0, np.arange(T) + 1, (B, T)).astype(np.int32) if has_first_key else None
    scale = 1 / math.sqrt(D)
    out, lse = ops.attention_forward(qkv, H, scale, first_key, K)
    dqkv = ops.attention_backward(dout, qkv, out, lse, H, scale, first_key, K)

    def loss():
        return np.sum(ops.attention_forward(qkv, H, scale, first_key, K)[0] * dout)

    return loss, {"qkv": (qkv, dqkv)}


@case("cross_entropy")
def _cross_entropy(rng):
    logits, targets = 2 * normal(rng, 4, V), np.array([1, -1, 6, 1], np.int32)
    gradient = logits.copy()
    ops.cross_entropy(gradient, targets, 0.3)
    return lambda: 0.3 * np.sum(ops.cross_entropy(logits.copy(), targets, 0)), {"logits": (logits, gradient)}


@case("head_cross_entropy", all_count=(False, False), some_do_not_count=(True, False), shifted=(True, True))
def _head_cross_entropy(rng, some_do_not_count, shifted):
    x, wte = normal(rng, B, T, C), normal(rng, V, C)
    targets = np.array([[1, 0, 6], [3, 3, 5]], np.int32)
    if some_do_not_count:
        targets[0, 1] = targets[1, 2] = -1
    dwte = Sum(rng, V, C)
    shift = normal(rng, V) if shifted else None
    _, dx = ops.head_cross_entropy(x, wte, targets, dwte.array, shift)

    def loss():
        return ops.head_cross_entropy(x, wte, targets, shift=shift)[0]

    return loss, {"x": (x, dx), "wte": (wte, dwte.added)}


@case("dropout_backward")
def _dropout(rng):
    x, dy, key = normal(rng, B, T, C), normal(rng, B, T, C), (1, 2, 3, 4)
    dx = ops.dropout_backward(dy, 0.4, key)
    return lambda: np.sum(ops.dropout_forward(x, 0.4, key) * dy), {"x": (x, dx)}


@pytest.mark.parametrize("name", CASES)
def test_backward(name, rng, measured):
    function, arguments = CASES[name]
    loss, gradients = function(rng, *arguments)
    for argument, (array, gradient) in gradients.items():
        error = assert_gradient(f"{name}, d{argument}", loss, array, gradient)
        measured("backward of an op, relative to central differences in float64", error, 1e-6)


def test_every_backward_is_covered():
    written = {name for name in vars(ops) if name.endswith("_backward")}
    # forward and backward are one op at the end
    assert written | {"cross_entropy", "head_cross_entropy"} == {name.split()[0] for name in CASES}
    # what is fused from others: the forward before the GELU, the backward after it
    forwards = {name for name in vars(ops) if name.endswith("_forward")}
    with_one = {name.replace("_backward", "_forward") for name in written - {"gelu_linear_backward"}}
    assert with_one == forwards - {"linear_gelu_forward"}


def test_the_check_finds_a_wrong_gradient(rng):
    """The checker itself: an error of 1e-5 in one element is found, and a gradient of zeros is."""
    loss, gradients = _gelu(rng)
    x, dx = gradients["x"]
    assert_gradient("right", loss, x, dx)
    dx = dx.copy()
    dx[1, 2, 3] *= 1 + 1e-5
    with pytest.raises(AssertionError, match="slightly wrong"):
        assert_gradient("slightly wrong", loss, x, dx)
    with pytest.raises(AssertionError, match="zero"):
        assert_gradient("zero", loss, x, np.zeros_like(dx))


# ---------------------------------------------------------------------------- forwards


def test_embedding_forward(rng):
    wte, wpe = normal(rng, V, C), normal(rng, 6, C)
    x = ops.embedding_forward(np.array([[1, 0], [6, 6]]), np.array([[0, 1], [4, 5]]), wte, wpe)
    assert x.shape == (2, 2, C)
    np.testing.assert_array_equal(x[0, 1], wte[0] + wpe[1])
    np.testing.assert_array_equal(x[1, 0], wte[6] + wpe[4])
    x = ops.embedding_forward(np.array([[1, 0]]), np.array([[0, 1]]), wte, None)
    np.testing.assert_array_equal(x[0], wte[[1, 0]])


def test_layernorm_forward(rng):
    x = normal(rng, B, T, C) * 3 + 7
    y, mean, rstd = ops.layernorm_forward(x, np.ones(C), None, 0.0)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(mean, x.mean(axis=-1), rtol=1e-14)
    np.testing.assert_allclose(rstd, 1 / x.std(axis=-1), rtol=1e-12)
    # eps is inside the root: a constant row gives b, not NaN
    w, b = normal(rng, C), normal(rng, C)
    y, _, rstd = ops.layernorm_forward(np.full((1, C), 4.0), w, b, EPS)
    np.testing.assert_array_equal(y[0], b)
    np.testing.assert_allclose(rstd, 1 / math.sqrt(EPS))


def test_rmsnorm_forward(rng):
    x, w = normal(rng, B, T, C) * 3 + 7, normal(rng, C)
    y, rstd = ops.rmsnorm_forward(x, w, 0.0)
    for b, t in np.ndindex(B, T):
        size = math.sqrt(sum(e * e for e in x[b, t]) / C)
        assert rstd[b, t] == pytest.approx(1 / size, rel=1e-12)
        np.testing.assert_allclose(y[b, t], x[b, t] / size * w, rtol=1e-12)
    np.testing.assert_array_equal(ops.rmsnorm_apply(x, rstd, w), y)
    # eps is inside the root, beside the mean: a row of zeros gives zeros, not NaN
    y, rstd = ops.rmsnorm_forward(np.zeros((1, C)), w, EPS)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(rstd, 1 / math.sqrt(EPS))


def test_swiglu_forward():
    for u in (-800.0, -9.0, -0.1, 0.0, 1.0, 9.0, 800.0):
        expected = u / (1 + math.exp(-u)) * 3 if u > -700 else 0
        assert ops.swiglu_forward(np.array([u, 3.0]))[0] == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_rope_forward(rng):
    """Each pair of a head turns by its angle, as complex numbers do; the values behind the keys stay."""
    D, angles = 6, normal(rng, 4, 3)
    positions = np.array([[0, 1, 3]], np.int32)
    x = normal(rng, 1, 3, 4 * D)
    y = x.copy()
    assert ops.rope_forward(y, positions, np.cos(angles), np.sin(angles), 3) is None
    for t, head, i in np.ndindex(3, 3, 3):
        a, b = head * D + i, head * D + i + D // 2
        turned = complex(x[0, t, a], x[0, t, b]) * np.exp(1j * angles[positions[0, t], i])
        assert (y[0, t, a], y[0, t, b]) == pytest.approx((turned.real, turned.imag), rel=1e-12)
    np.testing.assert_array_equal(y[..., 3 * D :], x[..., 3 * D :])


def test_linear_forward(rng):
    x, w, b, residual = normal(rng, B, T, C), normal(rng, C, N), normal(rng, N), normal(rng, B, T, N)
    expected = np.einsum("btk,kn->btn", x, w) + b + residual
    np.testing.assert_allclose(ops.linear_forward(x, w, b, residual), expected, rtol=1e-12)
    y, h = ops.linear_gelu_forward(x, w, b)
    np.testing.assert_allclose(h, expected - residual, rtol=1e-12)
    np.testing.assert_array_equal(y, ops.gelu_forward(h))


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_matmul(rng, trans_a, trans_b):
    a, b = normal(rng, 3, 5), normal(rng, 5, 4)
    out = normal(rng, 3, 4)
    before = out.copy()
    a_given, b_given = (a.T.copy() if trans_a else a), (b.T.copy() if trans_b else b)
    product = np.einsum("mk,kn->mn", a, b)
    np.testing.assert_allclose(ops.matmul(a_given, b_given, None, trans_a, trans_b), product)
    returned = ops.matmul(a_given, b_given, out, trans_a, trans_b, accumulate=True)
    assert returned is out
    np.testing.assert_allclose(out, before + product)
    ops.matmul(a_given, b_given, out, trans_a, trans_b)
    np.testing.assert_allclose(out, product)


def test_gelu_forward():
    for x in (-9.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 9.0):
        z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        expected = 0.5 * x * (1 + math.tanh(z))
        assert ops.gelu_forward(np.array([x]))[0] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_softmax_forward(rng):
    x = normal(rng, B, T, C)
    expected = [[[math.exp(e) / sum(map(math.exp, row)) for e in row] for row in rows] for rows in x]
    np.testing.assert_allclose(ops.softmax_forward(x), expected, rtol=1e-12)
    np.testing.assert_allclose(ops.softmax_forward(x + 1000), expected, rtol=1e-10)


@pytest.mark.parametrize("H, K", [(3, 3), (4, 2), (3, 1)])
@pytest.mark.parametrize("has_first_key", [False, True])
def test_attention_forward(rng, has_first_key, H, K):
    """Against the definition, one query at a time. Heads of queries in a row share a head of keys."""
    D, T = 2, 5
    qkv, scale = normal(rng, B, T, (H + 2 * K) * D), 0.7
    first_key = rng.integers(0, np.arange(T) + 1, (B, T)).astype(np.int32)
    out, lse = ops.attention_forward(qkv, H, scale, first_key if has_first_key else None, K)
    assert out.shape == (B, T, H * D) and lse.shape == (B, H, T)
    for b, h, t in np.ndindex(B, H, T):
        heads = h, H + h // (H // K), H + K + h // (H // K)
        q, k, v = (qkv[b, :, head * D :][:, :D] for head in heads)
        seen = slice(first_key[b, t] if has_first_key else 0, t + 1)
        weights = np.exp(scale * (k[seen] @ q[t]))
        assert lse[b, h, t] == pytest.approx(math.log(weights.sum()), rel=1e-12)
        expected = weights @ v[seen] / weights.sum()
        np.testing.assert_allclose(out[b, t, h * D : (h + 1) * D], expected, rtol=1e-11)


def test_head_cross_entropy(rng):
    x, wte = normal(rng, B, T, C), normal(rng, V, C)
    targets = np.array([[1, -1, 6], [3, -1, 5]], np.int32)
    dwte = np.zeros_like(wte)
    loss, dx = ops.head_cross_entropy(x, wte, targets, dwte)
    probabilities = ops.softmax_forward(x @ wte.T)
    counted = [(b, t) for b, t in np.ndindex(B, T) if targets[b, t] >= 0]
    expected = -np.mean([math.log(probabilities[b, t, targets[b, t]]) for b, t in counted])
    assert isinstance(loss, float) and loss == pytest.approx(expected, rel=1e-12)
    assert dx.shape == x.shape
    assert not dx[:, 1].any(), "targets of -1 have no gradient"
    # softmax minus one-hot sums to 0 in every row
    np.testing.assert_allclose(dwte.sum(axis=0), 0, atol=1e-14)
    assert ops.head_cross_entropy(x, wte, targets) == (loss, None)
    assert ops.head_cross_entropy(x, wte, np.full((B, T), -1))[0] == 0.0


@pytest.mark.parametrize("has_bias", [False, True])
def test_layernorm_apply_is_the_forward_again(rng, has_bias):
    x, w, b = normal(rng, B, T, C) * 2 + 1, normal(rng, C), normal(rng, C) if has_bias else None
    y, mean, rstd = ops.layernorm_forward(x, w, b, EPS)
    np.testing.assert_array_equal(ops.layernorm_apply(x, mean, rstd, w, b), y)


# ---------------------------------------------------------------------------- dropout


def test_philox_is_the_published_generator():
    """The known answers of Random123 (kat_vectors, philox4x32 10)."""
    ones = 0xFFFFFFFF
    known = {
        ((0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ((ones,) * 4, (ones,) * 2): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)): (
            0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }  # fmt: skip
    for (counter, key), words in known.items():
        assert tuple(int(w) for w in ops.philox4x32(counter, key)) == words


def test_dropout_rate_and_scale():
    x = np.ones((20, 5000))
    y = ops.dropout_forward(x, 0.3, (1, 2, 3, 4))
    assert set(np.unique(y)) == {0.0, 1 / 0.7}
    # a binomial: 5 standard deviations
    assert abs((y == 0).mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.size)
    rates = (y == 0).mean(axis=1)
    assert np.abs(rates - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / 5000)
    np.testing.assert_array_equal(ops.dropout_forward(x, 0.0, (1, 2, 3, 4)), x)


def test_dropout_depends_on_its_key_and_nothing_else():
    x = np.ones((4, 3, 50))
    key = (1, 2, 3, 4)
    y = ops.dropout_forward(x, 0.5, key)
    np.testing.assert_array_equal(y, ops.dropout_forward(x, 0.5, key))
    for place in range(4):  # seed, step, layer, place: each changes about half of the mask
        other = list(key)
        other[place] += 1
        changed = (ops.dropout_forward(x, 0.5, tuple(other)) != y).mean()
        assert 0.3 < changed < 0.7, f"key element {place} changes {changed:.0%} of the mask"
    # sample b of a batch is sample first_sample + b of the whole: ranks can share a batch
    np.testing.assert_array_equal(ops.dropout_forward(x[2:], 0.5, key, first_sample=2), y[2:])
    assert (y[0] != y[1]).any()


# ---------------------------------------------------------------------------- optimizer


def test_global_norm(rng):
    g = normal(rng, 1001)
    assert ops.global_norm(g) == pytest.approx(math.sqrt(sum(e * e for e in g)), rel=1e-13)
    # squares of 1e25 do not fit into float32: the sum is in float64
    assert ops.global_norm(np.full(4, 1e25, np.float32)) == pytest.approx(2e25, rel=1e-6)


def test_adamw_step(rng):
    """Three updates against the formula of Loshchilov and Hutter (algorithm 2), one parameter at a time."""
    size, n_decay = 7, 3
    lr, beta1, beta2, eps, weight_decay, grad_scale = 0.01, 0.9, 0.95, 1e-8, 0.1, 0.25
    p, m, v = normal(rng, size), np.zeros(size), np.zeros(size)
    theta, first, second = p.tolist(), [0.0] * size, [0.0] * size
    for step in (1, 2, 3):
        g = normal(rng, size)
        for i, gi in enumerate(g.tolist()):
            gi *= grad_scale
            first[i] = beta1 * first[i] + (1 - beta1) * gi
            second[i] = beta2 * second[i] + (1 - beta2) * gi * gi
            update = (first[i] / (1 - beta1**step)) / (math.sqrt(second[i] / (1 - beta2**step)) + eps)
            decay = weight_decay * theta[i] if i < n_decay else 0.0
            theta[i] -= lr * (update + decay)
        ops.adamw_step(p, g, m, v, n_decay, lr, beta1, beta2, eps, weight_decay, step, grad_scale)
        np.testing.assert_allclose(p, theta, rtol=1e-12)
        np.testing.assert_allclose(m, first, rtol=1e-12)
        np.testing.assert_allclose(v, second, rtol=1e-12)
        assert not g.any(), "the gradient is zeroed for the next step"


# ---------------------------------------------------------------------------- numbers far out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_inputs_stay_finite(rng, dtype):
    x = (rng.choice([-1e4, -50, 0, 50, 1e4], (B, T, 9))).astype(dtype)
    dy = np.ones_like(x)
    y = ops.softmax_forward(x)
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-6)
    assert np.isfinite(ops.softmax_backward(dy, y)).all()
    assert np.isfinite(ops.swiglu_forward(x[..., :8])).all()
    assert np.isfinite(ops.swiglu_backward(dy[..., :4], x[..., :8])).all()
    np.testing.assert_allclose(ops.gelu_forward(x), np.maximum(x, 0), atol=1e-6)
    np.testing.assert_allclose(ops.gelu_backward(dy, x), (x > 0) + 0.5 * (x == 0), atol=1e-6)
    out, lse = ops.attention_forward(x, 3, 0.5)
    assert np.isfinite(out).all() and np.isfinite(lse).all()
    assert np.isfinite(ops.attention_backward(out, x, out, lse, 3, 0.5)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_keep_the_dtype(rng, dtype):
    x, w = normal(rng, B, T, 6).astype(dtype), normal(rng, 6, N).astype(dtype)
    b = normal(rng, 6).astype(dtype)
    results = [
        *ops.layernorm_forward(x, b, b, EPS),
        *ops.rmsnorm_forward(x, b, EPS),
        ops.swiglu_forward(x),
        ops.swiglu_backward(x[..., :3], x),
        ops.linear_forward(x, w),
        *ops.linear_gelu_forward(x, w),
        ops.gelu_backward(x, x),
        ops.softmax_forward(x),
        *ops.attention_forward(x, 2, 0.5),
        ops.head_cross_entropy(x, w.T.copy(), np.zeros((B, T), np.int32), w.T.copy())[1],
        ops.dropout_forward(x, 0.5, (0, 0, 0, 0)),
    ]
    assert {r.dtype for r in results} == {np.dtype(dtype)}


# ---------------------------------------------------------------------------- muon


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8), (1, 5)])
def test_orthogonalise_makes_singular_values_equal(rng, shape):
    """U S V^T becomes U S' V^T: S' from 0.15 to 1.9 where S is a 40th of its norm, whatever its scale."""
    u, _, vt = np.linalg.svd(normal(rng, *shape), full_matrices=False)
    for singular in (np.geomspace(1, 0.06, len(vt)), np.full(len(vt), 1e-3)):
        found = u.T @ ops.orthogonalise((u * singular) @ vt) @ vt.T
        values = np.diag(found)
        np.testing.assert_allclose(found, np.diag(values), atol=1e-10)
        assert (singular >= np.linalg.norm(singular) / 40).all()
        assert 0.15 < values.min() and values.max() < 1.9, values
