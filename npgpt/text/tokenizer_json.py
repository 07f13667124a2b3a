"""Vocabularies on disk: Hugging Face's tokenizer.json, vocab.json with merges.txt, OpenAI's names for these.

A token is written there in printable characters, one for each byte (BYTE_CHARACTERS); GPT-1's are plain text.
"""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npgpt.engine.types import Fields, PathLike
from npgpt.text.added_tokens import Flags
from npgpt.text.json_file import read_json
from npgpt.text.pipeline import END_OF_WORD as END_OF_WORD
from npgpt.text.pipeline import Pipeline, read_pipeline, steps_of, steps_of_words
from npgpt.text.special_tokens import SpecialTokens, read_special_tokens
from npgpt.text.spm import BLANK, BYTE_NAMES, Pieces, merges_by_score

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
ROLES = ("system", "user", "assistant")
END_OF_TURN = "<|end|>"
CHAT_TOKENS = (*(f"<|{role}|>" for role in ROLES), END_OF_TURN)
PADS = ("<pad>", "[PAD]", END_OF_TEXT, UNKNOWN)  # special tokens that may pad
CHAT_TEMPLATE = (  # encode_chat of examples.py, in Jinja
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _byte_characters() -> list[str]:
    """Return GPT-2's printable character for each byte: itself where it prints, else the next from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
PAIRS_OF_FILES = (  # vocabulary, merges
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as its files hold it: their format is checked, their contents are not."""

    where: str  # its file, for errors
    tokens: dict[str, int]  # token -> id, special ones too
    merges: list[tuple[str, str]]
    special: dict[str, int]
    end_of_text: str  # as tokenizer_config.json names it; "" where it does not
    words: bool  # GPT-1's: merges work on words that end in </w>
    normalizer: str = "none"  # how text is cleaned before encoding, a key of STEPS; GPT-1 has its own way
    chat_template: str | None = None  # in Jinja, as the files of another's model have it
    split: str = "gpt-2"  # how byte-level BPE makes pretokens, one of bpe.PATTERNS
    whole_pieces: bool = False  # a pretoken that is a token becomes it, whatever the merges make of it
    begin: str = ""  # the special token with which each text begins; "" for none
    unknown: str = ""  # the special token of what has none; "": it is left out
    flags: dict[str, Flags] = field(default_factory=dict)  # of added tokens that are not just special
    names: dict[str, str] = field(
        default_factory=dict
    )  # bos_token, pad_token: what files call special tokens
    pieces: Pieces | None = None  # SentencePiece's BPE

    def beyond_gpt2(self) -> list[Any]:
        """Return what ids depend on, but for tokens, merges and special tokens, where it is not GPT-2's."""
        names = "split", "whole_pieces", "begin", "unknown", "flags", "pieces"
        usual = Vocabulary("", {}, [], {}, "", words=False)
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
        if self.pieces:
            values["pieces"] = [*dataclasses.astuple(self.pieces)]
        return [values] if values else []


def read_vocabulary(path: PathLike) -> Vocabulary:
    """Return the vocabulary of a folder or of one of its files.

    FileNotFoundError where there is none, ValueError for files that are faulty or of another kind.
    """
    if path == "":
        raise ValueError("the path of a tokenizer must not be empty")
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / "tokenizer.json").exists():
        return _from_tokenizer_json(path / "tokenizer.json")
    for pair in PAIRS_OF_FILES:
        if path.name in pair or (path.is_dir() and (path / pair[0]).exists()):
            return read_pair(folder / pair[0], folder / pair[1])
    if path.suffix == ".json" and path.exists():
        return _from_tokenizer_json(path)
    names = "tokenizer.json, " + " or ".join(" with ".join(pair) for pair in PAIRS_OF_FILES)
    raise FileNotFoundError(2, f"holds no tokenizer ({names})", str(path))


def read_pair(vocabulary: PathLike, merges: PathLike) -> Vocabulary:
    """Return the vocabulary of a JSON file of token -> id and a file of merges, one per line."""
    vocabulary, merges = Path(vocabulary), Path(merges)
    tokens = _tokens(read_json(vocabulary), vocabulary)
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges}: must be UTF-8, got {error}") from None
    lines = [line.rstrip("\r") for line in lines]
    first = int(lines[0].startswith("#version"))
    pairs = [
        _pair(line.split(" "), f"{merges}: line {n}") for n, line in enumerate(lines, 1) if n > first and line
    ]
    words = UNKNOWN in tokens and any(token.endswith(END_OF_WORD) for token in tokens)
    named = UNKNOWN if words else END_OF_TEXT
    special = {named: tokens[named]} if named in tokens else {}
    more = read_special_tokens(merges.parent, tokens, _plain(pairs), None, words)
    special |= more.ids
    begin = more.names.get("bos_token", END_OF_TEXT) if more.begins and not words else ""
    if begin and begin not in special:
        raise ValueError(f"{merges.parent}: add_bos_token needs a bos_token that is there, got {begin!r}")
    return Vocabulary(
        where=str(merges),
        tokens=tokens | more.ids | more.others,
        merges=pairs,
        special=special,
        end_of_text=more.end_of_text,
        words=words,
        chat_template=more.chat_template,
        begin=begin,
        flags=_needed_flags(more, "none", ""),
        names=more.names,
    )


