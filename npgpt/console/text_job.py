"""Training on text: the settings, and a run from files to a trained model."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
    corpus_report,
    log,
    log_falling,
    log_found,
    log_going_on,
    log_next,
    log_result,
    log_saved,
    log_warnings,
    shell_path,
    spelt_end_warnings,
    val_warnings,
)
from npgpt.console.settings import (
    DOCUMENTS,
    FORMS,
    Setting,
    config_values,
    count,
    count_or_zero,
    minutes,
    not_empty,
    not_negative,
    one_of,
    positive,
    resolve,
    share,
    thread_count,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.distributed.world import World
    from npgpt.engine.types import Fields, PathLike
    from npgpt.interop.layout import Pretrained
    from npgpt.text.corpus import Corpus
    from npgpt.text.dataset import Dataset
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.text.tokenizer import Tokenizer
    from npgpt.training.plan import Plan
    from npgpt.training.trainer import Trainer


def _tokenizer_name(text: str) -> str:
    """Return bytes, bpe:N, or the full path of a vocabulary; it is a type for argparse."""
    if not_empty(text) == "bytes" or re.fullmatch(r"bpe:\d+", text):
        return text
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"must be bytes, bpe:N or the path of a vocabulary, got {text}")
    return str(Path(text).resolve())


SETTINGS = [
    Setting("out", not_empty, "the run's folder (default: runs/ and the text's name, then -2, -3)"),
    Setting(
        "init_from", not_empty, "begin with the weights and tokenizer of this model: a run or a GPT-2 folder"
    ),
    Setting(
        "engine",
        one_of("gpt", "gpt-2", "gpt-3", "llama"),
        "gpt (layernorms after the branches), gpt-2 (default), gpt-3 (a window in every other layer) or "
        "llama (RMSNorm, rotary positions, a gated MLP)",
    ),
    Setting(
        "window", count, "tokens in an attention window of gpt-3 (default: half the context, at most 256)"
    ),
    Setting("epochs", count, "number of epochs; in one, each training token is a target once"),
    Setting("steps", count, "number of steps (default: by the size of the text)"),
    Setting("minutes", minutes, "minutes from the beginning of the command to its end"),
    Setting("batch_size", count, "windows in memory at a time, over all ranks (default 8; a small text: 6)"),
    Setting("gradient_accumulation_steps", count, "batches whose gradients make one step (default 1)"),
    Setting("block_size", count, "tokens in a window, the model's context (default: 128)"),
    Setting("n_layer", count, "layers (default 4; a small text: 2)"),
    Setting("n_head", count, "attention heads, which must divide n_embd (default 4)"),
    Setting("n_embd", count, "channels (default 128)"),
    Setting(
        "dropout",
        share,
        "share of activations dropped while training (default: 0 to 0.2, by the size of the text)",
    ),
    Setting(
        "tokenizer",
        _tokenizer_name,
        "bytes (257 tokens), bpe:N (N tokens, trained on the training part), or the path of a vocabulary "
        "(default: bytes for small texts, else bpe)",
    ),
    Setting(
        "split", not_empty, "shares of training, validation, test (default 0.8,0.1,0.1; a small text: 1)"
    ),
    Setting("val", not_empty, "a text for validation, instead of a part of TEXT: a file or a folder"),
    Setting("clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"),
    *FORMS,
    DOCUMENTS,
    Setting(
        "optimizer",
        one_of("adamw", "muon"),
        "muon (default: Muon for the layers' matrices, AdamW for the rest) or adamw",
    ),
    Setting(
        "softmax",
        one_of("full", "sampled"),
        "full (default), or sampled: the training loss over the batch's tokens and 512 drawn ones, for large "
        "vocabularies",
    ),
    Setting("lr", positive, "highest learning rate (default: 0.02 for muon, 0.004 for adamw)"),
    Setting("min_lr", not_negative, "learning rate at the end (default: lr / 50)"),
    Setting(
        "warmup",
        count_or_zero,
        "steps until the learning rate is at its highest (default: a tenth of all, at most 50)",
    ),
    Setting(
        "schedule",
        one_of("linear", "cosine", "constant"),
        "shape of the learning rate after the warm-up: linear (default), cosine or constant",
    ),
    Setting("weight_decay", not_negative, "weight decay, which leaves out biases and gains (default 0.1)"),
    Setting("clip", positive, "maximum norm of the gradient (default 1)"),
    Setting("eval_every", count, "steps between validations (default: a tenth of all, at most 1000)"),
    Setting("eval_tokens", count, "validation tokens used while training (default 65536; at the end all)"),
    Setting("save_every", count, "steps between checkpoints, at most 5 minutes (default: eval_every)"),
    Setting("keep", count, "checkpoints to keep, beside the best (default 2)"),
    Setting("patience", count, "stop after so many validations without a better one (default: never)"),
    Setting(
        "target_loss",
        positive,
        "stop at this validation loss, nats per token (without validation: training loss)",
    ),
    Setting("seed", count_or_zero, "random seed of weights, batches and dropout (default 0)"),
    Setting(
        "threads",
        thread_count,
        "number of threads (default: the CPUs this process may use, shared by a host's ranks)",
    ),
]
DEFAULTS = {
    "encoding": "auto",
    "dedupe": "records",
    "documents": "apart",
    "keep": 2,
    "seed": 0,
}  # the rest is the plan's
LENGTHS = ("epochs", "steps", "minutes")
# on --resume, as no weight depends on them; of val its content is compared
MAY_CHANGE = ("out", "threads", "keep", "save_every", "val")


def text_job(args: Namespace, started: float, lock: contextlib.ExitStack, world: World) -> TextJob:
    """Return the run that the arguments describe, checked but with nothing written yet."""
    from npgpt.console import progress, report  # noqa: F401  in memory before that is measured
    from npgpt.runtime import generation  # noqa: F401
    from npgpt.training import memory, pretrained  # noqa: F401

    given = _one_length(resolve(SETTINGS, args, experiment(args)), args)
    set_threads(world, given["threads"])
    if not args.text and not (args.resume and given["out"]):
        raise ValueError("TEXT must be given (or --resume --out RUN, or --config FILE with text)")
    folder = open_folder(given["out"], args.text[0] if args.text else "", args.resume, world, lock)
    settings = _settings(given, folder, args)
    corpus, val = _corpora(args, folder, settings, world)
    parent = _parent(folder, settings, given)
    flags = _flags(folder, settings)
    dataset = _dataset(corpus, val, parent, folder, settings, given, flags, world)
    resident = memory.resident_bytes()
    spent = time.perf_counter() - started
    trainer = _trainer(dataset, parent, folder, flags, settings["seed"], spent, world)
    if folder.config and not folder.checkpoint:
        _refuse_another_parent(folder.config, trainer)
    if not (folder.config or args.dry_run):
        folder = make_folder(folder, world, lock)
    return TextJob(folder, settings, trainer, world, corpus, val, resident, started)


def experiment(args: Namespace) -> Fields:
    """Return the settings of the file of --config; its texts become args.text where TEXT is not given."""
    values = config_values(SETTINGS, args.config)
    texts = values.pop("text", [])
    # a run that is resumed looks for a text that was moved
    if not args.text and not (args.resume and not all(map(os.path.exists, texts))):
        args.text = texts
    return values


def _corpora(
    args: Namespace, folder: RunFolder, settings: Fields, world: World
) -> tuple[DistinctCorpus, DistinctCorpus | None]:
    """Return the text and that of --val, the same ones with the same settings on every rank."""
    from npgpt.text.distinct import DistinctCorpus
    from npgpt.training.source import find_text

    how = {name: settings[name] for name in ("clean", "encoding", "field")}
    apart = settings["documents"] == "apart"
    config, val = folder.config or {}, None
    if args.text:
        corpus = DistinctCorpus(args.text, settings["dedupe"], apart, **how)
    else:
        corpus, elsewhere = find_text(folder.path, config)
        log_found(elsewhere)
    if settings["val"] == "-":
        raise ValueError("--val must be a file or a folder, got -")
    if settings["val"] and settings["val"] == config.get("val"):
        val, elsewhere = find_text(folder.path, config, "val")
        log_found(elsewhere)
    elif settings["val"]:
        val = DistinctCorpus(settings["val"], None, apart, **how)
    settings["clean"] = corpus.clean
    if world.size > 1 and "-" in args.text:
        raise ValueError("-: stdin reaches one rank alone; give a file that each of them can read")
    checkpoint = folder.checkpoint.name if folder.checkpoint else None
    texts = {"text": corpus.sha256[:12], "val_text": val and val.sha256[:12]}
    check_ranks(world, settings, **texts, checkpoint=checkpoint)
    settings["val"] = val and str(Path(settings["val"]).resolve())
    return corpus, val


def _parent(folder: RunFolder, settings: Fields, given: Fields) -> Pretrained | None:
    """Return the checkpoint's model, or --init-from's, whose sizes become settings; None for a new model."""
    if folder.checkpoint:
        return read_parent(folder.checkpoint, "trained on text")
    if not settings["init_from"]:
        return None
    parent = read_parent(settings["init_from"], "trained on text")
    settings |= _parent_settings(settings["init_from"], parent, given)
    return parent


def _dataset(
    corpus: DistinctCorpus,
    val: DistinctCorpus | None,
    parent: Pretrained | None,
    folder: RunFolder,
    settings: Fields,
    given: Fields,
    flags: Fields,
    world: World,
) -> Dataset:
    """Return the ids of the text in their parts; ValueError where a resumed run would become another."""
    from npgpt.text.dataset import Dataset, encode
    from npgpt.training.plan import make_plan

    tokenizer = parent.tokenizer if parent else _new_tokenizer(settings, corpus, world)
    assert tokenizer
    tokenizer = tokenizer.normalizing(corpus.clean)
    ids = encode(corpus, tokenizer, world)
    if folder.config:
        _refuse_other_texts(folder.config, corpus, val, settings["val"])
        _refuse_changes(given, settings, len(ids))
    dataset = Dataset.of(corpus, ids, make_plan(len(ids), **flags).split, tokenizer)
    return dataset.validated_by(encode(val, tokenizer, world)) if val else dataset


def _flags(folder: RunFolder, settings: Fields) -> Fields:
    """Return the settings that a plan is made of; a resumed run with --minutes ends where it wrote down."""
    from npgpt.training.recorder import read_knots

    flags = _planned(settings)
    if folder.config and flags["minutes"] and (knots := read_knots(folder.path)):
        flags["steps"] = knots[-1][2]
    return flags


def _planned(settings: Fields) -> Fields:
    """Return the settings that make_plan() takes."""
    from npgpt.training.plan import FLAGS

    return {name: settings[name] for name in FLAGS} | {"own_validation": bool(settings["val"])}


def _trainer(
    dataset: Dataset,
    parent: Pretrained | None,
    folder: RunFolder,
    flags: Fields,
    seed: int,
    spent: float,
    world: World,
) -> Trainer:
    """Return the trainer, at the checkpoint's step where a run is resumed."""
    from npgpt.training.trainer import prepare

    model = parent.model() if parent else None
    trainer = prepare(dataset, flags, seed, model, spent, world)
    log_warnings(folder.broken)
    if folder.checkpoint:
        trainer.resume(folder.path, folder.checkpoint)
    return trainer


