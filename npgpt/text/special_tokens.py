"""What a folder says of its tokenizer beside the vocabulary: special tokens, end of text, chat template.

It is read as Transformers does: tokenizer_config.json with added_tokens_decoder says it all; without that key
added_tokens.json counts too, and special_tokens_map.json comes first. What npgpt does not do is refused.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.engine.types import Fields
from npgpt.text.added_tokens import Flags
from npgpt.text.json_file import read_json, read_json_if_any

# In this order Transformers appends those that the vocabulary lacks.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
CLASSES = (
    "GPT2Tokenizer",
    "OpenAIGPTTokenizer",
    "GPTNeoXTokenizer",
    "PreTrainedTokenizer",
    "TokenizersBackend",
)
CLASSES_OF_FILE = ("LlamaTokenizer", "Qwen2Tokenizer")  # beside a tokenizer.json, which says what they do


class AddedToken(NamedTuple):
    """A token that a file adds or names; id -1 where it only names it."""

    name: str
    id: int
    flags: Flags


class SpecialTokens(NamedTuple):
    """The special tokens of a folder, and how it writes a conversation with them."""

    ids: dict[str, int]
    end_of_text: str  # as a file names it; "" where none does
    chat_template: str | None
    others: dict[str, int]  # the added tokens that are not special
    flags: dict[str, Flags]  # of all that are not just special
    names: dict[str, str]  # bos_token, pad_token, ... -> the token
    begins: bool  # each text begins with the bos_token
    scores: list[float]  # of SentencePiece's tokens, which npgpt has put there


def read_special_tokens(
    folder: Path, tokens: dict[str, int], plain: set[str], added: list[Any] | None, words: bool
) -> SpecialTokens:
    """Return the special tokens beside those of the vocabulary `tokens`, of which `plain` can be spelt.

    `added` are the added_tokens of tokenizer.json, None where there is no such file. ValueError for what
    changes ids in a way that npgpt does not follow, and for malformed files.
    """
    path = folder / "tokenizer_config.json"
    config = read_json_if_any(path)
    _check_config(path, config, added is not None, words)
    named = dict(_named(path, config))
    found: list[tuple[Path, Any]] = [(folder / "tokenizer.json", token) for token in added or []]
    later: list[tuple[Path, Any]] = []
    if config.get("added_tokens_decoder") is not None:
        later = [(path, token) for token in _decoder(path, config["added_tokens_decoder"])]
    else:
        if (path := folder / "special_tokens_map.json").exists():
            listed = any(config.get(key) for key in LISTS)  # then the map's list does not count
            named |= {
                key: token for key, token in _named(path, read_json(path)) if key in NAMES or not listed
            }
        if (path := folder / "added_tokens.json").exists():
            found += [(path, token) for token in _added(path, {token.name for token in named.values()})]
    known: dict[str, AddedToken] = {}
    for path, token in found:
        _add(known, _checked(path, token), path)
    decoded = [(path, _checked(path, token)) for path, token in later]
    ids = {one.name: one.id for one in (*known.values(), *(one for _, one in decoded))}
    for key, named_token in named.items():
        name = named_token.name
        if name in plain:
            raise ValueError(f"{folder}: {key} must be a token that no text spells, got {name!r}")
        ids[name] = ids[name] if name in ids else tokens.get(name, len(tokens.keys() | ids.keys()))
        known[name] = named_token._replace(id=ids[name])
    for path, one in decoded:
        _add(known, one, path)
    names = {key: token.name for key, token in named.items() if key in NAMES}
    return _sorted(known, names, config, folder)


def _add(known: dict[str, AddedToken], one: AddedToken, path: Path) -> None:
    """Put a token in the place of another of its name; ValueError for another id."""
    if known.get(one.name, one).id != one.id:
        raise ValueError(f"{path}: the added token {one.name!r} must have one id, got {one.id} and another")
    named = one.name in known and known[one.name].flags.special
    known[one.name] = one._replace(flags=one.flags._replace(special=True)) if named else one


def _sorted(
    known: dict[str, AddedToken], names: dict[str, str], config: Fields, folder: Path
) -> SpecialTokens:
    special = {name: one.id for name, one in known.items() if one.flags.special}
    own = config.get("npgpt")
    scores = own.get("scores", []) if isinstance(own, dict) else []
    if not (
        isinstance(scores, list)
        and all(type(score) in (int, float) and abs(score) <= sys.float_info.max for score in scores)
    ):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: scores of npgpt must be numbers, got {scores!r:.60}"
        )
    return SpecialTokens(
        ids=special,
        end_of_text=names.get("eos_token", ""),
        chat_template=_chat_template(folder, config),
        others={name: one.id for name, one in known.items() if name not in special},
        flags={name: one.flags for name, one in known.items() if one.flags != Flags()},
        names={key: name for key, name in names.items() if key in ("bos_token", "unk_token", "pad_token")},
        begins=bool(config.get("add_bos_token")),
        scores=scores,
    )


def _chat_template(folder: Path, config: Fields) -> str | None:
    """Return the chat template of a folder: a file of its own, or a key; of several the one named default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: must be UTF-8, got {error}") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default", "")
    if not isinstance(found, str | None):
        what = "a template, or a list of templates with names"
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: chat_template must be {what}, got {found!r:.60}"
        )
    return found or None


