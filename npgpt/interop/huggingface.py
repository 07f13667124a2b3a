"""Hugging Face folders, read and written.

They hold transformers' GPT2LMHeadModel, OpenAIGPTLMHeadModel, GPTNeoForCausalLM or LlamaForCausalLM: our
GPT-2, GPT, GPT-3 and Llama. Names and layouts of the tensors are in layout.py; a head that is tied to the
embedding is not in the file. pytorch_model.bin, a pickle, is read where there is no safetensors file, and by
torch alone.
"""

import json
import os
import warnings
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from npgpt.engine.config import GPTConfig, Rope, engine_of
from npgpt.engine.model import GPT
from npgpt.engine.types import Fields, PathLike
from npgpt.interop import pickle_file
from npgpt.interop.layout import Pretrained, StoredTensor, config_of, read_weights, tensors, without_defaults
from npgpt.interop.safetensors_file import open_file, save_file
from npgpt.text.json_file import read_json, read_json_if_any
from npgpt.text.load import load_tokenizer, tokenizer_of
from npgpt.text.tokenizer import Tokenizer

WEIGHTS, PICKLED = (
    "model.safetensors",
    "pytorch_model.bin",
)  # each may be in shards, which NAME.index.json lists
Key: TypeAlias = tuple[str, object]  # a key of config.json, Transformers' default


@dataclass(frozen=True)
class Family:
    """The keys of config.json that hold the shape of one of Transformers' models."""

    architecture: str
    keys: dict[str, Key]  # field of GPTConfig -> (their key, their default)
    aliases: dict[str, str]  # key -> the other name that Transformers reads it by, the class's attribute_map
    dropouts: tuple[str, ...]  # the other keys; npgpt never drops attention weights themselves
    inner: str | None  # the key of the MLP's width
    fixed: Fields  # key -> the only value that npgpt computes


GPT2_KEYS: dict[str, Key] = {
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "block_size": ("n_positions", 1024),
    "dropout": ("resid_pdrop", 0.1),
    "vocab_size": ("vocab_size", 50257),
    "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
}
ACTIVATION = {"activation": ("activation_function", "gelu_new")}
# Transformers' names of GELU -> ours: these are the same function, but for the rounding
GELUS = dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_new")
GELUS |= {"gelu_new": "gelu_new", "gelu": "gelu", "gelu_python": "gelu"}
HEADS_AND_LAYERS = {"num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
GPT2_ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
}
# Keys of any family that change what is computed: refused unless they are empty. Keys that stand nowhere here
# change nothing in Transformers' models of these families, or their training alone.
EMPTY = ("quantization_config", "per_layer_config", "pruned_heads", "configuration_files")
# Keys of generation_config.json that forbid, force or weigh tokens as no argument of generate() does -> the
# value that does nothing, as null does. The others (temperature, top_k, ...) are for the caller to give.
GENERATION: Fields = {
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "penalty_alpha"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale", "num_beam_groups"), 1),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    **dict.fromkeys(("force_words_ids", "constraints", "stop_strings", "top_h", "dola_layers")),
    **dict.fromkeys(("watermarking_config", "token_healing"), False),
}
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        GPT2_KEYS | {"scale_attn_weights": ("scale_attn_weights", True)} | ACTIVATION,
        GPT2_ALIASES,
        ("embd_pdrop", "attn_pdrop"),
        "n_inner",
        {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "openai-gpt": Family(
        "OpenAIGPTLMHeadModel",
        GPT2_KEYS | {"vocab_size": ("vocab_size", 40478), "block_size": ("n_positions", 512)},
        GPT2_ALIASES,
        ("embd_pdrop", "attn_pdrop"),
        None,
        {"afn": "gelu"},  # the tanh form, which the other models call gelu_new
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        GPT2_KEYS
        | {"n_layer": ("num_layers", 24), "n_head": ("num_heads", 16), "n_embd": ("hidden_size", 2048)}
        | {"block_size": ("max_position_embeddings", 2048), "dropout": ("resid_dropout", 0.0)}
        | {"window": ("window_size", 256)}
        | ACTIVATION,
        HEADS_AND_LAYERS,
        ("embed_dropout", "attention_dropout"),
        "intermediate_size",
        {},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        {
            "n_layer": ("num_hidden_layers", 32),
            "n_head": ("num_attention_heads", 32),
            "n_embd": ("hidden_size", 4096),
            "block_size": ("max_position_embeddings", 2048),
            "vocab_size": ("vocab_size", 32000),
            "layer_norm_epsilon": ("rms_norm_eps", 1e-6),
            "n_inner": ("intermediate_size", 11008),
            "n_kv_head": ("num_key_value_heads", None),
            "head_size": ("head_dim", None),
            "tied": ("tie_word_embeddings", False),
            "attention_bias": ("attention_bias", False),
            "mlp_bias": ("mlp_bias", False),
        },
        {},
        ("attention_dropout",),
        None,
        {"hidden_act": "silu"},
    ),
}
MODEL_TYPES = {"gpt": "openai-gpt", "gpt-2": "gpt2", "gpt-3": "gpt_neo", "llama": "llama"}  # of each engine


