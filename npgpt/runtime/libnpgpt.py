"""Generation by libnpgpt, the compiled runtime, through the C ABI of csrc/runtime/npgpt.h.

This is the code that C programs use, in the library that has the engine's kernels: training and generation
share one pool of threads. The model's weights are used in place. Where NumPy runs instead (no kernels,
NPGPT_KERNELS=numpy, a float64 model) sampling.py generates, with the same draws from the same logits.
"""

import functools
import operator
import os
import re
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine import kernels
from npgpt.engine.finite import LOGITS, check_measured
from npgpt.engine.model import GPT, NOTHING
from npgpt.engine.types import Floats, Integers, PathLike
from npgpt.runtime import sampling as numpy_path
from npgpt.runtime.guide import Guide, Mask
from npgpt.runtime.sampling import Sampling

# engine's model -> the version of its weights, and the libnpgpt model of that version
_MODELS: "weakref.WeakKeyDictionary[GPT, tuple[int, Model]]" = weakref.WeakKeyDictionary()
HEADER = Path(__file__).parents[1] / "include" / "npgpt.h"
NO_MEMORY, NOT_FINITE = 5, 7  # statuses of npgpt.h; all others become a ValueError


class Talk:
    """What a conversation keeps between replies: the session, and the ids that its cache holds.

    A reply is that to the whole text, but for rounding: ids of a prompt are read together, drawn ones singly.
    """

    session: "Session | None" = None

    def __init__(self) -> None:
        self.ids: list[int] = []

    def begin(self, model: "Model", prompt: list[int], speculate: bool) -> tuple["Session", list[int]]:
        """Return a session of `model` and the rest of `prompt`, which is not in its cache yet."""
        session = self.session
        whole = len(prompt) <= model.block_size  # of a longer one a session of its own reads the end
        if not (session and session.model is model and len(session) == len(self.ids) and whole):
            session, self.ids = Session(model, speculate=speculate), []
        both = zip(self.ids, prompt[:-1], strict=False)  # the last is read again: what follows it is drawn
        same = next((n for n, (a, b) in enumerate(both) if a != b), min(len(self.ids), len(prompt) - 1))
        session.rewind(same)
        self.session, self.ids = session, self.ids[:same]
        return session, prompt[same:]


def generate_ids(
    model: "GPT | Model",
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] = (),
    ignore_eos: bool = False,
    seed: int | None = None,
    speculate: bool = False,
    talk: Talk | None = None,
    guide: Guide | None = None,
    bias: Floats | None = None,
) -> Iterator[int]:
    """Yield the ids that follow `prompt`, at most max_new_tokens, up to one of `ends` (not yielded).

    ignore_eos bans the first of them, and the others end nothing. The compiled runtime computes them where
    the kernels are in use, else sampling.generate_ids.
    speculate=True is that of Session. With a `talk` the beginning that the prompt shares with the text before
    is not read again. guide and bias are those of sampling.generate_ids.
    """
    if not (isinstance(model, Model) or is_compiled_for(model)):
        rest = ends, ignore_eos, seed, guide, bias
        yield from numpy_path.generate_ids(model, prompt, max_new_tokens, sampling, *rest)
        return
    how = sampling_struct(sampling, ends[0] if ends and ignore_eos else None, seed)
    talk = talk or Talk()
    compiled = model if isinstance(model, Model) else Model.of(model)
    session, unread = talk.begin(compiled, prompt, speculate)
    session.bias(bias)
    session.allow(None)
    for _ in range(max_new_tokens):
        session.feed(unread)
        talk.ids.extend(unread)
        if guide:
            session.allow(guide.allowed())
        token = session.sample(how)
        if token in ends and not ignore_eos:
            return
        yield token
        if guide and guide.ends_with(token):
            return
        unread = [token]


def is_compiled_for(model: "GPT | Model") -> bool:
    """Return whether libnpgpt generates for this model now."""
    if kernels.library() is None or isinstance(model, Model):
        return kernels.library() is not None
    return model.dtype == np.float32 and model.is_float


