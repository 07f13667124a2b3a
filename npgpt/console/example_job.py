"""Fine-tuning: the settings, and a run from a JSONL file of examples to a taught model."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npgpt.console.job import (
    Job,
    RunFolder,
    check_ranks,
    kept_settings,
    make_folder,
    open_folder,
    read_parent,
    set_threads,
    stored_name,
)
from npgpt.console.language import _
from npgpt.console.messages import (
    log,
    log_next,
    log_result,
    log_saved,
    log_warnings,
    shell_path,
)
from npgpt.console.settings import (
    Setting,
    count,
    count_or_zero,
    flag,
    not_negative,
    positive,
    resolve,
    share,
    thread_count,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.distributed.world import World
    from npgpt.engine.types import Fields
    from npgpt.interop.layout import Pretrained
    from npgpt.text.examples import Encoded, Example
    from npgpt.text.tokenizer import Tokenizer
    from npgpt.training.finetuning import Examples, TaskTrainer

SETTINGS = [
    Setting("epochs", count, "maximum number of passes over the examples (default 3)"),
    Setting("batch_size", count, "examples of a step, packed side by side (default 16)"),
    Setting("lr", positive, "highest learning rate (default 0.001, LoRA 0.004, less over 128 channels)"),
    Setting("lora", count, "train only LoRA adapters of this rank, for example 8 (default: all weights)"),
    Setting("val_fraction", share, "share of the examples held out for validation (default 0.1)"),
    Setting("dropout", share, "share of activations dropped while training (default 0.1)"),
    Setting("weight_decay", not_negative, "weight decay, which leaves out biases and gains (default 0.01)"),
    Setting(
        "eval_every",
        count,
        "steps between validations (default: half an epoch or a 20th of all steps, the larger)",
    ),
    Setting("patience", count, "stop after so many validations without a better one (default 4)"),
    Setting("keep", count, "checkpoints to keep, beside the best (default 2)"),
    Setting("seed", count_or_zero, "random seed of the split, the batches and dropout (default 0)"),
    Setting("threads", thread_count, "number of threads (default: the CPUs this process may use)"),
]
DEFAULTS = {"epochs": 3, "val_fraction": 0.1, "keep": 2, "seed": 0}
PLANNED = ("batch_size", "lr", "dropout", "weight_decay", "eval_every", "patience")
MAY_CHANGE = ("threads", "keep")


def example_job(args: Namespace, lock: contextlib.ExitStack, world: World) -> ExampleJob:
    """Return the run that the arguments describe, checked but with nothing written yet."""
    from npgpt.training.finetuning import TaskTrainer, make_task_plan, with_vocabulary

    given = resolve(SETTINGS, args, None)
    set_threads(world, given["threads"])
    folder = open_folder(args.out, args.data, args.resume, world, lock)
    parent = read_parent(args.model, "taught with text")
    data = _read_data(args, parent)
    model, rows = with_vocabulary(parent.model(), parent.tokenizer, data.tokenizer)
    about = {
        "data_sha256": hashlib.sha256(data.path.read_bytes()).hexdigest(),
        "parent_sha256": hashlib.sha256(model.flat_params.data).hexdigest(),
        "skip_bad": args.skip_bad,
        "balance": args.balance,
    }
    settings = _settings(given, folder, about)
    check_ranks(world, settings, **about)
    examples = _split(data, settings, args.balance)
    lora, flags = settings["lora"], {name: settings[name] for name in PLANNED}
    plan = make_task_plan(model.config, examples, lora, settings["epochs"], **flags)
    if folder.checkpoint and not lora:  # adapters begin at the parent, and resume() loads them
        model = read_parent(folder.checkpoint, "taught with text").model()
    trainer = TaskTrainer(model, examples, plan, settings["seed"], lora, rows, world)
    log_warnings(folder.broken)
    if folder.checkpoint:
        trainer.resume(folder.path, folder.checkpoint)
    elif not folder.config:
        folder = make_folder(folder, world, lock)
    base = Base(stored_name(args.model), rows)
    return ExampleJob(folder, settings, trainer, world, data, examples, base, about)


class Data(NamedTuple):
    """The examples of a file that fit the context, with their encoding."""

    path: Path
    form: str  # a key of npgpt.text.examples.FORMS
    examples: list[Example]
    encoded: list[Encoded]
    tokenizer: Tokenizer  # the parent's, plus the tokens of roles where the form needs them
    n_bad: int  # number of lines left out


class Base(NamedTuple):
    """The model that fine-tuning begins with."""

    name: str  # a path, or a name on the Hub
    rows: int  # number of rows added to its embedding


def _read_data(args: Namespace, parent: Pretrained) -> Data:
    """Return the examples, read and encoded; one longer than the context is at fault as a bad line is."""
    from npgpt.text import examples

    read, bad = examples.read_examples(args.data, args.skip_bad)
    form, known, block_size = read[0].form, parent.tokenizer, parent.config.block_size
    assert known
    if args.balance and form != "label":
        raise ValueError(f"--balance: {args.data} must have labels, got lines of {examples.FORMS[form]}")
    tokenizer = known if form == "prompt" else examples.add_roles(known)
    fit = []
    for example in read:
        ids, mask = examples.encode_example(tokenizer, example)
        if len(ids) - 1 <= block_size:
            fit.append((example, (ids, mask)))
            continue
        too_long = f"must be at most the context, {block_size} tokens, got {len(ids) - 1}"
        bad.append(f"{args.data}: line {example.line}: {too_long}")
        if not args.skip_bad:
            raise ValueError(bad[-1])
    if not fit:
        raise ValueError(f"{args.data}: no example fits the context of {block_size} tokens")
    encoded = [encoded for _, encoded in fit]
    return Data(Path(args.data).resolve(), form, [one for one, _ in fit], encoded, tokenizer, len(bad))


def _settings(given: Fields, folder: RunFolder, about: Fields) -> Fields:
    """Return every setting of the run; ValueError where those of a resumed run would change."""
    if not folder.config:
        return given | {name: value for name, value in DEFAULTS.items() if given[name] is None}
    config = folder.config
    for name, now in about.items():
        if config["about"].get(name) != now:
            raise ValueError(f"--resume: {name} is {config['about'].get(name)} in this run, got {now}")
    for name, value in given.items():
        if name not in MAY_CHANGE and value not in (None, config.get(name)):
            raise ValueError(f"--resume: {name} is {config.get(name)} in this run, got {value}")
    return kept_settings(given, {name: config.get(name) for name in given}, MAY_CHANGE)


def _split(data: Data, settings: Fields, balance: bool) -> Examples:
    """Return the examples, split into those for training and those held out."""
    from npgpt.text.examples import split_examples
    from npgpt.training.finetuning import Examples

    labels = [example.label for example in data.examples]
    train, held = split_examples(labels, settings["val_fraction"], settings["seed"])
    training, held_out = ([data.encoded[i] for i in numbers] for numbers in (train, held))
    return Examples(training, held_out, data.tokenizer, [labels[i] for i in train] if balance else None)


class ExampleJob(Job):
    """A run of npgpt finetune: a model learns a task from examples."""

    command = "finetune"

    def __init__(
        self,
        folder: RunFolder,
        settings: Fields,
        trainer: TaskTrainer,
        world: World,
        data: Data,
        examples: Examples,
        base: Base,
        about: Fields,
    ) -> None:
        super().__init__(folder, settings, trainer, world)
        self.data, self.examples, self.base, self.about = data, examples, base, about
        self.lora: int | None = settings["lora"]
        self.adapters = trainer.adapters
        self.labels = list(dict.fromkeys(filter(None, (example.label for example in data.examples))))

    def write_config(self) -> None:
        """Write the run's config.toml."""
        from npgpt.training import run as runs

        shown = (*PLANNED, "split", "steps", "n_layer", "n_head", "n_embd")
        shape = {name: getattr(self.plan, name) for name in shown}
        settings = {"init_from": self.base.name, "text": [str(self.data.path)], **self.settings, **shape}
        about = self.about | {"memorise": False, "form": self.data.form}
        runs.write_config(self.folder.path, settings | {"clean": "none"}, about)

    def announce(self) -> None:
        """Print the number of examples, parameters and steps, and the memory and time to expect."""
        from npgpt.training import memory
        from npgpt.training.cost import seconds_needed
        from npgpt.training.finetuning import memory_needed

        trainer, examples, plan, lora = self.trainer, self.examples, self.plan, self.lora
        log(
            "{training:,} examples for training, {held_out:,} for validation, {targets:,} target tokens",
            training=len(examples.training),
            held_out=len(examples.held_out),
            targets=int(sum(mask.sum() for ids, mask in examples.training)),
        )
        if self.data.n_bad:
            log("{n} lines were at fault and are left out", n=self.data.n_bad)
        log(
            "model: {all:,} parameters, {trained:,} of them trained as adapters of rank {rank}"
            if lora
            else "model: {all:,} parameters, {trained:,} of them trained",
            **{"all": trainer.model.num_params, "trained": trainer.optimizer.model.num_params, "rank": lora},
        )
        log("training: at most {plan.steps} steps of {plan.batch_size} examples", plan=plan)
        config, rows = trainer.model.config, self.base.rows
        needed = {
            rank: memory_needed(config, plan, examples, rank, rows, self.world) for rank in (None, lora or 8)
        }
        others = (memory.resident_bytes() - 4 * trainer.model.num_params) / 1e6
        log(
            "expected: {megabytes:.0f} MB of memory (all weights: {other:.0f} MB), at most {seconds:.0f} s"
            if lora
            else "expected: {megabytes:.0f} MB of memory (--lora 8: {other:.0f} MB), at most {seconds:.0f} s",
            megabytes=others + needed[lora] / 1e6,
            other=others + needed[None if lora else 8] / 1e6,
            seconds=seconds_needed(trainer),
        )

    def sample(self) -> str:
        """Return the prompt of the first example held out, with the model's answer."""
        from npgpt.runtime.generation import generate
        from npgpt.runtime.sampling import Sampling

        ids, mask = (self.examples.held_out or self.examples.training)[0]
        prompt, tokenizer = ids[: mask.argmax()], self.data.tokenizer
        text = tokenizer.decode(prompt) + "\n> "
        return text + str(generate(self.trainer.model, tokenizer, prompt, 60, Sampling(temperature=0)))

    def finish(self) -> Fields:
        """Write the best checkpoint's adapters, and return its accuracy where there are labels."""
        from npgpt.interop.huggingface import write_adapter
        from npgpt.training import checkpoint

        best, _ = checkpoint.choose(self.folder.path)
        if self.adapters:
            self.adapters.flat_params[...] = checkpoint.load(best)[1]["adapters"]
            write_adapter(self.folder.path / "adapter", self.adapters, self.base.name)
        if not (self.labels and self.examples.held_out):
            return {}
        accuracy = self._accuracy(best)
        log("accuracy on the examples held out: {accuracy:.3f}", accuracy=accuracy)
        return {"val_accuracy": accuracy}

    def _accuracy(self, checkpoint: Path) -> float:
        """Return the share of the examples held out whose label is the most probable one."""
        import numpy as np

        from npgpt.runtime.scoring import classify
        from npgpt.training import pretrained

        saved, tokenizer = pretrained.read(checkpoint), self.data.tokenizer
        texts, truth = [], []
        for ids, mask in self.examples.held_out:
            begin = int(np.flatnonzero(mask)[0])
            texts.append(tokenizer.decode_bytes(ids[: begin - 1]))
            truth.append(tokenizer.decode(ids[begin:]))
        found = classify(saved.model(), saved.tokenizer, texts, self.labels)
        right = sum(next(iter(one)) == label for one, label in zip(found, truth, strict=True))
        return float(right / len(truth))

    def show(self, result: Fields) -> Fields:
        """Print the losses, the accuracy, the run's folder and the next command; return fields for --json."""
        from npgpt.console import report

        more = {"skipped_lines": self.data.n_bad, "base": self.base.name}
        losses = _("training loss {train_loss:.4f} nats per target token")
        if result["best_val_loss"] is not None:
            losses = _(
                "training loss {train_loss:.4f}, best validation loss {best_val_loss:.4f} "
                "(step {best_step}) nats per target token"
            )
        log_result(result, losses, self.plan.patience)
        path = self.folder.path
        interrupted = result["ended"] == "interrupted"
        if not interrupted:
            more |= self.finish()
        report.write(path)
        log_saved(path)
        if interrupted:
            flags = "".join(f" {flag(name)}" for name in ("skip_bad", "balance") if self.about[name])
            files = f"{shell_path(self.base.name)} {shell_path(self.data.path)}{flags}"
            command = f"python -m npgpt.finetune {files} --resume -o {shell_path(path)}"
            log("go on: {command}", command=command)
        elif self.data.form != "prompt":
            log_next(f"python -m npgpt.chat {shell_path(path)}")
        return more
