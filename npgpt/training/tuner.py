"""A search for better settings than the default's, by successive halving (arXiv:1603.06560) at equal time.

All candidates are trained for a ninth of the final training time, the better third of them for a third of it,
the best two for all of it. Each training begins anew, with a schedule of its length. The default is trained
on every rung. So the winner has beaten the default at the final length, or is the default.
Runs are compared at equal seconds, not equal steps: a larger model must be worth its time.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from npgpt.engine import kernels
from npgpt.engine.types import Fields
from npgpt.text.dataset import Dataset
from npgpt.training import run
from npgpt.training.listener import Listener
from npgpt.training.plan import Plan, make_plan
from npgpt.training.trainer import Trainer, TrainingFailed, prepare

SHARES = (1 / 9, 1 / 3, 1.0)  # of the final training time, one for each rung
KEPT = (9, 3, 2)  # candidates on each rung; the default comes on top
COST = sum(share * (kept + (i > 0)) for i, (share, kept) in enumerate(zip(SHARES, KEPT, strict=True)))
TUNED = ("n_layer", "n_head", "n_embd", "batch_size", "lr", "dropout")
LENGTHS = (1.0, 1.0, 0.5)  # of the time: a run of full length may already overfit
EVAL_TOKENS = 16384  # in the short runs, which would spend too much of their time on validation otherwise


@dataclass
class Trial:
    """One training of a candidate, and its result."""

    rung: int
    candidate: int  # 0 is the default
    settings: Fields
    length: float  # share of the rung's time
    minutes: float
    folder: Path
    result: Fields = field(default_factory=dict)
    epochs: float = 0.0

    @property
    def loss(self) -> float:
        """Return the best validation loss in nats per token, infinity where there was none."""
        return self.result.get("best_val_loss") or float("inf")


def candidates(plan: Plan, count: int, seed: int) -> list[tuple[Fields, float]]:
    """Return `count` different settings and lengths around those of the plan; the plan's own come first."""
    rng = random.Random(seed)
    own = {name: getattr(plan, name) for name in TUNED}
    found = [(own, 1.0)]
    while len(found) < count:
        n_layer, n_embd = rng.choice([(2, 128), (4, 128), (4, 192), (6, 192), (6, 256)])
        changes = {
            "lr": plan.lr * 2 ** rng.choice([-1.5, -1, -0.5, 0.5, 1]),
            "batch_size": rng.choice([4, 8, 16, 32]),
            "dropout": rng.choice([0.0, 0.05, 0.1, 0.2, 0.3]),
        }
        changed = {name: value for name, value in changes.items() if rng.random() < 0.6}
        if rng.random() < 0.6:
            changed |= {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // 32}
        one = (own | changed, rng.choice(LENGTHS))
        if one not in found:
            found.append(one)
    return found


class Search:
    """A search for settings: trials on a dataset, each of them a run in folder/trials."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        minutes: float,
        settings: Fields,
        about: Fields,
        seed: int,
    ) -> None:
        """Prepare a search of `minutes` in all.

        `settings` are those that all runs share, by the flags' names; `about` goes below [about] in their
        config.toml. ValueError where the text is too small for a validation part.
        """
        if not len(dataset.validation):
            raise ValueError("tune: the text must be long enough to leave something for validation")
        self.dataset, self.folder, self.seed = dataset, folder, seed
        self.settings, self.about = settings, about
        self.minutes = minutes / COST  # of the final training
        self.trials: list[Trial] = []

    def run(
        self,
        should_stop: Callable[[], bool],
        done_with: Callable[[Trial], None],
        listener: Listener | None = None,
    ) -> Trial | None:
        """Run all rungs and return the best trial of the last one, None where it was stopped before.

        done_with(trial) is called after each trial; the listener receives the events of each training.
        TrainingFailed where no candidate of a rung could be trained.
        """
        plan = make_plan(len(self.dataset), split=self.settings["split"])
        alive = list(enumerate(candidates(plan, KEPT[0], self.seed)))
        for rung, share in enumerate(SHARES):
            done = []
            for candidate, (settings, length) in alive:
                trial = self._try(
                    rung, candidate, settings, length, share * self.minutes, should_stop, listener
                )
                self.trials.append(trial)
                done_with(trial)
                if should_stop():
                    return None
                done.append(trial)
            done.sort(key=lambda trial: trial.loss)
            if "steps" not in done[0].result:  # none was trained
                raise TrainingFailed(done[0].result["ended"])
            if rung + 1 == len(SHARES):
                return done[0]
            keep = {trial.candidate for trial in done[: KEPT[rung + 1]]} | {0}
            alive = [one for one in alive if one[0] in keep]
        raise AssertionError("SHARES is empty")

    def _try(
        self,
        rung: int,
        candidate: int,
        settings: Fields,
        length: float,
        minutes: float,
        should_stop: Callable[[], bool],
        listener: Listener | None,
    ) -> Trial:
        folder = self.folder / "trials" / f"{rung + 1}-{candidate}"
        trial = Trial(rung, candidate, settings, length, length * minutes, folder)
        last = rung + 1 == len(SHARES)
        flags = {**settings, "split": self.settings["split"], "minutes": trial.minutes}
        flags["eval_tokens"] = None if last else EVAL_TOKENS
        trainer: Trainer | None = None
        with run.locked(folder):
            try:
                trainer = prepare(self.dataset, flags, self.seed)
                shown = self.settings | trainer.plan.settings() | {"steps": None, "out": None}
                run.write_config(folder, shown, self.about)
                trial.result = trainer.train(folder, 1, should_stop, listener=listener)
                trial.epochs = trainer.step / trainer.batches.per_epoch
            except (TrainingFailed, ValueError) as failure:  # for example a rate that is too high
                trial.result = {"ended": str(failure)}
        trainer = None
        kernels.release_memory()
        return trial

    def default_of(self, trial: Trial) -> Trial:
        """Return the trial of the default in the same rung."""
        return next(t for t in self.trials if t.candidate == 0 and t.rung == trial.rung)

    def best_settings(self, best: Trial) -> Fields:
        """Return the settings of a run that repeats the best trial, by the flags' names."""
        return self.settings | best.settings | {"steps": best.result["steps"], "out": None}

    def verdict(self, best: Trial) -> Fields:
        """Return how the best trial compares with the default: losses, minutes, what changed, epochs."""
        default = self.default_of(best)
        return {
            "is_default": best is default,
            "loss": best.loss,
            "default_loss": default.loss,
            "minutes": self.minutes,
            "changed": {k: v for k, v in best.settings.items() if v != default.settings[k]},
            "epochs": best.epochs,
        }
