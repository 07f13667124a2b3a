"""The memory of this process: how much is free, whether a plan fits, and which smaller plan would."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from npgpt.engine.config import GPTConfig
from npgpt.engine.types import PathLike
from npgpt.training.plan import Plan


def check_memory(
    config: GPTConfig, plan: Plan, needed: Callable[[GPTConfig, Plan], int], tuning: bool = False
) -> None:
    """Raise ValueError, with settings that would fit, where needed(config, plan) bytes are not free.

    tuning=True is for a model that exists already: its size and its batches a step cannot change.
    """
    free, where = available_bytes()
    if (total := needed(config, plan)) <= free:
        return

    def fits(config: GPTConfig, batch: int) -> bool:
        return needed(config, replace(plan, batch_size=batch)) <= free

    message = (
        f"not enough memory: this plan needs {total / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free ({where})"
    )
    advice = ""
    if batch := next((b for b in _halves(plan.batch_size) if fits(config, b)), None):
        accumulation = "" if tuning else f" --gradient-accumulation-steps {-(-plan.windows // batch)}"
        advice = f"--batch-size {batch}{accumulation}"
    elif not tuning:
        narrow = (replace(config, n_embd=c * config.n_head) for c in _halves(config.n_embd // config.n_head))
        if smaller := next((c for c in narrow if fits(c, 1)), None):
            advice = f"--batch-size 1 --n-embd {smaller.n_embd}"
    raise ValueError(f"{message}; {advice} would fit" if advice else f"{message}; no smaller plan would fit")


def _halves(n: int) -> Iterator[int]:
    while (n := n // 2) >= 1:
        yield n


def available_bytes() -> tuple[float, str]:
    """Return the bytes that this process can still take, and the name of the limit; infinity if unknown."""
    limits = [(float("inf"), "no limit is known")]
    if (kilobytes := _field("/proc/meminfo", "MemAvailable:")) is not None:
        limits.append((1024 * kilobytes, "this machine"))
    with contextlib.suppress(ImportError):  # Windows has none
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append((soft - 1024 * (_field("/proc/self/status", "VmSize:") or 0), "ulimit -v"))
    limits += [(free, "cgroup") for free in _cgroup_bytes()]
    free, where = min(limits)
    return max(0, free), where


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds now, on Linux; 0 where that is unknown."""
    return 1024 * (_field("/proc/self/status", "VmRSS:") or 0)


def _cgroup_bytes() -> Iterator[int]:
    """Yield the bytes left in each cgroup (version 2) above this process; inactive file cache is free."""
    try:
        inside = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
    except OSError:
        return
    here = Path("/sys/fs/cgroup") / inside.lstrip("/")
    for folder in (here, *here.parents):
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        yield limit - used + (_field(folder / "memory.stat", "inactive_file") or 0)


def _field(path: PathLike, name: str) -> int | None:
    """Return the number after `name` in a file of lines such as 'MemAvailable: 123 kB', None if missing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), None)
