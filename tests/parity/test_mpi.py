"""Several ranks train as one process does: the same losses, the same run; and what ends one ends all."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.training import checkpoint

pytest.importorskip("mpi4py")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
ROOT = Path(__file__).resolve().parents[2]
STEPS = 50
FLAGS = (
    f"--n-layer 3 --n-head 2 --n-embd 32 --block-size 16 --batch-size 7 --gradient-accumulation-steps 2 "
    f"--steps {STEPS} --eval-every 10 --save-every 10 --split 0.8,0.2 --tokenizer bytes --dropout 0.1 "
    "--seed 3"
).split()
TEXT = "a rata roeu a roupa do rei de Roma; o rei, com raiva, rasgou o resto. " * 60


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def start(ranks, *args, program=("-m", "npgpt.train"), then=None):
    """`mpiexec -n RANKS python -m npgpt.train ARGS`; `then`: the arguments of the last rank, if others."""
    here = [sys.executable, *program]
    command = [MPIEXEC, "-n", ranks, *here, *args]
    if then is not None:
        command = [MPIEXEC, "-n", ranks - 1, *here, *args, ":", "-n", 1, *here, *then]
    elif ranks == 1:
        command = [*here, *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPGPT_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(part) for part in command], env=environment, cwd=ROOT, **pipes)


def run(ranks, *args, expect=0, **more):
    """What start() starts and what it prints."""
    process = start(ranks, *args, **more)
    out, err = process.communicate(timeout=100)
    assert process.returncode == expect, out + err
    return out + err


def metrics(folder, name):
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[name] or "nan") for row in csv.DictReader(file)]


def arrays(folder):
    newest, _ = checkpoint.choose(folder, ())
    return [(newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ranks_train_as_one_process(tmp_path, text, measured, optimizer):
    flags = [text, *FLAGS, "--optimizer", optimizer]
    run(1, *flags, "--out", tmp_path / "1")
    for ranks in (2, 4):
        run(ranks, *flags, "--out", tmp_path / f"{ranks}")
        for name in ("train_loss", "val_loss"):
            one, many = metrics(tmp_path / "1", name), metrics(tmp_path / f"{ranks}", name)
            assert len(many) == STEPS
            worst = max(abs(a - b) for a, b in zip(one, many, strict=True) if a == a or b == b)
            measured(f"{optimizer}, {name} of {ranks} ranks and of one process", worst, 1e-5)
    run(4, *flags, "--out", tmp_path / "again")
    assert arrays(tmp_path / "again") == arrays(tmp_path / "4")
    run(4, *flags, "--zero", "--out", tmp_path / "zero")
    assert arrays(tmp_path / "zero") == arrays(tmp_path / "4")
    folders = [sorted(p.name for p in (tmp_path / name).rglob("*")) for name in ("1", "4")]
    assert folders[0] == folders[1]


def test_ranks_keep_documents_apart_as_one_process(tmp_path, measured):
    draw = random.Random(0)
    for name in "abcdefgh":
        words = draw.choices("sol mar praia vento chuva pessoas".split(), k=300)
        (tmp_path / f"{name}.txt").write_text(" ".join(words))
    flags = [*sorted(tmp_path.glob("*.txt")), *FLAGS, "--steps", 20]
    for ranks, documents in ((1, "apart"), (3, "apart"), (1, "joined")):
        run(ranks, *flags, "--documents", documents, "--out", tmp_path / f"{documents}-{ranks}")
    one, many, joined = (metrics(tmp_path / name, "val_loss") for name in ("apart-1", "apart-3", "joined-1"))
    worst = max(abs(a - b) for a, b in zip(one, many, strict=True) if a == a or b == b)
    measured("documents apart, val_loss of 3 ranks and of one process", worst, 1e-5)
    assert abs(one[-1] - joined[-1]) > 1e-4


def wait_for_checkpoint(folder, process):
    while not checkpoint.is_run(folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_ranks_draw_the_same_classes(tmp_path, measured):
    """Of the targets of all ranks, so that the losses are those of one process."""
    rng, text = np.random.default_rng(0), tmp_path / "text.txt"
    syllables = ["".join(rng.choice(list("abcdefghijklmnoprstuvz"), 3)) for _ in range(2000)]
    text.write_text(" ".join(rng.choice(syllables, 20_000)))
    flags = [text, *FLAGS, "--tokenizer", "bpe:1024", "--softmax", "sampled"]
    for ranks in (1, 2):
        run(ranks, *flags, "--out", tmp_path / f"{ranks}")
    run(1, *flags, "--softmax", "full", "--out", tmp_path / "full")
    one, two, full = (metrics(tmp_path / name, "train_loss") for name in ("1", "2", "full"))
    measured("sampled, train_loss of 2 ranks and of one process", np.abs(np.subtract(one, two)).max(), 1e-5)
    assert one != full


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stopped_on_two_ranks_goes_on_with_others(tmp_path, text, measured, number):
    flags = [text, *FLAGS, "--optimizer", "adamw", "--eval-every", "20", "--steps", "400"]
    run(1, *flags, "--out", tmp_path / "whole")
    process = start(2, *flags, "--zero", "--out", tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted after" in out, out + err
    before = len(metrics(tmp_path / "run", "train_loss"))
    assert before < 400
    run(3, "--resume", "--zero", "--out", tmp_path / "run")
    whole, resumed = (metrics(tmp_path / name, "train_loss") for name in ("whole", "run"))
    worst = max(abs(a - b) for a, b in zip(whole, resumed, strict=True))
    measured("losses of one process and of 2 ranks, then 3", worst, 1e-3)  # over eight times as many steps


DIFFERENT = {
    "--seed": ["--seed", "4"],
    "--lr": ["--lr", "0.5"],
    "text": None,
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_ranks_that_differ_are_refused(tmp_path, text, what):
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("Roma", "roma"))
    flags = [*FLAGS, "--out", tmp_path / "run"]
    then = [text, *flags, *DIFFERENT[what]] if DIFFERENT[what] else [other, *flags]
    lines = run(3, text, *flags, then=then, expect=2).splitlines()
    (line,) = (line for line in lines if not line.startswith("warning: 3 ranks"))
    assert line.startswith(f"npgpt train: rank 2 on {os.uname().nodename} is not like rank 0 on ")
    assert f", {what}: " in line and not (tmp_path / "run").exists()


def test_an_error_of_one_rank_is_told_once(tmp_path, text):
    flags = [*FLAGS, "--out", tmp_path / "run"]
    err = run(2, text, *flags, then=[tmp_path / "none.txt", *flags], expect=2)
    assert err.strip().endswith(
        f"none.txt: No such file or directory (rank 1 of 2, on {os.uname().nodename})"
    )
    err = run(2, tmp_path / "none.txt", *flags, expect=2)
    assert err.count("No such file") == 1 and "(rank" not in err


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (1, 0)),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, (4, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}, (4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}, (1, 0)),
        ({"PMIX_RANK": "1", "PMIX_NAMESPACE": "prterun-vm-1@1"}, (None, 1)),  # prterun
        ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, (2, 1)),  # srun --mpi=pmix
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, (1, 0)),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, (1, 0)),  # a script of sbatch
    ],
)
def test_what_launchers_tell_a_rank(monkeypatch, environment, expected):
    from npgpt.distributed import mpi

    for name in ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mpi.launched() == expected


PMIX_ALONE = """
import os, sys
from mpi4py import MPI  # which has joined the ranks
os.environ["PMIX_RANK"] = os.environ.pop("PMI_RANK")
del os.environ["PMI_SIZE"]
if "other" in sys.argv:  # an MPI that does not know the launcher
    MPI = sys.modules["mpi4py.MPI"]
    sys.modules["mpi4py"].MPI = type("MPI", (), {"COMM_WORLD": type("", (), {"size": 1}),
        "Get_library_version": lambda: "another MPI"})
