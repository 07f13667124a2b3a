"""The search: fair to the default, and honest where that was best."""

import tomllib

import numpy as np
import pytest

from npgpt.console import tuning
from npgpt.console.messages import tuning_message
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import tuner
from npgpt.training.plan import make_plan
from npgpt.training.trainer import TrainingFailed

IDS = np.frombuffer(b"the cat sat on the mat, the rat ate the hat, " * 300, np.uint8).astype(np.uint16)
SETTINGS = {"split": (0.8, 0.2, 0.0), "text": ["a.txt"], "clean": "light", "tokenizer": "bytes", "seed": 0}


def search(folder, monkeypatch, loss_of):
    """A search whose trials do not train: loss_of(candidate) is what each comes to."""
    found = tuner.Search(Dataset.from_ids(IDS, (0.8, 0.2), ByteTokenizer()), folder, 16, SETTINGS, {}, 0)

    def pretend(rung, candidate, settings, length, minutes, should_stop, listener):
        trial = tuner.Trial(
            rung, candidate, settings, length, minutes * length, folder / f"{rung}-{candidate}"
        )
        trial.result = {"best_val_loss": loss_of(candidate), "steps": 100}
        return trial

    monkeypatch.setattr(found, "_try", pretend)
    return found


def test_candidates_differ_and_begin_with_the_default():
    plan = make_plan(10**6)
    found = tuner.candidates(plan, 9, seed=0)
    assert found[0] == ({name: getattr(plan, name) for name in tuner.TUNED}, 1.0)
    assert len({str(one) for one in found}) == 9 and found == tuner.candidates(plan, 9, seed=0)
    assert all(settings["n_embd"] % settings["n_head"] == 0 for settings, _ in found)


def test_the_better_third_goes_on_and_the_default_with_it(tmp_path, monkeypatch):
    found = search(tmp_path, monkeypatch, lambda candidate: 3 - candidate / 10)
    best = found.run(lambda: False, lambda line: None)
    rungs = [sorted(t.candidate for t in found.trials if t.rung == rung) for rung in range(3)]
    assert rungs == [list(range(9)), [0, 6, 7, 8], [0, 7, 8]] and best.candidate == 8
    assert sum(t.minutes / t.length for t in found.trials) == pytest.approx(16)
    tuning.write(found, best)
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    assert config["steps"] == 100 and {name: config[name] for name in tuner.TUNED} == best.settings
    assert "Validation loss 2.2000 instead of the default's 3.0000" in config["about"]["tuned"]
    assert "vs default" in (tmp_path / "report.html").read_text()


def test_it_says_so_where_the_default_was_best(tmp_path, monkeypatch):
    found = search(tmp_path, monkeypatch, lambda candidate: 3 + candidate / 10)
    best = found.run(lambda: False, lambda line: None)
    assert best.candidate == 0
    assert tuning_message(found.verdict(best), str).startswith("The default was best")


def test_it_says_why_where_no_candidate_could_be_trained(tmp_path, monkeypatch):
    def refuse(*given):
        raise ValueError("not enough memory")

    monkeypatch.setattr(tuner, "prepare", refuse)
    dataset = Dataset.from_ids(IDS, (0.8, 0.2), ByteTokenizer())
    found = tuner.Search(dataset, tmp_path, 16, SETTINGS, {}, 0)
    with pytest.raises(TrainingFailed, match="not enough memory"):
        found.run(lambda: False, lambda line: None)


def test_a_text_without_validation_is_refused(tmp_path):
    whole = Dataset.from_ids(IDS, (1,), ByteTokenizer())
    with pytest.raises(ValueError, match="tune: the text must be long enough"):
        tuner.Search(whole, tmp_path, 16, SETTINGS, {}, 0)
