"""PEFT's adapter folders, read and written: low-rank matrices under the names of the base's family.

PEFT finds the modules of an adapter by their names, and takes no notice of a tensor that fits none of them.
So the names, and where one matrix of ours is three of theirs, are those of layout.py, as in the base's own
folder. What is read must be all that peft_config.py expects, and nothing else.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.engine.config import GPTConfig
from npgpt.engine.finite import check_tensor
from npgpt.engine.lora import ROWS, LoRA
from npgpt.engine.types import Fields, PathLike, Tensors
from npgpt.interop.huggingface import family_of, fit_tokenizer, read_tokenizer
from npgpt.interop.layout import (
    FLOATS,
    Pretrained,
    StoredTensor,
    TensorSpec,
    factor_of,
    tensor_specs,
    with_rows,
)
from npgpt.interop.peft_config import AdapterConfig
from npgpt.interop.safetensors_file import open_file, save_file
from npgpt.text.json_file import read_json
from npgpt.text.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, TOKENS = "base_model.model.", ".token_adapter.trainable_tokens_delta"
HEAD = "lm_head.weight"


class LowRank(NamedTuple):
    """A product scale * b @ a that is added to a stored weight."""

    a: StoredTensor  # (R,in)
    b: StoredTensor  # (out,R)
    scale: float
    spec: TensorSpec


class Adapter(NamedTuple):
    """What an adapter changes, by the stored names of its base's weights."""

    products: list[LowRank]
    whole: dict[str, StoredTensor]  # tensors that take the place of the base's
    rows: dict[str, tuple[list[int], StoredTensor]]  # ids of tokens, and their rows (n,C)


# ---------------------------------------------------------------------------- reading


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no model."""
    models = (*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*"))
    return (folder / CONFIG).exists() and not models


def base_of(folder: Path) -> str:
    """Return the path or name of an adapter's base; ValueError where its folder names none."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path must name the base, got {name!r:.60}")
    return name


def apply_adapter(base: Pretrained, folder: Path) -> Pretrained:
    """Return the base with an adapter merged into its weights, which are changed in place.

    A tokenizer in the folder takes the place of the base's. ValueError, which names all faults of the adapter
    before a weight is changed, where it is not of this base or npgpt cannot follow it.
    """
    settings, path = AdapterConfig(read_json(folder / CONFIG), str(folder / CONFIG)), folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{folder} must hold {WEIGHTS} (pickles are not opened)")
    adapter = _read(settings, open_file(path)[0], base.config, str(path))
    found = with_rows(base, _rows_of_wte(adapter, base.config))
    form, config, params = family_of(found.config), found.config, found.tensors
    specs = tensor_specs(form, config)
    for name, tensor in adapter.whole.items():
        _replace(params, specs[name], tensor, factor_of(form, config, specs[name]), f"{path}: {name}")
    for name, (ids, tensor) in adapter.rows.items():
        rows = tensor.read()
        check_tensor(str(path), name, rows)
        params[specs[name].name][ids] = rows
    for product in adapter.products:
        _add(params, product, factor_of(form, config, product.spec), str(path))
    tokenizer = fit_tokenizer(read_tokenizer(folder), {}, config, str(folder))
    if tokenizer is None:
        return found
    ends = base.tokenizer.ends if base.tokenizer else ()
    tokenizer.more_ends = tuple(i for i in ends if i != tokenizer.end_of_text)
    return found._replace(tokenizer=tokenizer)


def _add(params: Tensors, product: LowRank, factor: float, where: str) -> None:
    """Add a product to its weight, which is stored with a factor."""
    b, a = (np.asarray(tensor.read(), np.float32) for tensor in (product.b, product.a))
    with np.errstate(over="ignore", invalid="ignore"):  # which is refused
        change = b @ a * np.float32(product.scale / factor)  # (out,in)
        w = product.spec.view(params)
        w += change if _is_linear(product.spec) else change.T
    check_tensor(where, product.spec.name, w)


