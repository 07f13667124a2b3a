"""Vocabularies on disk: Hugging Face's tokenizer.json, vocab.json with merges.txt, OpenAI's names for these.

A token is written there in printable characters, one for each byte (BYTE_CHARACTERS); GPT-1's are plain text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npgpt.engine.types import Fields, PathLike
from npgpt.text.cleaning import COMPOSE, STEPS
from npgpt.text.json_file import read_json
from npgpt.text.special_tokens import read_special_tokens

END_OF_TEXT = "<|endoftext|>"
END_OF_WORD = "</w>"  # GPT-1 marks the end of a word, GPT-2 the blank before it
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
BERT = {"clean_text": True, "handle_chinese_chars": True, "lowercase": True}  # what GPT-1's text goes through
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
    return Vocabulary(
        where=str(merges),
        tokens=tokens | more.ids,
        merges=pairs,
        special=special | more.ids,
        end_of_text=more.end_of_text,
        words=words,
        chat_template=more.chat_template,
    )


def _from_tokenizer_json(path: Path) -> Vocabulary:
    settings = read_json(path)
    model, added = settings.get("model"), settings.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"{path}: must hold a BPE model")
    words = model.get("end_of_word_suffix") == END_OF_WORD
    _check_supported(path, settings, model, words)
    tokens = _tokens(model.get("vocab"), path)
    merges = model.get("merges")
    if not (isinstance(merges, list) and isinstance(added, list)):
        raise ValueError(f"{path}: merges and added_tokens must be lists")
    rules = [rule.split(" ") if isinstance(rule, str) else rule for rule in merges]
    pairs = [_pair(rule, f"{path}: merge {n}") for n, rule in enumerate(rules)]
    more = read_special_tokens(path.parent, tokens, _plain(pairs), added, words)
    special, tokens = dict(more.ids), tokens | more.ids
    if END_OF_TEXT in tokens:  # special in every vocabulary that has it, marked or not
        special |= {END_OF_TEXT: tokens[END_OF_TEXT]}
    normalizer = "none" if words else _read_normalizer(settings) or "none"
    return Vocabulary(
        where=str(path),
        tokens=tokens,
        merges=pairs,
        special=special,
        end_of_text=more.end_of_text,
        words=words,
        normalizer=normalizer,
        chat_template=more.chat_template,
    )


def _read_normalizer(settings: Fields) -> str | None:
    """Return the cleaning that the normalizer of a tokenizer.json is; None for another."""
    found = settings.get("normalizer") if _steps(settings.get("normalizer"), "normalizers") else None
    return next((how for how in STEPS if _normalizer(how) == found), None)


def _plain(pairs: list[tuple[str, str]]) -> set[str]:
    """Return the tokens of which texts are made: bytes and what merges make and need."""
    return {*BYTE_CHARACTERS, *(token for left, right in pairs for token in (left, right, left + right))}


def _check_supported(path: Path, settings: Fields, model: Fields, words: bool) -> None:
    splits = settings.get("pre_tokenizer") or {}
    splits = splits if isinstance(splits, dict) else {"type": splits}
    normalizer = settings.get("normalizer") if _steps(settings.get("normalizer"), "normalizers") else None
    kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    bert = kind == "BertNormalizer" and isinstance(normalizer, dict) and normalizer | BERT == normalizer
    keys = "dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges", "fuse_unk"
    wrong = {key: model.get(key) for key in keys}
    decoder = settings.get("decoder") or {}
    decoders = {"BPEDecoder"} if words else {"ByteLevel"}
    wrong["decoder"] = not isinstance(decoder, dict) or decoder.get("type", *decoders) not in decoders
    wrong["post_processor"] = not all(
        map(_adds_nothing, _steps(settings.get("post_processor"), "processors"))
    )
    if words:
        wrong["normalizer"] = not bert
        wrong["pre_tokenizer"] = splits.get("type") != "BertPreTokenizer"
    else:
        wrong["normalizer"] = _read_normalizer(settings) is None
        wrong["end_of_word_suffix"] = model.get("end_of_word_suffix")
        wrong["pre_tokenizer"] = splits.get("type") != "ByteLevel" or not splits.get("use_regex", True)
        wrong["add_prefix_space"] = splits.get("add_prefix_space")
    if found := ", ".join(key for key, value in wrong.items() if value):
        raise ValueError(f"{path}: must split and merge as GPT-2 or GPT-1 does, but for {found}")


def _steps(step: object, key: str) -> list[Any]:
    """Return the steps of a normalizer or post-processor: a Sequence's, which are under `key`, or itself."""
    inner = step.get(key) if isinstance(step, dict) and step.get("type") == "Sequence" else None
    return inner if isinstance(inner, list) else [] if step is None else [step]


