"""libnpgpt built for other machines by one compiler line, and run there: the same tokens as here."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from npgpt.interop.gguf import write_gguf
from tests.models import random_model

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
SMALL = "-s -ffunction-sections -Wl,--gc-sections"
PROGRAM = "-I. generate.c npgpt.cpp -o generate"
GNU = f"g++ -std=c++17 -Os -pthread -static-libstdc++ -static-libgcc {SMALL} {PROGRAM}"


class Target(NamedTuple):
    """Lines that build generate, as docs/embedding.md has them; what runs it; bytes of it at most."""

    lines: list[str]
    runs: str
    most: int | None = 400_000
    program: str = "generate"


TARGETS = {
    "x86-64 Linux, glibc": Target([GNU], ""),
    "aarch64 Linux, glibc": Target([f"aarch64-linux-gnu-{GNU}"], "qemu-aarch64 -L /usr/aarch64-linux-gnu"),
    "riscv64 Linux, glibc": Target([f"riscv64-linux-gnu-{GNU}"], "qemu-riscv64 -L /usr/riscv64-linux-gnu"),
    "x86-64 Windows": Target(
        [
            "x86_64-w64-mingw32-g++-posix -std=c++17 -O2 -s -shared -static npgpt.cpp -o npgpt.dll",
            "x86_64-w64-mingw32-gcc-posix -I. generate.c npgpt.dll -o generate.exe",
        ],
        "wine",
        None,
        "generate.exe",
    ),
}
MACOS = "python -m ziglang c++ -target aarch64-macos -std=c++17 -O2 -c npgpt.cpp"
TOKENS = 200
TYPES = "f32", "f16", "q8_0", "q4_0"


def tools(target):
    return [line.split()[0] for line in [*target.lines, target.runs] if line]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with the one source, the header and the programs in C."""
    folder = tmp_path_factory.mktemp("source")
    subprocess.run([sys.executable, ROOT / "csrc/amalgamate.py", folder], check=True)
    for program in "csrc/examples/generate.c", "tests/runtime/tokens.c":
        shutil.copy(ROOT / program, folder)
    model = random_model(n_layer=2, block_size=96, tied=False)  # a context shorter than what is written
    for type in TYPES:
        write_gguf(folder / f"{type}.gguf", model, model.tokenizer, type)
    (folder / "cut.gguf").write_bytes((folder / "f32.gguf").read_bytes()[:-1000])
    return folder


def build(target, source, program):
    if lacking := [tool for tool in tools(target) if not shutil.which(tool)]:
        pytest.skip(f"{', '.join(lacking)} not installed")
    for line in target.lines:
        subprocess.run(line.replace("generate", program).split(), cwd=source, check=True)
    return target.program.replace("generate", program)


def run(target, source, program, *arguments):
    """What it does there: a finished process. Wine is told to keep its voice down."""
    how = target.runs.split()
    there = os.environ | {"WINEPREFIX": str(source / "wine"), "WINEDEBUG": "-all"}
    command = [*how, program if how else f"./{program}", *map(str, arguments)]
    return subprocess.run(command, cwd=source, env=there, capture_output=True, encoding="utf-8")


