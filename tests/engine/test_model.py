"""The whole model: its gradients by central differences, its bookkeeping, and what it promises about bits."""

import math

import numpy as np
import pytest

from npgpt.engine import kernels, ops
from npgpt.engine.config import (
    ENGINES,
    GPTConfig,
    Rope,
    count_parameters,
    engine_config,
    engine_of,
    flops_per_token,
    parameter_shapes,
)
from npgpt.engine.model import GPT, _head
from npgpt.engine.optim import AdamW
from tests.gradcheck import assert_gradient

TINY = {"n_layer": 2, "n_head": 3, "n_embd": 15, "block_size": 7, "vocab_size": 11}
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "head_size": 4}  # heads do not add up to n_embd
FAMILY = {  # window: shorter than the texts below, longer than 1
    "gpt-2": {},
    "gpt": {"post_norm": True},
    "gelu": {"activation": "gelu"},
    "untied": {"tied": False},
    "gpt-3": {"window": 3},
    "gpt-neo": {"window": 3, "scale_attn_weights": False},
    "llama": LLAMA | {"rope": Rope(), "n_kv_head": 1, "n_inner": 22},
    "llama, untied": LLAMA
    | {"rope": Rope(theta=100.0, type="llama3", factor=2.0, original_context=32), "tied": False},
}
SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 40, "vocab_size": 97}


def random_model(rng, dtype=np.float32, seed=0, **fields):
    """A model whose every parameter is far from its initial value: nothing hides in small numbers."""
    model = GPT(GPTConfig(**fields), seed=seed, dtype=dtype)
    with model.edit() as params:
        for name, w in params.items():
            w[...] = 0.3 * rng.standard_normal(w.shape) + (name.endswith("weight") and w.ndim == 1)
            if name.endswith("c_attn.weight") and (model.config.rope or not model.config.scale_attn_weights):
                # else a softmax of such scores is all or nothing, and rounding decides
                w[:, : model.config.n_head * model.config.D] *= 0.25
    return model


def random_ids(rng, model, B, T):
    return rng.integers(0, model.config.vocab_size, (B, T))


def copy_of(model, dtype):
    """The same weights in another precision."""
    twin = GPT(model.config, seed=model.seed, dtype=dtype)
    with twin.edit():
        twin.flat_params[...] = model.flat_params
    return twin


# ---------------------------------------------------------------------------- gradients


@pytest.fixture(params=FAMILY)
def family(request):
    """Runs the test once for each of the family -> its fields."""
    return FAMILY[request.param]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_central_differences(rng, family, bias, dropout):
    """Twenty coordinates of each named parameter; with dropout at one step, so that the masks stay."""
    model = random_model(rng, np.float64, **TINY, **family, bias=bias, dropout=dropout)
    ids, targets = random_ids(rng, model, 2, 5), random_ids(rng, model, 2, 5)
    targets[0, 2] = -1
    model.step = 3

    def loss():
        model.zero_grads()
        return model.forward(ids, targets)

    loss()
    model.backward()
    grads = {name: g.copy() for name, g in model.grads.items()}
    with model.edit() as params:
        for name, w in params.items():
            where = rng.choice(w.size, min(20, w.size), replace=False)
            if name == "wpe.weight":
                where[:3] = (0, 15, 74)  # positions 0 to 4 are in use
            assert_gradient(name, loss, w, grads[name], where)


@pytest.mark.parametrize("counted", [[], [7, 8, 3], [0, 1, 2, 4, 6, 9]])
def test_the_head_of_tokens_that_count_is_that_of_all(rng, counted):
    x, wte = rng.standard_normal((2, 5, 15)), rng.standard_normal((11, 15))
    targets, found = np.full((2, 5), -1, np.int32), []
    targets.flat[counted] = rng.integers(0, 11, len(counted))
    for head in _head, lambda ops, *args: ops.head_cross_entropy(*args):
        dwte = np.ones_like(wte)
        found.append((*head(ops, x, wte, targets, dwte), dwte))
        assert head(ops, x, wte, targets) == (pytest.approx(found[0][0]), None)
    for few, all_ in zip(*found, strict=True):
        np.testing.assert_allclose(few, all_, atol=1e-14)