def _adds_nothing(step: Any) -> bool:
    """Return whether a step of a post-processor leaves a text's ids alone."""
    single = step.get("single") if isinstance(step, dict) else None  # of a TemplateProcessing
    return isinstance(step, dict) and (
        step.get("type") == "ByteLevel"
        or (
            isinstance(single, list)
            and len(single) == 1
            and isinstance(single[0], dict)
            and "Sequence" in single[0]
        )
    )


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
    """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into `folder`."""
    folder, words = Path(folder), vocabulary.words
    _write_json(folder / "tokenizer.json", _tokenizer_json(vocabulary))
    _write_json(folder / "vocab.json", vocabulary.tokens)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in vocabulary.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    kind = "OpenAIGPTTokenizer" if words else "GPT2Tokenizer"
    config: Fields = {"tokenizer_class": kind, "model_max_length": model_max_length}
    config["pad_token"] = pad_token(vocabulary)
    if words:
        config["unk_token"] = UNKNOWN
    else:
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), vocabulary.end_of_text)
        config |= names | {"add_prefix_space": False}
    if vocabulary.normalizer != "none":  # which GPT2Tokenizer drops; 4's general class adds token types
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = ["input_ids", "attention_mask"]
    if END_OF_TURN in vocabulary.special:
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in _added(vocabulary)}
    if template := chat_template_of(vocabulary):
        config["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", config)


def pad_token(vocabulary: Vocabulary) -> str:
    """Return the token that fills rows of unequal length: the first of PADS, else the end of text.

    Other programs leave padding out of the loss. So it is never the end of a turn where there is another.
    """
    return next(token for token in (*PADS, vocabulary.end_of_text) if token in vocabulary.special)


def chat_template_of(vocabulary: Vocabulary) -> str | None:
    """Return the chat template of a vocabulary: its files', or npgpt's own where it has the roles."""
    return vocabulary.chat_template or (CHAT_TEMPLATE if END_OF_TURN in vocabulary.special else None)


def _added(vocabulary: Vocabulary) -> list[Fields]:
    """Return the special tokens as the `tokenizers` library describes them, by id."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = sorted(vocabulary.special.items(), key=lambda item: item[1])
    return [{"id": i, "content": token, **flags, "special": True} for token, i in special]


def _tokenizer_json(vocabulary: Vocabulary) -> Fields:
    """Return tokenizer.json for the `tokenizers` library; each key is needed by one of its versions."""

    def byte_level(**options: bool) -> Fields:  # in the order that the library writes
        return {"type": "ByteLevel", **options, "use_regex": True}

    if vocabulary.words:
        steps = {
            "normalizer": {"type": "BertNormalizer", **BERT, "strip_accents": None},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": {"type": "BPEDecoder", "suffix": END_OF_WORD},
        }
    else:
        steps = {
            "normalizer": _normalizer(vocabulary.normalizer),
            "pre_tokenizer": byte_level(add_prefix_space=False, trim_offsets=True),
            "post_processor": byte_level(add_prefix_space=True, trim_offsets=False),
            "decoder": byte_level(add_prefix_space=True, trim_offsets=True),
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        **steps,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN if vocabulary.words else None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD if vocabulary.words else "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary.tokens,
            "merges": [" ".join(pair) for pair in vocabulary.merges],
        },
    }


def _normalizer(how: str) -> Fields | None:
    """Return a cleaning as the normalizer of a tokenizer.json."""

    def replace(pattern: str, instead: str) -> Fields:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": instead}

    steps = [{"type": "NFC"} if s is COMPOSE else replace(s.pattern, s.instead) for s in STEPS[how]]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