def sampling_struct(sampling: Sampling, banned: int | None = None, seed: int | None = None) -> Any:
    """Return the npgpt_sampling struct of a Sampling; without a seed it gets a random one."""
    ffi, _ = library()
    return ffi.new(
        "npgpt_sampling *",
        {
            "temperature": sampling.temperature,
            "top_k": min(int(sampling.top_k or 0), 2**31 - 1),
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": (secrets.randbits(64) if seed is None else operator.index(seed)) % 2**64,
            "banned": -1 if banned is None else banned,
        },
    )


@functools.cache
def library() -> tuple[Any, Any]:
    """Return (ffi, lib), which hold the functions of npgpt.h."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text(encoding="utf-8")))
    return ffi, ffi.dlopen(kernels.library())


def declarations(header: str) -> str:
    """Return a C header as cffi reads it: without preprocessor lines and linkage."""
    header = re.sub(r"#ifdef __cplusplus\n.*?#endif\n", "", header, flags=re.S)
    return re.sub(r"^#.*$", "", header, flags=re.M).replace("NPGPT_API", "")


def _check(status: int, error: Any) -> None:
    if status:
        message = library()[0].string(error.message).decode("utf-8", "replace")
        if status == NOT_FINITE:
            message = f"generate: {LOGITS}"
        raise MemoryError(message) if status == NO_MEMORY else ValueError(message)


class Model:
    """An npgpt_model, over the weights of an engine model or a GGUF file."""

    def __init__(self, make: Callable[[Any, Any, Any, Any], int], keeps: object = None) -> None:
        ffi, lib = library()
        error, made = ffi.new("npgpt_error *"), ffi.new("npgpt_model **")
        _check(make(ffi, lib, made, error), error)
        self.handle, self._keeps = ffi.gc(made[0], lib.npgpt_free), keeps
        config = ffi.new("npgpt_config *")
        lib.npgpt_get_config(self.handle, config)
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        self.n_embd, self.packed = config.n_embd, False
        self.cached = config.n_layer, 2, config.n_kv_head, config.head_size  # L, keys and values, heads, D

    @classmethod
    def open(cls, path: PathLike, keeps: object = None) -> "Model":
        """Return the model of a GGUF file, which is mapped; ValueError for a malformed file.

        `keeps` is an object, such as arrays read from the file, that lives as long as the model.
        """
        return cls(lambda ffi, lib, made, error: lib.npgpt_open(os.fsencode(path), made, error), keeps)

    @classmethod
    def of(cls, model: GPT) -> "Model":
        """Return the libnpgpt model of a float32 engine model; its weights count as they are at each token.

        Unless they may change, its matrices are copied into the order in which they are read fastest. A
        model loaded from a GGUF file is that file, quantised as it is.
        """
        version, made = _MODELS.get(model, (-1, None))
        if made is None or version != model.version or (model.may_change and made.packed):
            made = cls(functools.partial(_from_tensors, model), model.flat_params)
            if not model.may_change:
                made.pack()
            _MODELS[model] = model.version, made
        made.use_kernels(kernels.name())
        return made

    def attach_to(self, model: GPT) -> None:
        """Generate for the engine's model, which has the same weights, until its weights change."""
        _MODELS[model] = model.version, self

    def pack(self) -> None:
        """Copy the present (in,out) matrices into the fastest order, as npgpt_pack does, or MemoryError."""
        ffi, lib = library()
        error = ffi.new("npgpt_error *")
        _check(lib.npgpt_pack(self.handle, error), error)
        self.packed = True

    def use_kernels(self, name: str) -> None:
        """Use the kernels of this name, one of those of kernels.use()."""
        ffi, lib = library()
        error = ffi.new("npgpt_error *")
        _check(lib.npgpt_use_kernels(self.handle, name.encode(), error), error)

    def encode(self, data: bytes) -> list[int]:
        """Return the ids of `data` by the tokenizer of the GGUF file."""
        ffi, lib = library()
        error, count = ffi.new("npgpt_error *"), ffi.new("size_t *")
        ids = ffi.new("int32_t[]", len(data) + 1)
        _check(lib.npgpt_encode(self.handle, data, len(data), ids, len(ids), count, error), error)
        return list(ids[0 : count[0]])

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of an id by the tokenizer of the GGUF file."""
        ffi, lib = library()
        length = ffi.new("size_t *")
        data: bytes = ffi.buffer(lib.npgpt_token_bytes(self.handle, id, length), length[0])[:]
        return data


def _from_tensors(model: GPT, ffi: Any, lib: Any, made: Any, error: Any) -> int:
    c = model.config
    config = ffi.new("npgpt_config *")
    config.n_layer, config.n_head, config.n_embd = c.n_layer, c.n_head, c.n_embd
    config.block_size, config.vocab_size = c.block_size, c.vocab_size
    config.layer_norm_epsilon, config.scale = c.layer_norm_epsilon, c.scale
    config.window, config.post_norm, config.exact_gelu = c.window or 0, c.post_norm, c.activation == "gelu"
    config.n_kv_head, config.head_size, config.n_inner = c.K, c.D, c.F
    config.rms_norm, config.gated = c.norm == "rmsnorm", c.activation == "swiglu"
    if c.rope:
        config.rope_theta = c.rope.theta
        config.rope_factor = c.rope.factor if c.rope.type != "default" else 0
        if c.rope.type == "llama3":
            config.rope_low, config.rope_high = c.rope.low_freq_factor, c.rope.high_freq_factor
            config.rope_context = c.rope.original_context
    names = [ffi.new("char[]", name.encode()) for name in model.params]
    tensors = ffi.new("npgpt_tensor[]", len(names))
    for tensor, name, w in zip(tensors, names, model.params.values(), strict=True):
        tensor.name, tensor.data = name, ffi.cast("float *", w.ctypes.data)
        tensor.rows, tensor.columns = w.shape if w.ndim == 2 else (1, len(w))
    return int(lib.npgpt_from_tensors(config, tensors, len(names), made, error))


class Session:
    """An npgpt_session: a text that grows.

    With speculate=True it computes guesses of the next tokens together: the same text, sooner.
    """

    def __init__(self, model: Model, context: int = 0, slide: bool = True, speculate: bool = False) -> None:
        ffi, lib = library()
        self.model, self._error = model, ffi.new("npgpt_error *")
        made = ffi.new("npgpt_session **")
        _check(lib.npgpt_session_new(model.handle, context, made, self._error), self._error)
        self.handle = ffi.gc(made[0], lib.npgpt_session_free)
        lib.npgpt_session_slide(self.handle, slide)
        lib.npgpt_session_speculate(self.handle, speculate)
        self._id = ffi.new("int32_t *")

    def __len__(self) -> int:
        return int(library()[1].npgpt_session_length(self.handle))

    def feed(self, ids: Sequence[int] | Integers, every: bool = False) -> Floats:
        """Append ids; with every=True return the logits after each of them (n,V), else NOTHING."""
        ffi, lib = library()
        if len(ids) == 1 and not every:
            self._id[0] = ids[0]
            _check(lib.npgpt_feed(self.handle, self._id, 1, ffi.NULL, self._error), self._error)
            return NOTHING
        return self._feed(lib.npgpt_feed, ids, self.model.vocab_size if every else 0)

    def feed_hidden(self, ids: ArrayLike) -> Floats:
        """Append ids and return the hidden state after each of them, the input of the head, (n,C).

        ValueError for states that are not finite.
        """
        states = self._feed(library()[1].npgpt_feed_hidden, ids, self.model.n_embd)
        check_measured("embed", states, {})
        return states

    def _feed(self, function: Any, ids: ArrayLike, width: int) -> Floats:
        ffi, _ = library()
        ids = np.ascontiguousarray(ids, np.int32)
        found = np.empty((len(ids), width), np.float32) if width else NOTHING
        from_ = ffi.cast("int32_t *", ids.ctypes.data)
        to = ffi.cast("float *", found.ctypes.data) if width else ffi.NULL
        _check(function(self.handle, from_, len(ids), to, self._error), self._error)
        return found

    def logits(self) -> Floats:
        """Return a copy of the logits of the next token (V,)."""
        ffi, lib = library()
        data = ffi.buffer(lib.npgpt_logits(self.handle), 4 * self.model.vocab_size)
        return np.frombuffer(data, np.float32).copy()

    def sample(self, how: Any) -> int:
        """Return an id drawn by `how`, which sampling_struct() makes; it is not appended."""
        _check(library()[1].npgpt_sample(self.handle, how, self._id, self._error), self._error)
        return int(self._id[0])

    def allow(self, allowed: Mask | None) -> None:
        """Draw only ids that are true in bool (V,) from now on; None: all again."""
        ffi, lib = library()
        words = np.zeros((self.model.vocab_size + 31) // 32, np.uint32)
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            words.view(np.uint8)[: len(bits)] = bits
        data = ffi.NULL if allowed is None else ffi.cast("uint32_t *", words.ctypes.data)
        _check(lib.npgpt_session_allow(self.handle, data, self._error), self._error)

    def bias(self, bias: Floats | None) -> None:
        """Add bias (V,) to the logits before each draw from now on; None: nothing again."""
        ffi, lib = library()
        if bias is not None:
            bias = np.ascontiguousarray(bias, np.float32)
        data = ffi.NULL if bias is None else ffi.cast("float *", bias.ctypes.data)
        _check(lib.npgpt_session_bias(self.handle, data, self._error), self._error)

    def forget(self) -> None:
        """Empty the cache to read the text again; the ids seen and drawn still count for the penalties."""
        library()[1].npgpt_session_forget(self.handle)

    def rewind(self, count: int) -> None:
        """Go back to the first `count` ids in the cache, as if these alone had been fed and nothing drawn."""
        _check(library()[1].npgpt_session_rewind(self.handle, count, self._error), self._error)

    def save(self, first: int, count: int) -> Floats:
        """Return a copy of the keys and values of ids in the cache, from `first` on: (L,2,heads,count,D)."""
        ffi, lib = library()
        data = np.empty((*self.model.cached[:3], count, self.model.cached[3]), np.float32)
        to = ffi.cast("float *", data.ctypes.data)
        _check(lib.npgpt_session_save(self.handle, first, count, to, self._error), self._error)
        return data

    def load(self, ids: ArrayLike, data: Floats, logits: Floats | None = None) -> None:
        """Append ids that a session of this model read behind the same text: `data` is what it saved of them.

        logits (V,) are those behind the last; without them the session must be fed before it draws.
        """
        ffi, lib = library()
        ids, data = np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(data, np.float32)
        shape, V = (*self.model.cached[:3], len(ids), self.model.cached[3]), self.model.vocab_size
        behind = np.ascontiguousarray(np.zeros(V) if logits is None else logits, np.float32)
        if data.shape != shape or behind.shape != (V,):
            raise ValueError(f"load: must have {shape} and {V} numbers, got {data.shape}, {behind.shape}")
        known, from_ = ffi.cast("int32_t *", ids.ctypes.data), ffi.cast("float *", data.ctypes.data)
        to = ffi.NULL if logits is None else ffi.cast("float *", behind.ctypes.data)
        _check(lib.npgpt_session_load(self.handle, known, len(ids), from_, to, self._error), self._error)

    def reset(self) -> None:
        """Begin an empty text: the next ids stand at its beginning."""
        library()[1].npgpt_session_reset(self.handle)


def feed_many(sessions: Sequence[Session], ids: ArrayLike) -> None:
    """Append one id to each of several sessions of one model, computed together."""
    ffi, lib = library()
    error, ids = ffi.new("npgpt_error *"), np.ascontiguousarray(ids, np.int32)
    handles = ffi.new("npgpt_session *[]", [session.handle for session in sessions])
    _check(lib.npgpt_feed_many(handles, ffi.cast("int32_t *", ids.ctypes.data), len(ids), error), error)