def _from_tokenizer_json(path: Path) -> Vocabulary:
    settings = read_json(path)
    model, added = settings.get("model"), settings.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"{path}: must hold a BPE model")
    words = model.get("end_of_word_suffix") == END_OF_WORD
    steps = read_pipeline(path, settings, words)
    tokens = _tokens(model.get("vocab"), path)
    merges = model.get("merges")
    if not (isinstance(merges, list) and isinstance(added, list)):
        raise ValueError(f"{path}: merges and added_tokens must be lists")
    rules = [rule.split(" ") if isinstance(rule, str) else rule for rule in merges]
    pairs = [_pair(rule, f"{path}: merge {n}") for n, rule in enumerate(rules)]
    more = read_special_tokens(path.parent, tokens, _plain(pairs, bool(steps.prefix)), added, words)
    special, tokens = dict(more.ids), tokens | more.ids | more.others
    if END_OF_TEXT in tokens and END_OF_TEXT not in more.others:  # special in every vocabulary, marked or not
        special |= {END_OF_TEXT: tokens[END_OF_TEXT]}
    if steps.begin and special.get(steps.begin) != steps.begin_id:
        what = f"put a special token before a text, with its id, got {steps.begin!r} and {steps.begin_id}"
        raise ValueError(f"{path}: post_processor must {what}")
    vocabulary = Vocabulary(
        where=str(path),
        tokens=tokens,
        merges=pairs,
        special=special,
        end_of_text=more.end_of_text,
        words=words,
        normalizer=steps.normalizer,
        chat_template=more.chat_template,
        split=steps.split,
        begin=steps.begin,
        flags=_needed_flags(more, steps.normalizer, steps.prefix),
        names=more.names,
    )
    return vocabulary if words else _with_model(vocabulary, path, model, steps, more.scores)


def _needed_flags(more: SpecialTokens, normalizer: str, prefix: str) -> dict[str, Flags]:
    """Return the flags of added tokens, without `normalized` where nothing is and all are alike in it."""
    kinds = {more.flags.get(name, Flags()).normalized for name in (*more.ids, *more.others)}
    if normalizer != "none" or prefix == "prepend" or len(kinds) > 1:
        return more.flags
    flags = {name: of._replace(normalized=False) for name, of in more.flags.items()}
    return {name: of for name, of in flags.items() if of != Flags()}


def _with_model(v: Vocabulary, path: Path, model: Fields, steps: Pipeline, scores: list[float]) -> Vocabulary:
    """Return the vocabulary with what the model of a tokenizer.json says of unknown and whole pieces."""
    unknown = model.get("unk_token") or ""
    if not steps.prefix and all(character in v.tokens for character in BYTE_CHARACTERS):
        unknown = ""  # there is nothing unknown
    if unknown and unknown not in v.special:
        raise ValueError(f"{path}: unk_token must be a special token, got {unknown!r:.60}")
    whole, fuse = bool(model.get("ignore_merges")), bool(model.get("fuse_unk"))
    if not steps.prefix:
        if unknown and fuse:
            raise ValueError(f"{path}: fuse_unk must be false where bytes have no tokens")
        return replace(v, unknown=unknown, whole_pieces=whole)
    by_bytes = bool(model.get("byte_fallback"))
    known = sum(name in v.tokens and name not in v.special for name in BYTE_NAMES)
    if by_bytes and 0 < known < 256:
        raise ValueError(f"{path}: there must be tokens for all bytes or for none, got {known}")
    if whole:
        raise ValueError(f"{path}: ignore_merges must be false beside {BLANK!r} for a blank")
    if scores and len(scores) != len(v.tokens):
        raise ValueError(f"{path}: there must be {len(v.tokens)} scores in npgpt, got {len(scores)}")
    pieces = Pieces(steps.prefix, steps.words, tuple(scores), fuse, by_bytes)
    return replace(v, unknown=unknown, pieces=pieces, merges=[] if scores else v.merges)