from npgpt.train import main
sys.exit(main([arg for arg in sys.argv[1:] if arg != "other"]))
"""


def test_ranks_of_a_launcher_that_tells_the_rank_alone(tmp_path, text):
    """As prterun does: both train one model, and are refused where their MPI counts one."""
    run(2, text, *FLAGS, "--out", tmp_path / "1")
    out = run(2, text, *FLAGS, "--out", tmp_path / "2", program=("-c", PMIX_ALONE))
    assert "exists already" not in out and arrays(tmp_path / "1") == arrays(tmp_path / "2")
    out = run(2, text, "other", *FLAGS, "--out", tmp_path / "3", program=("-c", PMIX_ALONE), expect=2)
    assert "mpiexec must belong to the MPI that mpi4py uses, which is another MPI" in out


TOGETHER = """
import os, sys, time, pathlib
from npgpt import train
from npgpt.training import run
find, me = run.find_folder, pathlib.Path(sys.argv[1])
def together(*args, **more):
    found = find(*args, **more)
    me.with_suffix("." + os.environ["PMI_RANK"]).touch()
    while len(list(me.parent.glob("met*.*"))) < 4: time.sleep(0.01)
    return found
run.find_folder = together
sys.exit(train.main(sys.argv[2:]))
"""


def test_of_two_jobs_at_once_the_second_takes_the_next_name(tmp_path, text):
    """All four ranks have looked for a free name before one makes a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPGPT_THREADS": "1"}
    jobs = []
    for name in ("a", "b"):
        command = [
            str(MPIEXEC),
            "-n",
            "2",
            sys.executable,
            "-c",
            TOGETHER,
            tmp_path / f"met{name}",
            text,
            *FLAGS,
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        jobs.append(subprocess.Popen([str(part) for part in command], env=environment, cwd=tmp_path, **pipes))
    outs = [job.communicate(timeout=100)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outs
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"text", "text-2"}
    assert arrays(tmp_path / "runs/text") == arrays(tmp_path / "runs/text-2")


VICTIM = """
import os, signal, sys
from npgpt import train
from npgpt.training.trainer import Trainer

how, forward_backward = sys.argv.pop(1), Trainer._forward_backward

def fail(self, batch):
    if self.world.rank == 1 and self.step >= 15:
        if how == "raise":
            raise RuntimeError("a bug")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "nan":
            with self.model.edit() as params:
                params["wte.weight"][...] = float("nan")
        if how == "flip":
            with self.model.edit():
                self.model.flat_params[-1] += 1
    return forward_backward(self, batch)

Trainer._forward_backward = fail
raise SystemExit(train.main())
"""
SAID = {
    "raise": (1, "RuntimeError: a bug (rank 1 of 2"),
    "kill": (9, "EXIT CODE: 9"),
    "hang": (1, "nothing was heard of rank 1 for 6 s"),
    "nan": (1, "step 18: the loss is nan"),
    "flip": (1, "step 20: rank 1 on"),
}


@pytest.mark.parametrize("how", SAID)
def test_a_rank_that_fails_ends_the_job_and_it_can_go_on(tmp_path, text, how):
    script, folder, (code, said) = tmp_path / "victim.py", tmp_path / "run", SAID[how]
    script.write_text(VICTIM)
    began = time.monotonic()
    err = run(2, how, text, *FLAGS, "--out", folder, program=[script], expect=code)
    assert said in err and time.monotonic() - began < 30
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-000010"]
    run(2, "--resume", "--out", folder)
    assert len(metrics(folder, "train_loss")) == STEPS


def test_a_run_restarts_by_itself(tmp_path, text):
    whole, folder, died = tmp_path / "whole", tmp_path / "run", tmp_path / "died"
    script = tmp_path / "sitecustomize.py"  # kills a rank once, in whichever process trains
    script.write_text(f"""
import os, pathlib, signal, threading, time
def kill():
    while not list(pathlib.Path({str(folder)!r}).glob("step-*")):
        time.sleep(0.001)
    if not os.path.exists({str(died)!r}):
        open({str(died)!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("PMI_RANK") == "1":
    threading.Thread(target=kill, daemon=True).start()
""")
    flags = [text, *FLAGS, "--steps", "300"]
    run(2, *flags, "--out", whole)
    launch = ["--restarts", "2", "--launch", f"env PYTHONPATH={tmp_path}:{ROOT} {MPIEXEC} -n 2"]
    told = run(1, *flags, "--out", folder, *launch)
    assert "ended with 9; going on by itself, 1 of 2 times" in told and died.exists()
    assert arrays(folder) == arrays(whole)
    told = run(2, *flags, "--out", tmp_path / "inside", "--restarts", "2", expect=2)
    assert "--launch 'mpiexec -n 4'" in told and not (tmp_path / "inside").exists()


TOKENIZE = """
import pathlib, sys
import numpy as np
from npgpt.text import corpus, tokenizer
from npgpt.text import dataset
from npgpt.distributed import mpi

text, out = map(pathlib.Path, sys.argv[1:])
world, done = mpi.init_world(), 0
encode = tokenizer.BPETokenizer._encode

def counted(self, text):
    global done
    done += len(text)
    return encode(self, text)

tokenizer.BPETokenizer._encode = counted
with world.abort_on_failure():
    for room in (1 << 20, 10):  # in memory; chunk by chunk, to a file
        corpus.IN_MEMORY, corpus.CHUNK = room, 3000
        documents = corpus.Corpus([text, text.with_name("other.txt")])
        learnt = dataset.make_corpus_tokenizer("bpe:300", documents, "0.8,0.2", world)
        done = 0
        ids = dataset.encode(documents, learnt, world)
        np.savez(out / f"{world.rank}-{room}", ids=ids, done=done, learnt=learnt.fingerprint)
"""


def test_tokenizing_is_divided(tmp_path, text, monkeypatch):
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path / "cache"))
    text.with_name("other.txt").write_text("Um dia \n\nDois dias  \n  três,\n\n\n quatro's dias \n" * 50)
    (script := tmp_path / "divide.py").write_text(TOKENIZE)
    found = {}
    for size in (1, 2, 3):
        (out := tmp_path / f"{size}").mkdir()
        run(size, text, out, program=[script])
        found[size] = [
            [np.load(out / f"{rank}-{room}.npz") for rank in range(size)] for room in (1 << 20, 10)
        ]
        for file in (tmp_path / "cache").iterdir():
            file.unlink()  # the one that all ranks made
    (whole,), (large,) = found[1]
    assert whole["done"] == large["done"] > 5000
    for size in (2, 3):
        for alone, parts in zip((whole, large), found[size], strict=True):
            for part in parts:
                np.testing.assert_array_equal(part["ids"], alone["ids"])
                assert part["learnt"] == alone["learnt"] and part["done"] < 1.5 * alone["done"] / size


