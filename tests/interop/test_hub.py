"""Names that are no folder: one line that says where to put the files, and no word to a network of slips."""

from pathlib import Path

import pytest

import npgpt
from npgpt.interop import hub


def test_what_may_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert all(hub.is_name(Path(name)) for name in ("gpt2", "openai-community/gpt2", "a_b/c.d-1"))
    others = "runs/praia", "/gpt2", "../gpt2", "a/b/c", ".hidden", "a b", "ação!", "a/../b", ".", "x.gguf"
    assert not any(hub.is_name(Path(name)) for name in others)


def test_without_the_extra_it_says_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError) as error:
        npgpt.load("gpt2")
    assert error.value.filename == "gpt2"
    for part in ("pip install 'npgpt[hub]'", "config.json, model.safetensors", "into ./gpt2"):
        assert part in error.value.strerror
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        npgpt.load("runs/../praia")