def test_gradients_of_unused_rows_are_zero(rng):
    model = random_model(rng, np.float64, **TINY)
    model.forward(random_ids(rng, model, 2, 5), random_ids(rng, model, 2, 5))
    model.backward()
    assert not model.grads["wpe.weight"][5:].any()
    assert model.grads["wpe.weight"][:5].all()
    assert model.grads["wte.weight"].all(), "every row of the tied head has a gradient"


def test_two_backwards_are_one_double_batch(rng):
    model = random_model(rng, np.float64, **TINY)
    ids, targets = random_ids(rng, model, 4, 6), random_ids(rng, model, 4, 6)
    whole = model.forward(ids, targets)
    model.backward()
    expected = model.flat_grads.copy()
    model.flat_grads[...] = 0
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        halves.append(model.forward(ids[half], targets[half]))
        model.backward()
    assert np.mean(halves) == pytest.approx(whole, rel=1e-13)
    np.testing.assert_allclose(model.flat_grads / 2, expected, rtol=1e-9, atol=1e-14)


def test_compiled_gradients_are_those_of_the_reference(impl, rng, family):
    """Losses and every gradient in float32 against float64, at sizes beyond a tile and a block of 96 keys."""
    for fields, B, T in ((TINY, 2, 5), (SMALL, 3, 37), (SMALL | {"block_size": 130, "bias": False}, 1, 130)):
        model = random_model(rng, **fields, **family)
        ids, targets = random_ids(rng, model, B, T), random_ids(rng, model, B, T)
        reference = copy_of(model, np.float64)
        loss, expected = model.forward(ids, targets), reference.forward(ids, targets)
        # a logit is a sum of C products of size up to 10, each rounded: C/2 * EPS at the very worst
        assert loss == pytest.approx(expected, rel=5e-6)
        model.backward()
        reference.backward()
        for name, g in model.grads.items():
            error = np.abs(g - reference.grads[name]).max() / np.abs(reference.grads[name]).max()
            assert error < 2e-5, f"{name} is off by {error:.1e} of its largest element"


# ---------------------------------------------------------------------------- training


def test_initial_loss_is_that_of_a_guess(impl, rng):
    model = GPT(GPTConfig(**SMALL))
    loss = model.loss(random_ids(rng, model, 8, 40), random_ids(rng, model, 8, 40))
    assert loss == pytest.approx(math.log(97), abs=0.05)


def test_overfits_one_batch(impl, rng):
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50))
    ids, targets = random_ids(rng, model, 4, 16), random_ids(rng, model, 4, 16)
    optimizer = AdamW(model, lr=1e-2)
    first = model.loss(ids, targets)
    for _ in range(150):
        model.forward(ids, targets)
        model.backward()
        optimizer.step(max_grad_norm=1.0)
    assert first > 3.5 and model.loss(ids, targets) < 0.02
    np.testing.assert_array_equal(model.logits(ids).argmax(axis=-1), targets)


def train(rng_seed, steps=5, **family):
    rng = np.random.default_rng(rng_seed)
    config = GPTConfig(n_layer=2, n_head=4, n_embd=128, block_size=70, vocab_size=257, dropout=0.1, **family)
    model = GPT(config, seed=5)
    optimizer, losses = AdamW(model, lr=1e-3), []
    for step in range(steps):
        model.step = step
        for _ in range(2):  # gradients accumulate over two batches
            losses.append(model.forward(random_ids(rng, model, 4, 67), random_ids(rng, model, 4, 67)))
            model.backward()
        losses.append(optimizer.step(max_grad_norm=1.0))
    return losses, model.flat_params, *optimizer.moments


def test_same_seed_same_bits_on_any_number_of_threads(isa, threads, family):
    threads(1)
    alone = train(11, **family)
    for n in (2, 3, 1):
        threads(n)
        for got, expected in zip(train(11, **family), alone, strict=True):
            np.testing.assert_array_equal(got, expected, f"{n} threads")
    assert (train(12, **family)[1] != alone[1]).any()


