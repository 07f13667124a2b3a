"""The steps of a tokenizer.json around its merges: normalizer, pre_tokenizer, post_processor, decoder.

What the `tokenizers` library calls them is read into a Pipeline, and written of a vocabulary. A step that is
not known is refused by name.
"""

from pathlib import Path
from typing import Any, NamedTuple

from npgpt.engine.types import Fields
from npgpt.text.cleaning import COMPOSE, STEPS
from npgpt.text.spm import BLANK, PREFIXES

BERT = {"clean_text": True, "handle_chinese_chars": True, "lowercase": True}  # what GPT-1's text goes through
END_OF_WORD = "</w>"  # GPT-1 marks the end of a word, GPT-2 the blank before it
KNOWN = "as GPT-1, GPT-2, SmolLM2, Llama 2, Llama 3 or Qwen2 does"

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
LLAMA3 = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEXES = {  # of the pre-tokenizer Split -> one of bpe.PATTERNS
    rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+": "gpt-2",
    LLAMA3: "llama-bpe",
    LLAMA3.replace("{1,3}", ""): "qwen2",
}
DIGITS = {"type": "Digits", "individual_digits": True}


class Pipeline(NamedTuple):
    """What the steps do."""

    normalizer: str = "none"  # a key of STEPS
    split: str = "gpt-2"  # of byte-level BPE, one of bpe.PATTERNS
    begin: str = ""  # the token that is put before a text, and its id
    begin_id: int = -1
    prefix: str = ""  # of SentencePiece's BPE, one of PREFIXES; "" for byte-level BPE
    words: bool = False  # of SentencePiece's BPE: each blank begins a piece


def read_pipeline(path: Path, settings: Fields, words: bool) -> Pipeline:
    """Return the steps of a tokenizer.json; words: it is GPT-1's. ValueError that names all unknown steps."""
    model: Fields = settings["model"]
    wrong = {key: model.get(key) for key in ("dropout", "continuing_subword_prefix")}
    begin = _begin(settings.get("post_processor"))
    wrong["post_processor"] = begin is None or (words and begin)
    if words:
        found = Pipeline()
        bert = settings.get("normalizer")
        wrong |= {key: model.get(key) for key in ("byte_fallback", "ignore_merges", "fuse_unk")}
        wrong["normalizer"] = not (
            isinstance(bert, dict) and bert.get("type") == "BertNormalizer" and bert | BERT == bert
        )
        wrong["pre_tokenizer"] = _kinds(settings.get("pre_tokenizer"), "pretokenizers") != [
            "BertPreTokenizer"
        ]
        wrong["decoder"] = _kinds(settings.get("decoder"), "decoders") not in ([], ["BPEDecoder"])
    elif (spm := _sentencepiece(settings)) is not None:
        found, wrong = spm[0], wrong | spm[1] | {"end_of_word_suffix": model.get("end_of_word_suffix")}
    else:
        found, more = _byte_level(settings)
        wrong |= more | {key: model.get(key) for key in ("byte_fallback", "end_of_word_suffix")}
    if names := ", ".join(key for key, value in wrong.items() if value):
        raise ValueError(f"{path}: must split and merge {KNOWN}, but for {names}")
    return found._replace(begin=begin[0], begin_id=begin[1]) if begin else found


def _byte_level(settings: Fields) -> tuple[Pipeline, Fields]:
    """Return (the steps of byte-level BPE, {what is wrong with them: True})."""
    splits = _steps(settings.get("pre_tokenizer"), "pretokenizers")
    normalizer, split = _read_normalizer(settings), _split(splits)
    wrong: Fields = {
        "normalizer": normalizer is None,
        "pre_tokenizer": split is None,
        "add_prefix_space": any(isinstance(s, dict) and s.get("add_prefix_space") for s in splits),
        "decoder": _kinds(settings.get("decoder"), "decoders") not in ([], ["ByteLevel"]),
    }
    return Pipeline(normalizer or "none", split or "gpt-2"), wrong


def _split(steps: list[Any]) -> str | None:
    """Return the pattern by which these pre-tokenizers split, None for another."""
    steps = [step if isinstance(step, dict) else {"type": step} for step in steps]
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    by_regex = steps.pop().get("use_regex", True)
    if not steps:
        return "gpt-2" if by_regex else None
    first = steps.pop()
    if steps:
        return None
    if by_regex:
        return "smollm" if first == DIGITS else None
    pattern = first.get("pattern")
    isolated = first.get("behavior") == "Isolated" and not first.get("invert")
    if first.get("type") != "Split" or not isolated or not isinstance(pattern, dict):
        return None
    regex = pattern.get("Regex")
    return REGEXES.get(regex) if isinstance(regex, str) else None


def _read_normalizer(settings: Fields) -> str | None:
    """Return the cleaning that the normalizer of a tokenizer.json is; None for another."""
    steps = _steps(settings.get("normalizer"), "normalizers")
    return next((how for how in STEPS if _steps(_normalizer(how), "normalizers") == steps), None)


# ---------------------------------------------------------------------------- SentencePiece's BPE

