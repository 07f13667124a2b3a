"""`python -m npgpt.finetune RUN DATA.jsonl -o NEW`: teach a trained GPT a task from examples."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npgpt.console.language import _
from npgpt.console.messages import (
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
    count,
    count_or_zero,
    flag,
    make_parser,
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
    from npgpt.text.examples import Encoded, Example
    from npgpt.text.tokenizer import Tokenizer
    from npgpt.training.finetuning import Examples

SETTINGS = [
    Setting("epochs", count, "how often each example is seen, at most (default 3)"),
    Setting("batch_size", count, "examples of a step, packed side by side (default 16)"),
    Setting("lr", positive, "highest learning rate (default 0.001, LoRA 0.004, less over 128 channels)"),
    Setting("lora", count, "train adapters of this rank alone, 8 for one (default: all weights)"),
    Setting("val_fraction", share, "share of the examples held out for validation (default 0.1)"),
    Setting("dropout", share, "share of activations dropped while training (default 0.1)"),
    Setting("weight_decay", not_negative, "of weights, not of biases and gains (default 0.01)"),
    Setting("eval_every", count, "steps between validations (default: half an epoch, a 20th of all)"),
    Setting("patience", count, "stop after so many validations without a better one (default 4)"),
    Setting("keep", count, "checkpoints to keep, beside the best (default 2)"),
    Setting("seed", count_or_zero, "of the split, the batches and dropout (default 0)"),
    Setting("threads", thread_count, "default: the CPUs this process may use"),
]
DEFAULTS = {"epochs": 3, "val_fraction": 0.1, "keep": 2, "seed": 0}
PLANNED = ("batch_size", "lr", "dropout", "weight_decay", "eval_every", "patience")
MAY_CHANGE = ("threads", "keep")


def main(argv: Sequence[str] | None = None) -> int:
    """Train on the examples -> exit code 0; 1 failed, 2 refused, 130 interrupted, with a checkpoint."""
    from npgpt.distributed.mpi import init_world

    parser = make_parser("finetune", "Teach a trained GPT a task from examples, a JSON object a line.")
    add = parser.add_argument
    add("model", metavar="RUN", help="what to begin with: a run, a checkpoint or a Hugging Face GPT-2 folder")
    add(
        "data",
        metavar="DATA.jsonl",
        help='lines of {"prompt", "completion"}, {"messages": [{"role", "content"}]} or {"text", "label"}',
    )
    add("-o", "--out", metavar="NEW", help="the new run's folder (default: runs/ and the data's name)")
    add_settings(parser, SETTINGS)
    add("--skip-bad", action="store_true", help="leave out the lines that are at fault, and tell how many")
    add("--balance", action="store_true", help="show each label equally often, the rarer ones repeatedly")
    add("--resume", action="store_true", help="go on with NEW, to the same bits as if it had never stopped")
    add("--json", action="store_true", help="end with one JSON object on the last line of stdout")
    with errors_as_lines("finetune"):
        world = init_world()
    with world.abort_on_failure(), contextlib.ExitStack() as lock:
        args = parser.parse_args(argv)
        # whatever can be refused is, before anything is written
        with errors_as_lines("finetune", as_json=args.json):
            job = _Job(args, lock, world)
        start_command(None if world.size > 1 else job.settings["threads"])
        if job.trainer.ended:
            return job.finished(args.json)
        return job.run(args.json)


class _Job:
    """What one command trains: settings, examples, trainer and folder, all checked; the folder is locked."""

    def __init__(self, args: Namespace, lock: contextlib.ExitStack, world: World) -> None:
        from npgpt.api import load
        from npgpt.distributed import mpi
        from npgpt.text import examples as tasks
        from npgpt.training import checkpoint
        from npgpt.training import run as runs
        from npgpt.training.finetuning import TaskTrainer, make_task_plan, with_vocabulary

        self.folder = runs.find_folder(args.out, args.data, args.resume)
        self.goes_on = args.resume and (self.folder / runs.CONFIG).exists()
        self.world, given = world, resolve(SETTINGS, args, None)
        if warning := world.set_threads(given["threads"]):
            log_warnings([warning])
        self.settings = settings = given | {n: v for n, v in DEFAULTS.items() if given[n] is None}
        parent, data = Path(args.model).resolve(), Path(args.data).resolve()
        self.parent = str(parent if parent.exists() else args.model)  # else a name on the Hub
        read, bad = tasks.read_examples(args.data, args.skip_bad)
        model = load(args.model)
        if model.tokenizer is None:
            raise ValueError(f"{args.model}: must have a tokenizer to be taught with text")
        self.form, known = read[0].form, model.tokenizer
        tokenizer = known if self.form == "prompt" else tasks.add_roles(known)
        examples, encoded = _encoded(args, tokenizer, read, bad, model.config.block_size)
        self.skipped_lines = len(bad)
        model, self.rows = with_vocabulary(model, tokenizer)
        self.about = {
            "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "parent_sha256": hashlib.sha256(model.flat_params.data).hexdigest(),
            "skip_bad": args.skip_bad,
            "balance": args.balance,
        }
        if self.goes_on:
            if not world.rank:
                lock.enter_context(runs.locked(self.folder))
            self._take_up(given, runs.read_config(self.folder))
        if world.size > 1:
            told = {flag(name): settings[name] or "default" for name in settings if name != "threads"}
            world.check_equal(**told, **self.about, **mpi.library_versions())
        labels = [example.label for example in examples]
        if args.balance and self.form != "label":
            raise ValueError(
                f"--balance: {args.data} must have labels, got lines of {tasks.FORMS[self.form]}"
            )
        self.examples = _split(encoded, labels, settings, tokenizer, args.balance)
        self.labels, self.lora = list(dict.fromkeys(filter(None, labels))), settings["lora"]
        flags = {name: settings[name] for name in PLANNED}
        self.plan = make_task_plan(model.config, self.examples, self.lora, settings["epochs"], **flags)
        found = checkpoint.last(self.folder) if self.goes_on else None
        if found and not self.lora:  # adapters begin at the parent, and are read behind it
            model = load(found[0])
        self.trainer = TaskTrainer(
            model, self.examples, self.plan, settings["seed"], self.lora, self.rows, world
        )
        model.tokenizer, self.data = tokenizer, str(data)
        if found:
            log_warnings(found[1])
            self.trainer.go_on(self.folder, found[0])
        elif not self.goes_on and not world.rank:
            lock.enter_context(runs.locked(self.folder, new=True))

    def _take_up(self, given: Fields, config: Fields) -> None:
        """The settings of a run that is resumed; ValueError where it would become another."""
        for name, now in self.about.items():
            if config["about"].get(name) != now:
                raise ValueError(f"--resume: {name} is {config['about'].get(name)} in this run, got {now}")
        for name in given:
            if name in MAY_CHANGE:
                continue
            if given[name] is not None and given[name] != config.get(name):
                raise ValueError(f"--resume: {name} is {config.get(name)} in this run, got {given[name]}")
            self.settings[name] = config.get(name)

    def run(self, as_json: bool) -> int:
        from npgpt.training import run as runs
        from npgpt.training.trainer import TrainingFailed

        trainer, plan = self.trainer, self.plan
        failures = (OSError, MemoryError, TrainingFailed)
        with errors_as_lines("finetune", 1, failures, as_json), interruptible() as interrupted:
            if not self.goes_on and not self.world.rank:
                shown = (*PLANNED, "split", "steps", "n_layer", "n_head", "n_embd")
                shape = {name: getattr(plan, name) for name in shown}
                settings = {"init_from": self.parent, "text": [self.data], **self.settings, **shape}
                about = self.about | {"memorise": False, "form": self.form}
                runs.write_config(self.folder, settings | {"clean": "none"}, about)
            self._tell()
            result = trainer.train(self.folder, self.settings["keep"], interrupted, self._sample)
            if not self.world.rank:
                result |= self._show(result)
        if as_json:
            print(json.dumps(result))
        return 130 if result["ended"] == "interrupted" else 0

    def _show(self, result: Fields) -> Fields:
        """Tell how it went -> what else is known of it."""
        from npgpt.console import report

        more = {"skipped_lines": self.skipped_lines, "base": self.parent}
        losses = _("training loss {train_loss:.4f} nats per token learnt")
        if result["best_val_loss"] is not None:
            losses = _(
                "training loss {train_loss:.4f}, best validation loss {best_val_loss:.4f} "
                "(step {best_step}) nats per token learnt"
            )
        log_result(result, losses, self.plan.patience)
        if result["ended"] != "interrupted":
            more |= self._finish()
        report.write(self.folder)
        log_saved(self.folder)
        if result["ended"] == "interrupted":
            log("go on: the same command with --resume")
        elif self.form != "prompt":
            log_next(f"python -m npgpt.chat {shlex.quote(str(self.folder))}")
        return more

    def _tell(self) -> None:
        from npgpt.training import memory
        from npgpt.training.finetuning import memory_needed

        trainer, data, plan = self.trainer, self.examples, self.plan
        config, lora = trainer.model.config, self.lora
        log(
            "{training:,} examples for training, {held_out:,} for validation, {learnt:,} tokens to learn",
            training=len(data.training),
            held_out=len(data.held_out),
            learnt=int(sum(learnt.sum() for ids, learnt in data.training)),
        )
        if self.skipped_lines:
            log("{n} lines were at fault and are left out", n=self.skipped_lines)
        log(
            "model: {all:,} parameters, {trained:,} of them trained as adapters of rank {rank}"
            if lora
            else "model: {all:,} parameters, {trained:,} of them trained",
            **{"all": trainer.model.num_params, "trained": trainer.optimizer.model.num_params, "rank": lora},
        )
        log("training: at most {plan.steps} steps of {plan.batch_size} examples", plan=plan)
        needed = {
            name: memory_needed(config, plan, data, name, self.rows, self.world) for name in (None, lora or 8)
        }
        others = (memory.resident_bytes() - 4 * trainer.model.num_params) / 1e6
        log(
            "expected: {megabytes:.0f} MB of memory (all weights: {other:.0f} MB), at most {seconds:.0f} s"
            if lora
            else "expected: {megabytes:.0f} MB of memory (--lora 8: {other:.0f} MB), at most {seconds:.0f} s",
            megabytes=others + needed[lora] / 1e6,
            other=others + needed[None if lora else 8] / 1e6,
            seconds=trainer.seconds_needed(),
        )

    def _sample(self) -> str:
        """What the model answers to the first example held out."""
        ids, learnt = (self.examples.held_out or self.examples.training)[0]
        prompt = ids[: learnt.argmax()]
        model: Any = self.trainer.model
        text: str = model.tokenizer.decode(prompt) + "\n> "
        return text + str(model.generate(prompt, max_new_tokens=60, temperature=0))

    def finished(self, as_json: bool) -> int:
        """Tell of a run that has ended, and do what a kill behind its last checkpoint left undone."""
        from npgpt.console import report

        log_finished(self.trainer.result(self.folder), self.plan.patience)
        if not self.world.rank and not (self.folder / "report.html").exists():
            with errors_as_lines("finetune", 1, (OSError, MemoryError), as_json):
                self._finish()
                report.write(self.folder)
        return 0

    def _finish(self) -> Fields:
        """What the best checkpoint is worth; its adapters, kept apart."""
        import numpy as np

        from npgpt.api import load
        from npgpt.interop.huggingface import write_adapter
        from npgpt.training import checkpoint

        best, _ = checkpoint.choose(self.folder)
        if self.lora:
            adapters: Any = self.trainer.optimizer.model
            adapters.flat_params[...] = checkpoint.load(best)[1]["adapters"]
            write_adapter(self.folder / "adapter", adapters, self.parent)
        if not (self.labels and self.examples.held_out):
            return {}
        model, tokenizer, right = load(best), self.examples.tokenizer, 0
        texts, truth = [], []
        for ids, learnt in self.examples.held_out:
            begin = int(np.flatnonzero(learnt)[0])
            texts.append(tokenizer.decode_bytes(ids[: begin - 1]))
            truth.append(tokenizer.decode(ids[begin:]))
        for found, label in zip(model.classify(texts, self.labels), truth, strict=True):
            right += next(iter(found)) == label
        log("accuracy on the examples held out: {accuracy:.3f}", accuracy=right / len(truth))
        return {"val_accuracy": right / len(truth)}


def _encoded(
    args: Namespace, tokenizer: Tokenizer, examples: list[Example], bad: list[str], block_size: int
) -> tuple[list[Example], list[Encoded]]:
    """The examples that fit the context, and their ids; one that does not is at fault like a bad line."""
    from npgpt.text import examples as tasks

    fit = []
    for example in examples:
        ids, learnt = tasks.encode_example(tokenizer, example)
        if len(ids) - 1 <= block_size:
            fit.append((example, (ids, learnt)))
            continue
        too_long = f"must be at most the context, {block_size} tokens, got {len(ids) - 1}"
        bad.append(f"{args.data}: line {example.line}: {too_long}")
        if not args.skip_bad:
            raise ValueError(bad[-1])
    if not fit:
        raise ValueError(f"{args.data}: no example fits the context of {block_size} tokens")
    return [example for example, _ in fit], [encoded for _, encoded in fit]


def _split(
    encoded: list[Encoded], labels: Any, settings: Fields, tokenizer: Tokenizer, balance: bool
) -> Examples:
    from npgpt.text.examples import split_examples
    from npgpt.training.finetuning import Examples

    train, held = split_examples(labels, settings["val_fraction"], settings["seed"])
    training, held_out = ([encoded[i] for i in numbers] for numbers in (train, held))
    return Examples(training, held_out, tokenizer, [labels[i] for i in train] if balance else None)


if __name__ == "__main__":
    raise SystemExit(main())
