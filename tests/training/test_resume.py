"""A run that was stopped, however it was stopped, and resumed is the run that never was: the same bits."""

import contextlib
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from npgpt.engine.model import GPT
from npgpt.interop.huggingface import read_pretrained
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import checkpoint, updater
from npgpt.training.plan import make_plan
from npgpt.training.trainer import Trainer, TrainingFailed

IDS = np.frombuffer(b"the cat sat on the mat, the rat ate the hat, " * 8, np.uint8).astype(np.uint16)
STEPS = 11
FLAGS = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "lr": 1e-2, "dropout": 0.2, "split": "0.7,0.3",
    "batch_size": 3, "gradient_accumulation_steps": 2, "steps": STEPS, "eval_every": 3, "save_every": 2,
    "warmup": 4,
}  # fmt: skip
UNTIMED = ("step", "epoch", "tokens", "train_loss", "val_loss", "lr", "grad_norm", "skipped")


class Killed(BaseException):
    """Nothing in the program catches it."""


def trainer(model=None, **flags):
    plan = make_plan(len(IDS), **(FLAGS | flags))
    dataset = Dataset.from_ids(IDS, plan.split, ByteTokenizer())
    if model is None:
        model = GPT(plan.model_config(257), seed=5)
    model.seed = 5
    return Trainer(model, dataset, plan, seed=5)


def resumed(run, **flags):
    """A trainer that goes on from the newest whole checkpoint of `run`, or begins."""
    if not checkpoint.is_run(run):
        return trainer(**flags)
    folder, _ = checkpoint.choose(run, ())
    again = trainer(read_pretrained(folder).model(), **flags)
    again.resume(run, folder)
    return again


def outcome(run: Path, finished: Trainer):
    """All that must be the same: weights, moments, metrics but for the clock, the pointers, the state."""
    with open(run / "metrics.csv", newline="") as file:
        metrics = [tuple(row[name] for name in UNTIMED) for row in csv.DictReader(file)]
    state, _ = checkpoint.load(run / (run / "LATEST").read_text().strip())
    arrays = [finished.model.flat_params, *finished.optimizer.state().values()]
    best = (run / "BEST").read_text()
    del state["seconds"], state["budget"]
    return [array.tobytes() for array in arrays], metrics, state, best


def never_stopped(tmp_path, **flags):
    run = tmp_path / "never-stopped"
    run.mkdir()
    whole = trainer(**flags)
    whole.train(run)
    assert whole.batches.per_epoch < 4, "the run must cross an epoch's end"
    return outcome(run, whole)


def interrupt(run, at, **flags):
    one = resumed(run, **flags)
    result = one.train(run, should_stop=lambda: one.step >= at)
    assert result["ended"] == ("interrupted" if at < STEPS else "done") and one.step == at


@pytest.mark.parametrize("optimizer, softmax", [("adamw", "full"), ("muon", "full"), ("muon", "sampled")])
def test_interrupted_at_every_step(tmp_path, monkeypatch, optimizer, softmax):
    monkeypatch.setattr(updater, "DRAWN", 30)
    flags = {"optimizer": optimizer, "softmax": softmax}
    expected = never_stopped(tmp_path, **flags)
    for at in range(1, STEPS):
        run = tmp_path / str(at)
        run.mkdir()
        interrupt(run, at, **flags)
        last = resumed(run, **flags)
        assert last.step == at
        last.train(run)
        assert outcome(run, last) == expected, f"interrupted after step {at}"
    every = tmp_path / "every"
    every.mkdir()
    for at in range(1, STEPS):
        interrupt(every, at, **flags)
    last = resumed(every, **flags)
    last.train(every)
    assert outcome(every, last) == expected, "interrupted after each step"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "validation", "write"])
