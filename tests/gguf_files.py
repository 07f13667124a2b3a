"""Small GGUF files of every odd kind, each with the verdict that Python's reader and libnpgpt must share."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.engine.config import Rope
from npgpt.engine.model import GPT
from npgpt.interop.blocks import TYPES
from npgpt.interop.gguf_tokenizer import PRES
from npgpt.interop.quantise import quantise
from npgpt.text.tokenizer_json import BYTE_CHARACTERS

C, T, H, L = 32, 16, 2, 2
D, K, F = 16, 1, 96  # of the Llama: its heads are as wide as together they need not be
WIDE = 256  # of blocks of 256
BLANK = BYTE_CHARACTERS[32]
TOKENS = [*BYTE_CHARACTERS, f"{BLANK}1", "<|endoftext|>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of token_type
NUMBERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
NUMBERS |= {"f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}


class As(NamedTuple):
    """A value as another type than that of its kind: As("u64", 2)."""

    kind: str
    value: Any


class File:
    """The keys and tensors of a file: a GPT-2 or a Llama of two layers, until they are edited."""

    def __init__(self, arch: str = "gpt2", width: int = C) -> None:
        self.width = width
        self.values: dict[str, Any] = {
            "general.architecture": arch,
            f"{arch}.context_length": T,
            f"{arch}.embedding_length": width,
            f"{arch}.block_count": L,
            f"{arch}.feed_forward_length": 4 * width if arch == "gpt2" else F if width == C else width,
            f"{arch}.attention.head_count": H,
            **(_GPT2 if arch == "gpt2" else _LLAMA | {"llama.attention.key_length": width // H}),
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": list(TOKENS),
            "tokenizer.ggml.token_type": [NORMAL] * 257 + [CONTROL],
            "tokenizer.ggml.merges": [f"{BLANK} 1"],
            "tokenizer.ggml.bos_token_id": 257,
            "tokenizer.ggml.eos_token_id": 257,
        }
        self.tensors: dict[str, Any] = {}  # name -> array
        self.types: dict[str, str] = {}  # name -> type, where it is not f32
        shapes = _gpt2_shapes() if arch == "gpt2" else _llama_shapes(width)
        rng = np.random.default_rng(5)
        for name, shape in shapes.items():
            spread = 0.2 if len(shape) == 1 else 0.2 * (C / width) ** 0.5
            w = spread * rng.standard_normal(shape) + (name.endswith("norm.weight"))
            self.tensors[name] = w.astype(np.float32)

    def write(self, path: Path) -> Path:
        """Write the file -> its path."""
        infos, blocks, offset = [], [], 0
        alignment = max(32, self.values.get("general.alignment", 32))
        for name, w in self.tensors.items():
            number, data = _stored(w, self.types.get(name, "f32"), len(infos))
            shape = struct.pack(f"<I{w.ndim}Q", w.ndim, *w.shape[::-1])
            infos.append(_string(name) + shape + struct.pack("<IQ", number, offset))
            blocks.append(data + bytes(-len(data) % alignment))
            offset += len(blocks[-1])
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(self.values))
        head += b"".join(_string(key) + _value(value) for key, value in self.values.items())
        head += b"".join(infos)
        path.write_bytes(head + bytes(-len(head) % alignment) + b"".join(blocks))
        return path


_GPT2: dict[str, Any] = {"gpt2.attention.layer_norm_epsilon": 1e-5}
_LLAMA: dict[str, Any] = {
    "llama.attention.head_count_kv": K,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500.0,
}


def _gpt2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (258, C), "position_embd.weight": (T, C)}
    norms = [f"blk.{i}.{name}" for i in range(L) for name in ("attn_norm", "ffn_norm")] + ["output_norm"]
    for name in norms:
        shapes |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
    linear = {"attn_qkv": (3 * C, C), "attn_output": (C, C), "ffn_up": (4 * C, C), "ffn_down": (C, 4 * C)}
    for name, shape in linear.items():
        for i in range(L):
            shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
    return shapes


def _llama_shapes(width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (258, width), "output_norm.weight": (width,)}
    head, inner = width // H, F if width == C else width
    for i in range(L):
        shapes |= {f"blk.{i}.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
        linear = {"attn_q": (H * head, width), "attn_k": (K * head, width), "attn_v": (K * head, width)}
        linear |= {"attn_output": (width, H * head), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
        linear |= {"ffn_down": (width, inner)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in linear.items()}
    return shapes


# Types that nobody reads here: ggml's number, numbers and bytes of a block
OTHERS = {"iq1_s": (19, 256, 50), "iq3_xxs": (18, 256, 98), "tq2_0": (35, 256, 66), "i32": (26, 1, 4)}
OTHERS |= {"mxfp4": (39, 32, 17), "nvfp4": (40, 64, 36), "q8_1": (9, 32, 36), "f64": (28, 1, 8)}
# Where a block's float16 scale is, its minimum, and the minimum of a block around zero beside a scale of 1
HALVES = {"q4_1": (0, 2, -7.5), "q5_0": (0,), "q5_1": (0, 2, -15.5), "q2_k": (80, 82, 1.5), "q3_k": (108,)}
HALVES |= {"q4_k": (0, 2, 7.5), "q5_k": (0, 2, 15.5), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,)}


def _stored(w: Any, type: str, seed: int) -> tuple[int, bytes]:
    """Return ggml's number of a type and w's bytes; in types of HALVES and OTHERS they are others."""
    if type in OTHERS:
        number, n, size = OTHERS[type]
        return number, bytes(w.size // n * size)
    if type == "f32":
        return 0, w.tobytes()
    if type == "bf16":
        return TYPES[type].number, (w.view(np.uint32) >> 16).astype("<u2").tobytes()
    if type not in HALVES:
        return TYPES[type].number, quantise(np.atleast_2d(w), type).tobytes()
    rng, of = np.random.default_rng(seed), TYPES[type]
    blocks = rng.integers(0, 256, (w.size // of.n, of.size), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.5, len(blocks)) * rng.choice([-1, 1], len(blocks))

    def scale(by: float) -> None:
        for at, factor in zip(HALVES[type][:2], (1, *HALVES[type][2:]), strict=False):
            blocks[:, at : at + 2] = (by * factor * scales).astype("<f2")[:, None].view(np.uint8)

    scale(1)
    scale(w.std() / of.dequantise(blocks).std())
    return of.number, blocks.tobytes()


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, list) and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if not isinstance(value, As):
        one = value[0] if isinstance(value, list) else value
        kinds = {bool: "bool", int: "u32" if one is value else "i32", float: "f32"}
        value = As(kinds[type(one)], value)
    number, letter = NUMBERS[value.kind]
    if isinstance(value.value, list):
        return struct.pack(f"<IIQ{len(value.value)}{letter}", 9, number, len(value.value), *value.value)
    return struct.pack(f"<I{letter}", number, value.value)


class Case(NamedTuple):
    """A file, and what both readers make of it."""

    name: str
    edit: Callable[[File], object]
    refused: str = ""  # what both readers' messages name; "" where both read the file
    llama: bool = False  # llama.cpp reads it too, to the same logits and ids
    arch: str = "gpt2"
    width: int = C

    def types(self) -> set[str]:
        """Return the types of its tensors."""
        return {self._file().types.get(name, "f32") for name in self._file().tensors}

    def in_blocks(self) -> bool:
        """Return True where numbers share scales: programs then round activations, too."""
        return any(TYPES[type].n > 1 for type in self.types())

    def _file(self) -> File:
        file = File(self.arch, self.width)
        self.edit(file)
        return file

    def write(self, folder: Path) -> Path:
        """Write the file into a folder -> its path."""
        return self._file().write(folder / f"{self.name.replace(' ', '-')}.gguf")


def keys(changes: dict[str, Any]) -> Callable[[File], None]:
    """Return an edit that sets keys; None leaves one out."""

    def edit(file: File) -> None:
        file.values |= changes
        file.values = {key: value for key, value in file.values.items() if value is not None}

    return edit


def typed(type: str, *names: str) -> Callable[[File], None]:
    """Return an edit that stores tensors as another type: those with these words in their names."""

    def edit(file: File) -> None:
        file.types |= {name: type for name in file.tensors if any(part in name for part in names)}

    return edit


def tensor(name: str, make: Callable[[dict[str, Any]], Any]) -> Callable[[File], None]:
    """Return an edit that puts a tensor, which `make` makes of all, under a name."""

    def edit(file: File) -> None:
        file.tensors[name] = make(file.tensors)

    return edit


def token(name: str, type: int, rows: int = 1) -> Callable[[File], None]:
    """Return an edit that adds tokens of a type at the end, and rows for them."""

    def edit(file: File) -> None:
        names, types = file.values["tokenizer.ggml.tokens"], file.values["tokenizer.ggml.token_type"]
        names += [name if rows == 1 else f"{name}{i}" for i in range(rows)]
        types += [type] * rows
        if SCORES in file.values:
            file.values[SCORES] += [0.0] * rows
        w = file.tensors["token_embd.weight"]
        file.tensors["token_embd.weight"] = np.concatenate([w, w[:rows]])

    return edit


def both(*edits: Callable[[File], object]) -> Callable[[File], object]:
    """Return an edit of several."""
    return lambda file: [edit(file) for edit in edits]


def own(**more: Any) -> Callable[[File], None]:
    """Return an edit to the architecture npgpt, with more of its keys; two underscores are a dot."""

    def edit(file: File) -> None:
        renamed = {key.replace("gpt2.", "npgpt.", 1): value for key, value in file.values.items()}
        file.values = renamed | {"general.architecture": "npgpt"}
        file.values |= {"npgpt." + key.replace("__", "."): value for key, value in more.items()}

    return edit


def without(*names: str) -> Callable[[File], None]:
    """Return an edit that leaves out tensors with these words in their names."""

    def edit(file: File) -> None:
        file.tensors = {n: w for n, w in file.tensors.items() if not any(part in n for part in names)}

    return edit


def output(type: str, change: Callable[[Any], Any] = lambda w: w) -> Callable[[File], None]:
    """Return an edit that adds output.weight: token_embd.weight as changed, of a type."""

    def edit(file: File) -> None:
        file.tensors["output.weight"] = change(file.tensors["token_embd.weight"])
        file.types["output.weight"] = type

    return edit


def plain(file: File) -> None:
    """Edit nothing."""


def scaling(**more: Any) -> Callable[[File], None]:
    """Return an edit that sets keys of rotary positions; two underscores are a dot."""
    return keys({f"llama.rope.{key.replace('__', '.')}": value for key, value in more.items()})


def turns(*factors: float) -> Callable[[File], None]:
    """Return an edit that adds these factors of the pairs of a head."""
    return tensor("rope_freqs.weight", lambda tensors: np.array(factors, np.float32))


def biases(*names: str) -> Callable[[File], None]:
    """Return an edit that adds biases to the linear layers of these names."""

    def edit(file: File) -> None:
        rng = np.random.default_rng(6)
        for name, w in list(file.tensors.items()):
            if name.endswith(tuple(f"{one}.weight" for one in names)):
                bias = 0.2 * rng.standard_normal(len(w))
                file.tensors[name.replace(".weight", ".bias")] = bias.astype(np.float32)

    return edit


def doubled(axis: int, *names: str) -> Callable[[File], None]:
    """Return an edit by which the matrices with these words in their names are twice as long."""

    def edit(file: File) -> None:
        for name, w in file.tensors.items():
            if any(part in name for part in names):
                file.tensors[name] = np.concatenate([w, np.flip(w)], axis)

    return edit


def ones(*shape: int) -> Callable[[dict[str, Any]], Any]:
    """Return what makes a tensor of this shape."""
    return lambda tensors: np.ones(shape, np.float32)


def llama(name: str, edit: Callable[[File], object], refused: str = "", **more: Any) -> Case:
    """Return the Case of a Llama, which llama.cpp reads, too, unless it is refused."""
    return Case(f"llama, {name}", edit, refused, arch="llama", **{"llama": not refused} | more)


WORD, BOS, SCORES = "\u2581", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.scores"
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    WORD,
    *"abcde1é",
    f"{WORD}a",
    "ab",
    f"{WORD}ab",
    "bc",
    "abc",
    "\u65e5x",
    f"{WORD * 2}",
]
PIECES += ["aa", "aaa", "aaaa", "x"]
OWN_MERGES = {"npgpt.merges": ["b c", "a bc", f"{WORD} a", "a a"], "npgpt.fuse_unknown": False, SCORES: None}


def sentencepiece(bytes: bool = True, **flags: bool) -> Callable[[File], None]:
    """Return an edit to a tokenizer of SentencePiece's kind, of 300 tokens."""

    def edit(file: File) -> None:
        names = [*PIECES, *([f"<0x{byte:02X}>" for byte in range(256)] * bytes)]
        special = [UNKNOWN, CONTROL, CONTROL]
        types = special + [NORMAL] * (len(PIECES) - 3) + [BYTE] * (len(names) - len(PIECES))
        file.values |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": names,
            "tokenizer.ggml.token_type": types,
            SCORES: [-float(i) for i in range(len(names))],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **{f"tokenizer.ggml.{key}": value for key, value in flags.items()},
        }
        for key in ("pre", "merges"):
            del file.values[f"tokenizer.ggml.{key}"]
        w = file.tensors["token_embd.weight"]
        file.tensors["token_embd.weight"] = np.concatenate([w, w])[: len(names)]

    return edit


