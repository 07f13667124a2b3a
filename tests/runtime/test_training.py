"""Training in C learns what npgpt.train learns: each loss, the weights and the GGUF file to the bit."""

import csv
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from npgpt import embed
from npgpt.engine import kernels
from npgpt.interop.gguf import write_gguf

ROOT = Path(__file__).parents[2]
TEXT = (
    "O sol brilha e o mar canta; a noite vem, e a lua também. "
    "Ação, coração, não: três palavras, 12 letras ao todo, e um til.\n"
)
SHAPE = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "batch_size": 5, "steps": 30, "warmup": 4,
    "lr": 0.01, "min_lr": 0.0005, "weight_decay": 0.1, "clip": 1.0, "dropout": 0.0,
}  # fmt: skip
pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ here"),
    pytest.mark.skipif(kernels.name() == "numpy", reason="the kernels are not in use"),
]


def run(*command, **more):
    command = [str(word) for word in command]
    return subprocess.run(command, capture_output=True, text=True, check=True, **more).stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with the one source and its programs: learn, and train as the line in it builds it."""
    folder = tmp_path_factory.mktemp("training")
    embed.write_source(folder)
    shutil.copy(ROOT / "tests/runtime/learn.c", folder)
    flags = embed.BUILD.split()[1:]
    compiled = [flag for flag in flags if not flag.startswith(("-Wl", "-static", "-s"))]
    linked = [flag for flag in flags if not flag.startswith("-std")]
    strict = "-Wall", "-Wextra", "-Werror"
    for name in ("npgpt", "npgpt_train"):
        run("g++", *compiled, "-std=c++17", *strict, "-DNPGPT_TRAIN", "-c", f"{name}.cpp", cwd=folder)
    for name in ("learn", "train"):
        run("cc", "-std=c99", *strict, "-Wpedantic", "-I.", "-c", f"{name}.c", cwd=folder)
        run("g++", *linked, f"{name}.o", "npgpt.o", "npgpt_train.o", "-o", name, cwd=folder)
    return folder


class Run:
    """A folder with a text, and what C and Python learn from it."""

    def __init__(self, built, folder, text, **settings):
        self.learn, self.folder, self.settings = built / "learn", folder, SHAPE | settings
        self.text = folder / "text.txt"
        self.text.write_bytes(text)

    def c(self, name="c", stop=None, threads=2, **more):
        """What the program says, line by line."""
        files = self.text, self.folder / f"{name}.state", self.folder / f"{name}.gguf"
        words = [f"{key}={value}" for key, value in (self.settings | more).items()]
        stop = self.settings["steps"] if stop is None else stop
        command = [self.learn, *files, str(stop), str(threads), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()

    def python(self):
        """The rows of metrics.csv, and the model's GGUF file."""
        settings = dict(self.settings)
        share, bpe = settings.pop("train_share", 1), settings.pop("bpe", 0)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        flags += [f"--split={share},{round(1 - share, 6)}", f"--tokenizer={f'bpe:{bpe}' if bpe else 'bytes'}"]
        flags += ["--optimizer=adamw", "--encoding=bytes", f"--eval-every={settings['steps']}"]
        out, cache = self.folder / "run", {"NPGPT_CACHE": str(self.folder / "cache")}
        flags += ["--target-loss=1e-9", f"--out={out}"]
        command = [sys.executable, "-m", "npgpt.train", str(self.text), *flags]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr  # 1: so small a text is not memorised yet
        model = npgpt.load(out)
        write_gguf(self.folder / "python.gguf", model, model.tokenizer)
        with open(out / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file)), (self.folder / "python.gguf").read_bytes()

    def gguf(self, name="c"):
        return (self.folder / f"{name}.gguf").read_bytes()