PREPEND = {"type": "Prepend", "prepend": BLANK}
TO_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
FROM_BLANKS = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
DECODERS = [FROM_BLANKS, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _sentencepiece(settings: Fields) -> tuple[Pipeline, Fields] | None:
    """Return what _byte_level does, of SentencePiece's BPE; None for another."""
    normalizers = _steps(settings.get("normalizer"), "normalizers")
    splits = _steps(settings.get("pre_tokenizer"), "pretokenizers")
    space = splits[0] if len(splits) == 1 and isinstance(splits[0], dict) else {}
    words = False
    if space.get("type") == "Metaspace":
        prefix = space.get("prepend_scheme", "always")
        prefix = "never" if space.get("add_prefix_space") is False else prefix
        words = bool(space.get("split", True))
        wrong = {"normalizer": normalizers}
        odd = prefix not in PREFIXES[1:] or space.get("replacement") != BLANK
        wrong["pre_tokenizer"] = [space] * odd
    elif TO_BLANKS in normalizers:
        prefix = "prepend" if normalizers[0] == PREPEND else "never"
        usual = [PREPEND, TO_BLANKS] if prefix == "prepend" else [TO_BLANKS]
        wrong = {"normalizer": normalizers * (normalizers != usual), "pre_tokenizer": splits}
    else:
        return None
    decoders = _steps(settings.get("decoder"), "decoders")
    strips = prefix != "never"
    metaspace = (
        len(decoders) == 1 and isinstance(decoders[0], dict) and decoders[0].get("type") == "Metaspace"
    )
    wrong["decoder"] = decoders * (decoders != DECODERS + [STRIP] * strips and not metaspace)
    return Pipeline(prefix=prefix, words=words), wrong


# ---------------------------------------------------------------------------- all


def _steps(step: object, key: str) -> list[Any]:
    """Return the steps of a normalizer or another: a Sequence's, which are under `key`, or itself."""
    inner = step.get(key) if isinstance(step, dict) and step.get("type") == "Sequence" else None
    return inner if isinstance(inner, list) else [] if step is None else [step]


def _kinds(step: object, key: str) -> list[Any]:
    return [one.get("type") if isinstance(one, dict) else one for one in _steps(step, key)]


def _begin(post_processor: object) -> tuple[str, int] | tuple[()] | None:
    """Return the token that is put before a text, and its id, () for none; None for a step that does more."""
    begin: tuple[str, int] | tuple[()] = ()
    for step in _steps(post_processor, "processors"):
        kind = step.get("type") if isinstance(step, dict) else step
        if kind == "ByteLevel":
            continue
        single = step.get("single") if kind == "TemplateProcessing" and isinstance(step, dict) else None
        if not (isinstance(single, list) and single and all(isinstance(one, dict) for one in single)):
            return None
        *before, last = single
        if "Sequence" not in last or len(before) > 1:
            return None
        if before:
            token = before[0].get("SpecialToken")
            name = token.get("id") if isinstance(token, dict) else None
            known = step.get("special_tokens")
            of = known.get(name) if isinstance(known, dict) and isinstance(name, str) else None
            ids = of.get("ids") if isinstance(of, dict) else None
            if begin or not name or not (isinstance(ids, list) and len(ids) == 1 and type(ids[0]) is int):
                return None
            begin = name, ids[0]
    return begin


def _normalizer(how: str) -> Fields | None:
    """Return a cleaning as the normalizer of a tokenizer.json."""

    def replace(pattern: str, instead: str) -> Fields:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": instead}

    steps = [{"type": "NFC"} if s is COMPOSE else replace(s.pattern, s.instead) for s in STEPS[how]]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def steps_of_words() -> Fields:
    """Return the steps of GPT-1."""
    return {
        "normalizer": {"type": "BertNormalizer", **BERT, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "BPEDecoder", "suffix": END_OF_WORD},
    }


def steps_of(pipeline: Pipeline) -> Fields:
    """Return the steps of a pipeline; each key is needed by one of the library's versions."""
    begin = _template(pipeline.begin, pipeline.begin_id) if pipeline.begin else None
    if pipeline.prefix:
        prepends, scheme = pipeline.prefix == "prepend", pipeline.prefix
        metaspace = {
            "type": "Metaspace",
            "replacement": BLANK,
            "prepend_scheme": scheme,
            "split": pipeline.words,
        }
        decoders = DECODERS + [STRIP] * (scheme != "never")
        return {
            "normalizer": {"type": "Sequence", "normalizers": [PREPEND, TO_BLANKS]} if prepends else None,
            "pre_tokenizer": None if prepends else metaspace,
            "post_processor": begin,
            "decoder": {"type": "Sequence", "decoders": decoders},
        }
    level = _byte_level_of(add_prefix_space=True, trim_offsets=False)
    both = {"type": "Sequence", "processors": [level, begin]}
    return {
        "normalizer": _normalizer(pipeline.normalizer),
        "pre_tokenizer": _pre_tokenizer(pipeline.split),
        "post_processor": both if begin else level,
        "decoder": _byte_level_of(add_prefix_space=True, trim_offsets=True),
    }


def _byte_level_of(add_prefix_space: bool, trim_offsets: bool, use_regex: bool = True) -> Fields:
    options = {"add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets}
    return {"type": "ByteLevel", **options, "use_regex": use_regex}  # in the order that the library writes


def _pre_tokenizer(split: str) -> Fields:
    plain = _byte_level_of(add_prefix_space=False, trim_offsets=True)
    if split == "gpt-2":
        return plain
    if split == "smollm":
        return {"type": "Sequence", "pretokenizers": [DIGITS, plain]}
    regex = next(regex for regex, of in REGEXES.items() if of == split)
    first = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = _byte_level_of(add_prefix_space=False, trim_offsets=True, use_regex=False)
    return {"type": "Sequence", "pretokenizers": [first, level]}


def _template(begin: str, begin_id: int) -> Fields:
    """Return the post-processor that puts a token before a text."""
    token: Fields = {"SpecialToken": {"id": begin, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    again: Fields = {"SpecialToken": {"id": begin, "type_id": 1}}
    known = {begin: {"id": begin, "ids": [begin_id], "tokens": [begin]}}
    pair = [token, first, again, second]
    return {"type": "TemplateProcessing", "single": [token, first], "pair": pair, "special_tokens": known}
