"""Which windows of its training text taught a model a text: TracIn over the checkpoints that a run kept.

Pruthi et al. 2020, arXiv:2002.08484. To first order, a step of gradient descent on a window lowers the loss
of the text by rate * (gradient of the window's loss) . (gradient of the text's loss). A window's score is the
sum of that over checkpoints, each with the rates of the steps since the one before. The gradients are those
of all parameters, without dropout.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgpt.engine.finite import check_measured
from npgpt.engine.model import GPT
from npgpt.engine.names import names_checked
from npgpt.engine.types import Floats, Integers, PathLike
from npgpt.runtime.sampling import prompt_ids
from npgpt.text.corpus import Corpus
from npgpt.text.dataset import Batch, Batches, Dataset, cut_windows, encode
from npgpt.text.tokenizer import Place, Tokenizer
from npgpt.training import checkpoint, pretrained
from npgpt.training.plan import FLAGS, Plan, make_plan
from npgpt.training.run import shown
from npgpt.training.schedule import Schedule
from npgpt.training.where import open_source

BLOCK = 1 << 24  # ids that are looked at together
ROW = 4096  # products of gradients that are added in float32
Told = Callable[[int, int], None]  # of the windows that are done, and of all


@dataclass(frozen=True)
class Lesson:
    """A window of the training text, with its share in what the model learnt of a text."""

    score: float  #: positive where the window lowered the loss of the text
    text: str  #: of the window, cleaned
    file: str  #: where it begins
    line: int  #: the line of that file, from 1
    token: int  #: the place in the training part of its first token, from 0
    step: int  #: the first step that it was in
    unit: str = "line"  #: what `line` counts: line, of a PDF page, of Word paragraph, of a JSON list record


@dataclass(frozen=True)
class Influence:
    """The windows that taught a model a text most."""

    text: str  #: the text, cleaned as the model's own text was
    loss: float  #: of the text by the last checkpoint, in nats per token
    lessons: list[Lesson]  #: the highest score first
    windows: int  #: how many there are: those that the run saw, as its first epoch cut them
    checkpoints: list[tuple[int, float]]  #: step and weight of each: the sum of its steps' learning rates
    found_at: str | None  #: the first file of the run's text, where that is not where it was


@names_checked
def influence(
    run: PathLike, text: str, n: int = 10, prompt: str = "", told: Told = lambda done, all: None
) -> Influence:
    """Return the n windows that taught the model of `run` most to write `text` after `prompt`.

    Each takes a forward and a backward pass by each checkpoint, after which told(done, all) is called.
    ValueError for a text that is empty or longer than the context, a run that was taught by examples or has
    no checkpoint, and where the run's text has changed; FileNotFoundError where it has gone.
    """
    if n < 1:
        raise ValueError(f"influence: n must be at least 1, got {n}")
    config, corpus, found_at = open_source(run)
    folders = _whole_checkpoints(Path(run))
    tokenizer = pretrained.read_tokenizer(folders[-1])
    ids = encode(corpus, tokenizer)
    flags = {name: config.get(name) for name in FLAGS}
    plan = make_plan(len(ids), **flags, own_validation=bool(config.get("val")))
    dataset = Dataset.of(corpus, ids, plan.split, tokenizer)
    train, end, apart = dataset.train, tokenizer.end_of_text, dataset.apart
    batches = Batches(train, plan.block_size, plan.windows, config.get("seed", 0), end, apart)
    first_steps = _first_steps(batches, checkpoint.step_of(folders[-1]))
    weights = _weights(folders, plan)
    windows = Windows(train, plan.block_size, end, list(first_steps), apart)
    scores, loss, all = np.zeros(len(first_steps)), 0.0, len(folders) * len(first_steps)
    for place, (folder, weight) in enumerate(zip(folders, weights, strict=True)):
        model, before = _model(folder), place * len(scores)
        asked = _text_batch(model, tokenizer, prompt, text)
        loss, found = _products(model, asked, windows, partial(_told, told, before, all))
        scores += weight * found
    cleaned = bytes(tokenizer.normalize(text)).decode("utf-8", "replace")
    best = np.argsort(-scores, kind="stable")[:n]
    lessons = list(_lessons(corpus, windows, tokenizer, best, scores, list(first_steps.values())))
    kept = list(zip(map(checkpoint.step_of, folders), weights, strict=True))
    return Influence(cleaned, loss, lessons, len(scores), kept, found_at)


def _told(told: Told, before: int, all: int, done: int) -> None:
    told(before + done, all)


class Windows(NamedTuple):
    """Windows of the ids (N,) of a training text."""

    ids: Integers
    block_size: int
    end_of_text: int
    numbers: list[int]  # of the windows, ascending
    apart: bool  # of documents in a window

    def batch(self, number: int) -> Batch:
        """Return x, y (1,T) of a window, and where its documents begin."""
        chosen = np.array([number])
        return cut_windows(self.ids, chosen, self.block_size, self.end_of_text, apart=self.apart)


def _products(
    model: GPT, asked: tuple[Integers, Integers], windows: Windows, told: Callable[[int], None]
) -> tuple[float, Floats]:
    """Return the loss of a text, and the products of its gradient with that of each window (n,), float64."""
    loss, gradient = _gradient(model, *asked)
    of_text, found = gradient.copy(), np.zeros(len(windows.numbers))
    for n, number in enumerate(windows.numbers):
        x, y, *starts = windows.batch(number)
        share = float((y >= 0).mean())  # of the targets, which the last window may not have all of
        found[n] = share * _dot(_gradient(model, x, y, *starts)[1], of_text)
        told(n + 1)
    check_measured("influence", found, model.params)
    return loss, found


def _lessons(
    corpus: Corpus,
    windows: Windows,
    tokenizer: Tokenizer,
    best: Integers,
    scores: Floats,
    first_steps: list[int],
) -> Iterator[Lesson]:
    """Yield the Lessons of the best of the windows (n,), with the text of each and the line where it is."""
    T = windows.block_size
    places = _places(windows.ids, [windows.numbers[n] * T for n in best], tokenizer)
    for n in best.tolist():
        start = windows.numbers[n] * T
        number, line = places[start]
        file, (of_file,) = corpus.places(number, [line])
        text = tokenizer.decode_bytes(windows.ids[start : start + T]).decode("utf-8", "replace")
        step, unit = first_steps[n], corpus.unit(file)
        yield Lesson(float(scores[n]), text, shown(file), of_file, start, step, unit)


def _whole_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run that are whole, oldest first, with a warning for each other one."""
    found, broken = [], []
    for folder in reversed(checkpoint.checkpoints(run)):
        try:
            checkpoint.verify(folder)
            found.append(folder)
        except ValueError as error:
            broken.append(f"{error}; passed over")
    if not found:
        raise ValueError(f"{run}: must hold a checkpoint that is whole, got {'; '.join(broken) or 'none'}")
    for line in broken:
        warnings.warn(line, stacklevel=3)
    return found


