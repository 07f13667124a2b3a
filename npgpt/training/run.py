"""A run's folder and its config.toml: every setting, resolved, so that the run can be told and repeated."""

import errno
import json
import os
import platform
import tomllib
from pathlib import Path

import numpy as np

from npgpt import __version__
from npgpt.engine import kernels

CONFIG = "config.toml"


def make_folder(out: str | None, text: str) -> Path:
    """Make the run's folder: `out`, or runs/NAME after the text, with -2, -3, ... where that is taken.

    FileExistsError where `out` is there already; other OSErrors where it cannot be made.
    """
    if out is not None:
        folder = Path(out)
        if folder.exists():
            what = "exists already; a run needs a folder of its own (--out)"
            raise FileExistsError(errno.EEXIST, what, str(folder))
        folder.mkdir(parents=True)
        return folder
    stem = Path(text).stem or "run"
    number = 1
    while True:
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not Path("runs").is_dir():
                raise
            number += 1


def write_config(folder: Path, settings: dict, about: dict) -> None:
    """Write config.toml: the settings as --config takes them; below [about], what is only worth knowing."""
    about = about | {
        "npgpt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernels": kernels.describe(),
        "threads": kernels.get_num_threads(),
    }
    text = "# Every setting of this run, resolved. A new run can start from it: --config\n"
    text += to_toml(settings | {"about": about})
    (folder / CONFIG).write_text(text, encoding="utf-8", errors="replace")


def read_config(folder) -> dict:
    """The table that write_config wrote; ValueError where it is not one, OSError where it is not there."""
    path = Path(folder) / CONFIG
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be TOML, got {error}") from None
    for key in ("text", "split", "clean", "about"):
        if key not in config:
            raise ValueError(f"{path}: must have {key}, got {', '.join(config)}")
    return config


def to_toml(table: dict) -> str:
    """TOML of a table of numbers, strings, lists and tables of these; None values are left out."""

    def value(v):  # JSON's strings, numbers and lists are TOML's too
        return json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False)

    lines = [f"{key} = {value(v)}" for key, v in table.items() if v is not None and not isinstance(v, dict)]
    for key, v in table.items():
        if isinstance(v, dict):
            lines += ["", f"[{key}]", to_toml(v).rstrip()]
    return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory that this process holds now (Linux; 0 where that cannot be told)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
