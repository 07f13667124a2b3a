"""What the tests of the commands share."""

import os
import subprocess
import sys
from pathlib import Path

import npgpt

ROOT = Path(npgpt.__file__).parent.parent
SAMPLE = ROOT / "data" / "textosdetreinamento.txt"
TINY = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4".split()
FLAGS = [*TINY, *"--steps 9 --save-every 2 --dropout 0.1 --split 0.7,0.2,0.1 --seed 3".split()]


def refused(result, message):
    """Exit code 2, one line on stderr that holds the message, nothing on stdout."""
    code, out, err = result
    assert code == 2 and out == "", result
    assert err.count("\n") == 1 and err.startswith("npgpt ") and message in err, err
    assert "Traceback" not in err
    name = err.split(": ")[0].removeprefix("npgpt ")
    assert not err.startswith(f"npgpt {name}: {name}: "), "a command's name stands once"


def text_path(name):
    """The file of a text that the fixture `trained` wrote."""
    return str(Path("texts", f"{name}.txt").resolve())


def nothing_written(*but):
    """Whether the folder holds these names alone."""
    return {path.name for path in Path(".").iterdir()} == set(but)


def weights(run):
    """The bytes of the weights in a run's last checkpoint."""
    return (Path(run) / Path(run, "LATEST").read_text().strip() / "model.safetensors").read_bytes()


def stopped(monkeypatch, at):
    """From now on a run is interrupted after step `at`."""
    from npgpt.training import trainer

    train = trainer.Trainer.train

    def until(self, run, keep, should_stop, *more):
        return train(self, run, keep, lambda: self.step >= at, *more)

    monkeypatch.setattr(trainer.Trainer, "train", until)


def python(*args, **more):
    """`python -m ARGS...` as a process, its output in pipes."""
    command = [sys.executable, "-m", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )
