"""Small GGUF files of every odd kind, each with the verdict that Python's reader and libnpgpt must share."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgpt.interop.gguf import TYPES, quantise
from npgpt.interop.gguf_tokenizer import PRES
from npgpt.text.tokenizer_json import BYTE_CHARACTERS

C, T, H, L = 32, 16, 2, 2
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
    """The keys and tensors of a file: a GPT-2 of two layers, until they are edited."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "general.architecture": "gpt2",
            "gpt2.context_length": T,
            "gpt2.embedding_length": C,
            "gpt2.block_count": L,
            "gpt2.feed_forward_length": 4 * C,
            "gpt2.attention.head_count": H,
            "gpt2.attention.layer_norm_epsilon": 1e-5,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": list(TOKENS),
            "tokenizer.ggml.token_type": [NORMAL] * 257 + [CONTROL],
            "tokenizer.ggml.merges": [f"{BLANK} 1"],
            "tokenizer.ggml.bos_token_id": 257,
            "tokenizer.ggml.eos_token_id": 257,
        }
        rng = np.random.default_rng(5)
        shapes = {"token_embd.weight": (258, C), "position_embd.weight": (T, C)}
        norms = [f"blk.{i}.{name}" for i in range(L) for name in ("attn_norm", "ffn_norm")] + ["output_norm"]
        for name in norms:
            shapes |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
        linear = {"attn_qkv": (3 * C, C), "attn_output": (C, C), "ffn_up": (4 * C, C), "ffn_down": (C, 4 * C)}
        for name, shape in linear.items():
            for i in range(L):
                shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
        self.tensors: dict[str, Any] = {}  # name -> array
        self.types: dict[str, str] = {}  # name -> type, where it is not f32
        for name, shape in shapes.items():
            w = 0.2 * rng.standard_normal(shape) + (name.endswith("norm.weight"))
            self.tensors[name] = w.astype(np.float32)

    def write(self, path: Path) -> Path:
        """Write the file -> its path."""
        infos, blocks, offset = [], [], 0
        alignment = max(32, self.values.get("general.alignment", 32))
        for name, w in self.tensors.items():
            data = quantise(np.atleast_2d(w), self.types.get(name, "f32")).tobytes()
            number = TYPES[self.types.get(name, "f32")][0]
            shape = struct.pack(f"<I{w.ndim}Q", w.ndim, *w.shape[::-1])
            infos.append(_string(name) + shape + struct.pack("<IQ", number, offset))
            blocks.append(data + bytes(-len(data) % alignment))
            offset += len(blocks[-1])
        head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(self.values))
        head += b"".join(_string(key) + _value(value) for key, value in self.values.items())
        head += b"".join(infos)
        path.write_bytes(head + bytes(-len(head) % alignment) + b"".join(blocks))
        return path


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

    def types(self) -> set[str]:
        """Return the types of its tensors."""
        return {self._file().types.get(name, "f32") for name in self._file().tensors}

    def _file(self) -> File:
        file = File()
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


def four(tensors: dict[str, Any]) -> Any:
    """Return a vector of four numbers."""
    return np.ones(4, np.float32)


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
FOREIGN = {"general.name": "x", "quantize.imatrix.file": "y", "llama.block_count": 7, "gpt3.x": 1}
FOREIGN |= {"tokenizer.ggml.padding_token_id": 3, "tokenizer.chat_template": "{{ 1 }}"}
ADDED = [f"add_{name}" for name in ("eos_token", "sep_token", "space_prefix")]
ADDED += ["remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"]
ADDED = [f"tokenizer.ggml.{name}" for name in ADDED]
TYPES_OF = "tokenizer.ggml.token_type"

READ = [
    Case("plain", lambda file: None, llama=True),
    Case("f16", typed("f16", *MATRICES), llama=True),
    Case("q8_0", typed("q8_0", *MATRICES), llama=True),
    Case("positions in f16", typed("f16", "position_embd"), llama=True),
    Case("positions in q8_0", typed("q8_0", "position_embd"), llama=True),
    Case("a copy of the embedding", output("f32"), llama=True),
    Case("a copy in q8_0", both(typed("q8_0", *MATRICES), output("q8_0")), llama=True),
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
]  # fmt: skip
REFUSED = [
    Case("another architecture", keys({"general.architecture": "llama"}), "general.architecture"),
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
    Case("an untied head", output("f32", lambda w: w[::-1].copy()), "output.weight must equal token_embd"),
    Case("a head of another type", output("f16"), "output.weight must be of the type of token_embd"),
    Case("a head of another shape", output("f32", lambda w: w[:-1]), "output.weight must"),
    Case("a head alone", both(output("f32"), without("token_embd")), "token_embd.weight"),
    Case("a mask", tensor("blk.0.attn.bias", four), "blk.0.attn.bias"),
    Case("frequencies", tensor("rope_freqs.weight", four), "rope_freqs"),
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