def _one_length(settings: Fields, args: Namespace) -> Fields:
    """Return the settings with at most one of epochs, steps and minutes; a flag replaces any other."""
    flags = {name: getattr(args, name) for name in LENGTHS}
    if any(flags.values()):
        settings = settings | flags
    if len(both := [name for name in LENGTHS if settings[name]]) > 1:
        raise ValueError(f"{' and '.join(f'--{name}' for name in both)} cannot both be given")
    return settings


def _settings(given: Fields, folder: RunFolder, args: Namespace) -> Fields:
    """Return every setting of the run: those given and the defaults, or those of a resumed run."""
    from npgpt.training.run import CONFIG

    if folder.config:
        # a checkpoint holds its vocabulary, so the original file may be missing
        kinds = [s._replace(kind=str) if s.name == "tokenizer" else s for s in SETTINGS]
        saved = config_values(kinds, folder.path / CONFIG)
        del saved["text"]  # which find_text() finds
        settings = kept_settings(given, saved, MAY_CHANGE)
        if folder.ended and any(given[name] for name in LENGTHS):
            settings |= {name: given[name] for name in LENGTHS}
        return settings
    if args.resume and not args.text:
        raise ValueError(f"{given['out']}: holds no run to resume, so TEXT must be given")
    return given | {name: value for name, value in DEFAULTS.items() if given[name] is None}


