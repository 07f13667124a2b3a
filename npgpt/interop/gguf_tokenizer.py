"""The tokenizer inside a GGUF file, the keys that begin with tokenizer: read and written.

The rules are those of docs/formats.md, which vocabulary.cpp of libnpgpt holds too.
"""

from npgpt.engine.types import Fields
from npgpt.interop.gguf_values import array_of, value_of
from npgpt.text.cleaning import check_cleaning
from npgpt.text.load import tokenizer_of
from npgpt.text.tokenizer import Tokenizer
from npgpt.text.tokenizer_json import Vocabulary, chat_template_of, pad_token

NORMAL, UNKNOWN, CONTROL, UNUSED = 1, 2, 3, 5  # of tokenizer.ggml.token_type
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))  # of text, turn, message
# Keys behind "tokenizer.ggml." that change the ids of a text, unless they are false
ADDITIONS = (
    *("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix"),
    *("remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"),
)


def tokenizer_values(tokenizer: Tokenizer | None, arch: str, vocab_size: int) -> Fields:
    """Return the keys of a tokenizer, or of none; ValueError for one that GGUF cannot hold."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": vocab_size}
    vocabulary = tokenizer.vocabulary
    if vocabulary.words:
        raise ValueError("write_gguf: tokenizer must be of bytes or byte-level BPE, got GPT-1's")
    if len(tokenizer.ends) > len(ENDS):
        raise ValueError(f"write_gguf: tokenizer must have at most {len(ENDS)} ends, got {tokenizer.ends}")
    tokens = sorted(vocabulary.tokens, key=vocabulary.tokens.__getitem__)
    types = [CONTROL if token in vocabulary.special else NORMAL for token in tokens]
    padding = [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    more = {"tokenizer.chat_template": template} if (template := chat_template_of(vocabulary)) else {}
    if vocabulary.normalizer != "none":  # read by npgpt alone
        more["npgpt.normalizer"] = vocabulary.normalizer
    return more | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": types + [UNUSED] * len(padding),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
        "tokenizer.ggml.bos_token_id": tokenizer.end_of_text,
        **dict(zip(ENDS, tokenizer.ends, strict=False)),
        "tokenizer.ggml.padding_token_id": vocabulary.tokens[pad_token(vocabulary)],
    }


def tokenizer_from(values: Fields, where: str) -> Tokenizer | None:
    """Return the tokenizer of a file's keys, None where it has none; ValueError for what is wrong."""
    kind = value_of(values, "tokenizer.ggml.model", str, where)
    if kind == "no_vocab":
        return None
    pre = values.get("tokenizer.ggml.pre", "gpt-2")
    if (kind, pre) != ("gpt2", "gpt-2"):
        raise ValueError(f"{where}: tokenizer.ggml.model must be gpt2, with pre gpt-2, got {kind!r}, {pre!r}")
    for key in (f"tokenizer.ggml.{name}" for name in ADDITIONS):
        if value_of(values, key, bool, where, False):
            raise ValueError(f"{where}: {key} must be false")
    if "tokenizer.ggml.suppress_tokens" in values:
        raise ValueError(f"{where}: tokenizer.ggml.suppress_tokens must be left out")
    names: list[str] = array_of(values, "tokens", str, where)
    merges: list[str] = array_of(values, "merges", str, where)
    types: list[int] = array_of(values, "token_type", int, where, [NORMAL] * len(names))
    if len(names) != len(types):
        raise ValueError(
            f"{where}: tokenizer.ggml.token_type must have {len(names)} elements, got {len(types)}"
        )
    end = value_of(values, ENDS[0], int, where)
    ends = [end, *(value_of(values, key, int, where, end) for key in ENDS[1:])]
    used = next((i for i in range(len(types), 0, -1) if types[i - 1] != UNUSED), 0)  # the rest is padding
    for key, one in zip(ENDS, ends, strict=True):
        if not 0 <= one < used:
            raise ValueError(f"{where}: {key} must be in 0..{used - 1}, got {one}")
    tokens: dict[str, int] = {}
    for i, (name, type) in enumerate(zip(names[:used], types, strict=False)):
        if type not in (NORMAL, UNKNOWN, CONTROL):
            what = "normal (1), unknown (2) or control (3), or unused (5) at the end"
            raise ValueError(
                f"{where}: tokenizer.ggml.token_type of {name!r:.60} (id {i}) must be {what}, got {type}"
            )
        if tokens.setdefault(name, i) != i:
            raise ValueError(f"{where}: tokenizer.ggml.tokens: {name!r:.60} is there twice")
    special = {name: i for name, i in tokens.items() if types[i] in (UNKNOWN, CONTROL) or i == end}
    rules = []
    for rule in merges:
        left, blank, right = rule.partition(" ")
        if not blank:
            raise ValueError(f"{where}: tokenizer.ggml.merges must be pairs, got {rule!r:.60}")
        if left not in special or right not in special:
            rules.append((left, right))
    how = value_of(values, "npgpt.normalizer", str, where, "none")
    check_cleaning(how, f"{where}: npgpt.normalizer")
    template = value_of(values, "tokenizer.chat_template", str, where, "") or None
    tokenizer = tokenizer_of(Vocabulary(where, tokens, rules, special, names[end], False, how, template))
    tokenizer.more_ends = tuple(dict.fromkeys(one for one in ends if one != end))
    return tokenizer