def scores(make: Callable[[list[str]], list[Any]]) -> Callable[[File], None]:
    """Return an edit of the scores, which `make` makes of the tokens."""
    return lambda file: file.values.update({SCORES: make(file.values["tokenizer.ggml.tokens"])})


def typed_token(name: str, type: int) -> Callable[[File], None]:
    """Return an edit of the type of a token."""

    def edit(file: File) -> None:
        at = file.values["tokenizer.ggml.tokens"].index(name)
        file.values["tokenizer.ggml.token_type"][at] = type

    return edit


def without_bytes(file: File) -> None:
    """Leave out the tokens of two bytes: their names are another's."""
    names = file.values["tokenizer.ggml.tokens"]
    for byte in (ord("Z"), 0xF5):
        at = names.index(BYTE_CHARACTERS[byte])
        names[at], file.values["tokenizer.ggml.token_type"][at] = f"<{byte}>", CONTROL


MATRICES = "token_embd", "attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"
NEUTRAL = {"gpt2.attention.head_count_kv": H, "gpt2.attention.key_length": C // H}
NEUTRAL |= {"gpt2.attention.value_length": C // H, "gpt2.attention.causal": True, "gpt2.expert_count": 0}
NEUTRAL |= {"gpt2.vocab_size": 258, "gpt2.embedding_length_out": C}
FOREIGN = {"general.name": "x", "quantize.imatrix.file": "y", "bert.block_count": 7, "gpt3.x": 1}
FOREIGN |= {"tokenizer.ggml.padding_token_id": 3, "tokenizer.chat_template": "{{ 1 }}"}
ADDED = [f"add_{name}" for name in ("eos_token", "sep_token", "space_prefix")]
ADDED += ["remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"]
ADDED = [f"tokenizer.ggml.{name}" for name in ADDED]
TYPES_OF = "tokenizer.ggml.token_type"
LINEAR = "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
# What llama.cpp's Q4_K_M has where rows are multiples of 256: Q6_K in some layers, and for the head
MIXED = both(typed("q4_k", *(f"{name}.weight" for name in LINEAR)), typed("q6_k", "token_embd", "1.ffn_down"))
# The same where they are not
MIXED_32 = both(typed("q5_0", *(f"{name}.weight" for name in LINEAR)), typed("q8_0", "token_embd", "1.ffn_d"))
NEUTRAL_LLAMA = {"llama.vocab_size": 258, "llama.rope.dimension_count": D, "llama.expert_count": 0}
NEUTRAL_LLAMA |= {"llama.attention.value_length": D, "llama.attention.causal": True}
NEUTRAL_LLAMA |= {"llama.embedding_length_out": C, "llama.expert_used_count": 0}
NEUTRAL_LLAMA |= {"llama.rope.scaling.type": "none", "llama.rope.scaling.attn_factor": 1.0}
NEUTRAL_LLAMA |= {"llama.rope.scaling.original_context_length": 8, "llama.rope.scaling.finetuned": True}
NEUTRAL_LLAMA |= {"llama.tensor_data_layout": "Meta AI original pth"}
# Of Llama 3.1's kind, with a factor of 4 and an original context of 100
LLAMA3 = turns(1, 1, 1.18845391, 2.58436346, 4, 4, 4, 4)

READ_GPT2 = [
    Case("plain", plain, llama=True),
    Case("f16", typed("f16", *MATRICES), llama=True),
    Case("q8_0", typed("q8_0", *MATRICES), llama=True),
    Case("positions in f16", typed("f16", "position_embd"), llama=True),
    Case("positions in q8_0", typed("q8_0", "position_embd"), llama=True),
    Case("a copy of the embedding", output("f32"), llama=True),
    Case("a copy in q8_0", both(typed("q8_0", *MATRICES), output("q8_0")), llama=True),
    Case("an untied head", output("f32", lambda w: w[::-1].copy()), llama=True),
    Case("a head of another type", both(typed("q4_0", *MATRICES), output("q8_0")), llama=True),
    *(
        Case(f"in {type}", both(typed(type, *MATRICES[1:]), typed("f16", "token_embd")), llama=True)
        for type in ("bf16", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
    ),
    Case("a norm with a length of 1", tensor("output_norm.bias", lambda t: t["output_norm.bias"][None]),
         llama=True),
    Case("neutral keys", keys(NEUTRAL), llama=True),
    Case("keys of others", keys(FOREIGN), llama=True),
    Case("nothing added", keys(dict.fromkeys(ADDED, False)), llama=True),
    Case("alignment of 64", keys({"general.alignment": 64}), llama=True),
    Case("no types of tokens", keys({TYPES_OF: None})),
    Case("no pre", keys({"tokenizer.ggml.pre": None})),  # llama.cpp has another split for it
    *(Case(f"the split of {name}", keys({"tokenizer.ggml.pre": name, BOS: False}), llama=True)
      for name in PRES if name != "gpt-2"),
    Case("a beginning", keys({BOS: True}), llama=True),
    Case("a beginning by the split", keys({"tokenizer.ggml.pre": "llama-bpe"}), llama=True),
    Case("bytes without tokens", without_bytes, llama=True),
    Case("a user's token", token("<x>", USER_DEFINED), llama=True),
    Case("a user's token of blanks", token("  ", USER_DEFINED), llama=True),
    Case("sentencepiece", sentencepiece(), llama=True),
    Case("sentencepiece, no prefix", sentencepiece(add_space_prefix=False, add_bos_token=False), llama=True),
    Case("sentencepiece, no bytes", sentencepiece(bytes=False)),
    Case("sentencepiece, a user's token", both(sentencepiece(), token("<x>", USER_DEFINED)), llama=True),
    Case("sentencepiece, equal scores",
         both(sentencepiece(), scores(lambda names: [-1.0 - (len(n) > 1) for n in names])), llama=True),
    *(Case(f"sentencepiece, {how}", both(sentencepiece(), keys({"npgpt.space_prefix": how})))
      for how in ("first", "always")),
    Case("sentencepiece, merges", both(sentencepiece(), keys(OWN_MERGES))),
    Case("sentencepiece, words", both(sentencepiece(), keys(OWN_MERGES | {"npgpt.words": True}))),
    Case("an unknown token", token("<unk>", UNKNOWN), llama=True),
    Case("a control token", token("<|im_start|>", CONTROL), llama=True),
    Case("padding", token("[PAD]", UNUSED, rows=3), llama=True),
    Case("no biases", without(".bias")),
    Case("no biases, said", both(without(".bias"), keys({"npgpt.bias": False}))),
    Case("more ends",
         keys({"tokenizer.ggml.eot_token_id": 65, "tokenizer.ggml.eom_token_id": 66}),
         llama=True),
    Case("sizes of 64 bits", keys({"gpt2.block_count": As("u64", L), "gpt2.context_length": As("i64", T)})),
    Case("sizes of 16 bits", keys({"gpt2.attention.head_count": As("i16", H)})),
    Case("an epsilon of 64 bits", keys({"gpt2.attention.layer_norm_epsilon": As("f64", 1e-5)})),
    Case("no vocabulary", keys({"tokenizer.ggml.model": "no_vocab", "gpt2.vocab_size": 258})),
    Case("own", own()),
    Case("own, scaled", own(attention__scale=0.5, exact_gelu=True)),
    Case("own, a window", both(without("attn_qkv.bias"), own(attention__sliding_window=4, bias=True))),
    Case("own, post-norm", both(without("output_norm"), own(post_norm=True))),
    Case("own, an untied head", both(own(), output("f32", lambda w: w[::-1].copy()))),
]  # fmt: skip
READ_LLAMA = [
    llama("plain", plain),
    llama("neutral keys", keys(NEUTRAL_LLAMA)),
    llama("an untied head", output("f32", lambda w: w[::-1].copy())),
    llama("a copy of the embedding", output("f32")),
    llama("a head of another type", both(typed("f16", "token_embd"), output("q8_0"))),
    llama("a width of heads that is not told", keys({"llama.attention.key_length": None})),
    llama("heads wider than the width",
          both(keys({f"llama.attention.{name}_length": 2 * D for name in ("key", "value")}),
               doubled(0, "attn_q", "attn_k", "attn_v"), doubled(1, "attn_output"))),
    llama("a key head for each query",
          both(keys({"llama.attention.head_count_kv": None}), doubled(0, "attn_k", "attn_v"))),
    llama("biases", biases(*LINEAR)),
    llama("biases of queries, keys and values", biases("attn_q", "attn_k", "attn_v")),
    llama("biases of the MLP", biases("ffn_gate", "ffn_up", "ffn_down")),
    llama("positions of no key", scaling(freq_base=None)),
    llama("linear positions", scaling(scaling__type="linear", scaling__factor=2.5)),
    llama("linear positions without a type", scaling(scaling__factor=2.5)),
    llama("linear positions by an old key", scaling(scale_linear=2.5)),
    llama("a factor by two keys", scaling(scale_linear=7.0, scaling__factor=2.5)),
    llama("a factor of 0", scaling(scaling__factor=0.0)),
    llama("a factor that counts for nothing", scaling(scaling__type="none", scaling__factor=2.5)),
    llama("positions of Llama 3.1", LLAMA3),
    llama("factors that are all the same", turns(*[2.5] * (D // 2))),
    llama("factors of 1", turns(*[1] * (D // 2))),
    llama("no vocabulary", keys({"tokenizer.ggml.model": "no_vocab", "llama.vocab_size": 258}), llama=False),
    *(
        llama(f"in {type}", both(typed(type, *LINEAR), typed(type, "token_embd")), width=WIDE)
        for type in TYPES if type != "f32"
    ),
    llama("a mixture of 256", MIXED, width=WIDE),
    llama("a mixture of 32", MIXED_32),
]  # fmt: skip
READ = READ_GPT2 + READ_LLAMA
REFUSED_GPT2 = [
    Case("another architecture", keys({"general.architecture": "gptj"}), "general.architecture.*gptj"),
    Case("not causal", keys({"gpt2.attention.causal": False}), "gpt2.attention.causal"),
    *(
        Case(f"another {key[5:]}", keys({key: 6}), key)
        for key in NEUTRAL
        if key not in ("gpt2.attention.causal", "gpt2.vocab_size")
    ),
    Case("another width of the MLP", keys({"gpt2.feed_forward_length": 64}), "gpt2.feed_forward_length"),
    *(
        Case(f"an unknown {key}", keys({f"gpt2.{key}": 0.5}), f"gpt2.{key}")
        for key in ("rope.freq_base", "attention.max_alibi_bias", "attention.clamp_kqv", "logit_scale",
                    "attention.scale", "attention.sliding_window", "pooling_type")
    ),
    Case("own keys in gpt2", keys({"npgpt.post_norm": False}), "npgpt.post_norm"),
    Case("an own scale in gpt2", keys({"npgpt.attention.scale": 0.5}), "npgpt.attention.scale"),
    Case("a key of llama in gpt2", keys({"llama.block_count": L}), "llama.block_count"),
    Case("a key of gpt2 in own", both(own(), keys({"gpt2.block_count": L})), "gpt2.block_count"),
    Case("no heads", keys({"gpt2.attention.head_count": None}), "gpt2.attention.head_count"),
    Case("heads of each layer", keys({"gpt2.attention.head_count": [2, 2]}), "gpt2.attention.head_count"),
    Case("heads of a flag", keys({"gpt2.attention.head_count": True}), "gpt2.attention.head_count"),
    Case("zero heads", keys({"gpt2.attention.head_count": 0}), "n_head|head_count"),
    Case("three heads", keys({"gpt2.attention.head_count": 3}), "n_head"),
    Case("a context of none", keys({"gpt2.context_length": 17}), "position_embd.weight|wpe.weight"),
    *(
        Case(f"an epsilon of {value}", keys({"gpt2.attention.layer_norm_epsilon": value}), "_epsilon")
        for value in (0.0, float("inf"), float("nan"), 1, None)
    ),
    Case("a norm in f16", typed("f16", "output_norm.weight"), "output_norm.weight must be"),
    Case("a bias in f16", typed("f16", "blk.1.ffn_up.bias"), "blk.1.ffn_up.bias must be"),
    Case("a head of another shape", output("f32", lambda w: w[:-1]), "output.weight must"),
    Case("a head alone", both(output("f32"), without("token_embd")), "token_embd.weight"),
    Case("a mask", tensor("blk.0.attn.bias", ones(4)), "blk.0.attn.bias"),
    Case("frequencies", tensor("rope_freqs.weight", ones(4)), "rope_freqs"),
    Case("a head by its other name", tensor("lm_head.weight", lambda t: t["token_embd.weight"]),
         "lm_head.weight"),
    Case("no embedding of positions", without("position_embd"), "position_embd.weight"),
    Case("rows for fewer tokens", tensor("token_embd.weight", lambda t: t["token_embd.weight"][1:]),
         "token_embd.weight must"),
    *(Case(f"{key[15:]}", keys({key: True}), f"{key} must be false") for key in ADDED),
    Case("add_bos_token as a number", keys({BOS: 0}), BOS),
    Case("a beginning that is none", keys({BOS: True, "tokenizer.ggml.bos_token_id": 999}), "bos_token_id"),
    Case("a beginning without a token",
         keys({BOS: True, "tokenizer.ggml.bos_token_id": None}), "bos_token_id"),
    Case("suppressed tokens", keys({"tokenizer.ggml.suppress_tokens": [3]}), "ggml.suppress_tokens"),
    Case("a token of a byte", token("<0x0A>", BYTE), f"{TYPES_OF} of '?<0x0A>'? .*got 6"),
    Case("a token of no type", token("<y>", 0), f"{TYPES_OF} of '?<y>'? .*got 0"),
    Case("padding inside", both(token("[PAD]", UNUSED), token("<z>", CONTROL)), f"{TYPES_OF} of .*got 5"),
    Case("an end of padding", both(token("[PAD]", UNUSED), keys({"tokenizer.ggml.eos_token_id": 258})),
         "tokenizer.ggml.eos_token_id"),
    Case("an end that is none", keys({"tokenizer.ggml.eos_token_id": 999}), "tokenizer.ggml.eos_token_id"),
    Case("an end of a turn that is none", keys({"tokenizer.ggml.eot_token_id": 999}), "eot_token_id"),
    Case("no end", keys({"tokenizer.ggml.eos_token_id": None}), "tokenizer.ggml.eos_token_id"),
    Case("no merges", keys({"tokenizer.ggml.merges": None}), "tokenizer.ggml.merges"),
    Case("half a merge", keys({"tokenizer.ggml.merges": ["ab"]}), "merge"),
    Case("a merge of nothing", keys({"tokenizer.ggml.merges": ["a bc"]}), "merge"),
    Case("a merge twice", keys({"tokenizer.ggml.merges": [f"{BLANK} 1"] * 2}), "merge"),
    Case("a token without its merge", token("abc", NORMAL), "merge"),
    Case("a token twice", token("a", NORMAL), "a'? is there twice"),
    Case("a token of other characters", token("日", NORMAL), "日"),
    Case("too few types", keys({TYPES_OF: [1, 1]}), TYPES_OF),
    Case("types that are fractions", keys({TYPES_OF: As("f32", [1.0] * 258)}), TYPES_OF),
    Case("no tokens", keys({"tokenizer.ggml.tokens": None}), "tokenizer.ggml.tokens"),
    Case("another split",
         keys({"tokenizer.ggml.pre": "tekken"}), "tokenizer.ggml.pre must be .*got '?tekken"),
    Case("llama.cpp's own split",
         keys({"tokenizer.ggml.pre": "default"}), "tokenizer.ggml.pre must be .*got '?default"),
    Case("half a split",
         keys({"tokenizer.ggml.pre": "gpt-2 phi-2"}), "tokenizer.ggml.pre must be .*got '?gpt-2 phi"),
    Case("a split of nothing", keys({"tokenizer.ggml.pre": ""}), "tokenizer.ggml.pre must be"),
    Case("another tokenizer", keys({"tokenizer.ggml.model": "bert"}), "tokenizer.ggml.model"),
    Case("no scores", both(sentencepiece(), keys({SCORES: None})), SCORES),
    Case("scores of integers", both(sentencepiece(), scores(lambda names: [*range(len(names))])), SCORES),
    Case("too few scores", both(sentencepiece(), scores(lambda names: [-1.0, -2.0])), SCORES),
    Case("one score for all",
         both(sentencepiece(), scores(lambda names: [-1000.0] * len(names))), f"{SCORES} must say"),
    Case("a score of nan", both(sentencepiece(), scores(lambda names: [float("nan")] * len(names))), SCORES),
    Case("a token of many bytes",
         both(sentencepiece(), token("a" * 1025, NORMAL)), "at most 1024 bytes"),
    Case("tokens of many characters",
         both(sentencepiece(), token("".join(map(chr, range(0x4E00, 0x4E00 + 300))), NORMAL)),
         "at most 256 characters of tokens may be no tokens"),
    Case("some bytes",
         both(sentencepiece(), typed_token("<0x41>", NORMAL)), "256 bytes or for none, got 255"),
    Case("a byte of another name",
         both(sentencepiece(), typed_token(f"{WORD}a", BYTE)), "must be <0x00> to <0xFF>"),
    Case("no token for a blank",
         both(sentencepiece(), typed_token(WORD, CONTROL)), f"there must be a token '?{WORD}"),
    Case("an unknown prefix",
         both(sentencepiece(), keys({"npgpt.space_prefix": "last"})), "npgpt.space_prefix must"),
    Case("merges of what is no token",
         both(sentencepiece(), keys(OWN_MERGES | {"npgpt.merges": ["a z z"]})), "the merge|merge 0"),
    Case("no tokenizer", keys({"tokenizer.ggml.model": None}), "tokenizer.ggml.model"),
    Case("no vocabulary and no size", keys({"tokenizer.ggml.model": "no_vocab"}), "gpt2.vocab_size"),
    Case("an alignment of 48", keys({"general.alignment": 48}), "general.alignment"),
    Case("a window of none", own(attention__sliding_window=0), "npgpt.attention.sliding_window"),
    *(Case(f"a scale of {x}", own(attention__scale=x), "attention.scale") for x in (0.0, -1.0, float("inf"))),
    Case("post-norm with a window",
         both(without("output_norm"), own(post_norm=True, attention__sliding_window=4)),
         "post_norm must be alone"),
    Case("a window with biases of queries", own(attention__sliding_window=4), "attn_qkv.bias"),
    Case("biases that should not be", keys({"npgpt.bias": False}), "bias must be zero"),
]  # fmt: skip
REFUSED_LLAMA = [
    llama("a key of gpt2", keys({"gpt2.block_count": L}), "gpt2.block_count"),
    llama("an own key", keys({"npgpt.attention.scale": 0.5}), "npgpt.attention.scale"),
    *(
        llama(f"an unknown {key}", keys({f"llama.{key}": 0.5}), f"llama.{key}")
        for key in ("attention.layer_norm_epsilon", "attention.scale", "attention.sliding_window",
                    "attention.clamp_kqv", "logit_scale", "rope.scaling.yarn_ext_factor", "pooling_type")
    ),
    *(
        llama(f"without {key}", keys({f"llama.{key}": None}), f"llama.{key}")
        for key in ("feed_forward_length", "attention.layer_norm_rms_epsilon", "attention.head_count")
    ),
    *(
        llama(f"an {what} of {value}", keys({f"llama.{key}": value}), f"llama.{key}")
        for what, key in (("epsilon", "attention.layer_norm_rms_epsilon"), ("angle's base", "rope.freq_base"))
        for value in (0.0, -1.0, float("inf"), float("nan"), 1)
    ),
    *(
        llama(f"{key} of {value}", keys({f"llama.{key}": value}), f"llama.{key}")
        for key, value in (("rope.scaling.factor", -2.0), ("rope.scaling.factor", float("nan")),
                           ("rope.scaling.type", "yarn"), ("rope.scaling.type", "longrope"),
                           ("rope.scaling.type", "x"), ("rope.scaling.type", 1),
                           ("rope.scaling.attn_factor", 0.5), ("rope.dimension_count", 8),
                           ("attention.value_length", 8), ("attention.causal", False), ("expert_count", 8),
                           ("expert_used_count", 2), ("embedding_length_out", 8),
                           ("feed_forward_length", 0))
    ),
    llama("a gate for each layer", keys({"llama.feed_forward_length": [F, F]}), "llama.feed_forward_length"),
    llama("three heads", keys({"llama.attention.head_count": 3, "llama.attention.key_length": None}),
          "n_embd|key_length"),
    llama("key heads that do not divide", keys({"llama.attention.head_count_kv": 3}), "n_kv_head"),
    llama("no key heads", keys({"llama.attention.head_count_kv": 0}), "n_kv_head|head_count_kv"),
    llama("heads of an odd width",
          keys({"llama.attention.key_length": 7, "llama.attention.value_length": 7}), "pairs|key_length"),
    llama("factors of no known kind", turns(1, 4, 1, 4, 1, 4, 1, 4), "rope_freqs.weight"),
    llama("factors below 1", turns(*[0.5] * 7, 1), "rope_freqs.weight"),
    llama("a factor that is no number", turns(*[float("nan")] * 8), "rope_freqs.weight"),
    llama("a factor of nothing", turns(*[0.0] * 8), "rope_freqs.weight"),
    llama("too few factors", turns(1, 1, 1), "rope_freqs.weight must"),
    llama("two scalings", both(LLAMA3, scaling(scaling__factor=2.0)), "rope_freqs.weight"),
    llama("queries, keys and values in one",
          both(without("1.attn_q", "1.attn_k", "1.attn_v"), tensor("blk.1.attn_qkv.weight", ones(4 * D, C))),
          "blk.1.attn_q.weight"),
    llama("no gate", without("blk.1.ffn_gate"), "blk.1.ffn_gate.weight is missing"),
    llama("a bias of a norm", tensor("blk.0.attn_norm.bias", lambda t: t["output_norm.weight"]),
          "blk.0.attn_norm.bias"),
    llama("positions that are learned", tensor("position_embd.weight", ones(T, C)),
          "position_embd.weight"),
    llama("experts", tensor("blk.0.ffn_gate_inp.weight", ones(2, C)), "ffn_gate_inp"),
    llama("keys of another shape",
          tensor("blk.0.attn_k.weight", lambda t: t["blk.0.attn_q.weight"]), "blk.0.attn_k.weight must"),
    *(llama(f"in {type}", typed(type, "ffn_up"), type.upper(), width=WIDE) for type in OTHERS),
    llama("a bias in f16", both(biases("ffn_up"), typed("f16", "1.ffn_up.bias")), "1.ffn_up.bias must be"),
]  # fmt: skip
REFUSED = REFUSED_GPT2 + REFUSED_LLAMA


def pair_by_pair(w: Any, D: int) -> Any:
    """Return rows of heads of D, or a bias, in the order of GGUF's architecture llama."""
    return w.reshape(-1, 2, D // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama_file(model: GPT, **types: str) -> File:
    """Return the File of a Llama, with the types of matrices by words in their names."""
    c, file = model.config, File()
    file.values = {
        "general.architecture": "llama",
        "llama.context_length": c.block_size,
        "llama.embedding_length": c.n_embd,
        "llama.block_count": c.n_layer,
        "llama.feed_forward_length": c.F,
        "llama.attention.head_count": c.n_head,
        "llama.attention.head_count_kv": c.K,
        "llama.attention.key_length": c.D,
        "llama.attention.layer_norm_rms_epsilon": c.layer_norm_epsilon,
        "llama.rope.freq_base": c.rope.theta,
        "llama.vocab_size": c.vocab_size,
        "tokenizer.ggml.model": "no_vocab",
    }
    file.tensors = {}
    if c.rope.type == "linear":
        file.values["llama.rope.scaling.factor"] = c.rope.factor
    if c.rope.type == "llama3":
        plain = Rope(c.rope.theta).angles(2, c.D, np.float64)[1]
        file.tensors["rope_freqs.weight"] = (plain / c.rope.angles(2, c.D, np.float64)[1]).astype(np.float32)
    ours = {"wte": "token_embd", "lm_head": "output", "ln_f": "output_norm", "ln_1": "attn_norm"}
    ours |= {"ln_2": "ffn_norm", "attn.c_proj": "attn_output", "mlp.c_proj": "ffn_down"}
    for name, w in model.params.items():
        module, _, kind = name.rpartition(".")
        layer, part = ("", module) if not module.startswith("h.") else module[2:].split(".", 1)
        before, w = f"blk.{layer}." * bool(layer), w.T if layer else w  # (out, in)
        if part == "attn.c_attn":
            q, k, v = np.split(w, [c.n_head * c.D, (c.n_head + c.K) * c.D])
            parts = {"attn_q": pair_by_pair(q, c.D), "attn_k": pair_by_pair(k, c.D), "attn_v": v}
        elif part == "mlp.c_fc":
            parts = dict(zip(("ffn_gate", "ffn_up"), np.split(w, 2), strict=True))
        else:
            parts = {ours[part]: w}
        file.tensors |= {f"{before}{n}.{kind}": np.ascontiguousarray(w) for n, w in parts.items()}
    matrices = [name for name, w in file.tensors.items() if w.ndim == 2]
    file.types = {name: type for word, type in types.items() for name in matrices if word in name}
    return file
