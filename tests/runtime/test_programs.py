"""C programs around libnpgpt: built as `python -m npgpt.embed` says, they write what Python writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from npgpt.interop.gguf import write_gguf
from tests.runtime.test_binding import random_model

ROOT = Path(__file__).parents[2]
LIBRARY = Path(npgpt.__file__).parent / "lib" / "libnpgpt.a"
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="libnpgpt is not built here"),
    pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here"),
]


def run(*command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True, **more)


def build(source, out, *flags):
    """One line with cc, warnings being errors."""
    how = [sys.executable, "-m", "npgpt.embed", "--cflags", "--libs", *flags]
    libs = run(*how, cwd=ROOT).stdout.split()
    run("cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", source, *libs, "-o", out)
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(ROOT / "csrc/examples/generate.c", tmp_path_factory.mktemp("c") / "generate", "--static")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, its GGUF file)"""
    path, model = tmp_path_factory.mktemp("model") / "m.gguf", random_model(n_embd=96, n_head=3)
    write_gguf(path, model, model.tokenizer)
    return model, path


def test_generate_in_c_writes_what_python_writes(program, saved, tmp_path):
    model, path = saved
    for seed in (0, 3):  # a random model: bytes that are no UTF-8, among others
        text = model.generate("Olá", max_new_tokens=90, seed=seed)
        assert run(program, path, "Olá", 90, seed, encoding="utf-8").stdout == f"Olá{text}\n"
    shared = build(ROOT / "csrc/examples/generate.c", tmp_path / "generate")
    assert run(shared, path, "Olá", 90, 3, encoding="utf-8").stdout == f"Olá{text}\n"


def test_it_needs_nothing_but_the_c_library(program):
    needed = [line.split()[0] for line in run("ldd", program).stdout.splitlines()]
    assert not [n for n in needed if not n.startswith(("linux-vdso", "libc.", "libm.", "/lib", "libpthread"))]


def test_what_fails_is_a_line_and_a_code(program, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF, but")
    failed = subprocess.run([program, tmp_path / "m.gguf"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout == "" and failed.stderr.count("\n") == 1
    assert "GGUF" in failed.stderr


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="there is no pkg-config here")
def test_pkg_config_says_the_same(saved, tmp_path):
    flags = run(
        "pkg-config",
        "--cflags",
        "--libs",
        "npgpt",
        env={"PKG_CONFIG_PATH": str(LIBRARY.parent / "pkgconfig")},
    ).stdout.split()
    run("cc", ROOT / "csrc/examples/generate.c", *flags, "-o", tmp_path / "generate")
    run(tmp_path / "generate", saved[1])