# ---------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_the_names_and_shapes_of_gpt2(bias):
    model = GPT(GPTConfig(**TINY, bias=bias))
    C, V, T = 15, 11, 7
    expected = {"wte.weight": (V, C), "wpe.weight": (T, C)}
    for h in ("h.0", "h.1"):
        for name, n_in, n_out in (
            ("attn.c_attn", C, 3 * C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", C, 4 * C),
            ("mlp.c_proj", 4 * C, C),
        ):
            expected |= {f"{h}.{name}.weight": (n_in, n_out), f"{h}.{name}.bias": (n_out,)}
        for name in ("ln_1", "ln_2"):
            expected |= {f"{h}.{name}.weight": (C,), f"{h}.{name}.bias": (C,)}
    expected |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    if not bias:
        expected = {name: shape for name, shape in expected.items() if not name.endswith("bias")}
    assert {name: w.shape for name, w in model.params.items()} == expected
    assert {name: g.shape for name, g in model.grads.items()} == expected
    assert model.num_params == sum(math.prod(s) for s in expected.values())


def test_llama_has_the_parameters_of_its_parts():
    config = engine_config(
        "llama", **TINY | {"n_embd": 12, "n_head": 3}, n_kv_head=1, tied=False, attention_bias=True
    )
    assert parameter_shapes(config) == {
        "wte.weight": (11, 12),
        "lm_head.weight": (11, 12),
        **{
            f"h.{n}.{name}": shape
            for n in (0, 1)
            for name, shape in {
                "attn.c_attn.weight": (12, 20),  # three heads of queries, one of keys, one of values
                "attn.c_proj.weight": (12, 12),
                "mlp.c_fc.weight": (12, 64),  # twice 8/3 of 12, as multiples of 32
                "mlp.c_proj.weight": (32, 12),
                "ln_1.weight": (12,),
                "attn.c_attn.bias": (20,),
                "attn.c_proj.bias": (12,),
                "ln_2.weight": (12,),
            }.items()
        },
        "ln_f.weight": (12,),
    }
    smollm = engine_config(
        "llama",
        n_layer=30,
        n_head=9,
        n_embd=576,
        n_kv_head=3,
        n_inner=1536,
        vocab_size=49152,
        block_size=8192,
    )
    assert count_parameters(smollm) == 134_515_008


def test_the_default_config_is_gpt2_small():
    assert count_parameters(GPTConfig()) == 124_439_808


def test_the_family_differs_from_gpt2_in_what_it_leaves_out():
    gpt2 = parameter_shapes(GPTConfig(**TINY)).keys()
    gpt, gpt3 = (parameter_shapes(engine_config(name, **TINY)).keys() for name in ("gpt", "gpt-3"))
    assert gpt2 - gpt == {"ln_f.weight", "ln_f.bias"} and gpt < gpt2
    assert gpt2 - gpt3 == {"h.0.attn.c_attn.bias", "h.1.attn.c_attn.bias"} and gpt3 < gpt2
    assert engine_config("gpt-2", **TINY) == GPTConfig(**TINY)
    assert engine_config("gpt-3", **TINY).window == 256
    even = TINY | {"n_embd": 12}  # rotary positions turn pairs
    assert all(engine_of(engine_config(name, **even)) == name for name in ENGINES)
    with pytest.raises(ValueError, match="engine must be one of gpt, gpt-2, gpt-3, llama, got 'gpt-5'"):
        engine_config("gpt-5")


@pytest.mark.parametrize("D, scale", [(64, 1 / 8), (128, 1 / 16), (32, 1 / 4), (5, 1 / 2), (1, 1)])
def test_a_scale_beside_a_window_is_a_power_of_two(D, scale):
    config = GPTConfig(**TINY | {"n_embd": D, "n_head": 1}, window=2)
    assert config.scale == scale and scale / math.sqrt(2) <= 1 / math.sqrt(D) <= scale * math.sqrt(2)
    assert GPTConfig(**TINY | {"n_embd": D, "n_head": 1}).scale == 1 / math.sqrt(D)


@pytest.mark.parametrize("n_layer", [1, 2, 5])
def test_parameters_are_counted_without_a_list_of_them(family, n_layer):
    config = GPTConfig(**TINY | family | {"n_layer": n_layer})
    assert count_parameters(config) == sum(math.prod(s) for s in parameter_shapes(config).values())


def test_parameters_are_views_of_one_flat_array_matrices_first():
    model = GPT(GPTConfig(**TINY))
    for flat, views in ((model.flat_params, model.params), (model.flat_grads, model.grads)):
        assert flat.shape == (model.num_params,) and flat.flags.c_contiguous
        with model.edit():
            flat[...] = np.arange(flat.size)
        # laid end to end in the order of their names, they are the flat array
        np.testing.assert_array_equal(np.concatenate([w.reshape(-1) for w in views.values()]), flat)
        for w in views.values():
            assert np.shares_memory(w, flat)
            assert (w.ndim == 2) == (w.flat[0] < model.n_decay), "2-D weights and nothing else decay"


def test_initialisation_is_that_of_gpt2():
    config = GPTConfig(n_layer=8, n_head=4, n_embd=64, block_size=64, vocab_size=257)
    model = GPT(config, seed=3)
    for name, w in model.params.items():
        if w.ndim == 2:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02  # sqrt(2 * 8) = 4
            # mean and deviation of so many draws are off by 1 / sqrt(n) of themselves; five times that
            assert abs(w.mean()) < 5 * std / math.sqrt(w.size)
            assert w.std() == pytest.approx(std, rel=5 / math.sqrt(2 * w.size))
        else:
            assert (w == (0 if name.endswith("bias") else 1)).all()
    np.testing.assert_array_equal(GPT(config, seed=3).flat_params, model.flat_params)
    assert (GPT(config, seed=4).params["wte.weight"] != model.params["wte.weight"]).all()


# ---------------------------------------------------------------------------- forward


def test_forward_loss_and_logits_agree(impl, rng):
    model = random_model(rng, **SMALL)
    ids, targets = random_ids(rng, model, 3, 21), random_ids(rng, model, 3, 21)
    targets[0, 4:] = -1
    targets[1, 0] = -100
    logits = model.logits(ids)
    assert logits.shape == (3, 21, 97) and logits.dtype == np.float32
    np.testing.assert_array_equal(model.forward(ids), logits)
    z = logits.astype(np.float64)
    counted = targets >= 0
    log_softmax = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_softmax, np.maximum(targets, 0)[..., None], -1)[..., 0][counted].mean()
    assert isinstance(model.loss(ids, targets), float)
    assert model.loss(ids, targets) == pytest.approx(expected, rel=1e-5)
    assert model.forward(ids, targets) == model.loss(ids, targets), "no dropout: the same computation"