def _check_config(path: Path, config: Fields, complete: bool, words: bool) -> None:
    """Raise ValueError for what tokenizer_config.json adds to a text; `complete`: beside a tokenizer.json."""
    kind = config.get("tokenizer_class") or CLASSES[0]
    known = CLASSES + CLASSES_OF_FILE * complete
    if not isinstance(kind, str) or kind.removesuffix("Fast") not in known:
        raise ValueError(f"{path}: tokenizer_class must be one of {', '.join(known)}, got {kind!r:.60}")
    # Beside a tokenizer.json, whose post-processor decides, Transformers does not look at add_bos_token.
    keys = ["split_special_tokens"] + ["add_eos_token"] * (not complete)
    keys += ["add_prefix_space"] * (not words and kind.removesuffix("Fast") != "LlamaTokenizer")
    for key in keys:
        if config.get(key):
            raise ValueError(f"{path}: {key} must be false, got {config[key]!r:.60}")


def _named(path: Path, settings: Fields) -> Iterator[tuple[str, AddedToken]]:
    """Yield (key, token) of the special tokens that a file names, its lists one by one."""
    for key in NAMES:
        if settings.get(key) is not None:
            yield key, _content(path, key, settings[key])
    for key in LISTS:
        tokens = settings.get(key) or []
        tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
        if not isinstance(tokens, list):
            raise ValueError(f"{path}: {key} must be a list of tokens, got {tokens!r:.60}")
        for token in tokens:
            named = _content(path, key, token)
            yield f"{key}: {named.name}", named


def _content(path: Path, key: str, token: object) -> AddedToken:
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: {key} must be a token, got {token!r:.60}")
    flags = _flags(path, name, token | {"special": True}) if isinstance(token, dict) else Flags()
    return AddedToken(name, -1, flags)


def _flags(path: Path, name: str, token: Fields) -> Flags:
    """Return the flags of a token; ValueError for one that is neither true nor false."""
    special = token.get("special", False)
    usual = Flags(special=False)._asdict() | {"normalized": not special}
    flags: dict[str, Any] = {key: token.get(key, value) for key, value in usual.items()}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{path}: {key} of the token {name!r} must be true or false, got {value!r:.60}")
    return Flags(**flags)


def _checked(path: Path, token: Any) -> AddedToken:
    """Return an added token of a file."""
    if not (isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token):
        raise ValueError(f"{path}: an added token must have content and id, got {token!r:.200}")
    name, number = token["content"], token["id"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{path}: the id of {name!r} must be a whole number, got {number!r:.60}")
    return AddedToken(name, number, _flags(path, name, token))


def _decoder(path: Path, tokens: Any) -> Iterator[Fields]:
    """Yield added_tokens_decoder's tokens as tokenizer.json has them."""
    try:
        pairs = [(int(i), token | {"content": "" + token["content"]}) for i, token in tokens.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: added_tokens_decoder must map ids to tokens, got {tokens!r:.60}") from None
    for i, token in pairs:
        yield token | {"id": i}


def _added(path: Path, named: set[str]) -> Iterator[Fields]:
    """Yield added_tokens.json's tokens as tokenizer.json has them; those that are named are special."""
    for name, number in read_json(path).items():
        yield {"id": number, "content": name, "special": name in named}
