"""What the compiled ops refuse: anything but a C-contiguous array of the right dtype and shape, each by name,
in the words `{function}: {argument} must be {what}, got {value}`: TypeError for a dtype, else ValueError.
The rows of matmul's a and out may lie apart, each of them contiguous. Nothing is ever copied or converted on
the way in: a copy would cost time, or lose what was to be written.
"""

import numpy as np
import pytest

from npgpt.engine import kernels
from tests.engine import calls

ARRAYS = [
    (op, name)
    for op in calls.OPS
    for name, value in calls.arguments(op, np.random.default_rng(0), calls.SMALL).items()
    if isinstance(value, np.ndarray)
]
# Any shape will do where the array is the only one, and any number of rows or columns where nothing else has
# as many.
FREE_SHAPES = {
    "gelu_forward",
    "erf_gelu_forward",
    "swiglu_forward",
    "softmax_forward",
    "dropout_forward",
    "dropout_backward",
    "global_norm",
}
FREE_ROWS = {
    ("embedding_forward", "wte"),
    ("embedding_forward", "wpe"),
    ("embedding_backward", "dwte"),
    ("embedding_backward", "dwpe"),
    ("layernorm_forward", "x"),
    ("rmsnorm_forward", "x"),
    ("linear_gelu_forward", "x"),
    ("muon_step", "matrices"),
}
FREE_COLUMNS = {("cross_entropy", "logits")}
ROWS_APART = {("matmul", "a"), ("matmul", "out")}


