"""Influence beside PyTorch: products of autograd's gradients, Transformers reading the same checkpoints."""

import csv

import numpy as np
import pytest

from npgpt import train
from npgpt.training import checkpoint
from npgpt.training.influence import influence
from tests.commands.helpers import TINY

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
T, TEXT, PROMPT = 16, "o rato subiu", "no"


def gradient_of(model, ids, first):
    """Of the mean loss of the ids from `first` on, by all parameters."""
    model.zero_grad()
    logits = model(torch.tensor([ids[:-1]])).logits[0, first - 1 :]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])).backward()
    return torch.cat([p.grad.double().ravel() for p in model.parameters()])


@pytest.mark.parametrize("engine", ["gpt", "gpt-2", "llama"])
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_scores_are_products_of_autograds_gradients(engine, prompt, tmp_path, capsys, measured, monkeypatch):
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path))
    text = b"o gato subiu no telhado e o rato subiu no muro do vizinho. " * 4
    (tmp_path / "text.txt").write_bytes(text)
    how = ["--steps", "20", "--save-every", "8", "--keep", "3", "--split", "1", "--engine", engine]
    run = tmp_path / "run"
    assert train.main([*map(str, (tmp_path / "text.txt", *TINY, *how, "--out", run, "--dropout", 0.1))]) == 0
    ids = [256, *text, 256]  # what is before the first token counts as an end of text
    cut = [ids[at : at + T + 1] for at in range(0, len(ids) - 1, T)]
    rates = [float(row["lr"]) for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())]
    expected, before = np.zeros(len(cut)), 0
    for folder in reversed(checkpoint.checkpoints(run)):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        read = [*prompt.encode(), *TEXT.encode()] if prompt else [256, *TEXT.encode()]
        of_text = gradient_of(model, read, len(prompt) or 1)
        step = checkpoint.step_of(folder)
        weight, before = sum(rates[before:step]), step
        for n, window in enumerate(cut):
            share = (len(window) - 1) / T
            expected[n] += weight * share * float(gradient_of(model, window, 1) @ of_text)
    found = influence(run, TEXT, len(cut), prompt)
    assert len(found.lessons) == found.windows == len(cut)
    scores = np.array([lesson.score for lesson in sorted(found.lessons, key=lambda one: one.token)])
    measured("influence, against autograd", np.abs(scores - expected).max() / np.abs(expected).max(), 1e-4)
    assert [lesson.score for lesson in found.lessons] == sorted(scores, reverse=True)