def test_killed_at_every_step(tmp_path, monkeypatch, optimizer, place):
    """In the midst of a step or of a checkpoint; what had been saved is what is gone on from."""
    flags = {"optimizer": optimizer, "steps": 7}
    expected = never_stopped(tmp_path, **flags)
    for at in (2, 3, 7) if place == "write" else range(1, 8):  # writing is what takes time
        run = tmp_path / str(at)
        run.mkdir()
        victim = trainer(**flags)
        owner, name = {
            "forward": (victim.model, "forward"),
            "backward": (victim.model, "backward"),
            "optimizer": (victim.optimizer, "step"),
            "validation": (victim.model, "loss"),
            "write": (checkpoint, "_sync"),
        }[place]
        function = getattr(owner, name)

        def kill(*args, victim=victim, at=at, function=function, **more):
            if victim.step == at:
                raise Killed
            return function(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            try:
                victim.train(run)
            except Killed:
                pass
            else:
                assert place in ("validation", "write"), "not every step has these"
        last = resumed(run, **flags)
        assert last.step < at or last.ended or place in ("validation", "write")
        last.train(run)
        assert outcome(run, last) == expected, f"killed in step {at}"


def test_broken_checkpoints_are_passed_over(tmp_path):
    expected = never_stopped(tmp_path)
    for damage in ("truncate", "flip", "remove", "empty"):
        run = tmp_path / damage
        run.mkdir()
        interrupt(run, 7)
        victim = run / "step-000007" / ("optimizer.safetensors" if damage == "flip" else "model.safetensors")
        content = victim.read_bytes()
        if damage == "truncate":
            victim.write_bytes(content[:-1])
        elif damage == "flip":
            victim.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        elif damage == "remove":
            victim.unlink()
        else:
            shutil.rmtree(run / "step-000007")
            (run / "step-000007").mkdir()
        folder, passed_over = checkpoint.choose(run, ())
        assert folder.name == "step-000006" and "step-000007" in passed_over[0]
        last = resumed(run)
        last.train(run)
        assert outcome(run, last) == expected, damage


def test_after_a_full_disk(tmp_path, monkeypatch):
    """Checkpoints that cannot be written do not end the run; the last one does, and it can be resumed."""
    expected = never_stopped(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    victim, real = trainer(), checkpoint._sync

    def full(path):
        if victim.step >= 4:
            raise OSError(28, "No space left on device", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", full)
        with pytest.raises(OSError, match="No space left"):
            victim.train(run)
    assert victim.step == STEPS, "it went on"
    assert [folder.name for folder in checkpoint.checkpoints(run)] == ["step-000003", "step-000002"]
    last = resumed(run)
    assert last.step == 3
    last.train(run)
    assert outcome(run, last) == expected


def test_after_steps_that_were_not_finite(tmp_path, monkeypatch):
    """Stopped by them, resumed with the same poison and resumed without it."""
    run = tmp_path / "run"
    run.mkdir()

    def poison(patch, one, steps):
        forward = one.model.forward
        poisoned = lambda x, y: float("nan") if one.model.step in steps else forward(x, y)  # noqa: E731
        patch.setattr(one.model, "forward", poisoned)

    with monkeypatch.context() as patch:
        for _ in range(2):
            victim = resumed(run)
            poison(patch, victim, range(5, 99))
            with pytest.raises(TrainingFailed, match=r"step 8: .* last good checkpoint is .*step-000004"):
                victim.train(run)
    last = resumed(run)
    last.train(run)
    assert outcome(run, last) == never_stopped(tmp_path)

    expected = []
    for name in ("whole", "stopped"):
        run = tmp_path / name
        run.mkdir()
        with monkeypatch.context() as patch:
            one = resumed(run)
            poison(patch, one, (5, 6))
            if name == "stopped":
                one.train(run, should_stop=lambda one=one: one.step == 6)
                one = resumed(run)
                assert one.skipped == one.bad_in_a_row == 2
            one.train(run)
        expected.append(outcome(run, one))
    assert expected[0] == expected[1]


def test_what_a_killed_process_left_is_removed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    interrupt(run, 5)
    for name in (".step-000006.tmp", ".step-000004.old"):
        (run / name).mkdir()
        (run / name / "model.safetensors").write_bytes(b"half")
    (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes() + b"6,1.2")  # half a row
    resumed(run).train(run)
    assert not list(run.glob(".step*"))


def test_half_a_row_is_dropped_even_where_it_has_a_step(tmp_path):
    expected = never_stopped(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    interrupt(run, 10)
    with open(run / "metrics.csv", "a") as file:
        file.write("1")  # of 11: a power cut, a full disk and a kill
    last = resumed(run)
    last.train(run)
    assert outcome(run, last) == expected


def test_best_is_the_best_that_could_be_saved(tmp_path, monkeypatch):
    losses = {3: 5.0, 6: 3.0, 9: 3.05, STEPS: 3.1}
    monkeypatch.setattr(Trainer, "_validate", lambda self: losses[self.step])
    victim, save = trainer(save_every=100), checkpoint.save

    def full(run, step, *rest):
        if step == 6:
            raise OSError(28, "No space left on device", str(run))
        return save(run, step, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    result = victim.train(tmp_path)
    assert (tmp_path / "BEST").read_text() == "step-000009\n"
    assert (result["best_step"], result["best_val_loss"]) == (9, 3.05)
    assert resumed(tmp_path).kept_step == 9


def test_latest_is_moved_where_the_process_died_before_it_was(tmp_path):
    trainer().train(tmp_path)
    (tmp_path / "LATEST").write_text("step-000010\n")
    resumed(tmp_path)
    assert (tmp_path / "LATEST").read_text() == f"step-{STEPS:06d}\n"


def test_best_is_pointed_to_even_if_the_process_died_before_it_was(tmp_path, monkeypatch):
    expected = never_stopped(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    victim, point = trainer(), checkpoint.point

    def kill(run, pointer, name):
        if pointer == "BEST" and victim.step == 9:
            raise Killed
        point(run, pointer, name)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "point", kill)
        with pytest.raises(Killed):
            victim.train(run)
    last = resumed(run)
    assert last.step == 9 and (run / "BEST").read_text() == f"step-{last.best_step:06d}\n"
    last.train(run)
    assert outcome(run, last) == expected


def test_minutes_write_down_where_they_end_and_a_resume_follows(tmp_path, monkeypatch):
    """With a clock that ticks once a look: the end moves as the run goes; who resumes ends there too."""
    from npgpt.training import trainer as module

    flags = {
        "minutes": 4,
        "steps": 500,
        "gradient_accumulation_steps": 1,
        "save_every": 10**6,
        "eval_every": 50,
    }
    clock = iter(range(10**9))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock) / 3)
    run = tmp_path / "run"
    run.mkdir()
    whole = trainer(**flags)
    whole.train(run)
    assert (
        whole.step != 500
        and len(whole.schedule.knots) > 1
        and whole.schedule.rate(whole.step) == pytest.approx(whole.plan.min_lr)
    )
    last_change = whole.schedule.knots[-1][0]
    for at, kill in ((last_change + 1, False), (whole.step - 1, False), (last_change + 1, True)):
        again = tmp_path / f"{at}{kill}"
        again.mkdir()
        clock = iter(range(10**9))
        victim = trainer(**flags)

        def stop(victim=victim, at=at, kill=kill):
            if kill and victim.step == at:  # the checkpoint is older than the end that was written down
                raise Killed
            return victim.step >= at

        with pytest.raises(Killed) if kill else contextlib.nullcontext():
            victim.train(again, should_stop=stop)
        last = resumed(again, **flags)
        assert last.step < last_change if kill else last.step == at
        last.train(again)
        known = len(whole.schedule.knots)
        assert last.schedule.knots[:known] == whole.schedule.knots
        if not kill:
            assert last.schedule.knots == whole.schedule.knots
            assert outcome(again, last)[0] == outcome(run, whole)[0]
        same = [
            one[1][: [*last.schedule.knots, (last.step,)][known][0]]
            for one in (outcome(again, last), outcome(run, whole))
        ]
        assert len(same[0]) > last_change and same[0] == same[1]