def test_no_token_counts(impl, rng):
    model = random_model(rng, **TINY)
    ids = random_ids(rng, model, 2, 5)
    assert model.forward(ids, np.full((2, 5), -1)) == 0.0
    model.backward()
    assert not model.flat_grads.any()


def test_a_window_ends_where_it_says(impl, rng):
    """Layer 0 sees everything, layer 1 its window: where the former adds nothing, nothing older matters."""
    model = random_model(rng, **SMALL, window=5)
    with model.edit() as params:
        for name in ("h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight"):
            params[name][...] = 0
    ids = random_ids(rng, model, 1, 40)
    other = ids.copy()
    other[0, 10] = (other[0, 10] + 1) % 97
    changed = (model.logits(other) != model.logits(ids)).any(axis=-1)[0]
    assert np.flatnonzero(changed).tolist() == [10, 11, 12, 13, 14]


def test_a_window_over_the_whole_context_is_no_window(impl, rng):
    model = random_model(rng, **SMALL | {"n_embd": 64, "n_head": 4}, window=40)
    wide = GPT(GPTConfig(**SMALL | {"n_embd": 64, "n_head": 4}))
    with wide.edit() as params:
        for name, w in params.items():
            w[...] = model.params.get(name, 0)
    ids = random_ids(rng, model, 2, 40)
    np.testing.assert_array_equal(model.logits(ids), wide.logits(ids))


def test_a_token_changes_nothing_before_it(impl, rng, family):
    model = random_model(rng, **SMALL, **family)
    ids = random_ids(rng, model, 1, 40)
    logits = model.logits(ids)
    for t in (1, 17, 39):
        other = ids.copy()
        other[0, t] = (other[0, t] + 1) % 97
        changed = (model.logits(other) != logits).any(axis=-1)[0]
        assert not changed[:t].any() and changed[t:].all()


