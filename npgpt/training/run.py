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
from npgpt.engine.disk import make_folder
from npgpt.engine.locks import open_locked
from npgpt.engine.types import Fields, PathLike
from npgpt.text import kinds
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
    FileExistsError where `out` exists and is not to be resumed, or is no run. A folder that is empty, or
    holds only what a start left that began no run, counts as none.
    """
    if out == "":
        raise ValueError("the folder of a run must not be empty")
    if out is not None:
        folder = Path(out)
        if not resume and folder.exists() and not (folder.is_dir() and _is_free(folder)):
            raise FileExistsError(errno.EEXIST, TAKEN, out)
        if not (folder / CONFIG).exists() and not _is_free(folder):
            raise FileExistsError(errno.EEXIST, "is no run, so it cannot be resumed", out)
        return folder
    taken, free = [], Path()
    for free in numbered(text, suffix):
        if not free.exists():
            break
        taken.append(free)
    return taken[-1] if resume and taken else free


def numbered(text: str, suffix: str = "") -> Iterator[Path]:
    """Yield the folders that a run of this text may have: runs/NAME, runs/NAME-2, ..."""
    stem = (Path("stdin" if text == "-" else text).resolve().stem or "run") + suffix
    return (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in itertools.count(1))


def make_numbered(text: str, suffix: str = "") -> tuple[int, Path]:
    """Make the first of numbered() that does not exist, and return its position, from 0, and its path.

    Of two processes that start at once only one makes a folder, so they get two.
    """
    for n, folder in enumerate(numbered(text, suffix)):
        with contextlib.suppress(FileExistsError):
            make_folder(folder.parent)
            folder.mkdir()
            return n, folder
    raise AssertionError("the numbers ended")


def remove_unused(folder: Path) -> None:
    """Remove the folder of a start that began no run in it, and runs/ above it where that is empty."""
    if not (folder / CONFIG).exists() and _is_free(folder):
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            if folder.parent.name == "runs":
                folder.parent.rmdir()


def _is_free(folder: Path) -> bool:
    """Return whether a new run can have the folder: it is missing, or nothing of a run is in it."""
    return not folder.exists() or all(path.name in LEFT for path in folder.iterdir())


@contextlib.contextmanager
def locked(folder: Path, new: bool = False) -> Iterator[Path]:
    """Lock a run's folder for this process, and create it where it is missing.

    BlockingIOError while another process holds it. With new=True, FileExistsError where another process began
    a run in it since find_folder() looked, and no folder is left where this one begins none.
    The lock is the system's, on the file "lock": it ends with the process, however that ends.
    """
    with contextlib.ExitStack() as at_end:
        make_folder(folder)
        if new:
            at_end.callback(remove_unused, folder)
        descriptor, error = open_locked(folder / "lock")
        at_end.callback(os.close, descriptor)
        if isinstance(error, (BlockingIOError, PermissionError)):
            at_end.pop_all()  # the folder is the other process's
            os.close(descriptor)
            raise BlockingIOError(error.errno, "another process is training this run", str(folder)) from None
        if error:
            raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(folder)) from None
        if new and not _is_free(folder):
            raise FileExistsError(errno.EEXIST, TAKEN, str(folder))
        yield folder


def write_config(folder: Path, settings: Fields, about: Fields) -> None:
    """Write config.toml: the settings as --config reads them; below [about], facts that are no settings."""
    about = about | _places(settings.get("text", []), folder)
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


def _places(texts: list[str], folder: Path) -> Fields:
    """Return where the texts lie from the folder, and the bytes of names that are not UTF-8, as TOML is."""
    names = {"text": texts}
    with contextlib.suppress(ValueError):  # on Windows, of another drive
        names["text_from_run"] = [Path(os.path.relpath(path, folder)).as_posix() for path in texts]
    odd = any(shown(path) != path for path in texts)
    as_bytes = {f"{key}_bytes": [os.fsencode(path).hex() for path in paths] for key, paths in names.items()}
    return {key: paths for key, paths in names.items() if key != "text"} | (as_bytes if odd else {})


def shown(name: str) -> str:
    """Return a file's name as text: "?" for each byte of it that is not UTF-8."""
    return name.encode("utf-8", "replace").decode()


def read_config(folder: PathLike) -> Fields:
    """Return the table that write_config wrote; ValueError for another table, OSError for no file."""
    path = Path(folder) / CONFIG
    config = read_table(path)
    for key, (kind, what) in REQUIRED.items():
        if key not in config:
            raise ValueError(f"{path}: must have {key}, got {', '.join(config) or 'nothing'}")
        if not isinstance(config[key], kind) or not config[key]:
            raise ValueError(f"{path}: {key} must be {what}, got {config[key]!r}")
    return config


def read_table(path: PathLike) -> Fields:
    """Return the table of a TOML file; ValueError for a file of another kind, OSError for none."""
    text = kinds.read_utf8(path)
    try:
        return tomllib.loads(text)
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
        text = json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False, allow_nan=False)
        return text.replace("\x7f", "\\u007f")  # the one character that JSON allows and TOML does not

    lines = [f"{key} = {value(v)}" for key, v in table.items() if v is not None and not isinstance(v, dict)]
    for key, v in table.items():
        if isinstance(v, dict):
            lines += ["", f"[{key}]", to_toml(v).rstrip()]
    return "\n".join(lines) + "\n"
