"""Weights in blocks: products by strips are those of the numbers; gradients are those of differences."""

import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pytest

from npgpt.engine import kernels, lora, quantised
from npgpt.engine.lora import LoRA
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW
from npgpt.engine.quantised import LowRank, Quantised, QuantisedOps, Rows
from npgpt.engine.quantised_model import QuantisedGPT
from npgpt.interop.blocks import TYPES, dequantise, unpack
from npgpt.interop.quantise import quantise
from tests.gradcheck import assert_gradient
from tests.models import LLAMA, random_model

SHAPES = {
    "gpt-2": {},
    "gpt": {"post_norm": True},
    "gpt-3": {"window": 5},
    "gelu": {"activation": "gelu"},
    "llama": LLAMA | {"n_head": 4, "n_kv_head": 2, "head_size": 8},
    "llama, a head": LLAMA | {"tied": False},
}
COMPILED = kernels.compiled("unpack_rows") is not None


def matrix(rng, parts, K, dtype=np.float32):
    """A matrix of parts {type: rows}, and its numbers."""
    made, numbers = [], []
    for type, n in parts.items():
        made.append(Rows(quantise(rng.standard_normal((n, K), np.float32), type), type, unpack))
        numbers.append(dequantise(made[-1].blocks, type).reshape(n, K))
    return Quantised(made, K, dtype), np.concatenate(numbers).astype(dtype)