def _new_tokenizer(settings: Fields, corpus: Corpus, world: World) -> Tokenizer:
    """Return the tokenizer of a new model, and write its name into the settings."""
    from npgpt.text.dataset import DEFAULT_SPLIT, make_corpus_tokenizer
    from npgpt.training.plan import default_tokenizer

    settings["tokenizer"] = settings["tokenizer"] or default_tokenizer(corpus.n_kept)
    split = settings["split"] or ((1.0,) if settings["val"] else DEFAULT_SPLIT)
    return make_corpus_tokenizer(settings["tokenizer"], corpus, split, world)


def _parent_settings(path: str, parent: Pretrained, given: Fields) -> Fields:
    """Return the settings that the model of --init-from fixes; ValueError where others are given."""
    from dataclasses import asdict

    from npgpt.engine.config import engine_of

    assert parent.tokenizer
    if given["tokenizer"] not in (None, parent.tokenizer.name):
        raise ValueError(
            f"--init-from {path}: its tokenizer is {parent.tokenizer.name}, got {given['tokenizer']}"
        )
    about = {"engine": engine_of(parent.config)} | asdict(parent.config)
    sizes = {name: about[name] for name in ("engine", "window", "n_layer", "n_head", "n_embd", "block_size")}
    for name, size in sizes.items():
        if given[name] not in (None, size):
            raise ValueError(f"--init-from {path}: {name} is {size} there, got {given[name]}")
    return sizes | {"tokenizer": parent.tokenizer.name, "init_from": stored_name(path)}


