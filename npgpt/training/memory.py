"""What this process holds of memory, whether a plan fits into what it may have, and what would."""

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
    """ValueError, with the settings that would fit, where needed(config, plan) bytes are more than there is.

    tuning: of a model that is there already, a batch a step.
    """
    free, where = available_bytes()
    if (whole := needed(config, plan)) <= free:
        return

    def fits(config: GPTConfig, batch: int) -> bool:
        return needed(config, replace(plan, batch_size=batch)) <= free

    message = (
        f"not enough memory: this plan needs {whole / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free ({where})"
    )
    advice = ""
    if batch := next((b for b in _halves(plan.batch_size) if fits(config, b)), None):
        parts = "" if tuning else f" --gradient-accumulation-steps {-(-plan.windows // batch)}"
        advice = f"--batch-size {batch}{parts}"
    elif not tuning:
        narrow = (replace(config, n_embd=c * config.n_head) for c in _halves(config.n_embd // config.n_head))
        if smaller := next((c for c in narrow if fits(c, 1)), None):
            advice = f"--batch-size 1 --n-embd {smaller.n_embd}"
    raise ValueError(f"{message}; {advice} would fit" if advice else f"{message}; no smaller plan would fit")


def _halves(n: int) -> Iterator[int]:
    while (n := n // 2) >= 1:
        yield n


def available_bytes() -> tuple[float, str]:
    """(bytes that this process can still take, what sets that limit); infinite where nothing tells."""
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
    """Memory that this process holds now (Linux; 0 where that cannot be told)."""
    return 1024 * (_field("/proc/self/status", "VmRSS:") or 0)


def _cgroup_bytes() -> Iterator[int]:
    """Room left in each cgroup (version 2) above this process; files that can be dropped count as room."""
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
    """The number after `name` in a file of lines such as 'MemAvailable: 123 kB'."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), None)
