"""Without what only Unix has: a process that cannot import fcntl and resource, as on Windows.

tests/parity/test_server_bounds.py has a server live so.
"""

import subprocess
import sys

WINDOWS = """
import asyncio, contextlib, fcntl, multiprocessing, subprocess, sys, types  # they ask for msvcrt, too
fcntl_ = fcntl
def locking(descriptor, mode, size):  # as msvcrt's: PermissionError where another has it
    try:
        fcntl_.flock(descriptor, fcntl_.LOCK_EX | fcntl_.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(error.errno, "denied") from None
for name in "fork killpg nice posix_fadvise sched_getaffinity sched_yield setpriority setsid".split():
    if hasattr(sys.modules["os"], name):
        delattr(sys.modules["os"], name)
sys.modules |= {"fcntl": None, "resource": None, "msvcrt": types.SimpleNamespace(locking=locking, LK_NBLCK=2)}
"""


def run(code, *args):
    return subprocess.run([sys.executable, "-c", WINDOWS + code, *args], text=True, capture_output=True)


def test_training_and_generating_need_neither(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("O sol brilhava no céu. " * 20, encoding="utf-8")
    sizes = "--n-layer 1 --n-head 2 --n-embd 8 --block-size 16 --steps 3".split()
    code = "from npgpt.train import main; raise SystemExit(main())"
    done = run(code, str(text), "--out", str(tmp_path / "run"), *sizes)
    assert done.returncode == 0, done.stderr
    done = run("from npgpt.generate import main; raise SystemExit(main())", str(tmp_path / "run"), "O sol")
    assert done.returncode == 0 and done.stdout, done.stderr


def test_every_module_can_be_imported_without_them():
    code = """
import importlib, pkgutil, npgpt
for module in pkgutil.walk_packages(npgpt.__path__, "npgpt."):
    if module.name not in ("npgpt.__main__", "npgpt.console.locale.make", "npgpt.distributed.mpi"):
        others = "server" in module.name or module.name == "npgpt.compat.lm_eval"  # an extra, a harness
        missing = [ModuleNotFoundError] if others else []
        with contextlib.suppress(*missing):
            importlib.import_module(module.name)
assert "npgpt.training.run" in sys.modules and "npgpt.training.memory" in sys.modules
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_a_run_is_still_locked(tmp_path):
    code = """
from pathlib import Path
from npgpt.training.run import locked
with locked(Path(sys.argv[1])):
    try:
        with locked(Path(sys.argv[1])):
            print("both")
    except BlockingIOError as error:
        print(error.strerror)
"""
    assert run(code, str(tmp_path / "run")).stdout == "another process is training this run\n"