def family_of(config: GPTConfig) -> str:
    """Return Transformers' model_type of a config."""
    return MODEL_TYPES[engine_of(config)]


def write_pretrained(folder: PathLike, model: GPT, tokenizer: Tokenizer | None = None) -> None:
    """Write model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`.

    The folder is made if need be. A model without biases is written with zeros for them, as Transformers
    always has them, and with a note in config.json, so that read_pretrained returns what was saved.
    """
    if folder == "":
        raise ValueError("save_pretrained: folder must not be empty")
    folder, stored = Path(folder), tensors(family_of(model.config), model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})

    # Written even where there is none: a missing key would mean GPT-2's own 50256.
    end = tokenizer.end_of_text if tokenizer else None
    stop = tokenizer.ends if tokenizer else (None,)
    ends = {"bos_token_id": end, "eos_token_id": list(stop) if len(stop) > 1 else stop[0]}
    settings = _config_to_json(model.config, ends)
    if tokenizer:
        settings["npgpt"]["tokenizer"] = tokenizer.fingerprint
        tokenizer.save(folder, model.config.block_size)
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", {"_from_model_config": True} | ends)


def read_pretrained(folder: PathLike) -> Pretrained:
    """Read a Hugging Face folder of one of these models, its safetensors in one file or in shards.

    The tokenizer is None where the folder has none, or one that npgpt cannot read: the model then takes ids.
    ValueError for another model's tokenizer, for a model that npgpt does not compute, and for tensors that
    are not those of its config; it names all their faults, before memory is allocated for them.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    config = _config_from_json(settings, folder)
    path = folder / "generation_config.json"
    generation = read_json_if_any(path)
    _check_generation(path, generation)
    tokenizer = fit_tokenizer(read_tokenizer(folder), settings, config, f"read_pretrained: {folder}")
    if tokenizer:
        named = {path: generation, folder / "config.json": settings}
        ends = _ends(named, config.vocab_size)
        tokenizer.more_ends = tuple(i for i in ends if i != tokenizer.end_of_text)
    stored, path = _open_weights(folder)
    format = settings.get("model_type", "gpt2")
    return Pretrained(config, read_weights(format, config, stored, f"read_pretrained: {path}"), tokenizer)


def read_tokenizer(folder: PathLike) -> Tokenizer | None:
    """Return a folder's tokenizer; None without one, or, with a warning, for one that npgpt cannot read."""
    try:
        return load_tokenizer(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{error}; the model takes ids only", stacklevel=3)
        return None


def fit_tokenizer(
    tokenizer: Tokenizer | None, settings: Fields, config: GPTConfig, where: str
) -> Tokenizer | None:
    """Return the tokenizer without special tokens that the model has no rows for, of which it warns.

    ValueError for one with more tokens than the model but for these, or another than config.json names.
    """
    if tokenizer is None:
        return None
    rows, v = config.vocab_size, tokenizer.vocabulary
    if tokenizer.vocab_size > rows:
        left_out = {name: i for name, i in v.tokens.items() if i >= rows}
        if tokenizer.end_of_text >= rows or not left_out.keys() <= v.special.keys():
            wanted = f"at most the model's {rows} tokens"
            raise ValueError(f"{where}: the tokenizer must have {wanted}, got {tokenizer.vocab_size}")
        names = ", ".join(f"{name!r} ({i})" for name, i in left_out.items())
        warnings.warn(f"{where}: the model has {rows} rows and none for {names}: left out", stacklevel=3)
        tokens, special = ({n: i for n, i in table.items() if i < rows} for table in (v.tokens, v.special))
        flags = {name: of for name, of in v.flags.items() if name in tokens}
        pieces = v.pieces and v.pieces.of_size(len(tokens))
        tokenizer = tokenizer_of(replace(v, tokens=tokens, special=special, flags=flags, pieces=pieces))
    ours = settings.get("npgpt")
    if isinstance(ours, dict) and ours.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise ValueError(f"{where}: the tokenizer must be the one that the model was trained with")
    return tokenizer


def _open_weights(folder: Path) -> tuple[dict[str, StoredTensor], Path]:
    """Return the tensors of a folder's file of weights, or of its index's shards, and the path of either."""
    for name in (WEIGHTS, f"{WEIGHTS}.index.json", PICKLED, f"{PICKLED}.index.json"):
        path = folder / name
        if path.exists():
            if path.suffix == ".json":
                return _open_shards(path), path
            return _open_file(path), path
    wanted = f"{WEIGHTS}, or its shards and {WEIGHTS}.index.json, or {PICKLED}"
    raise ValueError(f"read_pretrained: {folder} must hold {wanted}")


def _open_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file that torch or safetensors has written."""
    if path.suffix == ".safetensors":
        return open_file(path)[0]
    where = f"read_pretrained: {path}"
    state = pickle_file.load(path, where)
    if not isinstance(state, dict):
        raise ValueError(f"{where} must be a state_dict, got {type(state).__name__}")
    return pickle_file.tensors_of(state)


def _open_shards(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the shards that an index names, which must lie in its folder."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(f"read_pretrained: {path}: weight_map must map names of tensors to names of files")
    shards = {}
    for file in sorted(set(names.values())):
        if file != Path(file).name or file in ("", "..") or "\\" in file:
            raise ValueError(f"read_pretrained: {path}: a shard must be a file of the folder, got {file!r}")
        if not os.path.isfile(path.parent / file):  # false for a name that is too long, too
            raise ValueError(f"read_pretrained: {path}: there is no shard {file!r}")
        kind, wanted = Path(file).suffix, Path(path.name.removesuffix(".index.json")).suffix
        if kind != wanted:
            raise ValueError(f"read_pretrained: {path}: a shard must be a {wanted} file, got {file!r}")
        shards[file] = _open_file(path.parent / file)
    return {name: shards[file][name] for name, file in names.items() if name in shards[file]}


def _config_to_json(config: GPTConfig, ends: Fields) -> Fields:
    model_type = family_of(config)
    family = FAMILIES[model_type]
    settings = {"architectures": [family.architecture], "model_type": model_type, **family.fixed}
    settings |= {key: getattr(config, field) for field, (key, _) in family.keys.items()}
    if model_type == "llama":
        return settings | ends | _llama_to_json(config)
    settings |= dict.fromkeys(family.dropouts, 0.0) | {family.dropouts[0]: config.dropout}
    if family.inner:
        settings[family.inner] = None
    if model_type == "gpt_neo":
        pairs, odd = divmod(config.n_layer, 2)
        settings["attention_types"] = [[["global", "local"], pairs]] * (pairs > 0) + [[["global"], 1]] * odd
    else:
        settings["n_ctx"] = config.block_size  # llama.cpp's converter reads this one
    return settings | {
        **ends,
        "npgpt": {"bias": config.bias, "scale_attn_weights": config.scale_attn_weights},
    }


def _llama_to_json(config: GPTConfig) -> Fields:
    """Return the keys of Llama's config.json that are not fields of ours by another name."""
    rope = config.rope
    assert rope
    turns: Fields = {"rope_type": rope.type, "rope_theta": rope.theta}
    turns |= {key: getattr(rope, field) for field, key in SCALINGS[rope.type].items()}
    biases = [config.bias if b is None else b for b in (config.attention_bias, config.mlp_bias)]
    return {
        "num_key_value_heads": config.K,
        "head_dim": config.D,
        "intermediate_size": config.F,
        "attention_bias": biases[0],
        "mlp_bias": biases[1],
        "attention_dropout": 0.0,
        "rope_parameters": turns,  # of Transformers 5; of 4, the next two
        "rope_theta": rope.theta,
        "rope_scaling": turns if SCALINGS[rope.type] else None,
        "npgpt": {"dropout": config.dropout},
    }


# The keys of rope_parameters that each of its types reads
SCALINGS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_context": "original_max_position_embeddings",
    },
}