KINDS = {
    "as it is": {},
    "dropout": {"dropout": 0.2, "seed": 7},
    "held out": {"train_share": 0.7},
    "tokens of BPE": {"bpe": 290, "train_share": 0.8, "seed": 3},
    "tokens of BPE without a merge": {"bpe": 257, "steps": 3},
    "a window longer than the text": {"block_size": 9000, "batch_size": 1, "steps": 5, "warmup": 0},
    "one layer, one head, one window": {"n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 1},
    "more epochs than rotate": {"batch_size": 300, "steps": 9},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_that_of_python_to_the_bit(kind, built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode() * 30, **KINDS[kind])
    rows, gguf = one.python()
    *lines, last = one.c() if "train_share" in one.settings else [*one.c(), ""]
    assert len(lines) == len(rows) == one.settings["steps"]
    for line, row in zip(lines, rows, strict=True):
        step, loss, lr, norm, tokens = line.split()
        assert (step, tokens) == (row["step"], row["tokens"])
        found = float(loss), float(lr), float(norm)
        assert found == (float(row["train_loss"]), float(row["lr"]), float(row["grad_norm"]))
    if last:
        assert float(last.removeprefix("held out ")) == float(rows[-1]["val_loss"])
    assert one.gguf() == gguf


def test_bytes_that_are_no_text_and_a_text_of_two(built, tmp_path):
    one = Run(built, tmp_path, bytes(range(256)) * 3, train_share=0.6)
    rows, gguf = one.python()
    assert [float(line.split()[1]) for line in one.c()[:-1]] == [float(row["train_loss"]) for row in rows]
    assert one.gguf() == gguf
    two = Run(built, tmp_path, b"ab", steps=3)
    assert len(two.c("two")) == 3


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads, built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode() * 30, n_embd=64, dropout=0.1)
    assert one.c("two") == one.c("other", threads=threads)
    assert one.gguf("two") == one.gguf("other")


def test_saved_and_loaded_at_any_step_it_is_the_run_that_never_stopped(built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode() * 9, dropout=0.1, bpe=280)
    whole = one.c("whole")
    for stop in (1, 7, 29):
        parts = one.c(f"cut-{stop}", stop)
        again = one.c(f"cut-{stop}", n_layer=1, steps=2, seed=5)  # a state has its own settings
        assert parts + again == whole
        assert one.gguf(f"cut-{stop}") == one.gguf("whole")
    assert one.c("whole", 31) == [f"status 6: train: all {one.settings['steps']} steps are done"]


WRONG = {
    "n_layer=0": "n_layer must be 1 to 1000",
    "n_embd=70000": "n_embd must be 1 to 65536",
    "n_head=3": "n_head must be a divisor of n_embd",
    "n_head=0": "n_head must be a divisor of n_embd",
    "block_size=0": "block_size must be 1 to 1048576",
    "batch_size=-1": "batch_size must be 1 to 1048576",
    "bpe=256": "bpe must be 0 or 257 to 65536",
    "bpe=5000": r"bpe must be at most \d+, for which the text has pairs, or 0 for bytes",
    "steps=0": "steps must be at least 1",
    "warmup=-1": "warmup must be at least 0",
    "lr=nan": "lr must be finite and at least 0",
    "min_lr=-1": "min_lr must be finite and at least 0",
    "weight_decay=inf": "weight_decay must be finite and at least 0",
    "clip=nan": "clip must be finite and at least 0",
    "dropout=1": r"dropout must be in \[0, 1\)",
    "train_share=0": r"train_share must be in \(0, 1\]",
    "train_share=1.5": r"train_share must be in \(0, 1\]",
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_settings_are_named(word, built, tmp_path):
    name, value = word.split("=")
    (told,) = Run(built, tmp_path, TEXT.encode(), **{name: value}).c()
    assert re.fullmatch(f"status 1: train: {WRONG[word]}", told)
    assert not (tmp_path / "c.state").exists()


def test_more_than_memory_is_a_status(built, tmp_path):
    (told,) = Run(built, tmp_path, TEXT.encode(), n_layer=1000, n_embd=65536, n_head=1).c()
    assert told == "status 5: not enough memory"


def test_a_text_too_small_is_named(built, tmp_path):
    assert Run(built, tmp_path, b"a").c() == ["status 1: train: text must be at least 2 bytes"]


def test_a_state_that_is_none_or_broken_or_of_another_text_is_named(built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode(), steps=3)
    one.c()
    state, whole = tmp_path / "c.state", (tmp_path / "c.state").read_bytes()
    for broken in (b"", b"abc" * 99, whole[:-1], whole[:-12], whole[:70], whole + b"a"):
        state.write_bytes(broken)
        (told,) = one.c()
        assert re.fullmatch(r"status [23]: .*c\.state: .*", told)
    for at in range(0, len(whole), len(whole) // 40):
        state.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        (told,) = one.c()
        assert re.fullmatch(r"status [1345]: .*", told)
    state.write_bytes(whole)
    one.text.write_bytes(TEXT.encode().replace(b"sol", b"mar"))
    (told,) = one.c()
    assert told == f"status 1: {state}: was learnt from another text"


def test_a_loss_that_is_no_number_is_told_and_changes_no_weight(built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode() * 5, lr=1e30, warmup=0, steps=9, clip=1e30)
    first = next(i for i, line in enumerate(one.c("all")) if line.startswith("skipped"))
    assert 0 < first < 9
    one.c("before", first)
    lines = one.c("before", 9)
    assert [line.split()[0] for line in lines[: 9 - first]] == ["skipped"] * (9 - first)
    assert (tmp_path / "all.state").read_bytes() == (tmp_path / "before.state").read_bytes()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="stands before glibc's malloc")
def test_each_allocation_that_fails_is_told_and_costs_nothing(built, tmp_path):
    flags = "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{built}", f"-I{ROOT / 'tests/runtime'}"
    object = tmp_path / "failing.o"
    run("cc", *flags, "-c", ROOT / "tests/runtime/allocations_training.c", "-o", object)
    run("g++", "-pthread", object, built / "npgpt.o", built / "npgpt_train.o", "-o", tmp_path / "failing")
    found = re.fullmatch(r"(\d+) allocations failed, all holds\n", run(tmp_path / "failing", tmp_path))
    assert found and int(found[1]) > 300
    assert not list(tmp_path.glob("*.new"))


def test_without_room_the_old_files_stay(built, tmp_path):
    one = Run(built, tmp_path, TEXT.encode())
    one.c("c", 5)
    before = {name: (tmp_path / name).read_bytes() for name in ("c.state", "c.gguf")}

    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, the write fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = [one.learn, one.text, tmp_path / "c.state", tmp_path / "c.gguf", 9, 2]
    lines = run(*words, preexec_fn=limit).splitlines()
    assert [line for line in lines if line.startswith("status")] == [
        f"status 2: {tmp_path / name}: File too large" for name in before
    ]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob("*.new"))


LINE = f"{embed.BUILD} -DNPGPT_TRAIN -I. train.c npgpt.cpp npgpt_train.cpp -o train"


@pytest.mark.parametrize("page", ["embedding.md", "pt/embedding.md"])
def test_the_page_has_the_line_that_builds_it(page):
    assert f"\n{LINE}\n" in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_example_trains_resumes_and_is_small(built, tmp_path):
    source = (ROOT / "csrc/examples/train.c").read_text()
    assert source.count("\n") <= 60
    assert (built / "train").stat().st_size <= 600_000
    (tmp_path / "t.txt").write_bytes(TEXT.encode() * 20)
    first = run(built / "train", "t.txt", "s", "m.gguf", 4, cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in first] == ["step 1", "step 2", "step 3", "step 4"]
    assert run(built / "train", "t.txt", "s", "m.gguf", 4, cwd=tmp_path) == ""  # it is at its end
    assert npgpt.load(tmp_path / "m.gguf").generate("O sol", 5, temperature=0)
    faulty = subprocess.run(
        [built / "train", "none", "s2", "m2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (faulty.returncode, faulty.stderr) == (1, "train: train: text must be at least 2 bytes\n")