def _plain(pairs: list[tuple[str, str]], blanks: bool = False) -> set[str]:
    """Return the tokens of which texts are made: bytes and what merges make and need."""
    made = {token for left, right in pairs for token in (left, right, left + right)}
    return made if blanks else made | {*BYTE_CHARACTERS}


def _tokens(table: object, path: PathLike) -> dict[str, int]:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: must map tokens to ids, got {type(table).__name__}")
    for token, number in table.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{path}: the id of {token!r} must be a whole number, got {number!r}")
    return table


def _pair(rule: object, where: str) -> tuple[str, str]:
    if not (isinstance(rule, list) and len(rule) == 2 and all(isinstance(r, str) and r for r in rule)):
        raise ValueError(f"{where} must be two tokens, got {rule!r}")
    return rule[0], rule[1]


def write_vocabulary(folder: PathLike, vocabulary: Vocabulary, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`; for GPT-2's kind vocab.json, merges.txt.

    Transformers' own classes of GPT-2 and Llama make the steps around the merges themselves, so they are
    named only where these are GPT-2's.
    """
    folder, v = Path(folder), vocabulary
    plain = v.words or (v.normalizer == "none" and not v.beyond_gpt2())
    _write_json(folder / "tokenizer.json", _tokenizer_json(v))
    if v.words or not v.beyond_gpt2():
        _write_json(folder / "vocab.json", v.tokens)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in v.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    kind = "OpenAIGPTTokenizer" if v.words else "GPT2Tokenizer" if plain else "PreTrainedTokenizerFast"
    config: Fields = {
        "tokenizer_class": kind,
        "model_max_length": model_max_length,
        "pad_token": pad_token(v),
    }
    if v.words:
        config["unk_token"] = UNKNOWN
    else:
        named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), v.end_of_text) | v.names
        config |= named | {"eos_token": v.end_of_text, "add_prefix_space": False}
    if v.unknown:
        config["unk_token"] = v.unknown
    if not plain:  # 4's general class adds token types
        config["model_input_names"] = ["input_ids", "attention_mask"]
    if END_OF_TURN in v.special or v.beyond_gpt2():
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in _added(v)}
    if template := chat_template_of(v):
        config["chat_template"] = template
    if v.pieces and v.pieces.scores:
        config["npgpt"] = {"scores": v.pieces.scores}  # which a tokenizer.json cannot hold
    _write_json(folder / "tokenizer_config.json", config)


def pad_token(vocabulary: Vocabulary) -> str:
    """Return the token that fills rows of unequal length: its files', the first of PADS, or the end of text.

    Other programs leave padding out of the loss. So it is never the end of a turn where there is another.
    """
    named = vocabulary.names.get("pad_token", "")
    return next(token for token in (named, *PADS, vocabulary.end_of_text) if token in vocabulary.special)


def chat_template_of(vocabulary: Vocabulary) -> str | None:
    """Return the chat template of a vocabulary: its files', or npgpt's own where it has the roles."""
    return vocabulary.chat_template or (CHAT_TEMPLATE if END_OF_TURN in vocabulary.special else None)


def _added(vocabulary: Vocabulary) -> list[Fields]:
    """Return the added tokens as the `tokenizers` library describes them, by id."""
    names = vocabulary.special | {name: vocabulary.tokens[name] for name in vocabulary.flags}
    found = []
    for name, i in sorted(names.items(), key=lambda item: item[1]):
        flags = vocabulary.flags.get(name, Flags())._asdict()
        order = ("single_word", "lstrip", "rstrip", "normalized", "special")
        found.append({"id": i, "content": name} | {flag: flags[flag] for flag in order})
    return found


def _tokenizer_json(v: Vocabulary) -> Fields:
    """Return tokenizer.json for the `tokenizers` library; each key is needed by one of its versions."""
    pieces, merges = v.pieces, v.merges
    prefix, words = (pieces.prefix, pieces.words) if pieces else ("", False)
    steps = Pipeline(v.normalizer, v.split, v.begin, v.tokens.get(v.begin, -1), prefix, words)
    if pieces and pieces.scores:
        merges = merges_by_score(v.tokens, {*v.special, *v.flags}, pieces.scores)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(v),
        **(steps_of_words() if v.words else steps_of(steps)),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN if v.words else v.unknown or None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD if v.words else "",
            "fuse_unk": bool(pieces and pieces.fuse_unknown),
            "byte_fallback": bool(pieces and pieces.bytes),
            "ignore_merges": v.whole_pieces,
            "vocab": v.tokens,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
