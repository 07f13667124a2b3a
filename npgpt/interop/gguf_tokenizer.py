"""The tokenizer inside a GGUF file, the keys that begin with tokenizer: read and written.

The rules are those of docs/formats.md, which vocabulary.cpp of libnpgpt holds too.
"""

from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from npgpt.engine.types import Fields
from npgpt.interop.gguf_values import array_of, value_of
from npgpt.text.added_tokens import Flags
from npgpt.text.cleaning import STEPS, check_cleaning
from npgpt.text.load import tokenizer_of
from npgpt.text.sentencepiece import scores_of_merges
from npgpt.text.spm import BYTE_NAMES, PREFIXES, Pieces
from npgpt.text.tokenizer import Tokenizer
from npgpt.text.tokenizer_json import BYTE_CHARACTERS, Vocabulary, chat_template_of, pad_token

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of tokenizer.ggml.token_type
TYPES = dict(enumerate(("normal", "unknown", "control", "user-defined", "unused", "byte"), 1))
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))  # of text, turn, message
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model
OWN_KEYS: dict[str, type] = {  # that npgpt alone reads
    **dict.fromkeys(("npgpt.normalizer", "npgpt.space_prefix"), str),
    **dict.fromkeys(("npgpt.words", "npgpt.fuse_unknown", "npgpt.byte_fallback"), bool),
    "npgpt.merges": list,
}
# Keys behind "tokenizer.ggml." that change the ids of a text, unless they are false
ADDITIONS = (
    *("add_eos_token", "add_sep_token"),
    *("remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"),
)


class Pre(NamedTuple):
    """What a name of tokenizer.ggml.pre means."""

    split: str  # one of bpe.PATTERNS
    whole_pieces: bool = False
    begins: bool = False  # with the bos token, unless add_bos_token says otherwise


# llama.cpp's names of the four splits (src/llama-vocab.cpp); the first of each is what is written
PRES = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt"), Pre("gpt-2")),
    **dict.fromkeys(("olmo", "jais", "trillion", "granite-docling"), Pre("gpt-2")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), Pre("smollm")),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), Pre("smollm")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), Pre("llama-bpe", True, True)),
    **dict.fromkeys(("falcon-h1", "pixtral", "midm-2.0", "lfm2"), Pre("llama-bpe", True, True)),
    **dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), Pre("llama-bpe")),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), Pre("qwen2")),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), Pre("qwen2")),
}


# ---------------------------------------------------------------------------- writing