def _refuse_other_texts(config: Fields, corpus: Corpus, val: Corpus | None, val_name: str) -> None:
    """Raise ValueError where a resumed run is given other texts."""
    about = config["about"]
    if about.get("text_sha256") != corpus.sha256:
        raise ValueError(f"{config['text'][0]}: has changed since the run began, so it cannot be resumed")
    if val and "val_sha256" not in about:
        raise ValueError("--resume: val is None in this run; a run goes on as it began")
    if val and val.sha256 != about["val_sha256"]:
        raise ValueError(f"{val_name}: is not the validation text that the run began with")


def _refuse_changes(given: Fields, settings: Fields, n_tokens: int) -> None:
    """Raise ValueError where a resumed run is given settings that would change it."""
    from npgpt.training.plan import make_plan

    new = {name: value for name, value in given.items() if value is not None and name not in MAY_CHANGE}
    lengths = dict.fromkeys(LENGTHS) if any(new.get(name) for name in LENGTHS) else {}
    then, now = settings | {}, settings | lengths | new
    plans = [vars(make_plan(n_tokens, **_planned(s))) for s in (then, now)]
    then, now = then | plans[0], now | plans[1]
    if then["minutes"] and now["minutes"]:
        now["steps"] = then["steps"]
    for name in new | lengths:
        if name == "init_from" and then[name]:  # the same folder, however it is written
            then[name], now[name] = (str(Path(s[name]).resolve()) for s in (then, now))
        if name != "epochs" and then[name] != now[name]:
            raise ValueError(
                f"--resume: {name} is {then[name]} in this run, got {now[name]}; "
                "a run goes on as it began (--init-from begins another from its weights)"
            )


def _refuse_another_parent(config: Fields, trainer: Trainer) -> None:
    """Raise ValueError where a run without a checkpoint would begin from other weights than it did."""
    known = config["about"].get("parent_sha256")
    if known and known != _weights_sha256(trainer):
        raise ValueError(f"{config['init_from']}: has changed since the run began from its weights")


def _weights_sha256(trainer: Trainer) -> str:
    return hashlib.sha256(trainer.model.flat_params.data).hexdigest()


