"""A folder for each test, and a command called in this process."""

import os
from importlib import import_module
from pathlib import Path

import pytest

from tests.commands.helpers import TINY, text_path


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Every test has a folder of its own beside which nothing may appear, and no settings from outside."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in [name for name in os.environ if name.startswith("NPGPT_")]:
        if name not in ("NPGPT_KERNELS", "NPGPT_DATA", "NPGPT_NO_SKIP", "NPGPT_REQUIRE_KERNELS"):
            monkeypatch.delenv(name)


@pytest.fixture
def command(capsys):
    """command("train", "text", "--steps", 3) -> (exit code, stdout, stderr), run in this process."""

    def call(name, *args):
        try:
            code = import_module(f"npgpt.{name}").main([str(arg) for arg in args])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def text():
    """A text of 480 bytes."""
    Path("text.txt").write_bytes(b"abc abd abe " * 40)
    return Path("text.txt")


@pytest.fixture
def run(command, text):
    """A finished run of a few steps."""
    assert command("train", text, *TINY, "--steps", 3, "--out", "run")[0] == 0
    return Path("run")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for caches of the test's own."""
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trained(command, cache):
    """trained(*flags, **files) -> the run of texts/NAME.txt, each of the text or bytes given."""

    def train(*flags, **files):
        Path("texts").mkdir()
        for name, text in files.items():
            Path(text_path(name)).write_bytes(text if isinstance(text, bytes) else text.encode())
        result = command("train", "texts", *TINY, "--steps", 2, "--out", "run", *flags)
        assert result[0] == 0, result
        return "run"

    return train