def tokenizer_values(tokenizer: Tokenizer | None, arch: str, vocab_size: int) -> Fields:
    """Return the keys of a tokenizer, or of none; ValueError for one that GGUF cannot hold."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": vocab_size}
    v = tokenizer.vocabulary
    _check_writable(tokenizer)
    tokens = sorted(v.tokens, key=v.tokens.__getitem__)
    padding = [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    more: Fields = {"tokenizer.chat_template": template} if (template := chat_template_of(v)) else {}
    if v.normalizer != "none":  # read by npgpt alone
        more["npgpt.normalizer"] = v.normalizer
    model = _sentencepiece_values(v, len(padding)) if v.pieces else _byte_level_values(v)
    return (
        more
        | model
        | {
            "tokenizer.ggml.tokens": tokens + padding,
            "tokenizer.ggml.token_type": [_type_of(v, token) for token in tokens] + [UNUSED] * len(padding),
            "tokenizer.ggml.bos_token_id": v.tokens[v.begin or v.names.get("bos_token") or v.end_of_text],
            **dict(zip(ENDS, tokenizer.ends, strict=False)),
            "tokenizer.ggml.padding_token_id": v.tokens[pad_token(v)],
        }
    )


def _check_writable(tokenizer: Tokenizer) -> None:
    v = tokenizer.vocabulary
    if v.words:
        raise ValueError(
            "write_gguf: tokenizer must be of bytes, byte-level BPE or SentencePiece's, got GPT-1's"
        )
    if len(tokenizer.ends) > len(ENDS):
        raise ValueError(f"write_gguf: tokenizer must have at most {len(ENDS)} ends, got {tokenizer.ends}")
    for name, flags in v.flags.items():
        if found := [flag for flag in ("lstrip", "rstrip", "single_word") if getattr(flags, flag)]:
            raise ValueError(
                f"write_gguf: tokenizer must be without {', '.join(found)} of the token {name!r}"
            )
    if not v.pieces and v.unknown and any(character not in v.tokens for character in BYTE_CHARACTERS):
        raise ValueError(
            f"write_gguf: tokenizer must have a token for each byte, or none for others, {v.unknown!r}"
        )
    if not v.pieces and (v.split, v.whole_pieces) not in {of[:2] for of in PRES.values()}:
        raise ValueError(f"write_gguf: tokenizer must not ignore merges for the split of {v.split}")


def _type_of(v: Vocabulary, token: str) -> int:
    if token in v.special:
        return UNKNOWN if token == v.unknown else CONTROL
    if token in v.flags:
        return USER_DEFINED
    return BYTE if v.pieces and token in BYTE_NAMES else NORMAL


def _byte_level_values(v: Vocabulary) -> Fields:
    pre = next(name for name, of in PRES.items() if of[:2] == (v.split, v.whole_pieces))
    values: Fields = {"tokenizer.ggml.model": BYTE_LEVEL, "tokenizer.ggml.pre": pre}
    if v.beyond_gpt2():
        values["tokenizer.ggml.add_bos_token"] = bool(v.begin)
    if "unk_token" in v.names:
        values["tokenizer.ggml.unknown_token_id"] = v.tokens[v.names["unk_token"]]
    return values | {"tokenizer.ggml.merges": [" ".join(pair) for pair in v.merges]}


def _sentencepiece_values(v: Vocabulary, padding: int) -> Fields:
    """Return the keys of SentencePiece's BPE: scores, by which others merge, and the merges, where known.

    npgpt alone reads the latter, and a prefix that others do not know.
    """
    pieces = v.pieces
    assert pieces
    scores = scores_of_merges(v)
    values: Fields = {
        "tokenizer.ggml.model": SENTENCEPIECE,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores + [min(scores)] * padding,
        "tokenizer.ggml.add_bos_token": bool(v.begin),
        "tokenizer.ggml.add_space_prefix": pieces.prefix != "never",
    }
    if v.unknown:
        values["tokenizer.ggml.unknown_token_id"] = v.tokens[v.unknown]
    if not pieces.scores:
        values["npgpt.merges"] = [" ".join(pair) for pair in v.merges]
        values["npgpt.fuse_unknown"] = pieces.fuse_unknown
        values["npgpt.byte_fallback"] = pieces.bytes
        values["npgpt.words"] = pieces.words
    if pieces.prefix in ("always", "first"):
        values["npgpt.space_prefix"] = pieces.prefix
    return values


# ---------------------------------------------------------------------------- reading


class Tokens(NamedTuple):
    """The tokens of a file, up to the padding at its end."""

    names: list[str]  # of each id
    types: list[int]
    end: int  # the id that ends a text
    more_ends: tuple[int, ...]
    begin: int | None  # the id with which a text begins

    def special(self) -> dict[str, int]:
        """Return the tokens that no text spells."""
        ends = self.end, self.begin
        return {n: i for i, n in enumerate(self.names) if self.types[i] in (UNKNOWN, CONTROL) or i in ends}


def tokenizer_from(values: Fields, where: str) -> Tokenizer | None:
    """Return the tokenizer of a file's keys, None where it has none; ValueError for what is wrong."""
    kind = value_of(values, "tokenizer.ggml.model", str, where)
    if kind == "no_vocab":
        return None
    if kind not in (BYTE_LEVEL, SENTENCEPIECE):
        known = f"{BYTE_LEVEL}, {SENTENCEPIECE} or no_vocab"
        raise ValueError(f"{where}: tokenizer.ggml.model must be {known}, got {kind!r:.60}")
    for key in (f"tokenizer.ggml.{name}" for name in ADDITIONS):
        if value_of(values, key, bool, where, False):
            raise ValueError(f"{where}: {key} must be false")
    if "tokenizer.ggml.suppress_tokens" in values:
        raise ValueError(f"{where}: tokenizer.ggml.suppress_tokens must be left out")
    read = _read_byte_level if kind == BYTE_LEVEL else _read_sentencepiece
    vocabulary, more_ends = read(values, where)
    try:
        tokenizer = tokenizer_of(vocabulary)
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    tokenizer.more_ends = more_ends
    return tokenizer


