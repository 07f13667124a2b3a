"""A checkpoint is written atomically; a broken one is named and passed over."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from npgpt.engine.config import GPTConfig
from npgpt.engine.model import GPT
from npgpt.engine.optim import AdamW
from npgpt.interop.huggingface import read_pretrained
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import checkpoint


@pytest.fixture
def save(tmp_path):
    """save(step): a checkpoint of a tiny model in tmp_path."""
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=257))
    optimizer = AdamW(model)

    def save(step):
        with model.edit() as params:
            params["ln_f.bias"][...] = step
        optimizer.state()["m"][...] = step
        return checkpoint.save(tmp_path, step, model, ByteTokenizer(), optimizer.state(), {"step": step})

    return save


def test_a_checkpoint_holds_all_that_a_resume_needs(save, tmp_path):
    folder = save(400)
    assert folder.name == "step-000400" and (tmp_path / "LATEST").read_text() == "step-000400\n"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert names >= {"optimizer.safetensors", "trainer.json", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    assert manifest.keys() == names - {"manifest.json"}
    state = load_file(folder / "optimizer.safetensors")
    assert (state["m"] == 400).all() and state["v"].shape == state["m"].shape
    assert (read_pretrained(folder).tensors["ln_f.bias"] == 400).all()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest gone", "manifest broken"])
def test_a_broken_newest_checkpoint_is_named_and_passed_over(save, tmp_path, damage):
    save(1)
    folder = save(2)
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "truncate":
        weights.write_bytes(content[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest gone":
        manifest.unlink()
    else:
        manifest.write_text('{"files": 3}')
    chosen, broken = checkpoint.choose(tmp_path)
    assert chosen.name == "step-000001"
    assert len(broken) == 1 and "step-000002" in broken[0] and "passed over" in broken[0]
    shutil.rmtree(tmp_path / "step-000001")
    with pytest.raises(ValueError, match=r"must hold a checkpoint that is whole, got .*step-000002"):
        checkpoint.choose(tmp_path)


def test_best_goes_before_latest(save, tmp_path):
    save(1), save(2)
    assert checkpoint.choose(tmp_path)[0].name == "step-000002"
    checkpoint.point(tmp_path, "BEST", "step-000001")
    assert checkpoint.choose(tmp_path)[0].name == "step-000001"
    assert checkpoint.choose(tmp_path, ["LATEST"])[0].name == "step-000002"


@pytest.mark.parametrize("pointer", ["", "step-000009\n", "../../etc\n", "\x00", "/"])
def test_a_pointer_to_nothing_does_no_harm(save, tmp_path, pointer):
    save(1)
    (tmp_path / "LATEST").write_text(pointer)
    assert checkpoint.choose(tmp_path)[0].name == "step-000001"


def test_only_the_last_and_the_best_are_kept(save, tmp_path):
    for step in range(1, 6):
        save(step)
        if step == 2:
            checkpoint.point(tmp_path, "BEST", "step-000002")
        checkpoint.prune(tmp_path, keep=2)
    kept = [folder.name for folder in checkpoint.checkpoints(tmp_path)]
    assert kept == ["step-000005", "step-000004", "step-000002"]


@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device")])
def test_a_step_that_is_saved_again_replaces_what_was_there(save, tmp_path, monkeypatch, error):
    """What a resume passed over is in nobody's way; it stays until the new one is whole."""
    save(1)
    broken = save(2) / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    if error:
        with monkeypatch.context() as patch:
            _fail_at(patch, "fsync", 3, error)
            with pytest.raises(OSError, match="No space left"):
                save(2)
        assert broken.exists() and checkpoint.choose(tmp_path)[0].name == "step-000001"
    save(2)
    assert checkpoint.choose(tmp_path) == (tmp_path / "step-000002", [])
    assert not list(tmp_path.glob(".step*"))


class PowerCut(BaseException):
    """Not an OSError: nothing in the program cleans up after it."""


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
@pytest.mark.parametrize("error", [PowerCut, OSError(28, "No space left on device")])
def test_a_cut_at_any_sync_or_rename_leaves_a_whole_checkpoint(save, tmp_path, monkeypatch, call, error):
    save(1)
    before = sum(1 for _ in _calls(monkeypatch, call, lambda: save(2)))
    shutil.rmtree(tmp_path / "step-000002")
    assert before >= 1
    for n in range(before):
        with monkeypatch.context() as patch:
            _fail_at(patch, call, n, error)
            with pytest.raises(type(error) if isinstance(error, OSError) else PowerCut):
                save(2)
        chosen, _ = checkpoint.choose(tmp_path)
        step = int((read_pretrained(chosen).tensors["ln_f.bias"][0]).item())
        assert chosen.name == f"step-{step:06d}"
        shutil.rmtree(tmp_path / "step-000002", ignore_errors=True)
        checkpoint.point(tmp_path, "LATEST", "step-000001")
    save(2)  # and what was left behind is in nobody's way
    assert checkpoint.choose(tmp_path)[0].name == "step-000002"


def _calls(monkeypatch, name, action):
    """How often action() calls os.NAME."""
    real, calls = getattr(os, name), []
    with monkeypatch.context() as patch:
        patch.setattr(os, name, lambda *args: calls.append(args) or real(*args))
        action()
    return calls


def _fail_at(patch, name, n, error):
    real, calls = getattr(os, name), []

    def fail(*args):
        calls.append(args)
        if len(calls) == n + 1:
            raise error
        return real(*args)

    patch.setattr(os, name, fail)


def test_arrays_in_a_checkpoint_are_little_endian_float32(save):
    assert all(a.dtype == np.dtype("<f4") for a in load_file(save(1) / "model.safetensors").values())
