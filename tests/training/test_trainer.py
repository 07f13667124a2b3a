"""The loop: it learns, it is the same each time, it stops when it must."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from npgpt.console.progress import Progress
from npgpt.engine.model import GPT
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import checkpoint, updater
from npgpt.training.cost import seconds_needed
from npgpt.training.listener import Step
from npgpt.training.plan import make_plan
from npgpt.training.recorder import METRICS
from npgpt.training.trainer import Trainer, TrainingFailed

TEXT = b"the cat sat on the mat, the rat ate the hat, " * 8
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4, "lr": 1e-2}


def trainer(seed=0, **flags):
    plan = make_plan(len(TEXT) + 1, **(TINY | flags))
    dataset = Dataset.from_ids(
        np.append(ByteTokenizer().encode(TEXT), np.uint16(256)), plan.split, ByteTokenizer()
    )
    return Trainer(GPT(plan.model_config(257), seed), dataset, plan, seed)


def rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_writes_down_how(tmp_path, optimizer):
    flags = {"steps": 60, "split": "0.8,0.1,0.1", "eval_every": 20, "save_every": 30}
    result = trainer(optimizer=optimizer, **flags).train(tmp_path)
    table = rows(tmp_path)
    assert ",".join(table[0]) == METRICS and len(table) == 60
    assert float(table[0]["train_loss"]) == pytest.approx(np.log(257), abs=0.2)
    assert float(table[-1]["train_loss"]) < 2.5
    assert [int(row["step"]) for row in table if row["val_loss"]] == [20, 40, 60]
    assert result["steps"] == 60 and result["ended"] == "done"
    assert result["val_loss"] == float(table[-1]["val_loss"])
    best = min((float(row["val_loss"]), int(row["step"])) for row in table if row["val_loss"])
    assert (tmp_path / "BEST").read_text() == f"step-{best[1]:06d}\n"
    assert (tmp_path / "LATEST").read_text() == "step-000060\n"
    state = json.loads((tmp_path / "step-000060" / "trainer.json").read_text())
    assert state["step"] == state["optimizer_steps"] == 60 and state["best_val_loss"] == best[0]
    assert state["ended"] == "done"
    assert state["tokens"] == int(table[-1]["tokens"])


def test_a_sampled_softmax_ends_with_a_tenth_of_full_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(updater, "DRAWN", 30)
    one, sizes = trainer(steps=40, warmup=0, softmax="sampled", split="1,0,0"), []
    forward = one.model.forward

    def watched(*args, **more):
        sizes.append(None if one.model.classes is None else len(one.model.classes.ids))
        return forward(*args, **more)

    monkeypatch.setattr(one.model, "forward", watched)
    one.train(tmp_path)
    assert len(sizes) == 40 and all(n and n < 100 for n in sizes[:35]) and sizes[35:] == [None] * 5


def test_same_seed_same_bits(tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        run = trainer(seed, steps=8, dropout=0.2)
        run.train(tmp_path / name)
        weights.append(run.model.flat_params.copy())
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_measuring_the_time_leaves_no_trace(tmp_path, optimizer):
    weights = []
    for name, measure in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        run = trainer(steps=5, dropout=0.1, optimizer=optimizer)
        assert not measure or seconds_needed(run) > 0
        run.train(tmp_path / name)
        weights.append(run.model.flat_params.copy())
    assert (weights[0] == weights[1]).all()


def test_a_small_text_is_trained_until_it_is_memorised(tmp_path):
    result = trainer(steps=2000, target_loss=0.5, n_embd=32).train(tmp_path)
    assert result["ended"] == "memorised" and result["steps"] < 2000
    assert result["train_loss"] <= 0.5 and result["val_loss"] is None
    assert not (tmp_path / "BEST").exists()
    assert (tmp_path / "LATEST").read_text() == f"step-{result['steps']:06d}\n"


def test_a_target_for_the_validation_loss_ends_the_run(tmp_path):
    run = trainer(steps=500, split="0.8,0.2", eval_every=10, target_loss=3.0)
    result = run.train(tmp_path)
    assert result["ended"] == "target reached" and result["steps"] < 500 and result["val_loss"] <= 3


def test_a_target_without_validation_is_one_for_the_training_loss(tmp_path):
    plan = replace(make_plan(len(TEXT) + 1, **TINY, split="1", steps=60, target_loss=5.0), memorise=False)
    whole = trainer()
    found = Trainer(whole.model, whole.dataset, plan)
    assert not len(whole.dataset.validation) and found.train(tmp_path)["ended"] == "target reached"


def test_a_sample_of_weights_that_are_not_finite_ends_the_run_in_one_line(tmp_path):
    def sample():
        raise ValueError("generate: the model's logits must be finite")

    with pytest.raises(TrainingFailed, match=r"logits must be finite, so training stopped"):
        trainer(steps=4, eval_every=2).train(tmp_path, sample=sample)


def test_output_that_cannot_be_written_ends_nothing(monkeypatch):
    def full(text):
        raise OSError(28, "No space left on device")

    progress = Progress()
    progress.begin(0, 2)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "write", full)
    progress.warn("a")
    progress.step(Step(2, 2, 1.0, 1.0, 1.0, 1.0, 0.1))
    progress.end()
    monkeypatch.undo()


def test_it_stops_with_a_checkpoint_when_asked(tmp_path):
    result = trainer(steps=50).train(tmp_path, should_stop=lambda: True)
    assert result["ended"] == "interrupted" and result["steps"] == 1
    assert (tmp_path / "LATEST").read_text() == "step-000001\n"


def test_the_last_validation_can_be_stopped_too(tmp_path):
    asked = []

    def should_stop():
        asked.append(True)
        return len(asked) > 5  # at the second batch of the whole validation: each step asks too

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = trainer(steps=4, eval_tokens=16, batch_size=1, split="0.7,0.3").train(tmp_path / "whole")
    cut = trainer(steps=4, eval_tokens=16, batch_size=1, split="0.7,0.3").train(
        tmp_path / "cut", should_stop=should_stop
    )
    assert cut["ended"] == whole["ended"] == "done" and len(asked) == 6
    assert cut["val_loss"] == cut["best_val_loss"] != whole["val_loss"]


def poison(monkeypatch, run, what, steps):
    """Makes loss or gradient not finite at these steps."""
    forward = run.model.forward

    def poisoned(x, y):
        loss = forward(x, y)
        if run.model.step in steps:
            if what == "loss":
                return float("nan")
            run.model.flat_grads[3] = np.inf
        return loss

    monkeypatch.setattr(run.model, "forward", poisoned)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_stays_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, what, capsys
):
    run = trainer(steps=20, save_every=5)
    poison(monkeypatch, run, what, range(8, 100))
    with pytest.raises(
        TrainingFailed, match=r"step 11: .* last good checkpoint is .*step-000005.*--lr 0.0033"
    ):
        run.train(tmp_path, listener=Progress())
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path)] == ["step-000005"]
    assert checkpoint.choose(tmp_path)[1] == []
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" is ")[0] for line in told] == [f"warning: step {n}" for n in (8, 9, 10)]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_three_bad_steps_are_skipped_and_counted(tmp_path, monkeypatch, what):
    run = trainer(steps=20, save_every=5, gradient_accumulation_steps=2)
    poison(monkeypatch, run, what, (8, 9, 10))
    weights = []
    monkeypatch.setattr(
        run, "_write_row", keep(run._write_row, lambda: weights.append(run.model.flat_params.copy()))
    )
    assert run.train(tmp_path)["skipped"] == 3
    assert [int(row["skipped"]) for row in rows(tmp_path)] == [0] * 7 + [1, 2, 3] + [3] * 10
    assert (weights[6] == weights[9]).all() and (weights[9] != weights[10]).any()
    assert np.isfinite(run.model.flat_params).all() and run.optimizer.steps == 17


def keep(function, before):
    def kept(*args):
        before()
        return function(*args)

    return kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_in_parts_is_the_batch(tmp_path, dropout, optimizer):
    """Gradient accumulation: the same steps as with the batch in one piece, the ragged last one of each epoch
    and its masks included, up to the order of sums."""
    losses = []
    for parts in (1, 2, 4):
        flags = {"batch_size": 8 // parts, "gradient_accumulation_steps": parts, "dropout": dropout}
        run = trainer(steps=9, optimizer=optimizer, **flags)
        assert run.batches.per_epoch == 3 and len(run.batches.batch(2)[0]) == 7
        (tmp_path / str(parts)).mkdir()
        run.train(tmp_path / str(parts))
        losses.append([float(row["train_loss"]) for row in rows(tmp_path / str(parts))])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-5)


def test_old_checkpoints_are_removed(tmp_path):
    trainer(steps=20, save_every=4).train(tmp_path, keep=3)
    kept = [folder.name for folder in checkpoint.checkpoints(tmp_path)]
    assert kept == ["step-000020", "step-000016", "step-000012"]