MEMORY = """
import sys
from npgpt import train
from npgpt.training.trainer import Trainer

change, anonymous = Trainer._change_weights, 0

def measure(self):
    with open("/proc/self/status") as status:
        kilobytes = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    change_result = change(self)
    if self.step == 2:
        most = max(kilobytes for (kilobytes,) in self.world.all_gather(kilobytes))
        print(f"measured: {1024 * most:.0f} bytes, {self.model.num_params} parameters")
    return change_result

Trainer._change_weights = measure
raise SystemExit(train.main())
"""


def test_with_zero_memory_falls_as_ranks_grow(tmp_path, text, measured):
    (script := tmp_path / "memory.py").write_text(MEMORY)
    large = "--n-embd 256 --n-layer 6 --batch-size 4 --steps 2 --optimizer adamw".split()

    def memory(ranks, *more):
        told = run(ranks, text, *FLAGS, *large, *more, "--out", tmp_path / f"{ranks}{more}", program=[script])
        return map(int, re.search(r"measured: (\d+) bytes, (\d+) parameters", told).groups())

    whole, parameters = memory(2)
    for ranks in (2, 4):
        saved = whole - next(memory(ranks, "--zero"))
        expected = 8 * parameters * (ranks - 1) / ranks  # of both moments a rank keeps its share
        measured(f"memory that --zero saves each of {ranks} ranks", abs(saved / expected - 1), 0.15)