@pytest.fixture(params=[1 << 20, 7 * 64, 5])
def strip(request, monkeypatch):
    """Strips that hold all, some rows, and one row."""
    monkeypatch.setattr(quantised, "STRIP", request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("choice", ["numpy", "auto"])
def test_products_and_rows_are_those_of_the_numbers(choice, strip, dtype, rng):
    with kernels.use(choice):
        products_and_rows_are_those_of_the_numbers(dtype, rng)


def products_and_rows_are_those_of_the_numbers(dtype, rng):
    ops = kernels.ops_for(dtype)
    w, numbers = matrix(rng, {"q8_0": 13, "q4_0": 30, "f16": 1, "f32": 8}, 64, dtype)
    tail = rng.standard_normal((5, 64)).astype(dtype)
    for begin in 52, 50, 20:
        w.replace_from(begin, tail)
        numbers = np.concatenate([numbers[:begin], tail])
        assert (w.N, w.shape) == (begin + 5, (64, begin + 5))
        x, dy = (rng.standard_normal((3, 7, n)).astype(dtype) for n in (64, w.N))
        b, residual = rng.standard_normal(w.N).astype(dtype), rng.standard_normal((3, 7, w.N)).astype(dtype)
        rtol = 1e-12 if dtype == np.float64 else 1e-5
        close = partial(np.testing.assert_allclose, rtol=rtol, atol=20 * rtol)
        close(w.forward(ops, x, b, residual), x @ numbers.T + b + residual)
        close(w.backward(ops, dy), dy @ numbers)
        ids = rng.integers(0, w.N, 40)
        np.testing.assert_array_equal(w.rows(ids), numbers[ids])
    a, b = rng.standard_normal((64, 2)).astype(dtype), rng.standard_normal((2, w.N)).astype(dtype)
    w.low_rank = LowRank(a, b, 1.5)
    close(w.forward(ops, x), x @ (numbers.T + 1.5 * a @ b))


def test_a_product_before_a_copy_adds_nothing_to_it(rng):
    ops = kernels.ops_for(np.float32)
    w, _ = matrix(rng, {"q8_0": 13}, 64)
    w.replace_from(11, tail := rng.standard_normal((2, 64)).astype(np.float32))
    x, before = np.eye(64, dtype=np.float32), len(pickle.dumps(w))
    np.testing.assert_array_equal(w.forward(ops, x)[:, 11:], tail.T)
    assert len(pickle.dumps(w)) == before
    other = deepcopy(w)
    other.tail[...] = 0  # its own rows, which its own products see
    np.testing.assert_array_equal(other.forward(ops, x)[:, 11:], 0)
    np.testing.assert_array_equal(w.forward(ops, x)[:, 11:], tail.T)


def test_gradients_by_central_differences(strip, rng):
    ops = kernels.ops_for(np.float64)
    w, _ = matrix(rng, {"q8_0": 6, "q4_0": 3}, 32, np.float64)
    a, b, x = (rng.standard_normal(s) for s in ((32, 2), (2, 9), (4, 32)))
    dy, da, db = rng.standard_normal((4, 9)), np.zeros_like(a), np.zeros_like(b)
    w.low_rank = LowRank(a, b, 1.5)
    dx = lora.lora_backward(ops, dy, x, w, a, b, da, db, 1.5)

    def loss():
        return float((dy * w.forward(ops, x)).sum())

    for name, array, gradient in (("a", a, da), ("b", b, db), ("x", x, dx)):
        assert_gradient(name, loss, array, gradient)


@pytest.mark.parametrize("logits", [1 << 20, 33])
def test_gradients_of_the_head_by_central_differences(logits, strip, rng, monkeypatch):
    monkeypatch.setattr(kernels, "LOGITS", logits)
    wte, _ = matrix(rng, {"q8_0": 6, "q4_0": 3}, 32, np.float64)
    tail = rng.standard_normal((2, 32))
    wte.replace_from(8, tail)
    ops = QuantisedOps(kernels.ops_for(np.float64), wte)
    x, targets = rng.standard_normal((2, 5, 32)), rng.integers(-1, 10, (2, 5))
    dtail = np.zeros_like(tail)
    loss, dx = ops.head_cross_entropy(x, wte, targets, dtail)
    assert ops.head_cross_entropy(x, wte, targets) == (loss, None)
    for name, array, gradient in (("x", x, dx), ("tail", tail, dtail)):
        assert_gradient(name, lambda: ops.head_cross_entropy(x, wte, targets)[0], array, gradient)


def pair(fields, type="q8_0", dtype=np.float32):
    """A model in blocks, and the same model of floats."""
    source = random_model(**fields)
    vectors, matrices = {}, {}
    for name, w in source.params.items():
        if w.ndim == 1 or name == "wpe.weight":
            vectors[name] = w
            continue
        blocks = quantise(np.ascontiguousarray(w.T if name.startswith("h.") else w), type)
        K = w.shape[0 if name.startswith("h.") else 1]
        matrices[name] = Quantised([Rows(blocks, type, unpack)], K, dtype)
    ours = QuantisedGPT(source.config, vectors, matrices, "a file", dtype=dtype)
    floats = GPT(source.config, seed=None, dtype=dtype)
    with floats.edit() as params:
        for name, w in params.items():
            w[...] = ours.array(name)
    return ours, floats


def batch(rng):
    ids = rng.integers(0, 257, (3, 21))
    return ids[:, :-1], np.where(rng.random((3, 20)) < 0.3, -1, ids[:, 1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_in_blocks_is_the_model_of_its_numbers(shape, dtype, rng, measured):
    ours, floats = pair(SHAPES[shape], dtype=dtype)
    x, y = batch(rng)
    np.testing.assert_array_equal(ours.logits(x), floats.logits(x))
    rows = 0 if "head" in shape else 4
    both = [LoRA(model, 3, rows) for model in (ours, floats)]
    np.testing.assert_array_equal(both[0].flat_params, both[1].flat_params)
    change = rng.normal(0, 0.1, both[0].num_params).astype(dtype)
    losses = []
    for adapters in both:
        with adapters.edit():
            adapters.flat_params += change
        losses.append(adapters.model.forward(x, y))
        adapters.model.backward()
        assert not adapters.model.flat_grads.any()
    bound = 1e-5 if dtype == np.float32 else 1e-12
    error = np.abs(both[0].flat_grads - both[1].flat_grads).max() / np.abs(both[1].flat_grads).max()
    measured(f"gradients over a base in blocks, relative, {np.dtype(dtype)}", error, bound)
    np.testing.assert_allclose(losses[0], losses[1], rtol=bound)
    np.testing.assert_allclose(ours.logits(x), floats.logits(x), atol=bound * np.abs(floats.logits(x)).max())
    cache = ours.new_cache(3)
    ours.decode(x[:, :7], cache)
    np.testing.assert_allclose(ours.decode(x[:, 7:9], cache), ours.logits(x[:, :9])[:, -1], atol=1e-4)


def test_training_over_blocks_learns_and_leaves_the_blocks(rng):
    ours, _ = pair(SHAPES["llama"], "q4_0")
    digest, (x, y) = ours.digest(), batch(rng)
    adapters = LoRA(ours, 4, rows=2)
    optimizer, first = AdamW(adapters, lr=0.02), ours.loss(x, y)
    for _ in range(20):
        ours.forward(x, y)
        ours.backward()
        optimizer.step(1.0)
    assert ours.loss(x, y) < first - 1 and ours.digest() == digest


def test_without_adapters_there_is_nothing_to_train(rng):
    ours, _ = pair({})
    x, y = batch(rng)
    with pytest.raises(ValueError, match="must have adapters to be trained"):
        ours.forward(x, y)
    assert ours.loss(x, y) > 0


def test_a_copy_has_adapters_of_its_own(rng):
    import copy

    ours, _ = pair({})
    adapters = LoRA(ours, 2)
    twin, (x, _) = copy.deepcopy(adapters), batch(rng)
    before = ours.logits(x)
    with twin.edit():
        twin.flat_params += 0.1
    np.testing.assert_array_equal(ours.logits(x), before)
    assert np.abs(twin.model.logits(x) - before).max() > 0.01


@pytest.mark.skipif(not COMPILED, reason="no kernels")
@pytest.mark.parametrize("type", TYPES)
def test_compiled_unpacking_has_the_bits_of_the_reference(type, isa, rng):
    if type not in kernels.compiled("UNPACKED"):
        pytest.skip(f"{type} is not compiled")
    of = TYPES[type]
    for n, K in (1, of.n), (3, 5 * of.n), (40, 512), (7, 1024):
        if K % of.n:
            continue
        blocks = rng.integers(0, 256, (n, K // of.n * of.size), np.uint8)
        out = np.full((n, K), 7, np.float32)
        kernels.compiled("unpack_rows")(blocks, type, out)
        with np.errstate(invalid="ignore", over="ignore"):  # scales of any bits
            want = dequantise(blocks, type).reshape(n, K)
        there = ~np.isnan(want)
        np.testing.assert_array_equal(out.view(np.uint32)[there], want.view(np.uint32)[there])
        assert (np.isnan(out) == np.isnan(want)).all()


def stored(rng, counts, type, K):
    """Parts of random blocks as matmul_blocks takes them, and their numbers."""
    parts = [(quantise(rng.standard_normal((n, K), np.float32), type), type) for n in counts]
    return parts, np.concatenate([dequantise(blocks, type).reshape(-1, K) for blocks, type in parts])


@pytest.mark.skipif(not COMPILED, reason="no kernels")
@pytest.mark.parametrize("M", [1, 7, 130])
@pytest.mark.parametrize("counts", [(1,), (16,), (33, 1, 62), (600, 200, 100)])
@pytest.mark.parametrize("type,K", [("q8_0", 32), ("q4_0", 800), ("q4_k", 1792), ("f16", 45), ("f32", 7)])
def test_a_product_with_blocks_has_the_bits_of_one_with_their_numbers(type, K, counts, M, isa, threads, rng):
    matmul, blocks = kernels.compiled("matmul"), kernels.compiled("matmul_blocks")
    parts, numbers = stored(rng, counts, type, K)
    a, dy = (rng.standard_normal((M, n), dtype=np.float32) for n in (K, len(numbers)))
    b, residual = rng.standard_normal(len(numbers), np.float32), np.ones((M, len(numbers)), np.float32)
    for n in 1, 3:
        threads(n)
        wide = np.zeros((M, len(numbers) + 5), np.float32)  # rows apart
        blocks(a, parts, wide[:, 2:-3], trans_b=True)
        np.testing.assert_array_equal(wide[:, 2:-3], matmul(a, numbers, trans_b=True))
        assert not wide[:, :2].any() and not wide[:, -3:].any()
        y, w = np.empty_like(dy), np.ascontiguousarray(numbers.T)
        blocks(a, parts, y, b, residual, trans_b=True)
        np.testing.assert_array_equal(y, kernels.compiled("linear_forward")(a, w, b, residual))
        dx = np.ones((M, K), np.float32)
        blocks(dy, parts, dx)
        np.testing.assert_array_equal(dx, matmul(dy, numbers))
        blocks(dy, parts, dx, accumulate=True)
        np.testing.assert_array_equal(dx, matmul(dy, numbers, out=matmul(dy, numbers), accumulate=True))
        for rank in 1, 8, 28:
            p, q = rng.standard_normal((M, rank), np.float32), rng.standard_normal((rank, K), np.float32)
            blocks(dy, parts, dx, low_rank=(p, q.T.copy()))
            np.testing.assert_array_equal(dx, deeper(matmul, dy, numbers, p, q))
            q = rng.standard_normal((rank, len(numbers)), np.float32)
            blocks(a, parts, y, None, residual, (p, q), trans_b=True)
            np.testing.assert_array_equal(y, deeper(matmul, a, w, p, q) + residual)

        p, q = rng.standard_normal((M, 70), np.float32), rng.standard_normal((70, K), np.float32)
        blocks(dy, parts, dx, low_rank=(p, q.T.copy()))  # more than a product would take as one block
        np.testing.assert_allclose(dx, dy @ numbers + p @ q, rtol=1e-5, atol=3e-4)


def deeper(matmul, a, b, p, q):
    """a b + p q, as matmul_blocks sums it: the last block of K goes on with the low-rank product."""
    K = a.shape[1]
    blocks = -(-K // 320)
    cut = 0 if blocks == 1 else (K - 1) // (size := -(-K // blocks) + 7 & -8) * size
    last = np.concatenate([a[:, cut:], p], axis=1), np.concatenate([b[cut:], q])
    assert len(last[1]) <= 320, "matmul would cut it again"
    if not cut:
        return matmul(*last)
    return matmul(*last, out=matmul(a[:, :cut].copy(), b[:cut]), accumulate=True)


@pytest.mark.skipif(not COMPILED, reason="no kernels")
def test_matmul_blocks_refuses_what_does_not_fit(rng):
    parts, numbers = stored(rng, (3, 2), "q8_0", 64)
    call, a, out = (
        kernels.compiled("matmul_blocks"),
        np.ones((4, 64), np.float32),
        np.ones((4, 5), np.float32),
    )
    for bad, said in (
        (dict(parts=parts[:1]), "parts must be of 5 rows, got 3"),
        (dict(parts=[]), "parts must be of 5 rows, got 0"),
        (dict(parts=[(parts[0][0], "q9_9")]), "type must be one of"),
        (dict(parts=[(parts[0][0][:, :34], "q8_0")]), "blocks must be"),
        (dict(a=a[:, :40]), "a must be rows of whole blocks"),
        (dict(a=a[:, :32].copy()), r"blocks must be of shape \(3, 34\)"),
        (dict(out=out[:3]), r"out must be of shape \(4, 5\)"),
        (dict(b=np.ones(4, np.float32)), r"b must be of shape \(5,\)"),
        (dict(residual=np.ones((4, 4), np.float32)), r"residual must be of shape \(4, 5\)"),
        (
            dict(out=np.ones((4, 6), np.float32)[:, :5], residual=out),
            "out must be C-contiguous beside a residual",
        ),
        (
            dict(low_rank=(a[:, :2].copy(), np.ones((3, 5), np.float32))),
            r"low_rank must be of shape \(2, 5\)",
        ),
        (
            dict(low_rank=(a[:3, :2].copy(), np.ones((2, 5), np.float32))),
            r"low_rank must be of shape \(4, 2\)",
        ),
        (dict(trans_b=False), "out must be rows of whole blocks"),
    ):
        with pytest.raises(ValueError, match=said):
            call(**dict(a=a, parts=parts, out=out, trans_b=True) | bad)
    with pytest.raises(TypeError, match="a must be float32"):
        call(a.astype(np.float64), parts, out, trans_b=True)
    call(a, parts, out, trans_b=True)
    np.testing.assert_array_equal(out, kernels.compiled("matmul")(a, numbers, trans_b=True))


@pytest.mark.skipif(not COMPILED, reason="no kernels")
def test_the_number_of_threads_changes_no_bit(threads, rng):
    ours, _ = pair(SHAPES["llama"], "q4_0")
    adapters, (x, y), found = LoRA(ours, 4, rows=2), batch(rng), []
    for n in 1, 2, 3:
        threads(n)
        adapters.flat_grads[...] = 0
        loss = ours.forward(x, y)
        ours.backward()
        found.append((loss, adapters.flat_grads.copy()))
    for loss, gradient in found[1:]:
        assert loss == found[0][0]
        np.testing.assert_array_equal(gradient, found[0][1])


@pytest.mark.skipif(not COMPILED, reason="no kernels")
def test_unpack_rows_refuses_what_does_not_fit():
    blocks, out = np.zeros((2, 34), np.uint8), np.zeros((2, 32), np.float32)
    call = kernels.compiled("unpack_rows")
    for bad, said in (
        ((blocks, "q9_9", out), "type must be one of"),
        ((blocks, "q8_0", np.zeros((2, 33), np.float32)), "out must be rows of whole blocks"),
        ((blocks, "q4_0", out), r"blocks must be of shape \(2, 18\)"),
        ((blocks[:1], "q8_0", out), r"out must be of shape \(1, 32\)"),
        ((blocks[:, ::2], "q8_0", out), "blocks must be C-contiguous"),
    ):
        with pytest.raises(ValueError, match=said):
            call(*bad)
    with pytest.raises(TypeError, match="blocks must be uint8"):
        call(blocks.view(np.int8), "q8_0", out)
    with pytest.raises(TypeError, match="out must be float32"):
        call(blocks, "q8_0", out.astype(np.float64))