def tokens(target, source, program, *arguments):
    """(ids, logits behind the last)"""
    done = run(target, source, program, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    return lines[:TOKENS], np.array(lines[TOKENS:], float)


@pytest.fixture(scope="module")
def here(source):
    """{(type, temperature): ids and logits} of this machine's compiler and the plain kernels."""
    target = TARGETS["x86-64 Linux, glibc"]
    program = build(target, source, "tokens")
    there = {}
    for how in [(type, heat) for type in TYPES for heat in ("0", "0.8")]:
        there[how] = tokens(target, source, program, f"{how[0]}.gguf", "baseline", how[1], TOKENS)
    assert len({*there["f32", "0.8"][0]}) > 20
    return there


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_tokens_on_each_target(name, source, here):
    target = TARGETS[name]
    program = build(target, source, "tokens")
    for (type, heat), (ids, logits) in here.items():
        got, near = tokens(target, source, program, f"{type}.gguf", "baseline", heat, TOKENS)
        assert got == ids, (type, heat)
        assert np.abs(near - logits).max() <= 1e-4
        # its best kernels, after the same ids
        first, best = tokens(target, source, program, f"{type}.gguf", "auto", heat, TOKENS)
        if first == ids:
            assert np.abs(best - logits).max() <= (1e-4 if type[0] == "f" else 1e-2)


@pytest.mark.parametrize("name", TARGETS)
def test_a_program_of_each_target_writes_is_small_and_says_what_is_wrong(name, source):
    target = TARGETS[name]
    program = build(target, source, "generate")
    if target.most:
        assert (source / program).stat().st_size <= target.most
    there = run(target, source, program, "f32.gguf", "O sol", 20, 1)
    assert there.returncode == 0 and there.stdout.startswith("O sol") and len(there.stdout) > 10, there.stderr
    for wrong in "cut.gguf", "none.gguf":
        failed = run(target, source, program, wrong, "O sol")
        said = [line for line in failed.stderr.splitlines() if line.startswith("generate: ")]
        assert failed.returncode == 1 and len(said) == 1 and failed.stdout == ""


LEARN = PROGRAM.replace("generate.c npgpt.cpp", "-DNPGPT_TRAIN learn.c npgpt.cpp npgpt_train.cpp")


def learns(target, source, state, stop):
    """The losses up to step `stop` of the program that trains, built there."""
    line = target.lines[0].replace(PROGRAM, LEARN)
    if target.program.endswith(".exe"):
        line = f"x86_64-w64-mingw32-g++-posix -std=c++17 -O2 -static {LEARN}.exe"
    program = build(target._replace(lines=[line]), source, "learn")
    done = run(
        target, source, program, "text.txt", state, f"{state}.gguf", stop, 2, "n_embd=32", "dropout=0.1"
    )
    assert done.returncode == 0, done.stderr
    return [float(line.split()[1]) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def learnt(source):
    """The losses of steps 11 to 20 here; half.state is that of step 10."""
    shutil.copy(ROOT / "tests/runtime/learn.c", source)
    (source / "text.txt").write_text("O sol brilha, a lua vem, e o mar canta. " * 40, encoding="utf-8")
    learns(TARGETS["x86-64 Linux, glibc"], source, "half.state", 10)
    shutil.copy(source / "half.state", source / "whole.state")
    return learns(TARGETS["x86-64 Linux, glibc"], source, "whole.state", 20)


@pytest.mark.parametrize("name", [*TARGETS][1:], ids=lambda name: name.split(",")[0])
def test_training_goes_on_on_each_target(name, source, learnt):
    """It learns as here, but for how kernels and libraries round: a state is good on all of them."""
    state = f"{name.split()[0]}.state"
    shutil.copy(source / "half.state", source / state)
    losses = learns(TARGETS[name], source, state, 20)
    assert len(losses) == 10
    assert np.abs(np.array(losses) - learnt).max() <= 1e-4
    assert (source / f"{state}.gguf").stat().st_size == (source / "whole.state.gguf").stat().st_size


def test_a_big_endian_machine_is_told(source):
    """The sentence, from a machine that is one."""
    line = f"s390x-linux-gnu-{GNU}".replace("-Os", "-O0")  # made sooner, and it says the same
    target = Target([line], "qemu-s390x -L /usr/s390x-linux-gnu")
    failed = run(target, source, build(target, source, "generate"), "f32.gguf")
    assert failed.returncode == 1 and failed.stdout == ""
    assert "this machine is big-endian" in failed.stderr and failed.stderr.count("\n") == 1


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang not installed")
def test_macos_compiles(source):
    subprocess.run([sys.executable, *MACOS.split()[1:]], cwd=source, check=True)
    assert (source / "npgpt.o").read_bytes()[:4] == b"\xcf\xfa\xed\xfe"  # a Mach-O file of 64 bits


def test_the_docs_have_these_lines():
    lines = [MACOS, *(line for target in TARGETS.values() for line in target.lines)]
    assert [line for line in lines if line not in DOCS] == []


# Macros that say which system this is. Threads, exceptions and instruction sets are other questions.
SYSTEMS = r"linux|unix|WIN32|WIN64|APPLE|MACH|wasi|wasm|EMSCRIPTEN|MINGW|CYGWIN|ANDROID|BSD|GLIBC__|POSIX"


def test_what_differs_by_system_stands_in_files_of_its_own():
    asked = []
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".cpp", ".h", ".inl", ".c"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if re.match(rf"\s*#\s*(el)?if.*({SYSTEMS})", line):
                    asked.append(f"{path.name}: {line}")
    assert asked == []
