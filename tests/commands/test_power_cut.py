"""What a power cut may not take: each fault that tests/slow/crash.py found, by the sync that was missing."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from npgpt.training import recorder
from npgpt.training.run import locked
from tests.commands.helpers import TINY


class PowerCut(BaseException):
    """Nothing in the program catches it."""


@pytest.fixture
def syncs(monkeypatch):
    """syncs(path) -> the number of bytes, or of names, that were there at each sync of a file or folder."""
    real, seen = os.fsync, []

    def fsync(descriptor):
        status = os.fstat(descriptor)
        seen.append((status.st_ino, status.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda path: [size for inode, size in seen if inode == os.stat(path).st_ino]


def test_rows_that_were_written_are_synced_before_a_checkpoint(tmp_path, syncs):
    """A row goes to the file within a second, unsynced; no row waits when the checkpoint is saved."""
    metrics, _ = recorder.journals(tmp_path)
    metrics.add("1,0.1,8,2.5,,0.1,0.1,100,0.1,0")
    metrics.flush()
    assert syncs(metrics.path) == []
    metrics.flush(sync=True)
    assert syncs(metrics.path) == [metrics.path.stat().st_size]
    metrics.flush(sync=True)
    assert len(syncs(metrics.path)) == 1, "once is enough"


def test_the_folder_of_a_run_and_those_above_it_are_synced(tmp_path, syncs):
    with locked(tmp_path / "runs" / "a", new=True):
        assert syncs(tmp_path) and syncs(tmp_path / "runs")
        (tmp_path / "runs" / "a" / "config.toml").touch()


def test_an_adapter_is_whole_or_missing_and_a_resume_writes_it(command, run, monkeypatch):
    from npgpt.interop import peft

    Path("d.jsonl").write_text('{"prompt": "ab", "completion": "c"}\n' * 8)
    how = ["finetune", run, "d.jsonl", "--lora", 2, "--epochs", 1, "--batch-size", 4, "-o", "f"]
    real = peft.save_file

    def half(tensors, path, **more):
        real(tensors, path, **more)
        if "adapter_model" in str(path):
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(peft, "save_file", half)
        with pytest.raises(PowerCut):
            command(*how)
    assert Path("f/LATEST").exists() and not Path("f/adapter").exists()
    assert command(*how, "--resume")[0] == 0
    assert {path.name for path in Path("f/adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert command(*how, "--resume", "--epochs", 2)[0] == 0, "the adapter of the shorter run is replaced"


def test_an_exported_file_is_there_after_a_power_cut(command, run, syncs):
    before = len(syncs("."))
    assert command("export", run, "--to", "gguf", "-o", "m.gguf")[0] == 0
    assert len(syncs(".")) > before and syncs("m.gguf") == [Path("m.gguf").stat().st_size]


def test_the_picture_is_there_before_the_page(command, run, monkeypatch):
    """A resume takes a run with its page for one that has all."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from npgpt.console import report

    def cut(*args, **more):
        raise PowerCut

    for name in ("report.html", "loss.png"):
        (run / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", cut)
        with pytest.raises(PowerCut):
            report.write(run)
    assert not (run / "report.html").exists() and not (run / "loss.png").exists()
    report.write(run)
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_an_empty_file_of_ids_is_made_again(command, text, cache, monkeypatch):
    monkeypatch.setattr("npgpt.text.corpus.IN_MEMORY", 10)
    how = ["train", text, *TINY, "--steps", 1]
    assert command(*how, "--out", "a")[0] == 0
    (ids,) = Path(os.environ["NPGPT_CACHE"]).glob("*.ids")
    whole = ids.read_bytes()
    ids.write_bytes(b"")
    assert command(*how, "--out", "b")[0] == 0
    assert ids.read_bytes() == whole and len(np.frombuffer(whole, np.uint16))


def test_a_job_of_the_server_is_on_the_disk_when_it_is_accepted(tmp_path, syncs):
    pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")
    import asyncio

    from npgpt.server.files import Files
    from npgpt.server.jobs import Jobs

    async def create():
        files = Files()
        jobs = Jobs(files, None, None)
        file = files.add("a.jsonl", io.BytesIO(b"{}\n"))["id"]
        jobs._task = asyncio.create_task(asyncio.sleep(0))  # none is begun
        jobs.create({"model": "m", "training_file": file, "validation_file": file}, tmp_path / "base")
        files.close()

    asyncio.run(create())
    (folder,) = tmp_path.glob(".*.job")
    assert syncs(tmp_path) and syncs(folder)
    for name in ("training_file", "validation_file"):
        assert syncs(folder / name) == [3], "with its bytes, before the job names it"
    assert json.loads((folder / "job.json").read_text())["job"]["status"] == "queued"


def test_an_answer_is_on_the_disk_when_it_is_kept(tmp_path, syncs):
    pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")
    from npgpt.server.store import Store

    store = Store(tmp_path / "a" / "answers", 10**6, 10**6)
    assert syncs(tmp_path) and syncs(tmp_path / "a")
    store.put(f"resp_{1:048x}", "", {"text": "x"})
    assert len(syncs(store.folder)) == 1