def _replace(params: Tensors, spec: TensorSpec, tensor: StoredTensor, factor: float, where: str) -> None:
    """Set a weight to a tensor, which is stored with a factor."""
    with np.errstate(over="ignore"):
        array = np.asarray(tensor.read(), np.float32)
    check_tensor(where, spec.name, array)
    if spec.name in params:
        spec.view(params)[...] = array / np.float32(factor)
    elif array.any():
        raise ValueError(f"{where} must be zero, as bias is false")


def _read(settings: AdapterConfig, stored: dict[str, StoredTensor], config: GPTConfig, where: str) -> Adapter:
    """Return the adapter of these tensors; one ValueError names all that do not fit config and settings."""
    specs = tensor_specs(family_of(config), config)
    linear = {name.removesuffix(".weight"): spec for name, spec in specs.items() if _takes_products(spec)}
    parts: dict[str, dict[str, StoredTensor]] = {}
    adapter, wrong = Adapter([], {}, {}), []
    for name, tensor in stored.items():
        bare = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        module, _, part = bare.rpartition(".lora_")
        embedding = bare.removesuffix(TOKENS)
        if not name.startswith(PREFIX):
            wrong.append(f"{name} must begin with {PREFIX}")
        elif part in ("A.weight", "B.weight") and module in linear:
            parts.setdefault(module, {})[part[0]] = tensor
        elif bare != embedding and f"{embedding}.weight" in specs:
            adapter.rows[f"{embedding}.weight"] = settings.token_ids(embedding), tensor
        elif bare in specs or bare == HEAD:
            adapter.whole[bare] = tensor
        else:
            product = part.startswith(("embedding_", "A.", "B."))
            why = ": of an embedding, or of a head that is tied to one, it is not followed" if product else ""
            wrong.append(f"{name} does not belong{why}")
        if tensor.dtype not in FLOATS.values():
            wrong.append(f"{name} must be one of {', '.join(FLOATS.values())}, got {tensor.dtype}")
    for module, spec in linear.items():
        there = parts.get(module, {})
        if there or settings.is_target(module):
            wrong += _faults_of_product(module, spec, there, settings)
        if len(there) == 2:
            adapter.products.append(LowRank(there["A"], there["B"], settings.scale(module), spec))
    wrong += _faults_of_rows(adapter, settings, config) or _faults_of_whole(adapter, settings, config)
    if not stored:
        wrong.append("it holds no tensors")
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")
    if config.tied and HEAD in adapter.whole:
        head, wte = adapter.whole.pop(HEAD), adapter.whole[_name_of_wte(config)]
        if not np.array_equal(head.read(), wte.read()):
            raise ValueError(f"{where}: {HEAD} must equal the embedding, to which the base's is tied")
    return adapter


