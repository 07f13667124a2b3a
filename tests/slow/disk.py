"""Disks that fail while a run trains: named, survived where that can be, and nothing lost."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import bits, run, start

FLAGS = (
    "--n-layer 2 --n-head 2 --n-embd 64 --block-size 32 --batch-size 4 --save-every 5 --steps 1500 "
    "--split 0.8,0.2 --seed 3"
).split()


class Skipped(Exception):
    """What this machine does not let us show."""


def main():
    folder = Path(tempfile.mkdtemp())
    text = folder / "text.txt"
    text.write_bytes(b"the cat sat on the mat, the rat ate the hat, " * 40)
    try:
        run("train", text, *FLAGS, "--out", folder / "whole")
        for show in (file_limit, small_disk, read_only, vanishing_files):
            try:
                shown = show(folder, text)
            except Skipped as why:
                shown = f"skipped: {why}"
            print(f"{show.__name__.replace('_', ' ')}: {shown}", flush=True)
    finally:
        shutil.rmtree(folder)


def same(folder, out) -> str:
    if bits(out) != bits(folder / "whole"):
        raise SystemExit(f"{out}: the bits differ from those of the run that was never stopped")
    return "the same bits as never stopped"


def file_limit(folder, text):
    """No file may grow past 60 kB: not one checkpoint fits. Then there is room again."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, the write fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    said = run("train", text, *FLAGS, "--out", folder / "limit", expect=1, preexec_fn=limit)
    assert "File too large; training goes on" in said and said.splitlines()[-1].endswith("File too large"), (
        said
    )
    run("train", "--resume", "--out", folder / "limit")
    return f"'{said.splitlines()[-1]}', exit 1; with room again, {same(folder, folder / 'limit')}"


@contextlib.contextmanager
def run_on_disk(folder, text, size):
    """(disk, process): a run on a file system of its own, once it has a checkpoint."""
    disk = folder / f"disk-{size}"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]).returncode:
        raise Skipped("a tmpfs cannot be mounted here")
    try:
        process = start("train", text, *FLAGS, "--out", disk / "run", stderr=subprocess.STDOUT)
        while not (disk / "run" / "LATEST").exists():
            time.sleep(0.01)
        yield disk, process
    finally:
        subprocess.run(["umount", disk])


def small_disk(folder, text):
    """A file system that a neighbour fills up while the run goes, and empties again."""
    with run_on_disk(folder, text, "6m") as (disk, process):
        neighbour = os.open(disk / "neighbour", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(neighbour, bytes(4096))
        except OSError:
            pass
        time.sleep(1)
        os.ftruncate(neighbour, 0)
        os.close(neighbour)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        times = said.count("No space left on device; training goes on")
        assert times, said
        named = f"{times} checkpoints could not be written and were named; training went on"
        return f"{named}, {same(folder, disk / 'run')}"


def read_only(folder, text):
    """The file system turns read-only while the run goes."""
    with run_on_disk(folder, text, "20m") as (disk, process):
        while True:  # held still meanwhile: on a busy machine the run would be over before a moment came
            process.send_signal(signal.SIGSTOP)
            how = "mount", "-o", "remount,ro", disk
            refused = subprocess.run(how, stderr=subprocess.DEVNULL).returncode
            process.send_signal(signal.SIGCONT)
            if not refused:
                break
            time.sleep(0.01)  # a file was open for writing just then
        said = process.communicate()[0]
        assert process.returncode == 1 and said.splitlines()[-1].endswith("Read-only file system"), said
        refused = run("train", text, "--out", disk / "new", expect=2)
        assert refused.count("\n") == 1 and "Read-only file system" in refused, refused
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        run("train", "--resume", "--out", disk / "run")
        return f"named, exit 1, a new run refused with exit 2; writable again, {same(folder, disk / 'run')}"


def vanishing_files(folder, text):
    """Text, metrics.csv, pointers and all checkpoints are removed while the run goes."""
    mine = folder / "mine.txt"
    shutil.copy(text, mine)
    out = folder / "vanishing"
    process = start("train", mine, *FLAGS, "--out", out, stderr=subprocess.STDOUT)
    while not (out / "LATEST").exists():
        time.sleep(0.01)
    mine.unlink()
    for path in list(out.iterdir()):
        if path.name.startswith("step-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "config.toml":
            path.unlink(missing_ok=True)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return f"training went on, {same(folder, out)}"


if __name__ == "__main__":
    main()