def _read_byte_level(values: Fields, where: str) -> tuple[Vocabulary, tuple[int, ...]]:
    key = "tokenizer.ggml.pre"
    ours = values.get("general.architecture") in (
        "gpt2",
        "npgpt",
    )  # older files of GPT-2 do not name its split
    name = value_of(values, key, str, where, "gpt-2" if ours else None)
    if name not in PRES:
        known = "gpt-2, smollm, llama-bpe, qwen2 or another name of these"
        raise ValueError(f"{where}: {key} must be {known}, got {name!r:.60}")
    pre = PRES[name]
    if value_of(values, "tokenizer.ggml.add_space_prefix", bool, where, False):
        raise ValueError(f"{where}: tokenizer.ggml.add_space_prefix must be false")
    tokens = _read_tokens(values, where, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED), pre.begins, {})
    rules = array_of(values, "tokenizer.ggml.merges", str, where)
    vocabulary = _vocabulary(values, tokens, where)
    merges = _read_merges(rules, "tokenizer.ggml.merges", tokens.special(), where)
    vocabulary = replace(vocabulary, merges=merges, split=pre.split, whole_pieces=pre.whole_pieces)
    return vocabulary, tokens.more_ends


def _read_sentencepiece(values: Fields, where: str) -> tuple[Vocabulary, tuple[int, ...]]:
    usual = {"bos": 1, "eos": 2}
    tokens = _read_tokens(values, where, (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE), True, usual)
    v = _vocabulary(values, tokens, where)
    for i, name in enumerate(tokens.names):
        if tokens.types[i] == BYTE and name not in BYTE_NAMES:
            raise ValueError(f"{where}: the token {name!r:.60} (id {i}) of a byte must be <0x00> to <0xFF>")
    n_bytes = tokens.types.count(BYTE)
    if n_bytes not in (0, 256):
        raise ValueError(f"{where}: there must be tokens for all 256 bytes or for none, got {n_bytes}")
    prefix = "prepend" if value_of(values, "tokenizer.ggml.add_space_prefix", bool, where, True) else "never"
    prefix = value_of(values, "npgpt.space_prefix", str, where, prefix)
    if prefix not in PREFIXES:
        known = ", ".join(PREFIXES)
        raise ValueError(f"{where}: npgpt.space_prefix must be one of {known}, got {prefix!r:.60}")

    def flag(name: str, default: bool) -> bool:
        return value_of(values, f"npgpt.{name}", bool, where, default)

    pieces = Pieces(
        prefix, flag("words", False), (), flag("fuse_unknown", True), flag("byte_fallback", n_bytes > 0)
    )
    if "npgpt.merges" in values:
        rules = array_of(values, "npgpt.merges", str, where)
        merges = _read_merges(rules, "npgpt.merges", tokens.special(), where)
        return replace(v, merges=merges, pieces=pieces), tokens.more_ends
    return replace(v, pieces=replace(pieces, scores=_read_scores(values, tokens, where))), tokens.more_ends


def _read_scores(values: Fields, tokens: Tokens, where: str) -> tuple[float, ...]:
    key = "tokenizer.ggml.scores"
    scores, n = array_of(values, key, float, where), len(values["tokenizer.ggml.tokens"])
    if len(scores) < n or not all(map(isfinite, scores)):
        raise ValueError(f"{where}: {key} must be {n} finite numbers, got {len(scores)}")
    scores = scores[: len(tokens.names)]
    made = {s for s, name, type in zip(scores, tokens.names, tokens.types, strict=True) if type == NORMAL}
    if len(made) == 1 and len(tokens.names) > 2:
        raise ValueError(
            f"{where}: {key} must say which tokens are made first, got {scores[0]:g} for all of them"
        )
    return tuple(scores)