def _takes_products(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and (spec.name.startswith("h.") or spec.name == HEAD)


def _is_linear(spec: TensorSpec) -> bool:
    """Return whether a weight is stored as (out,in), not as GPT-2's Conv1D has it."""
    return spec.transposed or spec.name == HEAD


def _name_of_wte(config: GPTConfig) -> str:
    specs = tensor_specs(family_of(config), config)
    return next(name for name, spec in specs.items() if spec.name == "wte.weight")


def _rows_of_wte(adapter: Adapter, config: GPTConfig) -> int:
    """Return how many rows the embedding has with the adapter, more or fewer than the base's."""
    if whole := adapter.whole.get(_name_of_wte(config)):
        return whole.shape[0]
    return max([config.vocab_size, *(max(ids) + 1 for ids, _ in adapter.rows.values() if ids)])


def _faults_of_product(
    module: str, spec: TensorSpec, there: dict[str, StoredTensor], settings: AdapterConfig
) -> list[str]:
    """Return what is wrong with the two matrices of a module."""
    rank = settings.rank(module)
    n_out, n_in = spec.shape if _is_linear(spec) else spec.shape[::-1]
    wrong = []
    if settings.target_modules is not None and not settings.is_target(module):
        wrong.append(f"{module} has tensors and is not among target_modules")
    for part, shape in (("A", (rank, n_in)), ("B", (n_out, rank))):
        name = f"{PREFIX}{module}.lora_{part}.weight"
        if part not in there:
            wrong.append(f"{name} is missing")
        elif there[part].shape != shape:
            wrong.append(f"{name} must have shape {shape}, got {there[part].shape}")
    return wrong


def _faults_of_rows(adapter: Adapter, settings: AdapterConfig, config: GPTConfig) -> list[str]:
    """Return what is wrong with trained rows of the embedding, and of a head of its own."""
    wrong = []
    for name, (ids, tensor) in adapter.rows.items():
        if tensor.shape != (len(ids), config.n_embd):
            wrong.append(f"{name} must have {len(ids)} trained rows, got shape {tensor.shape}")
    if settings.trainable_token_indices and not adapter.rows:
        wrong.append("the rows of trainable_token_indices are missing")
    V = config.vocab_size
    added = _rows_of_wte(adapter, config) - V  # perhaps a thousand million: they are not listed
    for name in () if wrong or adapter.whole else [_name_of_wte(config), *[HEAD][: not config.tied]]:
        ids = adapter.rows[name][0] if name in adapter.rows else []
        if lacking := added - sum(i >= V for i in ids):
            wrong.append(f"{name} lacks the rows of {lacking} tokens that the base does not have")
    return wrong


def _faults_of_whole(adapter: Adapter, settings: AdapterConfig, config: GPTConfig) -> list[str]:
    """Return what is wrong with tensors that take the place of the base's."""
    wte, specs = _name_of_wte(config), tensor_specs(family_of(config), config)
    specs[HEAD] = specs[wte]
    rows, wrong = _rows_of_wte(adapter, config), []
    for name, tensor in adapter.whole.items():
        shape = (rows, config.n_embd) if name in (wte, HEAD) else specs[name].shape
        if tensor.shape != shape:
            wrong.append(f"{name} must have shape {shape}, got {tensor.shape}")
    if config.tied and (
        (HEAD in adapter.whole and wte not in adapter.whole)
        or (
            wte in adapter.whole and HEAD not in adapter.whole and settings.saves(wte.removesuffix(".weight"))
        )
    ):
        wrong.append(f"{wte} and {HEAD} must change together, as they are tied in the base")
    if (
        not config.tied
        and rows != config.vocab_size
        and adapter.whole
        and not {wte, HEAD} <= {*adapter.whole}
    ):
        wrong.append(f"{wte} and {HEAD} must both have {rows} rows")
    return wrong


# ---------------------------------------------------------------------------- writing


def write_adapter(folder: PathLike, adapters: LoRA, base_model: str, tokenizer: Tokenizer) -> None:
    """Write adapter_model.safetensors, adapter_config.json and the tokenizer's files into `folder`.

    The folder is made if need be. `base_model` is a Hugging Face folder or a name on the Hub. Rows of the
    embedding that were trained too are PEFT's trainable tokens; AutoPeftModelForCausalLM makes room for them
    by the tokenizer.
    """
    folder, config = Path(folder), adapters.config
    folder.mkdir(parents=True, exist_ok=True)
    form = family_of(config)
    stored: Tensors = {}
    settings: Fields = {}
    modules = []
    for theirs, spec in tensor_specs(form, config).items():
        module = f"{PREFIX}{theirs.removesuffix('.weight')}"
        if f"{spec.name}.A" in adapters.params:
            a, b = (adapters.params[f"{spec.name}.{m}"] for m in "AB")
            b = b if spec.columns is None else b[..., spec.columns]
            b = b * b.dtype.type(factor_of(form, config, spec))
            stored |= {f"{module}.lora_A.weight": a.T, f"{module}.lora_B.weight": b.T}  # (out, in) there
            modules.append(theirs.removesuffix(".weight").split(".", 3)[3])  # transformer.h.0.attn.c_attn
            settings["fan_in_fan_out"] = not spec.transposed
        elif spec.name == "wte.weight" and ROWS in adapters.params:
            rows = adapters.params[ROWS]
            stored[f"{module}.token_adapter.trainable_tokens_delta"] = rows  # the rows, not a difference
            last = range(config.vocab_size - len(rows), config.vocab_size)
            settings["trainable_token_indices"] = {module.rsplit(".", 1)[1]: list(last)}
    arrays = {name: np.ascontiguousarray(w, np.float32) for name, w in stored.items()}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings |= {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(dict.fromkeys(modules)),
    }
    text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    tokenizer.save(folder, config.block_size)