def call_with(rng, op, name, change):
    """Calls op with one argument changed; if that is refused, nothing may have been written."""
    arguments = calls.arguments(op, rng, calls.SMALL)
    arguments[name] = change(arguments[name])
    before = {k: np.copy(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    try:
        getattr(kernels.ops_for(np.float32), op)(*arguments.values())
    except (TypeError, ValueError):
        for k, v in before.items():
            np.testing.assert_array_equal(arguments[k], v, f"{op} refused {name}, yet wrote {k}")
        raise


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def shifted_by_a_byte(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    return room[1:].view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("op, name", ARRAYS)
def test_wrong_dtype(isa, rng, op, name):
    wanted = str(calls.arguments(op, rng, calls.SMALL)[name].dtype)
    others = {"int32": ("int64", "float32", ">i4"), "int64": ("int32", "float64", ">i8")}
    for dtype in others.get(wanted, ("float64", "float16", "int32", ">f4")):
        got = np.dtype(dtype)
        with pytest.raises(TypeError, match=f"^{op}: {name} must be {wanted}, got {got}$"):
            call_with(rng, op, name, lambda a, got=got: a.astype(got))


@pytest.mark.parametrize("op, name", ARRAYS)
@pytest.mark.parametrize("change", [strided, np.asfortranarray, shifted_by_a_byte])
def test_strided_transposed_and_misaligned(isa, rng, op, name, change):
    original = calls.arguments(op, rng, calls.SMALL)[name]
    changed = change(original)
    if changed.flags.c_contiguous and changed.flags.aligned:
        assert original.ndim == 1 and change is np.asfortranarray  # a vector is both
        return
    contiguous = "of C-contiguous rows" if (op, name) in ROWS_APART else "C-contiguous"
    what = "aligned" if change is shifted_by_a_byte else contiguous
    with pytest.raises(ValueError, match=f"^{op}: {name} must be {what}.*, got "):
        call_with(rng, op, name, change)


@pytest.mark.parametrize("op, name", ARRAYS)
def test_wrong_shape(isa, rng, op, name):
    """Which of two arrays that disagree is wrong, nobody can tell; the message names one of them."""
    names = "|".join([*calls.arguments(op, rng, calls.SMALL), "n_head"])
    refused = pytest.raises(ValueError, match=f"^{op}: ({names}) must be .*, got ")
    if op not in FREE_SHAPES:
        if (op, name) not in FREE_COLUMNS:
            with refused:
                call_with(rng, op, name, lambda a: np.concatenate([a, a[..., :1]], axis=-1))
        if (op, name) not in FREE_ROWS:
            with refused:
                call_with(rng, op, name, lambda a: np.concatenate([a, a[:1]]))
        with refused:  # one dimension too few, or half of the elements
            call_with(rng, op, name, lambda a: a.reshape(-1)[: a.size // 2].copy())
    if "gelu_" not in op or "linear" in op:
        with refused:
            call_with(rng, op, name, lambda a: a.reshape(-1)[:1].reshape(()))


def test_swiglu_needs_two_halves(isa):
    with pytest.raises(ValueError, match=r"^swiglu_forward: h must be of shape \(\.\.\., 2F\), got \(2, 3\)"):
        kernels.ops_for(np.float32).swiglu_forward(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("op, name", [a for a in ARRAYS if calls.may_write(*a)])
def test_read_only(isa, rng, op, name):
    def freeze(a):
        a.flags.writeable = False
        return a

    with pytest.raises(ValueError, match=f"^{op}: {name} must be writeable, got "):
        call_with(rng, op, name, freeze)


@pytest.mark.parametrize("op, name", [a for a in ARRAYS if not calls.may_write(*a)])
def test_read_only_inputs_are_fine(isa, rng, op, name):
    """Weights may be a read-only map of a file."""
    arguments = calls.arguments(op, rng, calls.SMALL)
    arguments[name].flags.writeable = False
    getattr(kernels.ops_for(np.float32), op)(*arguments.values())


@pytest.mark.parametrize(
    "op, name, value, what",
    [
        ("embedding_forward", "ids", 7, r"in \[0, 7\)"),
        ("embedding_forward", "ids", -1, r"in \[0, 7\)"),
        ("embedding_forward", "positions", 3, r"in \[0, 3\)"),
        ("embedding_backward", "ids", 7, r"in \[0, 7\)"),
        ("embedding_backward", "positions", -1, r"in \[0, 3\)"),
        ("head_cross_entropy", "targets", 7, ""),
        ("attention_forward", "first_key", 3, ""),
        ("attention_forward", "first_key", -1, ""),
        ("attention_backward", "first_key", 2, ""),
    ],
)
def test_integers_out_of_range(isa, rng, op, name, value, what):
    def change(a):
        a[1, 0] = value
        return a

    with pytest.raises(ValueError, match=f"^{op}: {name} must be .*{what}.*, got {value}$"):
        call_with(rng, op, name, change)


@pytest.mark.parametrize(
    "op, name, value",
    [
        ("attention_forward", "n_head", 0),
        ("attention_forward", "n_head", 5),
        ("attention_forward", "n_head", -1),
        ("attention_backward", "n_head", 5),
        ("attention_forward", "n_kv_head", 0),
        ("attention_backward", "n_kv_head", 3),
        ("rope_forward", "n_rotated", 5),
        ("rope_backward", "n_rotated", -1),
        ("attention_forward", "scale", float("nan")),
        ("dropout_forward", "p", 1.0),
        ("dropout_forward", "p", -0.1),
        ("dropout_backward", "p", float("nan")),
        ("dropout_forward", "key", (1, 2, 3)),
        ("adamw_step", "n_decay", -1),
        ("adamw_step", "n_decay", 36),
        ("adamw_step", "step", 0),
    ],
)
def test_scalars_out_of_range(isa, rng, op, name, value):
    with pytest.raises(ValueError, match=f"^{op}: {name} must be .*, got "):
        call_with(rng, op, name, lambda _: value)


def test_unknown_kernels_and_dtypes():
    refused = pytest.raises(ValueError, match=r"must be one of auto, numpy.*, got 'nonsense'")
    with refused, kernels.use("nonsense"):
        pass
    with pytest.raises(TypeError, match=r"^ops_for: dtype must be float32 or float64, got float16$"):
        kernels.ops_for(np.float16)


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_number_of_threads(n, error):
    with pytest.raises(error, match=r"^set_num_threads: n must be .*, got "):
        kernels.set_num_threads(n)


@pytest.mark.parametrize(
    "row", [[2**63 - 1, 1, 1, 1], [0, 2**62, 1, 4], [1, 1, 8, 8], [0, 2, 4, 8], [0, 1, 2, 1], [-1, 1, 1, 1]]
)
def test_matrices_of_muon_lie_within_the_weights(isa, row):
    p, g, m = (np.zeros(8, np.float32) for _ in range(3))
    table = np.array([row], np.int64)
    with pytest.raises(ValueError, match="within 8 floats"):
        kernels.ops_for(np.float32).muon_step(
            p, g, m, table, lr=0.1, momentum=0.9, weight_decay=0.0, grad_scale=1.0
        )