def test_ids_of_any_integer_dtype_and_layout(impl, rng):
    model = random_model(rng, **TINY)
    ids = random_ids(rng, model, 3, 5)
    expected = model.logits(ids)
    for other in (ids.astype(np.uint8), ids.astype(np.int32), np.asfortranarray(ids), ids.tolist()):
        np.testing.assert_array_equal(model.logits(other), expected)


def test_dropout_acts_in_forward_alone_and_depends_on_step_and_seed(impl, rng):
    model = random_model(rng, **SMALL, dropout=0.2)
    ids, targets = random_ids(rng, model, 2, 30), random_ids(rng, model, 2, 30)
    without = model.loss(ids, targets)
    np.testing.assert_array_equal(model.logits(ids), model.logits(ids))
    losses = []
    for step in (0, 1, 2):
        model.step = step
        losses.append(model.forward(ids, targets))
        model.zero_grads()
        assert model.forward(ids, targets) == losses[-1], "the same step has the same masks"
        model.zero_grads()
        assert model.loss(ids, targets) == without, "dropout in loss()"
    model.seed += 1
    losses.append(model.forward(ids, targets))
    assert len({without, *losses}) == 5


def test_dropout_masks_of_a_batch_in_two_parts(rng):
    """first_sample goes on where the last part ended: the gradients add up to those of the whole batch."""
    model = random_model(rng, np.float64, **TINY, dropout=0.5)
    ids, targets = random_ids(rng, model, 4, 5), random_ids(rng, model, 4, 5)
    whole = model.forward(ids, targets)
    model.backward()
    expected = model.flat_grads.copy()
    model.zero_grads()
    losses = []
    for model.first_sample in (0, 2):
        part = slice(model.first_sample, model.first_sample + 2)
        losses.append(model.forward(ids[part], targets[part]))
        model.backward()
    np.testing.assert_allclose(np.mean(losses), whole, rtol=1e-12)
    np.testing.assert_allclose(model.flat_grads / 2, expected, rtol=1e-9, atol=1e-12)


def test_dropout_masks_differ_between_places(rng, monkeypatch):
    """The embedding and both branches of each layer: no two places ask for the same mask."""
    keys, reference = [], kernels.ops_for(np.float64)
    forward = reference.dropout_forward

    def remember(x, p, key, first_sample):
        keys.append(key)
        return forward(x, p, key, first_sample)

    monkeypatch.setattr(reference, "dropout_forward", remember)
    model = random_model(rng, np.float64, **TINY, dropout=0.5)
    model.forward(random_ids(rng, model, 1, 5), random_ids(rng, model, 1, 5))
    assert len(keys) == len(set(keys)) == 1 + 2 * TINY["n_layer"]


def test_backward_needs_a_forward_of_its_own(rng):
    model = random_model(rng, **TINY)
    ids = random_ids(rng, model, 1, 5)
    with pytest.raises(RuntimeError, match=r"^backward: call forward\(ids, targets\) first"):
        model.backward()
    model.forward(ids, ids)
    model.backward()
    with pytest.raises(RuntimeError, match=r"^backward: "):
        model.backward()
    model.loss(ids, ids)
    with pytest.raises(RuntimeError, match=r"^backward: "):
        model.backward()
    model.forward(ids, ids)
    with model.edit():  # the caches belong to the old weights
        pass
    with pytest.raises(RuntimeError, match=r"^backward: "):
        model.backward()


@pytest.mark.parametrize("give_up", ["zero_grads", "edit"])
def test_a_step_is_finished_or_given_up(impl, rng, give_up):
    """The head's gradient is there after forward: a second forward in its place would count it twice."""
    model = random_model(rng, **TINY)
    ids, targets = random_ids(rng, model, 2, 5), random_ids(rng, model, 2, 5)
    model.forward(ids, targets)
    model.backward()
    expected = model.flat_grads.copy()
    model.zero_grads()
    loss = model.forward(ids, targets)
    with pytest.raises(RuntimeError, match=r"^forward: .*backward\(\).*loss\(ids, targets\).*zero_grads\(\)"):
        model.forward(ids, targets)
    assert model.loss(ids, targets) == loss, "loss() is free to be asked in between"
    if give_up == "edit":
        with model.edit():
            pass
    else:
        model.zero_grads()
    assert not model.flat_grads.any()
    assert model.forward(ids, targets) == loss
    model.backward()
    np.testing.assert_array_equal(model.flat_grads, expected)


