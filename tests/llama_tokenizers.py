"""tokenizer.json files of Llama's kinds, trained by the `tokenizers` library on a small text."""

import json
from pathlib import Path
from typing import Any

BLANK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REPLACES = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
PREPENDS = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, REPLACES]}
BACK = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
DECODERS = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    """Return the pre-tokenizer that puts blanks before texts."""
    return {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": split}


def added(content: str, id: int, **flags: bool) -> dict[str, Any]:
    """Return an added token, a special one unless flags say otherwise."""
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {"id": id, "content": content, **usual, **flags}


def begins_with(name: str, id: int) -> dict[str, Any]:
    """Return the post-processor that puts a token before a text."""
    token, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [
        token,
        text,
        {"SpecialToken": {"id": name, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    known = {name: {"id": name, "ids": [id], "tokens": [name]}}
    return {"type": "TemplateProcessing", "single": [token, text], "pair": pair, "special_tokens": known}


def trained(texts: list[str], size: int, blanks: bool) -> tuple[list[str], list[list[str]]]:
    """Return (tokens, merges) of a BPE on texts: with blanks as U+2581, else on bytes."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    learner = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always") if blanks else level
    alphabet = [] if blanks else pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    )
    model = json.loads(learner.to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return names, [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]


def llama2(texts: list[str], size: int = 1200, **changes: Any) -> dict[str, Any]:
    """Return a tokenizer.json like Llama 2's; `changes` replace steps of it."""
    names, merges = trained(texts, size, blanks=True)
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *names]
    steps = {
        "normalizer": PREPENDS,
        "pre_tokenizer": None,
        "post_processor": begins_with("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [*DECODERS, STRIP]},
    }
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": merges}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}}
    special = [added(token, i) for i, token in enumerate(tokens[:3])]
    return {"version": "1.0", "added_tokens": special, **steps, "model": model} | changes


def llama3(texts: list[str], size: int = 1200, **changes: Any) -> dict[str, Any]:
    """Return a tokenizer.json like Llama 3's; `changes` replace steps of it."""
    names, merges = trained(texts, size, blanks=False)
    n = len(names)
    special = [
        added(name, n + i) for i, name in enumerate(("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    ]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    level = LEVEL | {"use_regex": False}
    steps = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "Sequence", "processors": [level, begins_with("<|begin_of_text|>", n)]},
        "decoder": level | {"use_regex": True},
    }
    model = {"type": "BPE", "ignore_merges": True, "merges": merges}
    model |= {"vocab": {token: i for i, token in enumerate(names)}}
    return {"version": "1.0", "added_tokens": special, **steps, "model": model} | changes


def write(folder: Path, file: dict[str, Any], **config: Any) -> Path:
    """Write a folder of a tokenizer.json -> its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
