"""What a folder says of its tokenizer beside the vocabulary: special tokens, end of text, chat template.

It is read as Transformers does: tokenizer_config.json with added_tokens_decoder says it all; without that key
added_tokens.json counts too, and special_tokens_map.json comes first. What npgpt does not do is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from npgpt.engine.types import Fields
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
FLAGS = ("lstrip", "rstrip", "single_word")


class SpecialTokens(NamedTuple):
    """The special tokens of a folder, and how it writes a conversation with them."""

    ids: dict[str, int]
    end_of_text: str  # as a file names it; "" where none does
    chat_template: str | None


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
    if config.get("added_tokens_decoder") is not None:
        found += [(path, token) for token in _decoder(path, config["added_tokens_decoder"])]
    else:
        if (path := folder / "special_tokens_map.json").exists():
            listed = any(config.get(key) for key in LISTS)  # then the map's list does not count
            named |= {key: name for key, name in _named(path, read_json(path)) if key in NAMES or not listed}
        if (path := folder / "added_tokens.json").exists():
            found += [(path, token) for token in _added(path, named)]
    special: dict[str, int] = {}
    for path, token in found:
        name, number = _checked(path, token)
        if special.setdefault(name, number) != number:
            raise ValueError(f"{path}: the added token {name!r} must have one id, got {number} and another")
    for key, name in named.items():
        if name in plain:
            raise ValueError(f"{folder}: {key} must be a token that no text spells, got {name!r}")
        if name not in special:
            special[name] = tokens.get(name, len(tokens.keys() | special.keys()))
    return SpecialTokens(special, named.get("eos_token", ""), _chat_template(folder, config))


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
    if not isinstance(kind, str) or kind.removesuffix("Fast") not in CLASSES:
        raise ValueError(f"{path}: tokenizer_class must be one of {', '.join(CLASSES)}, got {kind!r:.60}")
    # Beside a tokenizer.json, whose post-processor decides, Transformers does not look at these two.
    keys = ["split_special_tokens"] + ["add_bos_token", "add_eos_token"] * (not complete)
    for key in keys + ["add_prefix_space"] * (not words):
        if config.get(key):
            raise ValueError(f"{path}: {key} must be false, got {config[key]!r:.60}")


def _named(path: Path, settings: Fields) -> Iterator[tuple[str, str]]:
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
            name = _content(path, key, token)
            yield f"{key}: {name}", name


def _content(path: Path, key: str, token: object) -> str:
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: {key} must be a token, got {token!r:.60}")
    if isinstance(token, dict):
        _check_flags(path, name, token)
    return name


def _check_flags(path: Path, name: str, token: Fields) -> None:
    for flag in FLAGS:
        if token.get(flag):
            raise ValueError(f"{path}: {flag} of the token {name!r} must be false")


def _checked(path: Path, token: Any) -> tuple[str, int]:
    """Return content and id of an added token, which must be special and match as it stands."""
    if not (isinstance(token, dict) and isinstance(token.get("content"), str) and "id" in token):
        raise ValueError(f"{path}: an added token must have content and id, got {token!r:.200}")
    name, number = token["content"], token["id"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{path}: the id of {name!r} must be a whole number, got {number!r:.60}")
    if not token.get("special"):
        raise ValueError(f"{path}: the added token {name!r} must be special")
    _check_flags(path, name, token)
    return name, number


def _decoder(path: Path, tokens: Any) -> Iterator[Fields]:
    """Yield added_tokens_decoder's tokens as tokenizer.json has them."""
    try:
        pairs = [(int(i), token | {"content": "" + token["content"]}) for i, token in tokens.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: added_tokens_decoder must map ids to tokens, got {tokens!r:.60}") from None
    for i, token in pairs:
        yield token | {"id": i}


def _added(path: Path, named: dict[str, str]) -> Iterator[Fields]:
    """Yield added_tokens.json's tokens as tokenizer.json has them; those that are named are special."""
    for name, number in read_json(path).items():
        yield {"id": number, "content": name, "special": name in named.values()}