class TextJob(Job):
    """A run of npgpt train: a GPT is trained on text."""

    command = "train"
    closing = 2.0  # for the report and a sample

    def __init__(
        self,
        folder: RunFolder,
        settings: Fields,
        trainer: Trainer,
        world: World,
        corpus: DistinctCorpus,
        val: Corpus | None,
        resident: int,
        started: float,
    ) -> None:
        """Prepare the run.

        `resident` is the bytes that the process held before the model was made; `started` is the time at
        which the command began.
        """
        super().__init__(folder, settings, trainer, world)
        self.corpus, self.val, self.resident, self.started = corpus, val, resident, started
        dataset = trainer.dataset
        self.beginning = dataset.tokenizer.decode_bytes(dataset.train[:1000])

    def write_config(self) -> None:
        """Write config.toml, and the text where it came from stdin."""
        from npgpt.training import run as runs
        from npgpt.training.trainer import val_bytes_per_token

        plan, path = self.plan, self.folder.path
        text, target = self.corpus.names(path), self.settings["target_loss"]
        settings = self.settings | {"text": text, **plan.settings(), "target_loss": target}
        settings |= {"out": None, "epochs": None}  # a new run from these settings has its own
        if plan.minutes:
            settings["steps"] = None
        self.corpus.keep_stdin(path)
        about = {"memorise": plan.memorise, "text_sha256": self.corpus.sha256}
        about |= {"val_sha256": self.val.sha256} if self.val else {}
        if per_token := val_bytes_per_token(self.trainer):  # makes bits per byte of its validation losses
            about["val_bytes_per_token"] = per_token
        if settings["init_from"]:
            about["parent_sha256"] = _weights_sha256(self.trainer)
        runs.write_config(path, settings, about)

    def announce(self) -> None:
        """Print the text, tokenizer, split, model and steps, and the memory and time to expect."""
        from npgpt.text.dataset import Dataset

        print("\n".join(corpus_report(self.corpus)))
        if not self.world.rank:
            log_warnings(spelt_end_warnings(self.corpus))
            log_warnings(val_warnings(self.val, self.corpus) if self.val else [])
        dataset, plan = self.trainer.dataset, self.plan
        assert isinstance(dataset, Dataset)
        log(
            "tokenizer: {name}, {size:,} tokens, {length:.2f} bytes in one",
            name=self.settings["tokenizer"] or dataset.tokenizer.name,
            size=dataset.tokenizer.vocab_size,
            length=self.corpus.n_kept / len(dataset),
        )
        if plan.memorise:
            log("this text is too small to generalise from: it will be memorised, all of it is for training")
        else:
            log(
                "tokens: {train:,} for training, {validation:,} for validation, {test:,} for testing",
                train=len(dataset.train),
                validation=len(dataset.validation),
                test=len(dataset.test),
            )
        if dataset.n_copies:
            log(
                "{n:,} tokens are left out, as the part before holds their document too, or nearly the same",
                n=dataset.n_copies,
            )
        _log_cost(self.trainer, *self._cost)

    @cached_property
    def _cost(self) -> tuple[float, float]:
        """The megabytes and the seconds that the rest of the training needs: steps are timed for it."""
        from npgpt.training.cost import memory_needed, seconds_needed

        trainer, plan = self.trainer, self.plan
        needed = memory_needed(trainer.model.config, plan, len(trainer.dataset.train), trainer.world)
        seconds = 60 * plan.minutes - trainer.seconds if plan.minutes else seconds_needed(trainer)
        return (self.resident + needed) / 1e6, seconds

    def tell_plan(self, as_json: bool) -> int:
        """Print what a run would be and need, begin none, and return exit code 0."""
        self.announce()
        log("nothing was written; without --dry-run the run begins")
        if as_json:
            trainer, (megabytes, seconds) = self.trainer, self._cost
            result = {"dry_run": True, "engine": self.plan.engine, **self.plan.settings()}
            result |= {"tokenizer": self.settings["tokenizer"] or trainer.dataset.tokenizer.name}
            result |= {"parameters": trainer.model.num_params, "training_tokens": len(trainer.dataset.train)}
            result |= {"steps": trainer.schedule.steps, "megabytes": megabytes, "seconds": seconds}
            print(json.dumps(result, allow_nan=False))
        return 0

    def sample(self) -> str:
        """Return 160 tokens of a new text, always drawn with the same random numbers."""
        from npgpt.runtime.generation import generate
        from npgpt.runtime.sampling import Sampling

        trainer = self.trainer
        how, seed = Sampling(temperature=0.8), self.settings["seed"]
        return str(generate(trainer.model, trainer.dataset.tokenizer, "", 160, how, seed=seed))

    def spent(self) -> float:
        """Return the seconds since the command began."""
        return time.perf_counter() - self.started

    def finish(self) -> Fields:
        """Return no fields: nothing follows the training."""
        return {}

    def show(self, result: Fields) -> Fields:
        """Print the losses, the run's folder and a sample, or how to resume; return no further fields."""
        from npgpt.console import report

        path = self.folder.path
        command = f"python -m npgpt.train --resume --out {shell_path(path)}"
        _log_losses(result, self.plan, f"{command} {self._twice(result)}")
        report.write(path)
        if result["ended"] == "interrupted":
            log("go on: {command}", command=command)
        else:
            _show_sample(path, self.beginning, self.plan, self.settings["seed"])
        return {}

    def _twice(self, result: Fields) -> str:
        """Return the flag that makes the run twice as long."""
        return (
            f"--minutes {2 * self.plan.minutes:g}" if self.plan.minutes else f"--steps {2 * result['steps']}"
        )

    def exit_code(self, result: Fields) -> int:
        """Return 130 for an interrupted run, 1 where --target-loss was missed, else 0."""
        from npgpt.training.ending import Ending

        code = super().exit_code(result)
        reached = result["ended"] in (Ending.MEMORISED, Ending.TARGET)
        return code or int(bool(self.settings["target_loss"]) and not reached)


