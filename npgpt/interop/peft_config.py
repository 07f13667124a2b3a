"""PEFT's adapter_config.json: what is followed of it, and its rules for modules, ranks and factors.

A key that PEFT knows and npgpt does not follow, such as use_dora, changes what is computed. So every key that
stands nowhere here must be empty, and is refused by its name else.
"""

import re
from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any, NamedTuple

from npgpt.engine.types import Fields

# Keys that change nothing of what is computed, whatever they hold
IDLE = {"task_type", "inference_mode", "auto_mapping", "peft_version", "revision", "lora_dropout",
        "megatron_core", "fan_in_fan_out", "qalora_group_size", "ensure_weight_tying", "eva_config",
        "loftq_config", "corda_config", "lora_ga_config", "velora_config"}  # fmt: skip
# Beginnings of a training that leave the base as it is. The others take something out of its weights.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
CONVERT = "save_pretrained(..., path_initial_model_for_weight_conversion=...) makes such an adapter"
# Of a regular expression: more could take hours to match, as Python's try all ways to do so
LONGEST, GROUPS, QUANTIFIERS = 500, 3, 3

Check = Callable[[Any], bool]


class Rule(NamedTuple):
    """What a key may hold; absent or null it has PEFT's default."""

    what: str
    holds: Check


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rank(value: Any) -> bool:
    return _whole(value) and 0 < value < 2**31


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and abs(value) < 1e30


def _name(value: Any) -> bool:
    return isinstance(value, str)


def _one_or_more(holds: Check) -> Check:
    return lambda value: holds(value) or (isinstance(value, list) and all(map(holds, value)))


def _table(holds: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


def _ids(value: Any) -> bool:
    return (
        isinstance(value, list) and all(_whole(i) and i >= 0 for i in value) and len(value) == len({*value})
    )


NAMES = Rule("a name or names of modules", _one_or_more(_name))
RULES = {
    "peft_type": Rule("LORA", lambda value: value == "LORA"),
    "r": Rule("a whole number above 0", _rank),
    "lora_alpha": Rule("a number", _number),
    "use_rslora": Rule("true or false", lambda value: isinstance(value, bool)),
    "rank_pattern": Rule("whole numbers by the names of modules", _table(_rank)),
    "alpha_pattern": Rule("numbers by the names of modules", _table(_number)),
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "modules_to_save": NAMES,
    "layers_to_transform": Rule("a number or numbers of layers", _one_or_more(_whole)),
    "layers_pattern": NAMES,
    "trainable_token_indices": Rule("ids of tokens", lambda value: _ids(value) or _table(_ids)(value)),
    "bias": Rule("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "init_lora_weights": Rule(
        f"one of {', '.join(map(str, BEGINNINGS))} (or true: {CONVERT})",
        lambda value: isinstance(value, bool | str) and value in BEGINNINGS,
    ),
    "base_model_name_or_path": Rule("the base's path or name", _name),
}


class AdapterConfig:
    """The settings of an adapter; ValueError, which names all faults, for those that are not followed."""

    def __init__(self, settings: Fields, where: str) -> None:
        """`where` begins the error."""
        given = {key: value for key, value in settings.items() if value is not None}
        wrong = [
            f"{key} must be {RULES[key].what}, got {value!r:.60}"
            for key, value in given.items()
            if key in RULES and not RULES[key].holds(value)
        ]
        wrong += [
            f"{key} must be left out or empty, got {value!r:.60}"
            for key, value in given.items()
            if value and key not in RULES and key not in IDLE
        ]
        if "peft_type" not in given:
            wrong.append("peft_type must be LORA, got none")
        if wrong := wrong or [*_bad_patterns(given)]:
            raise ValueError(f"{where}: {'; '.join(wrong)}")
        self._given = given

    def __getattr__(self, key: str) -> Any:
        return self._given.get(key)

    def rank(self, module: str) -> int:
        """Return the rank of a module's product."""
        return int(_by_pattern(self.rank_pattern, module, 8 if self.r is None else self.r))

    def scale(self, module: str) -> float:
        """Return the factor of a module's product b @ a."""
        alpha = _by_pattern(self.alpha_pattern, module, 8 if self.lora_alpha is None else self.lora_alpha)
        rank = self.rank(module)
        return float(alpha) / (sqrt(rank) if self.use_rslora else rank)

    def is_target(self, module: str) -> bool:
        """Return whether a linear layer, "transformer.h.0.attn.c_attn", has a low-rank product."""
        if _is_named(self.exclude_modules, module) or self.saves(module):
            return False
        if self.target_modules == "all-linear":
            return module != "lm_head"
        found, layers = _is_named(self.target_modules, module), listed(self.layers_to_transform)
        if isinstance(self.target_modules, str) or not layers:
            return found
        place = re.match(r"[^.]+\.([^.]+)\.(\d+)\.", module)
        names = listed(self.layers_pattern)
        return bool(found and place and int(place[2]) in layers and (not names or place[1] in names))

    def saves(self, module: str) -> bool:
        """Return whether a module is stored whole, apart from the base's."""
        return any(f".{name}." in f".{module}." for name in listed(self.modules_to_save))

    def token_ids(self, module: str) -> list[int]:
        """Return the ids of an embedding's trained rows."""
        ids = self.trainable_token_indices
        if isinstance(ids, dict):
            ids = next((ids[name] for name in ids if _is_named([name], module)), None)
        return listed(ids)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, one thing in a list, and nothing in an empty one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_named(names: Any, module: str) -> bool:
    """Return whether a pattern fits a module's name, or whether it ends with one of a list of names."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in listed(names))


def _by_pattern(table: Fields | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that fits a module's name or its end."""
    fit = (value for text, value in (table or {}).items() if re.match(rf"(.*\.)?({text})$", module))
    return next(fit, default)


def _bad_patterns(given: Fields) -> Iterator[str]:
    """Yield what is wrong with regular expressions; those that may take hours are refused."""
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        value = given.get(key, [])
        for text in [value] if isinstance(value, str) else value if isinstance(value, dict) else []:
            try:
                re.compile(text)
            except (re.error, RecursionError) as error:
                yield f"{key} must hold regular expressions, got {text!r:.60} ({error})"
                continue
            groups, quantifiers = text.count("("), len(re.findall(r"[*+{]|(?<![(*+}])\?", text))
            if max(groups / GROUPS, quantifiers / QUANTIFIERS, len(text) / LONGEST) > 1 or re.search(
                r"\)[*+{?]", text
            ):
                most = f"{LONGEST} characters, {GROUPS} groups, none repeated, {QUANTIFIERS} quantifiers"
                yield f"{key} must hold expressions of at most {most}, got {text!r:.60}"
