"""The plan of a training run: every setting, by default chosen from the size of the text.

The plan is a function of the text's size and the flags alone, never of the clock, the CPU or the threads.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from npgpt.engine.config import GPTConfig, engine_config
from npgpt.engine.types import Fields
from npgpt.text.dataset import DEFAULT_SPLIT, batches_per_epoch, parse_split

TOO_SMALL = 10_000  # tokens: with fewer the validation part is a few sentences, and its loss means nothing
TOKENIZERS = (4_000_000, "bpe:8192"), (1_000_000, "bpe:1024"), (0, "bytes")  # from this many bytes of text on
MEMORISED = 0.04  # nats per token over an epoch, most from first tokens; at 0.05 a long sample has errors
LEARNING_RATE = {"adamw": 4e-3, "muon": 0.02}
CHOICES = {
    "optimizer": tuple(LEARNING_RATE),
    "schedule": ("linear", "cosine", "constant"),
    "softmax": ("full", "sampled"),
}


@dataclass(frozen=True)
class Plan:
    """The settings of a training run that change its weights; text and seed are not among them."""

    memorise: bool  # the text is too small to generalise from: train on all of it until it is memorised
    split: tuple[float, float, float]
    engine: str  # gpt, gpt-2, gpt-3 or llama
    window: int | None  # gpt-3 only: tokens that every other layer attends to
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    dropout: float
    batch_size: int  # windows in memory at a time, over all ranks
    gradient_accumulation_steps: int  # batches whose gradients make one step
    steps: int
    minutes: float | None  # instead of a number of steps, which is then a first guess
    softmax: str  # full, or sampled: the training loss over a part of the vocabulary
    optimizer: str  # adamw or muon
    schedule: str  # how lr goes down to min_lr
    lr: float
    min_lr: float
    warmup: int  # steps
    weight_decay: float
    clip: float  # maximum norm of the gradient
    eval_every: int  # steps
    eval_tokens: int  # tokens of the validation part used while training
    save_every: int  # steps
    target_loss: float | None  # stop when validation loss (memorise: training loss) reaches it
    patience: int | None  # stop after so many validations without a new best

    def settings(self) -> Fields:
        """Return the fields that flags can set, by the flags' names."""
        return {name: value for name, value in vars(self).items() if name in FLAGS}

    def model_config(self, vocab_size: int) -> GPTConfig:
        """Return the config of the model that the plan trains, for a vocabulary of this size."""
        names = ("n_layer", "n_head", "n_embd", "block_size", "dropout", "window")
        return engine_config(
            self.engine, vocab_size=vocab_size, **{name: getattr(self, name) for name in names}
        )

    @property
    def windows(self) -> int:
        """Return the number of windows of a step."""
        return self.batch_size * self.gradient_accumulation_steps


def default_tokenizer(n_bytes: int) -> str:
    """Return the default of --tokenizer for a text of n_bytes, as benchmarks/vocabulary.py measured it."""
    return next(name for minimum, name in TOKENIZERS if n_bytes >= minimum)


FLAGS = ("epochs", *(field.name for field in fields(Plan) if field.name != "memorise"))


def make_plan(n_tokens: int, epochs: int | None = None, own_validation: bool = False, **flags: Any) -> Plan:
    """Return the plan for a text of n_tokens, of which none is for validation with own_validation=True.

    `flags` are fields of Plan; those that are None get the default. ValueError or TypeError for a bad value.
    From TOO_SMALL tokens to a million, the steps grow with the square root of the text and the dropout falls.
    Beyond a million the plan stays the same, about two minutes on two cores.

    >>> make_plan(10**6).steps, make_plan(10**6, epochs=1).steps, make_plan(700).memorise
    (1600, 782, True)
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    for name, value in (flags | {"epochs": 1 if epochs is None else epochs}).items():
        _check(name, value)
    small = n_tokens < TOO_SMALL
    split = parse_split(flags.pop("split", (1, 0, 0) if small or own_validation else DEFAULT_SPLIT))
    if own_validation and split[1]:
        raise ValueError(f"split must hold out no validation part beside val, as 0.9,0,0.1; got {split}")
    memorise = small and split[1] == 0 and not own_validation
    n_train = max(1, round(split[0] * n_tokens))

    size = min(1.0, math.sqrt(n_tokens / 1e6))  # 0.1 at TOO_SMALL
    default = {
        "engine": "gpt-2",
        "n_layer": 2 if memorise else 4,  # two layers memorise as well as four, in half the time
        "n_head": 4,
        "n_embd": 128,
        "block_size": min(128, n_train),
        "dropout": 0.0 if memorise else round(0.2 * (1 - size), 2),
        "batch_size": 6 if memorise else 8,
        "gradient_accumulation_steps": 1,
        "minutes": None,
        "softmax": "full",
        "optimizer": "muon",
        "schedule": "linear",
        "weight_decay": 0.1,
        "clip": 1.0,
        "eval_tokens": 65536,
    }
    shape = default | flags
    gpt3 = shape["engine"] == "gpt-3"
    if flags.get("window") and not gpt3:
        raise ValueError(f"window is for engine gpt-3, got {shape['engine']}")
    default["window"] = min(256, max(1, shape["block_size"] // 2)) if gpt3 else None
    default["lr"] = LEARNING_RATE[shape["optimizer"]]
    windows = shape["batch_size"] * shape["gradient_accumulation_steps"]
    epoch = batches_per_epoch(n_train, shape["block_size"], windows)
    steps = max(600, 200 * epoch) if memorise else round(1600 * max(size, 0.25))
    steps = flags.get("steps", epochs * epoch if epochs else steps)
    default |= {
        "steps": steps,
        "min_lr": (default | flags)["lr"] / 50,
        "warmup": min(50, max(1, steps // 10)),
        "eval_every": min(1000, max(1, steps // 10)),
        "target_loss": MEMORISED if memorise else None,
        "patience": None,
    }
    default["save_every"] = flags.get("eval_every", default["eval_every"])
    return Plan(memorise=memorise, split=split, **(default | flags))


def _check(name: str, value: Any) -> None:
    """Raise ValueError or TypeError unless the field `name` can have this value."""
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    kind = {field.name: field.type for field in fields(Plan)}.get(name, int)
    if kind not in (int, float, int | None, float | None):
        return
    integer = kind in (int, int | None)
    if isinstance(value, bool) or not isinstance(
        value, (int, np.integer) if integer else (int, float, np.number)
    ):
        raise TypeError(f"make_plan: {name} must be a {'whole ' if integer else ''}number, got {value!r}")
    minimum = 1 if integer and name != "warmup" else 0
    if not minimum <= value < math.inf:
        raise ValueError(f"make_plan: {name} must be at least {minimum} and finite, got {value}")
