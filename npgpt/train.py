"""`python -m npgpt.train TEXT...`: train a GPT on text, from reading the files to showing what it writes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npgpt.console.language import _
from npgpt.console.messages import (
    corpus_report,
    log,
    log_finished,
    log_next,
    log_result,
    log_saved,
    log_warnings,
    start_command,
)
from npgpt.console.process import errors_as_lines, interruptible
from npgpt.console.settings import (
    Setting,
    add_settings,
    config_values,
    count,
    count_or_zero,
    flag,
    make_parser,
    not_negative,
    one_of,
    positive,
    resolve,
    share,
    thread_count,
)

if TYPE_CHECKING:
    from argparse import Namespace

    from npgpt.api import GPT
    from npgpt.distributed.world import World
    from npgpt.engine.types import Fields, PathLike
    from npgpt.training.plan import Plan
    from npgpt.training.trainer import Trainer


def _tokenizer_name(text: str) -> str:
    """For argparse: bytes, bpe:N, or the full path of what is there."""
    if text == "bytes" or re.fullmatch(r"bpe:\d+", text):
        return text
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"must be bytes, bpe:N or the path of a vocabulary, got {text}")
    return str(Path(text).resolve())


SETTINGS = [
    Setting("out", str, "the run's folder (default: runs/ and the text's name, then -2, -3)"),
    Setting("init_from", str, "go on from this model's weights, with its tokenizer: a run or a GPT-2 folder"),
    Setting(
        "engine",
        one_of("gpt", "gpt-2", "gpt-3"),
        "gpt (layernorms behind the branches), gpt-2 (default) or gpt-3 (a window in every other layer)",
    ),
    Setting("window", count, "tokens that a window of gpt-3 holds (default: half the context, at most 256)"),
    Setting("epochs", count, "train for so many epochs; in one, each training token is a target once"),
    Setting("steps", count, "train for so many steps"),
    Setting("minutes", positive, "train for so many minutes, from the command to its end"),
    Setting("batch_size", count, "windows in memory at a time"),
    Setting("gradient_accumulation_steps", count, "batches whose gradients make one step (default 1)"),
    Setting("block_size", count, "tokens in a window: the model's context"),
    Setting("n_layer", count, "layers"),
    Setting("n_head", count, "attention heads, which must divide n_embd"),
    Setting("n_embd", count, "channels"),
    Setting("dropout", share, "share of activations dropped while training"),
    Setting(
        "tokenizer",
        _tokenizer_name,
        "bytes (257 tokens), bpe:N (N tokens, learnt from the training part), or the path of a vocabulary "
        "(default: bytes for small texts, else bpe)",
    ),
    Setting("split", str, "shares of training, validation, test (default 0.8,0.1,0.1; a small text: 1)"),
    Setting("clean", one_of("none", "light", "full"), "none, light (BOM, line ends, NFC; default) or full"),
    Setting(
        "optimizer",
        one_of("adamw", "muon"),
        "muon (default: Muon for the layers' matrices, AdamW for the rest) or adamw",
    ),
    Setting("lr", positive, "highest learning rate (default: 0.02 for muon, 0.004 for adamw)"),
    Setting("min_lr", not_negative, "learning rate at the end (default: lr / 50)"),
    Setting("warmup", count_or_zero, "steps until the learning rate is at its highest"),
    Setting(
        "schedule",
        one_of("linear", "cosine", "constant"),
        "how it then goes down: linear (default), cosine or constant",
    ),
    Setting("weight_decay", not_negative, "of weights, not of biases and gains (default 0.1)"),
    Setting("clip", positive, "greatest norm of the gradient (default 1)"),
    Setting("eval_every", count, "steps between validations (default: a tenth of all, at most 1000)"),
    Setting("eval_tokens", count, "validation tokens used while training (default 65536; at the end all)"),
    Setting("save_every", count, "steps between checkpoints (default: eval_every), 5 minutes at most"),
    Setting("keep", count, "checkpoints to keep, beside the best (default 2)"),
    Setting("patience", count, "stop after so many validations without a better one (default: never)"),
    Setting("target_loss", positive, "stop at this validation loss (without validation: training loss)"),
    Setting("seed", count_or_zero, "of weights, batches and dropout (default 0)"),
    Setting("threads", thread_count, "default: the CPUs this process may use, shared by the ranks of a host"),
]
DEFAULTS = {"clean": "light", "keep": 2, "seed": 0}  # the rest is the plan's
LENGTHS = ("epochs", "steps", "minutes")
CLOSING = 2.0  # seconds of --minutes for what comes after the last step: report and sample
MAY_CHANGE = ("out", "threads", "keep", "save_every")  # on --resume: what no weight depends on


def main(argv: Sequence[str] | None = None) -> int:
    """Train -> 0; 1 failed or --target-loss missed, 2 refused, 130 interrupted with a checkpoint."""
    from npgpt.distributed.mpi import init_world

    started = time.perf_counter()
    parser = make_parser("train", "Train a GPT on text. What is not given depends on the text's size alone.")
    add = parser.add_argument
    add(
        "text",
        nargs="*",
        metavar="TEXT",
        help="files, folders of .txt files, or - for stdin; any bytes will do",
    )
    add_settings(parser, SETTINGS)
    add(
        "--resume",
        action="store_true",
        help="go on with the run, to the same bits as if it had never stopped",
    )
    add("--config", metavar="FILE", help="take settings from a TOML file, such as a run's config.toml")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    add(
        "--zero", action="store_true", help="under mpiexec: each rank keeps a part of the optimizer's moments"
    )
    add(
        "--restarts",
        metavar="K",
        type=count,
        help="start the training again when it fails, from its last checkpoint, at most K times; of several "
        "ranks, this command stands before mpiexec, which it starts: --restarts 3 --launch 'mpiexec -n 4'",
    )
    add(
        "--launch",
        metavar="COMMAND",
        help="with --restarts: what starts the ranks, as 'mpiexec -n 4' (default: one process)",
    )
    with errors_as_lines("train"):
        world = init_world()
    with world.abort_on_failure(), contextlib.ExitStack() as lock:
        args = parser.parse_args(argv)
        world.zero = args.zero and bool(world)
        if args.restarts or args.launch:
            with errors_as_lines("train"):
                return _supervise(args, sys.argv[1:] if argv is None else list(argv), world)
        with errors_as_lines("train"):  # whatever can be refused is, before anything is written
            job = _Job(args, started, lock, world)
        start_command(None if world.size > 1 else job.settings["threads"])
        if job.trainer.ended:
            return job.finished(args.json)
        return job.run(args.json)


def _supervise(args: Namespace, argv: list[str], world: World) -> int:
    """Train in processes of its own, and again where they fail."""
    from npgpt.console import restarts
    from npgpt.training import run as runs

    if world.size > 1:
        raise ValueError(
            "--restarts must stand before mpiexec: --restarts 3 --launch 'mpiexec -n 4', got it inside"
        )
    if not args.restarts:
        raise ValueError("--launch is for --restarts, which is missing")
    if "-" in args.text:
        raise ValueError("-: stdin can be read only once, so it cannot be had with --restarts")
    out = resolve(SETTINGS, args, args.config)["out"]
    if not (args.text or (args.resume and out)):
        raise ValueError("TEXT must be given (or --resume --out RUN)")
    folder = runs.find_folder(out, args.text[0] if args.text else "", args.resume)
    plain = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--restarts", "--launch", "--out"):
        plain.add_argument(name)
    command = [*shlex.split(args.launch or ""), sys.executable, "-m", "npgpt.train"]
    command += [*plain.parse_known_args(argv)[1], "--out", str(folder)]
    return restarts.supervise(command, folder, args.restarts)


class _Job:
    """What one command trains: settings, text, trainer and folder, all checked; the folder is locked."""

    def __init__(self, args: Namespace, started: float, lock: contextlib.ExitStack, world: World) -> None:
        from npgpt.api import GPT, load
        from npgpt.distributed import mpi
        from npgpt.text import dataset as datasets
        from npgpt.text.corpus import Corpus
        from npgpt.training import checkpoint, memory
        from npgpt.training import run as runs
        from npgpt.training.plan import FLAGS, default_tokenizer, make_plan
        from npgpt.training.trainer import prepare, read_knots

        given = _one_length(resolve(SETTINGS, args, args.config), args)
        if warning := world.set_threads(given["threads"]):
            log_warnings([warning])
        if not args.text and not (args.resume and given["out"]):
            raise ValueError("TEXT must be given (or --resume --out RUN)")
        self.folder = runs.find_folder(given["out"], args.text[0] if args.text else "", args.resume)
        self.began_before = args.resume and (self.folder / runs.CONFIG).exists()
        self.world = world

        def lock_folder() -> None:
            if world.rank == 0:
                lock.enter_context(runs.locked(self.folder, new=not self.began_before))

        if self.began_before:
            lock_folder()
            before = runs.read_config(self.folder)
            # its checkpoints hold their vocabulary, so that the one it began with may be gone
            kinds = [s._replace(kind=str) if s.name == "tokenizer" else s for s in SETTINGS]
            saved: Fields = dict.fromkeys(given) | config_values(kinds, self.folder / runs.CONFIG)
            settings = saved | {name: given[name] or saved[name] for name in MAY_CHANGE}
        elif args.resume and not args.text:
            raise ValueError(f"{given['out']}: holds no run to resume, so TEXT must be given")
        else:
            settings = given | {name: value for name, value in DEFAULTS.items() if given[name] is None}

        self.corpus = Corpus(args.text or before["text"], settings["clean"])
        found = checkpoint.last(self.folder) if self.began_before else None
        if world.size > 1:
            if "-" in args.text:
                raise ValueError("-: stdin reaches one rank alone; give a file that each of them can read")
            world.check_equal(
                **{flag(name): settings[name] or "default" for name in settings if name != "threads"},
                text=self.corpus.sha256[:12],
                checkpoint=found and found[0].name,
                **mpi.library_versions(),
            )
        model = None
        if found:
            model = load(found[0])
            log_warnings(found[1])
        elif settings["init_from"]:
            model = _parent(settings, given)
        else:
            settings["tokenizer"] = settings["tokenizer"] or default_tokenizer(self.corpus.n_bytes)
            split = settings["split"] or datasets.DEFAULT_SPLIT
            tokenizer = datasets.make_corpus_tokenizer(settings["tokenizer"], self.corpus, split, world)
        if model:
            assert model.tokenizer
            tokenizer = model.tokenizer
        ids = datasets.encode(self.corpus, tokenizer, world)
        flags = {name: settings[name] for name in FLAGS}
        if self.began_before:
            if before["about"].get("text_sha256") != self.corpus.sha256:
                raise ValueError(
                    f"{before['text'][0]}: has changed since the run began, so it cannot be resumed"
                )
            _refuse_changes(given, settings, len(ids))
            if flags["minutes"] and (knots := read_knots(self.folder)):
                flags["steps"] = knots[-1][2]
        dataset = datasets.Dataset.from_ids(ids, make_plan(len(ids), **flags).split, tokenizer)
        self.resident = memory.resident_bytes()
        spent = time.perf_counter() - started
        self.trainer = prepare(dataset, flags, settings["seed"], GPT, model, spent, world)
        trained: Any = self.trainer.model
        trained.tokenizer = tokenizer  # its samples are text
        if found:
            self.trainer.go_on(self.folder, found[0])
        elif not self.began_before:
            lock_folder()
        self.settings, self.started, self.plan = settings, started, self.trainer.plan

    def run(self, as_json: bool) -> int:
        from npgpt.engine import kernels
        from npgpt.training import run as runs
        from npgpt.training.trainer import TrainingFailed

        trainer, plan, settings, folder = self.trainer, self.plan, self.settings, self.folder
        wanted, keep = settings["target_loss"], settings["keep"]
        failures = (OSError, MemoryError, TrainingFailed)
        with errors_as_lines("train", 1, failures), interruptible() as interrupted:
            self._tell_text()
            if not self.began_before and not self.world.rank:
                settings = settings | {
                    "text": self.corpus.names(folder),
                    **plan.settings(),
                    "target_loss": wanted,
                }
                settings |= {"out": None, "epochs": None}  # a run from these settings has its own
                if plan.minutes:
                    settings["steps"] = None
                self.corpus.keep_stdin(folder)
                about = {"memorise": plan.memorise, "text_sha256": self.corpus.sha256}
                runs.write_config(folder, settings, about)
            _tell_cost(trainer, self.resident)
            beginning = trainer.dataset.tokenizer.decode_bytes(trainer.dataset.train[:1000])
            model: Any = trainer.model
            how = {"max_new_tokens": 160, "temperature": 0.8, "seed": settings["seed"]}
            sample = functools.partial(model.generate, "", **how)  # always drawn with the same numbers
            spent = time.perf_counter() - self.started
            result = trainer.train(folder, keep, interrupted, sample, spent, CLOSING)
            del self.trainer, trainer, model, sample  # its memory is needed to read the model back
            kernels.release_memory()
            if not self.world.rank:
                self._show(result, beginning)
        if as_json:
            print(json.dumps(result))
        return self._code(result["ended"])

    def finished(self, as_json: bool) -> int:
        """Tell of a run that has ended, and draw it where a kill came in between -> as run() would."""
        from npgpt.console import report

        log_finished(self.trainer.result(self.folder), self.plan.patience)
        if not self.world.rank and not (self.folder / "report.html").exists():
            with errors_as_lines("train", 1, (OSError, MemoryError)):
                report.write(self.folder)
        if as_json:
            print(json.dumps(self.trainer.result(self.folder)))
        return self._code(self.trainer.ended)

    def _code(self, ended: str | None) -> int:
        missed = self.settings["target_loss"] and ended not in ("memorised", "target reached")
        return 130 if ended == "interrupted" else 1 if missed else 0

    def _show(self, result: Fields, beginning: bytes) -> None:
        from npgpt.console import report

        folder = self.folder
        _tell_result(result, self.plan)
        report.write(folder)
        if result["ended"] == "interrupted":
            log(
                "go on: {command}", command=f"python -m npgpt.train --resume --out {shlex.quote(str(folder))}"
            )
        else:
            _show_sample(folder, beginning, self.plan, self.settings["seed"])

    def _tell_text(self) -> None:
        print("\n".join(corpus_report(self.corpus)))
        dataset, plan = self.trainer.dataset, self.plan
        size, name = dataset.tokenizer.vocab_size, self.settings["tokenizer"] or dataset.tokenizer.name
        length = self.corpus.n_bytes / len(dataset)
        log(
            "tokenizer: {name}, {size:,} tokens, {length:.2f} bytes in one",
            name=name,
            size=size,
            length=length,
        )
        if plan.memorise:
            log("this text is too small to generalise from: it will be memorised, all of it is for training")
        else:
            log(
                "tokens: {train:,} for training, {validation:,} for validation, {test:,} for testing",
                **{part: len(getattr(dataset, part)) for part in ("train", "validation", "test")},
            )


def _one_length(settings: Fields, args: Namespace) -> Fields:
    """Of epochs, steps and minutes at most one; those given as flags replace any from elsewhere."""
    flags = {name: getattr(args, name) for name in LENGTHS}
    if any(flags.values()):
        settings = settings | flags
    if len(both := [name for name in LENGTHS if settings[name]]) > 1:
        raise ValueError(f"{' and '.join(f'--{name}' for name in both)} cannot both be given")
    return settings


def _parent(settings: Fields, given: Fields) -> GPT:
    """The model that --init-from names; its sizes become settings."""
    from dataclasses import asdict

    from npgpt.api import load
    from npgpt.engine.config import engine_of

    path = settings["init_from"]
    model = load(path)
    if model.tokenizer is None:
        raise ValueError(f"--init-from {path}: must have a tokenizer to be trained on text")
    if given["tokenizer"] not in (None, model.tokenizer.name):
        raise ValueError(
            f"--init-from {path}: its tokenizer is {model.tokenizer.name}, got {given['tokenizer']}"
        )
    settings["tokenizer"] = model.tokenizer.name
    about = {"engine": engine_of(model.config)} | asdict(model.config)
    for name in ("engine", "window", "n_layer", "n_head", "n_embd", "block_size"):
        size = about[name]
        if given[name] not in (None, size):
            raise ValueError(f"--init-from {path}: {name} is {size} there, got {given[name]}")
        settings[name] = size
    settings["init_from"] = str(Path(path).resolve())
    return model


def _refuse_changes(given: Fields, settings: Fields, n_tokens: int) -> None:
    """ValueError where a run that is resumed is given settings that would make it another."""
    from npgpt.training.plan import FLAGS, make_plan

    new = {name: value for name, value in given.items() if value is not None and name not in MAY_CHANGE}
    lengths = dict.fromkeys(LENGTHS) if any(new.get(name) for name in LENGTHS) else {}
    then, now = settings | {}, settings | lengths | new
    plans = [vars(make_plan(n_tokens, **{name: s[name] for name in FLAGS})) for s in (then, now)]
    then, now = then | plans[0], now | plans[1]
    if then["minutes"] and now["minutes"]:
        now["steps"] = then["steps"]
    for name in new | lengths:
        if name != "epochs" and then[name] != now[name] and name != "init_from":
            raise ValueError(
                f"--resume: {name} is {then[name]} in this run, got {now[name]}; "
                "a run goes on as it began (--init-from begins another from its weights)"
            )


def _tell_cost(trainer: Trainer, resident: int) -> None:
    """What the run will take, before it takes it; `resident` is what the process held before the model."""
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
    if trainer.step:
        log("going on after step {step}", step=trainer.step)
    needed = trainer.memory_needed(config, plan, len(trainer.dataset.train), trainer.world)
    megabytes, seconds = (resident + needed) / 1e6, trainer.seconds_needed()
    if plan.minutes:
        seconds = 60 * plan.minutes - trainer.seconds
    log(
        "expected: {megabytes:.0f} MB of memory, at most {seconds:.0f} s"
        if plan.target_loss or plan.patience
        else "expected: {megabytes:.0f} MB of memory, about {seconds:.0f} s",
        **{"megabytes": megabytes, "seconds": seconds},
    )


def _tell_result(result: Fields, plan: Plan) -> None:
    losses = _("training loss {train_loss:.4f}")
    if result["val_loss"] is not None:
        losses = _("training loss {train_loss:.4f}, validation loss {val_loss:.4f} nats per token")
    log_result(result, losses, plan.patience)
    if result["best_step"] and result["best_step"] != result["steps"]:
        log("the best was step {best_step}, which is what is used: {best_val_loss:.4f}", **result)
    if result["skipped"]:
        log("{skipped} steps were skipped, as loss or gradient was not finite", **result)
    if plan.memorise and result["ended"] == "done":
        log(
            "not memorised yet: the training loss should be {target}; more --steps will do it",
            target=plan.target_loss,
        )
    log_saved(result["run"])


def _show_sample(folder: PathLike, beginning: bytes, plan: Plan, seed: int) -> None:
    """What the saved model writes: a memorised text from its beginning, else something of its own."""
    from npgpt.api import load

    model = load(folder)
    temperature, length = (0, len(beginning)) if plan.memorise else (0.8, 400)
    text = model.generate("", max_new_tokens=length, temperature=temperature, seed=seed)
    rule = "-" * 70
    log("it writes:")
    print(rule, text.rstrip(), rule, sep="\n")
    prompt = " ".join(beginning[:200].decode("utf-8", "ignore").split()[:2])
    where = shlex.quote(str(folder))
    log_next(f"python -m npgpt.generate {where} {shlex.quote(prompt)}", f"python -m npgpt.evaluate {where}")


if __name__ == "__main__":
    raise SystemExit(main())
