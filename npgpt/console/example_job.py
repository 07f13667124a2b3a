"""Fine-tuning: the settings, and a run from a JSONL file of examples to a taught model."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections import Counter
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
    log_changed,
    log_falling,
    log_going_on,
    log_next,
    log_result,
    log_saved,
    log_warnings,
    shell_path,
)
from npgpt.console.settings import (
    Setting,
    config_values,
    count,
    count_or_zero,
    flag,
    not_empty,
    not_negative,
    positive,
    resolve,
    share,
    thread_count,
    truth,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from npgpt.distributed.world import World
    from npgpt.engine.lora import LoRA
    from npgpt.engine.types import Fields
    from npgpt.interop.gguf_quantised import InBlocks
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
    Setting("val", not_empty, "a file of examples for validation, instead of a share of DATA.jsonl"),
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
KEYS = {"init_from": not_empty, "adapter": not_empty, "out": not_empty, "skip_bad": truth, "balance": truth}
NO_HELP = ""
# keys of a file that are arguments of the command, or flags without a value
EXPERIMENT = [Setting(name, kind, NO_HELP) for name, kind in KEYS.items()]
DERIVED = ("split", "steps", "n_layer", "n_head", "n_embd", "clean")  # keys of a run's own file that follow
DEFAULTS = {"epochs": 3, "val_fraction": 0.1, "keep": 2, "seed": 0}
PLANNED = ("batch_size", "lr", "dropout", "weight_decay", "eval_every", "patience")
MAY_CHANGE = ("threads", "keep")


def example_job(args: Namespace, lock: contextlib.ExitStack, world: World) -> ExampleJob:
    """Return the run that the arguments describe, checked but with nothing written yet."""
    from npgpt.training import memory
    from npgpt.training.finetuning import TaskTrainer, blocks_of, make_task_plan, with_vocabulary

    given = resolve(SETTINGS, args, _experiment(args))
    set_threads(world, given["threads"])
    folder = open_folder(args.out, args.data, args.resume, world, lock)
    lora = given["lora"] or (folder.config or {}).get("lora")
    parent = _open_in_blocks(args.model) if lora and not args.adapter else None
    parent = parent or read_parent(args.model, "taught with text", args.adapter)
    data = _read_data(args.data, args, parent, folder.config)
    model, rows = with_vocabulary(parent.model(), parent.tokenizer, data.tokenizer)
    val = given["val"] or (folder.config or {}).get("val")
    validation = _read_validation(val, data, args, parent, folder.config) if val else None
    given["val"] = str(validation.path) if validation else None
    about = {
        "data_sha256": hashlib.sha256(data.path.read_bytes()).hexdigest(),
        "val_sha256": hashlib.sha256(validation.path.read_bytes()).hexdigest() if validation else None,
        "parent_sha256": model.digest(),
        "skip_bad": args.skip_bad,
        "balance": args.balance,
        # a run of npgpt 0.1.0 is resumed with its split, which did not keep equal examples together
        "grouped": folder.config is None or folder.config["about"].get("grouped"),
    }
    settings = _settings(given, folder, about)
    check_ranks(world, settings, **about)
    examples, repeated = _split(data, validation, settings, about)
    lora, flags = settings["lora"], {name: settings[name] for name in PLANNED}
    plan = make_task_plan(model.config, examples, lora, settings["epochs"], **flags)
    if folder.checkpoint and not lora:  # adapters begin at the parent, and resume() loads them
        model = read_parent(folder.checkpoint, "taught with text").model()
    resident = memory.resident_bytes() - blocks_of(model)
    trainer = TaskTrainer(model, examples, plan, settings["seed"], lora, rows, world)
    log_warnings(folder.broken)
    if folder.checkpoint:
        trainer.resume(folder.path, folder.checkpoint)
    elif not folder.config:
        folder = make_folder(folder, world, lock)
    data = data._replace(bad=data.bad + (validation.bad if validation else []), repeated=repeated)
    in_transformers = _in_transformers(args.model) if lora and not args.adapter else None
    adapter = stored_name(args.adapter) if args.adapter else None
    base = Base(stored_name(args.model), rows, in_transformers, adapter, resident)
    return ExampleJob(folder, settings, trainer, world, data, examples, base, about)


def _experiment(args: Namespace) -> Fields:
    """Return the settings of the file of --config; the model, the data and flags of it go to args.

    What the command line gives stays. ValueError where neither names the model or the data.
    """
    values = config_values([*SETTINGS, *EXPERIMENT], args.config, DERIVED)
    texts = values.get("text", [])
    if len(texts) > 1:
        raise ValueError(f"{args.config}: text must be one file of examples, got {len(texts)}")
    if args.model:
        values.pop("adapter", None)  # which is of the file's own model
    args.model = args.model or values.get("init_from")
    args.data = args.data or next(iter(texts), None)
    for name in ("adapter", "out", "skip_bad", "balance"):
        setattr(args, name, getattr(args, name) or values.get(name))
    missing = [name for name, value in (("RUN", args.model), ("DATA.jsonl", args.data)) if not value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given (or --config FILE with init_from and text)")
    args.skip_bad, args.balance = bool(args.skip_bad), bool(args.balance)
    return values


def _open_in_blocks(model: str) -> Pretrained | InBlocks | None:
    """Return the base of adapters as a GGUF file has it, its weights unchanged; None for another model."""
    from npgpt.interop.gguf_quantised import open_in_blocks
    from npgpt.interop.installed import located

    file = located(model) if model else Path(model)
    if not (file.is_file() and file.suffix == ".gguf"):
        return None
    found = open_in_blocks(file)
    if found.tokenizer is None:
        raise ValueError(f"{model}: must have a tokenizer to be taught with text")
    return found


class Data(NamedTuple):
    """The examples of a file that fit the context, with their encoding."""

    path: Path
    form: str  # a key of npgpt.text.examples.FORMS
    examples: list[Example]
    encoded: list[Encoded]
    tokenizer: Tokenizer  # the parent's, plus the tokens of roles where the form needs them
    bad: list[str]  # what is wrong with each line that is left out
    cleaned: Counter[str]  # what the tokenizer's normalizer did, and how often
    repeated: int = 0  # number of examples that share the input of one before, or of a training example


class Base(NamedTuple):
    """The model that fine-tuning begins with."""

    name: str  # a path, or a name on the Hub
    rows: int  # number of rows added to its embedding
    in_transformers: str | None  # the folder, or name on the Hub, from which Transformers reads it
    adapter: str | None  # that is merged into it
    resident: int  # bytes that the process held before training, without the weights

    def words(self) -> list[str]:
        """Return the words of a command that name it."""
        return [self.name, *(["--adapter", self.adapter] if self.adapter else [])]


def _in_transformers(model: str) -> str | None:
    """Return what Transformers reads a base from; None where it is a file of another kind."""
    from npgpt.interop.installed import located
    from npgpt.training import pretrained

    if located(model) != Path(model):
        return None
    if not Path(model).exists():
        return model
    folder = pretrained.find_folder(model)
    return str(folder.resolve()) if (folder / "config.json").exists() else None


def _read_data(
    file: str, args: Namespace, parent: Pretrained | InBlocks, config: Fields | None, form: str | None = None
) -> Data:
    """Return the examples, cleaned as the model's text was, or as a resumed run began, and encoded.

    One longer than the context is at fault as a bad line is. `form` is that of the examples for training,
    where these are for validation.
    """
    from npgpt.text import examples

    # what is resumed has begun already, with npgpt 0.1.0 on any share
    max_bad = 0.0 if not args.skip_bad else 1.0 if config else examples.MAX_BAD
    read, bad = examples.read_examples(file, max_bad, form)
    learnt, form = form is None, read[0].form
    known, block_size = parent.tokenizer, parent.config.block_size
    assert known
    known = known.normalizing(config["clean"]) if config else known
    if args.balance and form != "label":
        raise ValueError(f"--balance: {file} must have labels, got lines of {examples.FORMS[form]}")
    has_form = form == "prompt" or examples.template_of(known)
    tokenizer = known if has_form else examples.add_roles(known)
    fit, cleaned = [], Counter[str]()
    for raw in read:
        example = examples.normalized(tokenizer, raw, cleaned)
        try:
            ids, mask = examples.encode_example(tokenizer, example)
            if len(ids) - 1 > block_size:
                raise ValueError(f"must be at most the context, {block_size} tokens, got {len(ids) - 1}")
            fit.append((example, (ids, mask)))
            continue
        except ValueError as error:  # a chat template refuses some conversations
            bad.append(f"line {example.line}: {error}")
        if not args.skip_bad:
            raise ValueError(f"{file}: {bad[-1]}")
    examples.check_share(file, bad, len(fit), max_bad)
    if not fit:
        raise ValueError(f"{file}: no example fits the context of {block_size} tokens")
    kept, encoded = [one for one, _ in fit], [encoded for _, encoded in fit]
    if learnt:
        examples.check_labels(file, kept)  # two spellings are one
    return Data(Path(file).resolve(), form, kept, encoded, tokenizer, bad, cleaned)


def _read_validation(
    file: str, data: Data, args: Namespace, parent: Pretrained | InBlocks, config: Fields | None
) -> Data:
    """Return the examples of --val, which must be of the form and the labels of those for training."""
    found = _read_data(file, args, parent, config, data.form)
    labels = {example.label for example in data.examples}
    for example in found.examples:
        if example.label not in labels:
            raise ValueError(
                f"{file}: line {example.line}: label must be one of {args.data}, got {example.label!r}"
            )
    return found


def _settings(given: Fields, folder: RunFolder, about: Fields) -> Fields:
    """Return every setting of the run; ValueError where those of a resumed run would change."""
    if not folder.config:
        if given["val"] and given["val_fraction"] is not None:
            raise ValueError("--val and --val-fraction cannot both be given")
        settings = given | {name: value for name, value in DEFAULTS.items() if given[name] is None}
        return settings | ({"val_fraction": None} if given["val"] else {})
    config = folder.config
    for name, now in about.items():
        if config["about"].get(name) != now:
            raise ValueError(f"--resume: {name} is {config['about'].get(name)} in this run, got {now}")
    for name, value in given.items():
        longer = folder.ended and name == "epochs"
        if not longer and name not in (*MAY_CHANGE, "val") and value not in (None, config.get(name)):
            raise ValueError(f"--resume: {name} is {config.get(name)} in this run, got {value}")
    may_change = (*MAY_CHANGE, "epochs") if folder.ended else MAY_CHANGE
    return kept_settings(given, {name: config.get(name) for name in given}, may_change)


def _split(data: Data, validation: Data | None, settings: Fields, about: Fields) -> tuple[Examples, int]:
    """Return the examples for training and for validation, and the number of those that repeat an input."""
    from npgpt.text.examples import groups_of, split_examples
    from npgpt.training.finetuning import Examples

    labels, n = [example.label for example in data.examples], len(data.examples)
    train: Iterable[int] = range(n)
    if validation:
        groups = groups_of(data.examples + validation.examples, len(validation.examples))
        known = set(groups[:n])
        repeated = sum(group in known for group in groups[n:])
        held_out = validation.encoded
    else:
        share, seed = settings["val_fraction"], settings["seed"]
        groups = groups_of(data.examples, round(share * n))
        repeated = n - len(set(groups))
        train, held = split_examples(labels, share, seed, groups if about["grouped"] else None)
        held_out = [data.encoded[i] for i in held]
    balanced_by = [labels[i] for i in train] if about["balance"] else None
    return Examples([data.encoded[i] for i in train], held_out, data.tokenizer, balanced_by), repeated


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
        first = {"init_from": self.base.name, "adapter": self.base.adapter, "text": [str(self.data.path)]}
        flags = {name: self.about[name] or None for name in ("skip_bad", "balance")}
        settings = {**first, **self.settings, **flags, **shape}
        about = self.about | {"memorise": False, "form": self.data.form}
        runs.write_config(self.folder.path, settings | {"clean": self.data.tokenizer.normalizer}, about)

    def announce(self) -> None:
        """Print the number of examples, parameters and steps, and the memory and time to expect."""
        from npgpt.text.examples import spells_an_end
        from npgpt.training import memory
        from npgpt.training.cost import seconds_needed
        from npgpt.training.finetuning import blocks_of, memory_needed

        trainer, examples, plan, lora = self.trainer, self.examples, self.plan, self.lora
        log(
            "{training:,} examples for training, {held_out:,} for validation, {targets:,} target tokens",
            training=len(examples.training),
            held_out=len(examples.held_out),
            targets=int(sum(mask.sum() for ids, mask in examples.training)),
        )
        log_changed(self.data.tokenizer.normalizer, self.data.cleaned)
        self._log_repeated()
        if n := sum(map(spells_an_end, self.data.examples)):
            spelt = f"{n:,} examples spell <|end|> or <|endoftext|>, which are learnt as letters"
            log_warnings([f"{self.data.path}: {spelt}; the end of an answer is added by itself"])
        if bad := self.data.bad:
            log("{n} lines were at fault and are left out; the first: {why}", n=len(bad), why=bad[0])
        log(
            "model: {all:,} parameters, {trained:,} of them trained as adapters of rank {rank}"
            if lora
            else "model: {all:,} parameters, {trained:,} of them trained",
            **{"all": trainer.model.num_params, "trained": trainer.optimizer.model.num_params, "rank": lora},
        )
        log("training: at most {plan.steps} steps of {plan.batch_size} examples", plan=plan)
        log_going_on(trainer)
        config, rows = trainer.model.config, self.base.rows
        blocks = blocks_of(trainer.model)
        needed = {
            rank: memory_needed(config, plan, examples, rank, rows, self.world, blocks if rank else 0)
            for rank in (None, lora or 8)
        }
        resident = memory.resident_bytes() - 4 * trainer.model.num_params
        others = (self.base.resident if blocks else resident) / 1e6
        log(
            "expected: {megabytes:.0f} MB of memory (all weights: {other:.0f} MB), at most {seconds:.0f} s"
            if lora
            else "expected: {megabytes:.0f} MB of memory (--lora 8: {other:.0f} MB), at most {seconds:.0f} s",
            megabytes=others + needed[lora] / 1e6,
            other=others + needed[None if lora else 8] / 1e6,
            seconds=seconds_needed(trainer),
        )

    def _log_repeated(self) -> None:
        """Print the number of examples that repeat an input, and warn where that makes validation easy."""
        n, of, val = self.data.repeated, len(self.examples.held_out), self.settings["val"]
        if n and val:
            log_warnings(
                [f"{val}: {n:,} of {of:,} examples are in the training data too; validation is too easy"]
            )
        elif n and of and self.about["grouped"]:
            log("{n:,} examples repeat the input of another, and are on its side of the split", n=n)

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
        from npgpt.training import checkpoint

        best, _ = checkpoint.choose(self.folder.path)
        if self.adapters:
            with self.adapters.update() as adapters:
                adapters[...] = checkpoint.load(best)[1]["adapters"]
            self._write_adapter(self.adapters)
        if not (self.labels and self.examples.held_out):
            return {}
        accuracy = self._accuracy(best)
        log("accuracy on the examples held out: {accuracy:.3f}", accuracy=accuracy)
        return {"val_accuracy": accuracy}

    def _write_adapter(self, adapters: LoRA) -> None:
        """Write the adapter whole, and its base where that is a file that Transformers cannot open."""
        from npgpt.interop.huggingface import write_pretrained
        from npgpt.interop.peft import write_adapter
        from npgpt.training.checkpoint import written_whole

        folder, tokenizer = self.folder.path.resolve(), self.data.tokenizer
        base = self.base.in_transformers
        if base is None:
            base = str(folder / "base")
            with written_whole(folder / "base", over=True) as new:
                write_pretrained(new, adapters.unmerged(), tokenizer)
        with written_whole(folder / "adapter", over=True) as new:
            write_adapter(new, adapters, base, tokenizer)

    def _accuracy(self, checkpoint: Path) -> float:
        """Return the share of the examples held out whose label is the most probable one."""
        import numpy as np

        from npgpt.runtime.scoring import classify
        from npgpt.training import pretrained

        tokenizer = self.data.tokenizer
        texts, truth = [], []
        for ids, mask in self.examples.held_out:
            begin = int(np.flatnonzero(mask)[0])
            texts.append(tokenizer.decode_bytes(ids[: begin - 1]))
            truth.append(tokenizer.decode(ids[begin:]))
        if self.adapters and not self.adapters.model.is_float:  # finish() has loaded the best
            found = classify(self.adapters.model, tokenizer, texts, self.labels)
        else:
            saved = pretrained.read(checkpoint)
            found = classify(saved.model(), saved.tokenizer, texts, self.labels)
        right = sum(next(iter(one)) == label for one, label in zip(found, truth, strict=True))
        return float(right / len(truth))

    def _longer(self) -> str:
        """Return the command that makes a finished run twice as long."""
        flags = [f"--{name.replace('_', '-')}" for name in ("skip_bad", "balance") if self.about[name]]
        words = [*self.base.words(), str(self.data.path), "-o", str(self.folder.path), *flags]
        return f"python -m npgpt.finetune {shlex.join(words)} --resume --epochs {2 * self.settings['epochs']}"

    def show(self, result: Fields) -> Fields:
        """Print the losses, the accuracy, the run's folder and the next command; return fields for --json."""
        from npgpt.console import report

        more = {"skipped_lines": len(self.data.bad), "base": self.base.name}
        losses = _("training loss {train_loss:.4f} nats per target token")
        if result["best_val_loss"] is not None:
            losses = _(
                "training loss {train_loss:.4f}, best validation loss {best_val_loss:.4f} "
                "(step {best_step}) nats per target token"
            )
        log_result(result, losses, self.plan.patience)
        log_falling(result, self._longer())
        path = self.folder.path
        interrupted = result["ended"] == "interrupted"
        if not interrupted:
            more |= self.finish()
        report.write(path)
        log_saved(path)
        if interrupted:
            flags = "".join(f" {flag(name)}" for name in ("skip_bad", "balance") if self.about[name])
            files = f"{' '.join(map(shell_path, self.base.words()))} {shell_path(self.data.path)}{flags}"
            command = f"python -m npgpt.finetune {files} --resume -o {shell_path(path)}"
            log("go on: {command}", command=command)
        elif self.data.form != "prompt":
            log_next(f"python -m npgpt.chat {shell_path(path)}")
        return more