def _rope_from_json(settings: Fields, context: int, where: str) -> Rope:
    """Return the rotary positions of Llama's config.json, in Transformers 5's form or in that of 4."""
    turns = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(turns, dict):
        raise ValueError(f"{where}: rope_parameters must be an object, got {turns!r:.60}")
    kind = turns.get("rope_type", turns.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(f"{where}: rope_type must be one of {', '.join(SCALINGS)}, got {kind!r:.60}")
    known = {"rope_type", "type", "rope_theta", *SCALINGS["llama3"].values()}
    if others := sorted(set(turns) - known):
        raise ValueError(f"{where}: rope_parameters must be without {', '.join(others)}")
    original = "original_max_position_embeddings"  # beside them it wins, as in Transformers
    turns = {original: context} | turns | {k: settings[k] for k in (original,) if settings.get(k)}
    fields = {field: turns[key] for field, key in SCALINGS[kind].items() if key in turns}
    if missing := [key for field, key in SCALINGS[kind].items() if field not in fields]:
        raise ValueError(f"{where}: rope_parameters of {kind} must have {', '.join(missing)}")
    theta: Any = turns.get("rope_theta", settings.get("rope_theta", 10_000.0))
    try:
        return Rope(theta, kind, **fields)
    except ValueError as error:
        raise ValueError(f"{where}: rope_parameters: {error}") from None


def _config_from_json(settings: Fields, folder: Path) -> GPTConfig:
    where = f"read_pretrained: {folder}"
    model_type = settings.get("model_type", "gpt2")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{where}: model_type must be one of {', '.join(FAMILIES)}, got {model_type!r}")
    family = FAMILIES[model_type]
    for key, value in family.fixed.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{where}: {key} must be {value!r}, got {settings[key]!r}")
    for key in EMPTY:
        if settings.get(key):
            raise ValueError(f"{where}: {key} must be left out or empty, got {settings[key]!r:.60}")
    # Keys left out mean the family's own defaults.
    fields = {}
    for field, (key, default) in family.keys.items():
        value = fields[field] = _value(settings, key, family.aliases.get(key, key), default, where)
        if default is None and value is None:
            continue
        default = 1 if default is None else default
        kind = type(default) if isinstance(default, (bool, int, str)) else (int, float)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, kind):
            what = {bool: "true or false", str: "a string"}.get(type(default), "a number")
            raise ValueError(f"{where}: {key} must be {what}, got {value!r}")
    if "activation" in fields:
        if (name := fields["activation"]) not in GELUS:
            raise ValueError(f"{where}: activation_function must be one of {', '.join(GELUS)}, got {name!r}")
        fields["activation"] = GELUS[name]
    if family.inner and settings.get(family.inner) not in (None, 4 * fields["n_embd"]):
        raise ValueError(f"{where}: {family.inner} must be 4 * n_embd, got {settings[family.inner]!r}")
    ours = settings.get("npgpt")
    ours = ours if isinstance(ours, dict) else {}
    if model_type == "gpt_neo":
        fields["scale_attn_weights"] = bool(ours.get("scale_attn_weights", False))
        if not _has_windows(settings, fields["n_layer"], where):
            fields["window"] = fields["block_size"]
    if model_type == "llama":
        rope = _rope_from_json(settings, fields["block_size"], where)
        fields |= {
            "norm": "rmsnorm",
            "activation": "swiglu",
            "rope": rope,
            "dropout": ours.get("dropout", 0.0),
        }
        return config_of(where, **without_defaults(fields))
    fields |= {"bias": bool(ours.get("bias", True)), "post_norm": model_type == "openai-gpt"}
    return config_of(where, **fields)