def _read_tokens(
    values: Fields, where: str, known: tuple[int, ...], begins: bool, usual: dict[str, int]
) -> Tokens:
    """Return the tokens of a file; known: the types that they may have; usual: ids of special tokens."""
    names = array_of(values, "tokenizer.ggml.tokens", str, where)
    types = array_of(values, "tokenizer.ggml.token_type", int, where, [NORMAL] * len(names))
    if len(names) != len(types):
        raise ValueError(
            f"{where}: tokenizer.ggml.token_type must have {len(names)} elements, got {len(types)}"
        )
    used = next((i for i in range(len(types), 0, -1) if types[i - 1] != UNUSED), 0)  # the rest is padding

    def id_of(key: str, default: int | None) -> int:
        found = value_of(values, key, int, where, default)
        if not 0 <= found < used:
            raise ValueError(f"{where}: {key} must be in 0..{used - 1}, got {found}")
        return found

    end = id_of(ENDS[0], usual.get("eos"))
    ends = dict.fromkeys(id_of(key, end) for key in ENDS[1:])
    begins = value_of(values, "tokenizer.ggml.add_bos_token", bool, where, begins)
    begin = id_of("tokenizer.ggml.bos_token_id", usual.get("bos")) if begins else None
    seen: dict[str, int] = {}
    for i, (name, type) in enumerate(zip(names[:used], types, strict=False)):
        if type not in known:
            may = ", ".join(f"{TYPES[one]} ({one})" for one in known)
            what = f"{may}, or unused ({UNUSED}) at the end"
            raise ValueError(
                f"{where}: tokenizer.ggml.token_type of {name!r:.60} (id {i}) must be {what}, got {type}"
            )
        if seen.setdefault(name, i) != i:
            raise ValueError(f"{where}: tokenizer.ggml.tokens: {name!r:.60} is there twice")
    return Tokens(names[:used], types[:used], end, tuple(one for one in ends if one != end), begin)


def _vocabulary(values: Fields, tokens: Tokens, where: str) -> Vocabulary:
    """Return the vocabulary of a file without what makes its tokens."""
    how = value_of(values, "npgpt.normalizer", str, where, "none")
    check_cleaning(how, f"{where}: npgpt.normalizer", STEPS)
    special = tokens.special()
    names = {}
    for key, of in (("bos_token", "bos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        id = values.get(f"tokenizer.ggml.{of}_token_id")
        if isinstance(id, int) and 0 <= id < len(tokens.names) and tokens.names[id] in special:
            names[key] = tokens.names[id]
    added = (name for i, name in enumerate(tokens.names) if tokens.types[i] == USER_DEFINED)
    return Vocabulary(
        where=where,
        tokens={name: i for i, name in enumerate(tokens.names)},
        merges=[],
        special=special,
        end_of_text=tokens.names[tokens.end],
        words=False,
        normalizer=how,
        chat_template=value_of(values, "tokenizer.chat_template", str, where, "") or None,
        begin="" if tokens.begin is None else tokens.names[tokens.begin],
        unknown=names.get("unk_token", "") if values["tokenizer.ggml.model"] == SENTENCEPIECE else "",
        flags={name: Flags(special=False) for name in added if name not in special},
        names=names,
    )


def _read_merges(rules: list[str], key: str, special: dict[str, int], where: str) -> list[tuple[str, str]]:
    merges = []
    for rule in rules:
        at = rule.find(" ", 1)  # a token may be a blank
        if at < 0:
            raise ValueError(f"{where}: {key} must be pairs, got {rule!r:.60}")
        left, right = rule[:at], rule[at + 1 :]
        # Vocabularies without merges have one that does nothing, as other readers insist on some.
        if left not in special or right not in special:
            merges.append((left, right))
    return merges
