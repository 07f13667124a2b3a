"""Checkpoints that survive a kill or a power cut at any moment.

A run folder holds step-NNNNNN/ folders and the pointers LATEST and BEST, one line each. Writing a
checkpoint is atomic: it is written into a temporary folder, every file is synced, then the folder is renamed.
The pointer is replaced in the same way. Reading first checks sizes and sha256 against the manifest.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from npgpt.engine.disk import sync as _sync
from npgpt.engine.lora import LoRA
from npgpt.engine.model import GPT
from npgpt.engine.quantised_model import QuantisedGPT
from npgpt.engine.types import Fields, Tensors
from npgpt.interop import huggingface, peft
from npgpt.interop.safetensors_file import load_file, save_file
from npgpt.text.tokenizer import Tokenizer

MANIFEST, OPTIMIZER, STATE = "manifest.json", "optimizer.safetensors", "trainer.json"


def save(run: Path, step: int, model: GPT, tokenizer: Tokenizer, moments: Tensors, state: Fields) -> Path:
    """Write run/step-NNNNNN, point LATEST at it and return the folder.

    `moments` is the optimizer's state(). `state` goes to trainer.json: plain numbers and strings, everything
    that a resume needs beside the arrays.
    An OSError, for example from a full disk, leaves every older checkpoint and pointer as it was. An existing
    folder of this step, which a resume skipped as broken, is replaced.
    """
    final = run / f"step-{step:06d}"
    temporary, former = run / f".{final.name}.tmp", run / f".{final.name}.old"
    clean_up(run)
    try:
        _write_model(temporary, model, tokenizer)
        save_file(moments, temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(state, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _write_manifest(temporary)
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if final.exists():
            os.rename(final, former)
        os.rename(temporary, final)
        _sync(run)
        point(run, "LATEST", final.name)
    except OSError as error:
        clean_up(run)
        error.filename = str(final)
        raise
    clean_up(run)
    return final


def _write_model(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a model; of one over the blocks of a file, the adapters, which name the file."""
    if isinstance(model, QuantisedGPT):
        assert isinstance(model.adapters, LoRA)
        peft.write_adapter(folder, model.adapters, str(model.file), tokenizer)
    else:
        huggingface.write_pretrained(folder, model, tokenizer)


def load(folder: Path) -> tuple[Fields, Tensors]:
    """Return the state and the optimizer's arrays of a checkpoint that was verified."""
    return read_state(folder), load_file(folder / OPTIMIZER)


def read_state(folder: Path) -> Fields:
    """Return the state of a checkpoint, without the optimizer's arrays."""
    state: Fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def clean_up(run: Path) -> None:
    """Remove the incomplete folders that a killed process left in a run."""
    for pattern in (".step-*.tmp", ".step-*.old"):
        for folder in run.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def point(run: Path, pointer: str, name: str) -> None:
    """Make run/LATEST or run/BEST name a checkpoint, atomically: a reader sees the old or the new name."""
    write_atomically(run / pointer, name + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file atomically: at any moment it holds the old text or the new one."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


@contextlib.contextmanager
def written_whole(path: Path, over: bool = False) -> Iterator[Path]:
    """Yield where to write a file or a new folder; it becomes `path` when it is whole and on the disk.

    Where that fails nothing is left, and what a killed process left is replaced. A folder that is there
    already is an OSError; with over=True it is removed first: between the two there is none.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary]:
            _sync(written)
        if over:
            _remove(path)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _sync(path.parent)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def prune(run: Path, keep: int) -> None:
    """Remove all checkpoints but the last `keep` and the best."""
    best = pointed(run, "BEST")
    for folder in checkpoints(run)[keep:]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, without verifying them."""
    found = [path for path in run.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder, which has it in its name."""
    return int(folder.name.removeprefix("step-"))


def is_run(folder: Path) -> bool:
    """Return whether the folder is a run: it holds checkpoints or a LATEST pointer."""
    return (folder / "LATEST").exists() or bool(checkpoints(folder))


def choose(run: Path, pointers: Sequence[str] = ("BEST", "LATEST")) -> tuple[Path, list[str]]:
    """Return the checkpoint of the first pointer whose checkpoint is intact, else the newest intact one.

    Also return one line for each broken checkpoint that was skipped. ValueError if none is left.
    """
    found = {pointer: pointed(run, pointer) for pointer in pointers}
    candidates = [*filter(None, found.values()), *checkpoints(run)]
    broken = [
        f"{run / pointer}: must name a checkpoint that is there; passed over"
        for pointer, folder in found.items()
        if not folder and (run / pointer).exists()
    ]
    for folder in dict.fromkeys(candidates):
        try:
            verify(folder)
            return folder, broken
        except ValueError as error:
            broken.append(f"{error}; passed over")
    raise ValueError(f"{run}: must hold a checkpoint that is whole, got {'; '.join(broken) or 'none'}")


def last(run: Path) -> tuple[Path, list[str]] | None:
    """Return the newest intact checkpoint and lines, as choose() does; None before the first one is saved."""
    return choose(run, ()) if is_run(run) else None


def verify(folder: Path) -> None:
    """Raise ValueError, naming the first bad file, unless the files are those that the manifest lists."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(entry["size"]), entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        raise ValueError(f"{folder}: {MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder}: {MANIFEST} is broken") from None
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{folder}: {name} must have {size} bytes, got {path.stat().st_size}")
        if _sha256(path) != sha256:
            raise ValueError(f"{folder}: {name} is damaged (its sha256 differs)")


def pointed(run: Path, pointer: str) -> Path | None:
    """Return the folder that run/LATEST or run/BEST names; None where it names no checkpoint."""
    try:
        name = (run / pointer).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return next((folder for folder in checkpoints(run) if folder.name == name), None)


def _write_manifest(folder: Path) -> None:
    files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(
        json.dumps({"files": files}, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
