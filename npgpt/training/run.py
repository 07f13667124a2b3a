"""A run's folder and its config.toml: every setting, resolved, so that the run can be repeated."""

import contextlib
import errno
import itertools
import json
import os
import platform
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.engine import kernels
from npgpt.engine.types import Fields, PathLike
from npgpt.training.checkpoint import write_atomically
from npgpt.version import __version__

CONFIG = "config.toml"
TAKEN = "exists already; --resume goes on with a run, a new one needs another --out"
REQUIRED = {  # key of config.toml -> its type, and what it must be
    "text": (list, "a list of files"),
    "split": (list, "a list of three shares"),
    "clean": (str, "none, light or full"),
    "about": (dict, "a table"),
}
LEFT = ("lock", f".{CONFIG}.tmp", "stdin.txt")  # files of a process that ended before it wrote its settings


def find_folder(out: str | None, text: str, resume: bool, suffix: str = "") -> Path:
    """Return the folder of a run, `out` or runs/NAME, where NAME is the text's stem and `suffix`.

    Nothing is created. A new run gets NAME-2, NAME-3, ... where NAME exists; resume=True means the last one.
    FileExistsError where `out` exists and is not to be resumed, or is no run.
    """
    if out == "":
        raise ValueError("the folder of a run must not be empty")
    if out is not None:
        folder = Path(out)
        if folder.exists() and not resume:
            raise FileExistsError(errno.EEXIST, TAKEN, out)
        begun = not folder.exists() or (folder / CONFIG).exists()
        if not begun and any(path.name not in LEFT for path in folder.iterdir()):
            raise FileExistsError(errno.EEXIST, "is no run, so it cannot be resumed", out)
        return folder
    stem = (Path("stdin" if text == "-" else text).resolve().stem or "run") + suffix
    numbered = (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in itertools.count(1))
    taken = list(itertools.takewhile(Path.exists, numbered))
    if resume and taken:
        return taken[-1]
    return Path("runs") / (f"{stem}-{len(taken) + 1}" if taken else stem)


@contextlib.contextmanager
def locked(folder: Path, new: bool = False) -> Iterator[Path]:
    """Lock a run's folder for this process, and create it where it is missing.

    BlockingIOError while another process holds it. With new=True, FileExistsError where another process began
    a run in it since find_folder() looked.
    The lock is the system's, on the file "lock": it ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(error.errno, "another process is training this run", str(folder)) from None
        if new and (folder / CONFIG).exists():
            raise FileExistsError(errno.EEXIST, TAKEN, str(folder))
        yield folder
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_config(folder: Path, settings: Fields, about: Fields) -> None:
    """Write config.toml: the settings as --config reads them; below [about], facts that are no settings."""
    about = about | {
        "npgpt": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernels": kernels.describe(),
        "threads": kernels.get_num_threads(),
    }
    text = "# Every setting of this run, resolved. A new run can start from it: --config\n"
    text += to_toml(settings | {"about": about})
    write_atomically(folder / CONFIG, text)


def read_config(folder: PathLike) -> Fields:
    """Return the table that write_config wrote; ValueError for another table, OSError for no file."""
    path = Path(folder) / CONFIG
    config = read_toml(path)
    for key, (kind, what) in REQUIRED.items():
        if key not in config:
            raise ValueError(f"{path}: must have {key}, got {', '.join(config) or 'nothing'}")
        if not isinstance(config[key], kind) or not config[key]:
            raise ValueError(f"{path}: {key} must be {what}, got {config[key]!r}")
    return config


def read_toml(path: PathLike) -> Fields:
    """Return the table of a TOML file; ValueError for a file of another kind, OSError for none."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path}: must be TOML, got tables or lists nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: must be TOML, got {error}") from None


def to_toml(table: Fields) -> str:
    """Return the TOML text of a table of numbers, strings, lists and such tables; None is left out.

    >>> print(to_toml({"lr": 0.01, "text": ["a.txt"], "about": {"threads": 2}}), end="")
    lr = 0.01
    text = ["a.txt"]
    <BLANKLINE>
    [about]
    threads = 2
    """

    def value(v: Any) -> str:  # JSON's strings, numbers and lists are TOML's too
        text = json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")  # the one character that JSON allows and TOML does not

    lines = [f"{key} = {value(v)}" for key, v in table.items() if v is not None and not isinstance(v, dict)]
    for key, v in table.items():
        if isinstance(v, dict):
            lines += ["", f"[{key}]", to_toml(v).rstrip()]
    return "\n".join(lines) + "\n"