TALKS = [
    {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": w[::-1]}]}
    for w in "bom mau sol mar rio rei roupa rato raiva roma resto rasga".split()
]


@pytest.mark.parametrize("lora", [[], ["--lora", "4"]], ids=["all weights", "LoRA"])
def test_ranks_finetune_as_one_process(tmp_path, measured, lora):
    config = npgpt.GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=48, vocab_size=257)
    npgpt.GPT(config, seed=3).save_pretrained(tmp_path / "base")
    (data := tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, TALKS)))
    flags = [tmp_path / "base", data, "--batch-size", 5, "--epochs", 4, "--val-fraction", 0.3, *lora]
    program = ["-m", "npgpt.finetune"]
    for ranks in (1, 3):
        run(ranks, *flags, "-o", tmp_path / f"{ranks}", program=program)
    for name in ("train_loss", "val_loss"):
        one, many = (metrics(tmp_path / ranks, name) for ranks in "13")
        worst = max(abs(a - b) for a, b in zip(one, many, strict=True) if a == a or b == b)
        measured(f"finetune, {name} of 3 ranks and of one process", worst, 1e-5)
    folders = [sorted(p.name for p in (tmp_path / ranks).rglob("*")) for ranks in "13"]
    assert folders[0] == folders[1] and len(one) == 8
    flags += ["-o", tmp_path / "new"]
    err = run(2, *flags, program=program, then=[*flags, "--seed", 1], expect=2)
    assert ", --seed: 1 there, default here" in err and not (tmp_path / "new").exists()