# ---------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("bias", [True, False])
def test_decode_gives_the_logits_of_the_full_pass(impl, rng, family, bias):
    model = random_model(rng, **SMALL, **family, bias=bias)
    ids = random_ids(rng, model, 2, 40)
    full = model.logits(ids)
    atol = 1e-5 * np.abs(full).max()
    for pieces in ([1] * 40, [40], [7, 1, 1, 12, 2, 17], [39, 1]):
        cache = model.new_cache(batch_size=2)
        for t in pieces:
            at = cache.length
            logits = model.decode(ids[:, at : at + t], cache)
            assert logits.shape == (2, 97) and cache.length == at + t
            np.testing.assert_allclose(logits, full[:, cache.length - 1], rtol=0, atol=atol)


@pytest.mark.parametrize("pieces", [[1] * 19, [9] + [1] * 10, [4, 8, 7]])
def test_padding_on_the_left_changes_nothing(impl, rng, family, pieces):
    """Rows of 19 ids, of which 0, 6, 18 and 3 are padding: the last logits are those of the text alone."""
    model = random_model(rng, **SMALL, **family)
    ids, starts = random_ids(rng, model, 4, 19), np.array([0, 6, 18, 3])
    cache = model.new_cache(4, starts=starts)
    for t in pieces:
        logits = model.decode(ids[:, cache.length : cache.length + t], cache)
    for row, start in enumerate(starts):
        alone = model.logits(ids[row : row + 1, start:])[0, -1]
        np.testing.assert_allclose(logits[row], alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_rows_of_a_cache_change_places(impl, rng, family):
    model = random_model(rng, **SMALL, **family)
    ids, starts = random_ids(rng, model, 3, 9), np.array([0, 4, 2])
    for rows in ([2, 2, 0], [1, 0, 0, 1, 2], [2], [0, 1, 2]):
        cache, expected = model.new_cache(3, starts=starts), model.new_cache(len(rows), starts=starts[rows])
        model.decode(ids, cache)
        model.decode(ids[rows], expected)
        cache.reorder(rows)
        new = random_ids(rng, model, len(rows), 1)
        np.testing.assert_allclose(
            model.decode(new, cache), model.decode(new, expected), rtol=1e-5, atol=1e-5
        )


def test_decode_is_exact_in_float64(rng, family):
    model = random_model(rng, np.float64, **TINY, **family)
    ids = random_ids(rng, model, 3, 7)
    full, cache = model.logits(ids), model.new_cache(3)
    for t in range(7):
        np.testing.assert_allclose(model.decode(ids[:, t : t + 1], cache), full[:, t], rtol=1e-11, atol=1e-12)


def test_decode_refuses_what_does_not_fit(rng):
    model = random_model(rng, **TINY)
    cache = model.new_cache(batch_size=2, length=4)
    assert (cache.length, cache.capacity) == (0, 4)
    ids = random_ids(rng, model, 2, 5)
    with pytest.raises(ValueError, match=r"^decode: ids must fit the cache's 4 free positions, got 5$"):
        model.decode(ids, cache)
    model.decode(ids[:, :3], cache)
    expected = model.decode(ids[:, 3:4], cache)
    with pytest.raises(ValueError, match=r"^decode: ids must fit the cache's 0 free positions, got 1$"):
        model.decode(ids[:, 4:], cache)
    assert cache.length == 4, "a refusal leaves the cache as it was"
    with pytest.raises(ValueError, match=r"^decode: ids must have 2 rows, got 1$"):
        model.decode(ids[:1, :1], model.new_cache(2))
    fresh = model.new_cache(batch_size=2)
    assert fresh.capacity == TINY["block_size"]
    np.testing.assert_allclose(model.decode(ids[:, :4], fresh), expected, rtol=1e-4, atol=1e-5)
    for length in (0, -1, 8):
        with pytest.raises(ValueError, match=r"^new_cache: length must be in \[1, 7\], got "):
            model.new_cache(length=length)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", ["forward", "loss", "logits", "decode"])
@pytest.mark.parametrize(
    "ids, error, what",
    [
        (np.zeros((1, 8), int), ValueError, "ids must "),  # longer than block_size
        (np.zeros((1, 0), int), ValueError, "ids must "),
        (np.zeros((0, 3), int), ValueError, "ids must "),
        (np.zeros(3, int), ValueError, r"ids must be of shape \(B, T\), got \(3,\)"),
        (np.zeros((1, 2, 3), int), ValueError, r"ids must be of shape \(B, T\), got \(1, 2, 3\)"),
        (np.array([[0, 11]]), ValueError, r"ids must be in \[0, 11\), got 11"),
        (np.array([[0, -1]]), ValueError, r"ids must be in \[0, 11\), got -1"),
        (np.array([[2**32]]), ValueError, r"ids must be in \[0, 11\), got 4294967296"),
        (np.zeros((1, 3)), TypeError, "ids must be integers, got float64"),
        (np.zeros((1, 3), bool), TypeError, "ids must be integers, got bool"),
        ([["a"]], TypeError, "ids must be integers, got <U1"),
    ],
)
def test_bad_ids(rng, method, ids, error, what):
    model = random_model(rng, **TINY)
    extra = {"forward": (np.zeros((1, 3), int),), "loss": (np.zeros((1, 3), int),), "logits": ()}
    arguments = (model.new_cache(),) if method == "decode" else extra[method]
    with pytest.raises(error, match=f"^{method}: {what}"):
        getattr(model, method)(ids, *arguments)


@pytest.mark.parametrize("method", ["forward", "loss"])
@pytest.mark.parametrize(
    "targets, error, what",
    [
        (np.zeros((2, 4), int), ValueError, r"targets must have shape \(2, 3\) like ids, got \(2, 4\)"),
        (np.zeros((3, 2), int), ValueError, r"targets must have shape \(2, 3\) like ids, got \(3, 2\)"),
        (np.full((2, 3), 11), ValueError, "targets must be below 11, got 11"),
        (np.zeros((2, 3)), TypeError, "targets must be integers, got float64"),
    ],
)
def test_bad_targets(rng, method, targets, error, what):
    model = random_model(rng, **TINY)
    with pytest.raises(error, match=f"^{method}: {what}"):
        getattr(model, method)(np.zeros((2, 3), int), targets)


def test_targets_far_below_zero_do_not_count(impl, rng):
    """Not even those that would wrap to a token in 32 bits."""
    model = random_model(rng, **TINY)
    ids, targets = random_ids(rng, model, 1, 3), np.array([[4, -1, -1]])
    expected = model.loss(ids, targets)
    targets[0, 1:] = (-(2**32) + 5, np.iinfo(np.int64).min)
    assert model.loss(ids, targets) == expected


@pytest.mark.parametrize(
    "fields, error, what",
    [
        ({"n_embd": 10, "n_head": 3}, ValueError, r"n_embd must be a multiple of n_head \(3\), got 10"),
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1, got 0"),
        ({"n_head": -1}, ValueError, "n_head must be at least 1, got -1"),
        ({"n_embd": 0}, ValueError, "n_embd must be at least 1, got 0"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"vocab_size": -5}, ValueError, "vocab_size must be at least 1, got -5"),
        ({"n_embd": 12.0}, TypeError, "n_embd must be an integer, got 12.0"),
        ({"n_layer": True}, TypeError, "n_layer must be an integer, got True"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\), got -0.1"),
        ({"dropout": math.nan}, ValueError, r"dropout must be in \[0, 1\), got nan"),
        ({"layer_norm_epsilon": 0.0}, ValueError, "layer_norm_epsilon must be positive and finite, got 0.0"),
        ({"layer_norm_epsilon": math.inf}, ValueError, "layer_norm_epsilon .* and finite, got inf"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 2.5}, TypeError, "window must be an integer, got 2.5"),
        ({"window": 4, "post_norm": True}, ValueError, "post_norm must be alone, .*"),
        ({"scale_attn_weights": False, "post_norm": True}, ValueError, "post_norm must be alone, .*"),
        ({"activation": "gelu", "post_norm": True}, ValueError, "post_norm must be alone, .*"),
        ({"activation": "relu"}, ValueError, "activation must be gelu_new or gelu or swiglu, got 'relu'"),
        ({"activation": "swiglu"}, ValueError, "norm layernorm must be alone, got activation beside it"),
        (
            {"n_kv_head": 3, "tied": False},
            ValueError,
            "norm layernorm must be alone, got n_kv_head beside it",
        ),
        (LLAMA, ValueError, "norm rmsnorm must have rope and activation swiglu beside it"),
        (
            LLAMA | {"rope": Rope(), "window": 3},
            ValueError,
            "norm rmsnorm must be alone, got window beside it",
        ),
        (LLAMA | {"rope": Rope(), "n_kv_head": 5}, ValueError, r"n_kv_head must divide n_head \(12\), got 5"),
        (
            LLAMA | {"rope": Rope(), "head_size": 3},
            ValueError,
            "rope must turn pairs, got heads of 3 numbers",
        ),
        ({"n_kv_head": 0}, ValueError, "n_kv_head must be at least 1, got 0"),
        ({"norm": "batchnorm"}, ValueError, "norm must be layernorm or rmsnorm, got 'batchnorm'"),
    ],
)
def test_bad_config(fields, error, what):
    with pytest.raises(error, match=f"^GPTConfig: {what}$"):
        GPTConfig(**fields)


