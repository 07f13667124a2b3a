"""Fine-tuning: the trainer of trainer.py on examples instead of text, of all weights or of adapters."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from npgpt.distributed.world import SINGLE, World
from npgpt.engine.config import GPTConfig, training_floats
from npgpt.engine.lora import LoRA, floats_over_blocks, lora_floats
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW
from npgpt.engine.quantised_model import QuantisedGPT
from npgpt.engine.types import Tensors
from npgpt.interop.layout import Pretrained, with_rows
from npgpt.text.examples import Encoded, ExampleBatches, Packed, pack
from npgpt.text.tokenizer import Tokenizer
from npgpt.training import memory
from npgpt.training.cost import PROGRAM
from npgpt.training.plan import Plan, make_plan
from npgpt.training.trainer import Trainer
from npgpt.training.updater import rows_of

LEARNING_RATE = {False: 1e-3, True: 4e-3}  # of all weights, of adapters; for 128 channels, less for more


class Examples:
    """A dataset of encoded examples (ids, loss mask), with a training and a validation part."""

    apart = True  #: as pack() keeps them

    def __init__(
        self,
        training: Sequence[Encoded],
        validation: Sequence[Encoded],
        tokenizer: Tokenizer,
        balanced_by: Sequence[str | None] | None = None,
    ) -> None:
        """Take the encoded examples of both parts.

        `balanced_by` holds the label of each training example: each label is then seen equally often.
        """
        self.training, self.held_out, self.tokenizer = training, validation, tokenizer
        self.balanced_by = balanced_by
        self.train = np.concatenate([ids for ids, _ in training])
        self.validation = np.concatenate([np.zeros(0, np.int32), *(ids[mask] for ids, mask in validation)])

    def __len__(self) -> int:
        return len(self.train) + len(self.validation)

    def batches(self, plan: Plan, seed: int) -> ExampleBatches:
        """Return the packed training batches of a plan."""
        return ExampleBatches(self.training, plan.block_size, plan.windows, seed, self.balanced_by)


class AdapterAdamW(AdamW):
    """AdamW over a LoRA. Its state holds the adapters too, as the saved model has them merged."""

    def state(self) -> Tensors:
        return super().state() | {"adapters": self.model.flat_params}

    def load_state(self, state: Tensors, steps: int) -> None:
        super().load_state(state, steps)
        with self.model.update() as adapters:
            adapters[...] = state["adapters"]


def default_rate(n_embd: int, lora: int | None = None) -> float:
    """Return the highest learning rate of a model of n_embd channels where none is given.

    `lora` is the rank of the adapters, None where all weights are trained.
    """
    return LEARNING_RATE[bool(lora)] * min(1.0, 128 / n_embd)


def make_task_plan(
    config: GPTConfig, examples: Examples, lora: int | None, epochs: int, **flags: Any
) -> Plan:
    """Return the plan of fine-tuning a model of this config on `examples`.

    `lora` is the rank of the adapters, None where all weights are trained. `flags` are fields of Plan; those
    that are None get the default.
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    flags = {"batch_size": 16, "dropout": 0.1, "patience": 4, "weight_decay": 0.01} | flags
    rate = default_rate(config.n_embd, lora)
    one = make_plan(len(examples), batch_size=flags["batch_size"], block_size=config.block_size)
    per_epoch = examples.batches(one, 0).per_epoch
    share = len(examples.held_out) / (len(examples.training) + len(examples.held_out))
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    fixed = {"optimizer": "adamw", "steps": epochs * per_epoch, "split": (1 - share, share, 0.0)}
    defaults = {"lr": rate, "eval_every": max(1, per_epoch // 2, epochs * per_epoch // 20)}
    plan = make_plan(len(examples), **defaults | flags | shape | fixed)
    return replace(plan, memorise=False, target_loss=None)


def memory_needed(
    config: GPTConfig,
    plan: Plan,
    examples: Examples,
    lora: int | None,
    rows: int,
    world: World = SINGLE,
    blocks: int = 0,
) -> int:
    """Return the bytes that fine-tuning needs at most: those with the longest examples in one batch.

    `lora` is the rank of the adapters or None; `rows` is the number of tokens added to the vocabulary;
    `blocks` is the number of bytes of a base that stays in the blocks of its file, where `lora` is given.
    """
    longest = sorted(examples.training, key=lambda example: -len(example[0]))[: rows_of(plan, world)]
    batch, time = pack(longest, plan.block_size)[0].shape
    floats = training_floats(config, batch, time)
    if lora:
        count = floats_over_blocks if blocks else lora_floats
        floats = count(config, batch, time, lora, rows)
    return 4 * floats + blocks + 16 * len(examples) + PROGRAM


def blocks_of(model: GPT) -> int:
    """Return the bytes of the blocks that hold the matrices of a model, 0 where those are float32."""
    return model.nbytes if isinstance(model, QuantisedGPT) else 0


class TaskTrainer(Trainer):
    """A Trainer whose batches are packed examples; the loss counts the tokens in their loss masks alone."""

    def __init__(
        self,
        model: GPT,
        examples: Examples,
        plan: Plan,
        seed: int,
        lora: int | None = None,
        rows: int = 0,
        world: World = SINGLE,
    ) -> None:
        """Prepare the training of all weights, or with `lora` of adapters of that rank.

        `rows` is the number of rows at the end of wte that belong to added tokens. ValueError where memory is
        too small.
        """

        def needed(config: GPTConfig, plan: Plan) -> int:
            needed = memory_needed(config, plan, examples, lora, rows, world, blocks_of(model))
            return world.local_size * needed

        memory.check_memory(model.config, plan, needed, tuning=True)
        model.seed, model.config = seed, replace(model.config, dropout=plan.dropout)
        self.examples = examples
        super().__init__(model, examples, plan, seed, world)
        self.adapters = LoRA(model, lora, rows, seed=seed) if lora else None
        if self.adapters:
            self.optimizer = AdapterAdamW(self.adapters, lr=plan.lr, weight_decay=plan.weight_decay)
        self.step_seconds()  # measured before a resume loads its state

    def _training_batches(self) -> ExampleBatches:
        return self.examples.batches(self.plan, self.seed)

    def validation_batches(self, max_tokens: int | None) -> Iterable[Packed]:
        """Yield packed batches of the examples held out, or of the first with about max_tokens targets."""
        held_out, B = self.examples.held_out, self.rows
        if max_tokens:
            targets = np.cumsum([mask.sum() for _, mask in held_out])
            held_out = held_out[: int(np.searchsorted(targets, max_tokens)) + 1]
        for begin in range(0, len(held_out), B):
            yield pack(held_out[begin : begin + B], self.plan.block_size)


def with_vocabulary(model: GPT, before: Tokenizer | None, tokenizer: Tokenizer) -> tuple[GPT, int]:
    """Return the model with a row of wte for each token of `tokenizer`, and the number of new rows.

    `before` is the tokenizer that the model was trained with. A new row is the mean of the old ones. A head
    of its own gets as many.
    """
    known = min(before.vocab_size if before else model.config.vocab_size, model.config.vocab_size)
    added = tokenizer.vocab_size - known
    if not added:
        return model, 0
    V = max(model.config.vocab_size, tokenizer.vocab_size)
    if isinstance(model, QuantisedGPT):
        model.grow(known, V)
        return model, V - known
    if V == model.config.vocab_size:  # rows for padding become those of tokens
        grown = copy(model)
    else:
        grown = with_rows(Pretrained(model.config, model.flat_params, None), V).model()
    with grown.edit() as params:
        for name in ("wte.weight", "lm_head.weight"):
            if name in params:
                params[name][known:] = params[name][:known].mean(axis=0)
    return grown, V - known