def test_one_process_never_imports_mpi4py(tmp_path, text):
    code = "import sys; from npgpt import train; train.main(sys.argv[1:]); assert 'mpi4py' not in sys.modules"
    run(1, code, text, *FLAGS, "--out", tmp_path / "run", program=["-c"])


def test_more_threads_than_cpus_are_warned_about(tmp_path, text):
    threads = os.cpu_count()
    err = run(2, text, *FLAGS, "--steps", 2, "--threads", threads, "--out", tmp_path / "run")
    assert f"2 ranks with {2 * threads} threads share {threads} CPUs" in err


WATCHED = """
import sys
from npgpt.train import main

def look(step):
    print("saw", step.step, flush=True)
    if step.step == 7:
        raise ZeroDivisionError("enough")

main(sys.argv[1:], on_step=look)
"""


def test_what_on_step_raises_ends_all_ranks_with_a_checkpoint(tmp_path, text):
    flags = [text, *FLAGS, "--out", tmp_path / "r"]
    told = run(2, *flags, program=("-c", WATCHED), expect=1)
    assert told.count("ZeroDivisionError: enough") == 1
    assert [told.count(f"saw {n}\n") for n in (1, 7, 8)] == [1, 1, 0], "one rank calls it"
    newest, broken = checkpoint.choose(tmp_path / "r", ())
    assert checkpoint.step_of(newest) == 7 and not broken
    run(2, "--resume", "--out", tmp_path / "r")
    run(2, text, *FLAGS, "--out", tmp_path / "s")
    assert arrays(tmp_path / "r") == arrays(tmp_path / "s")