@pytest.mark.parametrize(
    "fields, what",
    [
        ({"type": "yarn"}, "type must be one of default, linear, llama3, got 'yarn'"),
        ({"theta": 0.0}, "theta must be a positive number, got 0.0"),
        ({"factor": math.inf}, "factor must be a positive number, got inf"),
        ({"factor": "2"}, "factor must be a positive number, got '2'"),
        ({"low_freq_factor": 4.0}, r"high_freq_factor must be above low_freq_factor \(4.0\), got 4.0"),
    ],
)
def test_bad_rope(fields, what):
    with pytest.raises(ValueError, match=f"^Rope: {what}$"):
        Rope(**fields)


def test_rope_angles():
    """llama3: the slow pairs turn `factor` times slower, the fast ones do not, others are between."""
    plain, linear = Rope(theta=100.0).angles(5, 8, np.float64), Rope(theta=100.0, type="linear", factor=4.0)
    np.testing.assert_allclose(plain[2], [2, 2 / 100**0.25, 2 / 10, 2 / 100**0.75])
    np.testing.assert_allclose(linear.angles(5, 8, np.float64), plain / 4)
    scaled = Rope(theta=1e6, type="llama3", factor=8.0, original_context=100).angles(2, 16, np.float64)[1]
    ratio = scaled / Rope(theta=1e6).angles(2, 16, np.float64)[1]
    turns = 100 * 1e6 ** (-np.arange(8) / 8) / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 4], 1)
    np.testing.assert_allclose(ratio[turns < 1], 1 / 8)
    between = ratio[(turns >= 1) & (turns <= 4)]
    assert len(between) and (between > 1 / 8).all() and (between < 1).all()


def test_bad_dtype():
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        GPT(GPTConfig(**TINY), dtype=np.float16)


# ---------------------------------------------------------------------------- cost


def test_flops_per_token():
    """Counted by hand for one layer of 2 channels and 3 ids at context 5."""
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, block_size=8, vocab_size=3))
    weights = 12 * 2 * 2 + 3 * 2  # a layer's matrices are 12 C^2; the head is V C
    matmuls = 3 * 2 * weights  # forward, dx and dw, two flop per weight each
    keys = (1 + 2 + 3 + 4 + 5) / 5  # seen by a query on average
    attention = (2 + 5) * 2 * 2 * keys  # two products forward, five backward, of 2 C flop per key
    assert flops_per_token(model.config, 5) == matmuls + attention
    model = GPT(GPTConfig(n_layer=2, n_head=1, n_embd=2, block_size=8, vocab_size=3, window=2))
    keys += (1 + 2 + 2 + 2 + 2) / 5  # of the second layer
    assert flops_per_token(model.config, 5) == matmuls + 3 * 2 * 12 * 2 * 2 + (2 + 5) * 2 * 2 * keys