def _first_steps(batches: Batches, last: int) -> dict[int, int]:
    """Return the windows that steps 1..last saw in the first epoch, with the step, in order of the text.

    Later epochs cut the text at other places.
    """
    steps = range(min(last, batches.per_epoch))
    return dict(sorted((int(window), step + 1) for step in steps for window in batches.windows(step)))


def _weights(folders: Sequence[Path], plan: Plan) -> list[float]:
    """Return for each checkpoint the sum of the learning rates of the steps since the one before."""
    schedule = Schedule(plan, checkpoint.read_state(folders[-1])["schedule"])
    ends = [0, *map(checkpoint.step_of, folders)]
    return [sum(schedule.rate(step) for step in range(begin + 1, end + 1)) for begin, end in pairwise(ends)]


def _model(folder: Path) -> GPT:
    found = pretrained.read(folder)
    return GPT(replace(found.config, dropout=0.0), weights=found.weights)


def _text_batch(model: GPT, tokenizer: Tokenizer, prompt: str, text: str) -> tuple[Integers, Integers]:
    """Return x, y (1,T) of a text behind a prompt, which is not counted."""
    before = prompt_ids(prompt, tokenizer, tokenizer.vocab_size)
    place = Place.INSIDE if prompt else Place.BEGIN
    after = prompt_ids(text, tokenizer, tokenizer.vocab_size, place)
    if not after:
        raise ValueError("influence: text must not be empty")
    ids, T = np.array([*before, *after], np.int32), model.config.block_size
    if len(ids) > T + 1:
        raise ValueError(f"influence: text must have at most {T + 1 - len(before)} tokens, got {len(after)}")
    y = ids[1:].copy()
    y[: len(before) - 1] = -1
    return ids[None, :-1], y[None]


def _gradient(model: GPT, x: Integers, y: Integers, *starts: Integers) -> tuple[float, Floats]:
    """Return the mean loss of y after x (1,T), and its gradient by all parameters, until the next call."""
    model.zero_grads()
    loss = model.forward(x, y, *starts)
    model.backward()
    return loss, model.flat_grads


def _dot(a: Floats, b: Floats) -> float:
    """Return a.b of 1-D arrays, rows of products in their type and the sum of these in float64."""
    whole = len(a) // ROW * ROW
    rows = np.einsum("rk,rk->r", a[:whole].reshape(-1, ROW), b[:whole].reshape(-1, ROW))
    rest = np.einsum("k,k->", a[whole:], b[whole:])
    return float(rows.sum(dtype=np.float64)) + float(rest)


def _places(ids: Integers, starts: list[int], tokenizer: Tokenizer) -> dict[int, tuple[int, int]]:
    """Return for each place in ids (N,) the number of its document and its line there, from 1."""
    found, document, line, at = {}, 0, 1, 0
    for start in sorted(starts):
        for stop in (*range(at + BLOCK, start, BLOCK), start):
            block, at = ids[at:stop], stop
            ends = np.flatnonzero(block == tokenizer.end_of_text)
            if len(ends):
                document, line, block = document + len(ends), 1, block[ends[-1] + 1 :]
            line += tokenizer.decode_bytes(block).count(b"\n")
        found[start] = document, line
    return found