def _log_cost(trainer: Trainer, megabytes: float, seconds: float) -> None:
    """Print model, steps, memory and time before training."""
    plan, model, config = trainer.plan, trainer.model, trainer.model.config
    log(
        "model: {plan.engine}, {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
        "context {config.block_size}: {parameters:,} parameters",
        **{"plan": plan, "config": config, "parameters": model.num_params},
    )
    steps, windows = trainer.schedule.steps, f"{plan.batch_size} x {plan.block_size}"
    if plan.gradient_accumulation_steps > 1:
        windows = f"{plan.gradient_accumulation_steps} x {windows}"
    log(
        "training: about {steps} steps of {windows} tokens, {epochs:.1f} epochs"
        if plan.minutes
        else "training: {steps} steps of {windows} tokens, {epochs:.1f} epochs",
        **{"steps": steps, "windows": windows, "epochs": steps / trainer.batches.per_epoch},
    )
    log_going_on(trainer)
    log(
        "expected: {megabytes:.0f} MB of memory, at most {seconds:.0f} s"
        if plan.target_loss or plan.patience
        else "expected: {megabytes:.0f} MB of memory, about {seconds:.0f} s",
        megabytes=megabytes,
        seconds=seconds,
    )


def _log_losses(result: Fields, plan: Plan, longer: str) -> None:
    """Print how a training ended; `longer` is the command that goes on with a finished run."""
    losses = _("training loss {train_loss:.4f}")
    if result["val_loss"] is not None:
        losses = _("training loss {train_loss:.4f}, validation loss {val_loss:.4f} nats per token")
    log_result(result, losses, plan.patience)
    if result["best_step"] and result["best_step"] != result["steps"]:
        log("the best was step {best_step}, which is what is used: {best_val_loss:.4f}", **result)
    if result["skipped"]:
        log("{skipped} steps were skipped, as loss or gradient was not finite", **result)
    if plan.memorise and result["ended"] == "done":
        log("not memorised yet: the training loss should be {target}", target=plan.target_loss)
        log("for longer: {command}", command=longer)
    log_falling(result, longer)
    log_saved(result["run"])


def _show_sample(folder: PathLike, beginning: bytes, plan: Plan, seed: int) -> None:
    """Print a text of the saved model, a memorised text from its beginning, and the commands to run next."""
    from npgpt.runtime.generation import generate
    from npgpt.runtime.sampling import Sampling
    from npgpt.training import pretrained

    saved = pretrained.read(folder)
    temperature, length = (0.0, len(beginning)) if plan.memorise else (0.8, 400)
    text = generate(saved.model(), saved.tokenizer, "", length, Sampling(temperature), seed=seed)
    rule = "-" * 70
    log("it writes:")
    print(rule, text.rstrip(), rule, sep="\n")
    prompt = " ".join(beginning[:200].decode("utf-8", "ignore").split()[:2])
    prompt = shlex.quote(prompt if prompt.isprintable() else "")  # no shell passes a NUL on
    where, dashes = shell_path(folder), "-- " if prompt.strip("'").startswith("-") else ""
    log_next(f"python -m npgpt.generate {where} {dashes}{prompt}", f"python -m npgpt.evaluate {where}")
