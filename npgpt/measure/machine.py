"""What a measurement was made on: machine, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

from npgpt.engine import kernels
from npgpt.engine.types import Fields
from npgpt.version import __version__

ROOT = Path(__file__).resolve().parents[2]  # the clone, where it is one
MEASURED = ("npgpt", "csrc", "benchmarks/*.py", "setup.py")  # what a commit stands for


def machine() -> Fields:
    """Return CPU, cores, gigabytes of memory, system, and the kernels and threads in use."""
    found: Fields = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        found["cpu"] = models[0] if models else found["cpu"]
    if hasattr(os, "sysconf"):
        found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    found |= {"kernels": kernels.name(), "threads": kernels.get_num_threads()}
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python, NumPy and npgpt, and of those `packages` that are installed."""
    found = {"Python": platform.python_version()}
    for package in ("numpy", "npgpt", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found | {"npgpt": __version__}


def commit() -> str | None:
    """Return the commit of the clone, with + where what is measured differs from it; None outside a clone."""
    try:
        head = _git("rev-parse", "--short=7", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", *MEASURED).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _git(*args: str) -> str:
    # a clone that holds npgpt as somebody's package is none of npgpt
    inside = ["git", "--git-dir", str(ROOT / ".git"), "--work-tree", str(ROOT), *args]
    return subprocess.run(inside, cwd=ROOT, check=True, capture_output=True, text=True).stdout
