"""A run that moves: half of it on one machine's kernels and threads, the other half on another's.

docs/machines.md states what is equal to the bit and what is not; ranks are in tests/parity/test_mpi.py.
"""

import numpy as np
import pytest

from npgpt.engine import kernels
from npgpt.engine.model import GPT
from npgpt.interop.huggingface import read_pretrained
from npgpt.text.dataset import Dataset
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import checkpoint
from npgpt.training.plan import make_plan
from npgpt.training.trainer import Trainer

IDS = np.frombuffer(b"a run leaves one machine, and another machine takes it up, " * 8, np.uint8)
FLAGS = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "lr": 1e-2, "dropout": 0.1, "split": "0.7,0.3",
    "batch_size": 4, "steps": 12, "eval_every": 6, "save_every": 6, "warmup": 4,
}  # fmt: skip
HALF = 6
# These two differ in products of int8 alone, which no training makes.
SAME = [{"avx2", "avx512vnni"}]
MOVES = [(a, b) for a in kernels.available() for b in kernels.available() if a != b]


def trainer(model=None, **flags):
    ids = IDS.astype(np.uint16)
    plan = make_plan(len(ids), **(FLAGS | flags))
    model = model or GPT(plan.model_config(257), seed=3)
    model.seed = 3
    return Trainer(model, Dataset.from_ids(ids, plan.split, ByteTokenizer()), plan, seed=3)


def train(run, machine, until=None, **flags):
    """Begin or take up the run on (kernels, threads); return its weights after that, and its loss."""
    run.mkdir(exist_ok=True)
    threads = kernels.get_num_threads()
    with kernels.use(machine[0]):
        kernels.set_num_threads(machine[1])
        try:
            if checkpoint.is_run(run):
                folder, _ = checkpoint.choose(run, ())
                one = trainer(read_pretrained(folder).model(), **flags)
                one.resume(run, folder)
            else:
                one = trainer(**flags)
            one.train(run, should_stop=lambda: until is not None and one.step >= until)
        finally:
            kernels.set_num_threads(threads)
    assert one.step == (until or FLAGS["steps"])
    return one.model.flat_params.copy()


def moved(folder, first, second, **flags):
    """The weights at the end of a run whose halves are made on two machines."""
    train(folder, first, HALF, **flags)
    return train(folder, second, **flags)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", kernels.available())
def test_other_numbers_of_threads_make_the_same_bits(tmp_path, name, optimizer):
    stayed = train(tmp_path / "stayed", (name, 1), optimizer=optimizer)
    for one, other in ((1, 2), (2, 1), (2, 3)):
        away = moved(tmp_path / f"{one}-{other}", (name, one), (name, other), optimizer=optimizer)
        assert away.tobytes() == stayed.tobytes()


@pytest.mark.parametrize("one, other", MOVES)
def test_other_kernels_go_on_and_end_as_near_as_their_sums_are(tmp_path, one, other):
    stayed = train(tmp_path / "stayed", (one, 2))
    away = moved(tmp_path / "away", (one, 2), (other, 2))
    if {one, other} in SAME:
        assert away.tobytes() == stayed.tobytes()
    else:
        np.testing.assert_allclose(away, stayed, rtol=0, atol=1e-6)