def _check_generation(path: Path, settings: Fields) -> None:
    for key, value in settings.items():
        if key in GENERATION and value is not None and value != GENERATION[key] and value not in ([], {}):
            nothing = GENERATION[key] or "left out"
            raise ValueError(f"read_pretrained: {path}: {key} must be {nothing}, got {value!r:.60}")


def _ends(files: dict[Path, Fields], vocab_size: int) -> tuple[int, ...]:
    """Return the ids that the first of these files with eos_token_id ends a generation at, () for none.

    Ids outside the vocabulary never come: Transformers' default of 50256 stands in files of smaller ones.
    """
    for path, settings in files.items():
        ids = settings.get("eos_token_id")
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise ValueError(f"read_pretrained: {path}: eos_token_id must be ids, got {ids!r:.60}")
            return tuple(dict.fromkeys(i for i in ids if 0 <= i < vocab_size))
    return ()


def _value(settings: Fields, key: str, alias: str, default: object, where: str) -> Any:
    """Return the value of a key that Transformers reads by two names; ValueError for two that differ."""
    value = settings.get(key, settings.get(alias, default))
    if key in settings and alias in settings and settings[alias] != value:
        raise ValueError(f"{where}: {key} and {alias} must be equal, got {value!r} and {settings[alias]!r}")
    return value


