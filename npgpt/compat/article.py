"""The names of the article that npgpt started from: ModelEngine and Train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npgpt.api import GPT, load
from npgpt.engine.config import ENGINES
from npgpt.engine.names import hint

if TYPE_CHECKING:
    from npgpt.engine.types import PathLike
    from npgpt.text.dataset import Dataset
    from npgpt.training.listener import OnStep


class ModelEngine:
    """The engines, by the names of the article's pseudo-API."""

    gpt, gpt2, gpt3, llama = ENGINES


def Train(
    engine: str | None = None,
    dataset: Dataset | PathLike | None = None,
    model_engine: str | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    out: str | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    **flags: Any,
) -> GPT:
    """Train a GPT on a Dataset or a file, keep the run in runs/train, and return the model.

    `engine` or `model_engine` is one of ModelEngine's (default gpt-2). `out` is another folder for the run;
    `flags` are further settings of `python -m npgpt.train` (steps, n_layer, lr ...). The size of the text
    decides every setting that is not given; a small text is memorised completely. The progress is shown, and
    on_step(Step) is called after each step, with its step, loss, rate, seconds and more; an exception in it
    ends the run with a checkpoint.
    ValueError or TypeError for a bad argument.
    """
    from npgpt.console.language import spoken
    from npgpt.console.progress import Progress
    from npgpt.text.dataset import Dataset
    from npgpt.training import plan, run
    from npgpt.training.trainer import prepare

    if engine and model_engine and engine != model_engine:
        raise ValueError(f"Train: model_engine must be the engine, {engine!r}, got {model_engine!r}")
    if dataset is None:
        raise ValueError("Train: dataset must be a Dataset or the path of a text, got None")
    if unknown := [name for name in flags if name not in plan.FLAGS]:
        own = ["engine", "dataset", "model_engine", "batch_size", "epochs", "out", "seed", "on_step"]
        end = hint(unknown[0], [*own, *plan.FLAGS]) or f"; its settings are {', '.join(plan.FLAGS)}"
        raise TypeError(f"Train: there is no {unknown[0]}{end}")
    if not isinstance(dataset, Dataset):
        dataset = Dataset.from_text(dataset)
    flags |= {"engine": engine or model_engine, "batch_size": batch_size, "epochs": epochs}
    ids = np.concatenate([dataset.train, dataset.validation, dataset.test])
    split, documents = plan.make_plan(len(ids), **flags).split, "apart" if dataset.apart else "joined"
    dataset = Dataset.from_ids(ids, split, dataset.tokenizer, documents)
    trainer = prepare(dataset, flags, seed)
    folder = run.find_folder(out, "train", resume=False) if out is not None else run.make_numbered("train")[1]
    with run.locked(folder, new=True):
        about = {"memorise": trainer.plan.memorise, "text": "a Dataset"}
        run.write_config(folder, {**trainer.plan.settings(), "seed": seed}, about)
        with spoken():
            trainer.train(folder, listener=Progress(), on_step=on_step)
    return load(folder)