def _has_windows(settings: Fields, n_layer: int, where: str) -> bool:
    """Return True where GPT-Neo has windows in layers 1, 3, ..., False for none at all.

    attention_types tells it, [[["global", "local"], 6]] being twelve layers, and so does attention_layers, a
    kind for each layer, which Transformers follows where both are there. ValueError for any others, and for
    two that differ.
    """
    most = max(0, min(n_layer, 10_000))  # n_layer may be false
    windows, none = (["global", "local"] * most)[:most], ["global"] * most
    told = {
        key: settings[key] for key in ("attention_types", "attention_layers") if settings.get(key) is not None
    }
    found = set()
    for key, value in (told or {"attention_types": [[["global", "local"], 12]]}).items():
        layers = _layers_of(value if key == "attention_types" else [[value, 1]])
        if layers not in (windows, none):
            what = f"{n_layer} layers that are global, or global and local in turn"
            raise ValueError(f"{where}: {key} must be {what}, got {value!r:.200}")
        found.add(layers == windows)
    if len(found) > 1:
        raise ValueError(f"{where}: attention_types and attention_layers must tell of the same layers")
    return found.pop()


def _layers_of(types: Any) -> list[Any]:
    """Return the kinds of all layers that attention_types tells, none where it is malformed."""
    try:
        kinds_of = (kind for kinds, times in types for _ in range(times if kinds else 0) for kind in kinds)
        return list(islice(kinds_of, 10_000))
    except (TypeError, ValueError):
        return []


def _write_json(path: Path, value: Fields) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
