"""C programs around libnpgpt: built as `python -m npgpt.embed` says, they write what Python writes."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.interop import blocks
from npgpt.interop.gguf import write_gguf
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from tests.conftest import COMPILED
from tests.fuzz.targets import llama_tokenizers
from tests.models import LLAMA, random_model

ROOT = Path(__file__).parents[2]
LIBRARY = Path(npgpt.__file__).parent / "lib" / "libnpgpt.so"
HEADER = LIBRARY.parents[1] / "include" / "npgpt.h"
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="libnpgpt is not built here"),
    pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here"),
]


def run(*command, **more):
    more = {"text": True} | more
    return subprocess.run([str(c) for c in command], capture_output=True, check=True, **more)


WARNINGS = "-Wall", "-Wextra", "-Wpedantic", "-Werror"


def build(source, out, std="c99"):
    """One line with cc against the shared library, warnings being errors."""
    libs = run(sys.executable, "-m", "npgpt.embed", "--cflags", "--libs", cwd=ROOT).stdout.split()
    run("cc", f"-std={std}", *WARNINGS, source, *libs, "-o", out)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what links a program with all of libnpgpt, compiled from the one source as its line says."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++ here")
    folder = tmp_path_factory.mktemp("whole")
    line = run(sys.executable, "-m", "npgpt.embed", "--source", folder, cwd=ROOT).stdout.split()
    flags = [flag for flag in line if flag[0] == "-" and flag not in ("-o", "-s")]
    compiled = [flag for flag in flags if not flag.startswith(("-Wl", "-static"))]
    run("g++", *compiled, "-Wall", "-Werror", "-c", folder / "npgpt.cpp", "-o", folder / "npgpt.o")

    def link(source, out, *more, std="c99"):
        if source.suffix == ".c":
            object = folder / f"{source.stem}.o"
            run("cc", f"-std={std}", *WARNINGS, f"-I{folder}", "-c", source, "-o", object)
        run("g++", *flags, object if source.suffix == ".c" else source, folder / "npgpt.o", *more, "-o", out)
        return out

    return link


@pytest.fixture(scope="module")
def program(whole, tmp_path_factory):
    return whole(ROOT / "csrc/examples/generate.c", tmp_path_factory.mktemp("c") / "generate")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, its GGUF file)"""
    path, model = tmp_path_factory.mktemp("model") / "m.gguf", random_model(n_embd=192, n_head=6)
    write_gguf(path, model, model.tokenizer)
    return model, path


def test_generate_in_c_writes_what_python_writes(program, saved, tmp_path):
    model, path = saved
    for seed in (0, 3):  # a random model: bytes that are no UTF-8, among others
        text = model.generate("Olá", max_new_tokens=90, seed=seed)
        assert run(program, path, "Olá", 90, seed, text=False).stdout == f"Olá{text}\n".encode()
    shared = build(ROOT / "csrc/examples/generate.c", tmp_path / "generate")
    assert run(shared, path, "Olá", 90, 3, text=False).stdout == f"Olá{text}\n".encode()


def test_the_whole_abi(whole, saved, tmp_path):
    whole(ROOT / "tests/runtime/abi.c", tmp_path / "abi", std="gnu11")
    assert run(tmp_path / "abi", saved[1]).stdout == "all holds\n"


@pytest.fixture(scope="module")
def allocations(whole, tmp_path_factory):
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("stands before glibc's malloc")
    program = tmp_path_factory.mktemp("allocations") / "allocations"
    return whole(ROOT / "tests/runtime/allocations.c", program, std="gnu11")


@pytest.mark.parametrize("kind", ["bytes", "bpe", "llama"])
def test_each_allocation_that_fails_is_told_and_costs_nothing(kind, allocations, tmp_path):
    tokenizer, fields, type = ByteTokenizer(), {}, "f32"
    if kind == "bpe":
        tokenizer, type = BPETokenizer.train([b"o sol e a lua e o mar, a noite e o dia " * 9], 270), "q8_0"
    if kind == "llama":
        tokenizer, fields, type = llama_tokenizers()[0], LLAMA, "q4_0"
    model = random_model(**fields, vocab_size=tokenizer.vocab_size)
    write_gguf(tmp_path / "m.gguf", model, tokenizer, type)
    told = run(allocations, tmp_path / "m.gguf").stdout
    found = re.fullmatch(r"(\d+) allocations failed, all holds\n", told)
    assert found and int(found[1]) > 400


def test_products_of_int8_on_every_instruction_set(whole, tmp_path):
    whole(ROOT / "tests/runtime/int8.cpp", tmp_path / "int8", "-Wall", "-Werror")
    assert run(tmp_path / "int8").stdout == " ".join([*COMPILED, "all holds\n"])


# In the order of WeightType
TYPES = "f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs".split()


@pytest.fixture(scope="module")
def unpack(whole, tmp_path_factory):
    program = tmp_path_factory.mktemp("unpack") / "unpack"
    return whole(ROOT / "tests/runtime/unpack.cpp", program, "-Wall", "-Werror")


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("type", TYPES)
def test_blocks_are_unpacked_as_numpy_does_to_the_bit(unpack, type, name, rng):
    of = blocks.TYPES[type]
    K, N = (768, 9) if of.n > 1 else (77, 5)
    cuts = [(0, K), (64, 96), (K - 32, 32)] if of.n > 1 else [(0, K), (8, 33), (72, 5)]
    data = rng.integers(0, 256, (N * K // of.n, of.size), dtype=np.uint8)  # NaN among the scales
    with np.errstate(all="ignore"):
        expected = of.dequantise(data).reshape(N, K)
    for first, count in cuts:
        what = [name, TYPES.index(type), N, K, first, count]
        out = run(unpack, *what, input=data.tobytes(), text=False).stdout
        unpacked = np.frombuffer(out, np.float32).reshape(N, count)
        wanted = np.ascontiguousarray(expected[:, first : first + count])
        assert (np.isnan(wanted) == np.isnan(unpacked)).all()
        different = (unpacked.view(np.uint32) != wanted.view(np.uint32)) & ~np.isnan(wanted)
        assert not different.any()


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler here")
@pytest.mark.parametrize("how", ["-O2", "-fsanitize=thread", "-fsanitize=address,undefined"])
def test_threads_that_walk_together(how, tmp_path):
    names = "pool_threads", "system_linux", "team"
    sources = [ROOT / "tests/runtime/team.cpp", *(ROOT / f"csrc/threads/{name}.cpp" for name in names)]
    run("c++", "-std=c++17", "-O1", how, "-Wall", "-Werror", *sources, "-pthread", "-o", tmp_path / "team")
    assert run(tmp_path / "team", 60).stdout == "all holds\n"


# The third takes this for another POSIX system, and threads are there. The last knows no system and no
# exceptions, as on a small board: one thread, files that are read.
NOTHING = ["-DNPGPT_NO_SYSTEM", "-fno-exceptions"]


@pytest.mark.parametrize(
    "compiler, flags", [("c++", []), ("clang++", []), ("c++", ["-U__linux__"]), ("c++", NOTHING)]
)
def test_one_source_and_one_header_are_enough(compiler, flags, program, saved, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler} here")
    run(sys.executable, ROOT / "csrc/amalgamate.py", tmp_path)
    run(compiler, "-std=c++17", "-O1", "-Wall", "-Werror", *flags, "-c", "npgpt.cpp", cwd=tmp_path)
    run("cc", ROOT / "csrc/examples/generate.c", "-I.", "-c", "-o", "generate.o", cwd=tmp_path)
    run("c++", "generate.o", "npgpt.o", "-pthread", "-o", "generate", cwd=tmp_path)
    what = saved[1], "O sol", 60, 1
    assert (
        run(tmp_path / "generate", *what, encoding="utf-8").stdout
        == run(program, *what, encoding="utf-8").stdout
    )
    write_gguf(tmp_path / "big.gguf", saved[0], saved[0].tokenizer)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "big.gguf").read_bytes()[:-1])
    for wrong in tmp_path, tmp_path / "none", "/dev/null", tmp_path / "cut.gguf":
        failed = subprocess.run([tmp_path / "generate", wrong], capture_output=True, text=True)
        about = "GGUF" if wrong == tmp_path / "cut.gguf" else wrong
        assert failed.returncode == 1 and failed.stderr.startswith(f"generate: {about}: ")
        assert failed.stderr.count("\n") == 1


def test_the_program_is_small(program, tmp_path):
    run("strip", program, "-o", tmp_path / "stripped")
    assert (tmp_path / "stripped").stat().st_size <= 400_000


def exported(library):
    """{name of a symbol that the dynamic linker finds there: its version}"""
    lines = run("nm", "-D", "--defined-only", library).stdout.splitlines()
    names = [line.split()[2] for line in lines if line.split()[1] != "A"]
    return {name.partition("@")[0]: name.rpartition("@")[2] for name in names}


def test_the_shared_libraries_show_the_header_and_no_c_plus_plus_of_others():
    names = re.findall(r"^NPGPT_API .*?(npgpt_\w+)\(", HEADER.read_text(), re.M)
    shown = exported(LIBRARY)
    internal = {name: version for name, version in shown.items() if name not in names}
    assert {name: shown.get(name) for name in names} == dict.fromkeys(names, "NPGPT_1")
    assert {*internal.values()} == {f"NPGPT_INTERNAL_{npgpt.__version__}"}
    # the second: of a C++ library inside, as wheels have it
    assert all(
        re.match("_ZNK?5npgpt|__cxa_(allocate|free)_(dependent_)?exception$", name) for name in internal
    )
    assert [*exported(kernels.library())] == ["PyInit__kernels"]


def test_import_takes_the_library_beside_it_not_one_on_the_path(tmp_path):
    run("cc", "-shared", "-Wl,-soname,libnpgpt.so", "-xc", "/dev/null", "-o", tmp_path / "libnpgpt.so")
    names = "from npgpt.engine import kernels; print(*kernels.available())"
    there = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    assert run(sys.executable, "-c", names, cwd=ROOT, env=there).stdout.split()[1:] == COMPILED


def test_it_takes_little_memory_beside_the_weights(program, tmp_path):
    """A file of 13 MB, none of which is copied; its cache grows with the text."""
    model = random_model(n_layer=4, n_embd=256, n_head=4, block_size=256)
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer)
    weights = (tmp_path / "m.gguf").stat().st_size
    cache = 4 * 256 * 2 * 4 * 250  # bytes of the tokens below
    code = "import resource, subprocess as s, sys; s.run(sys.argv[1:], stdout=s.DEVNULL, check=True)"
    code += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    peak = 1024 * int(run(sys.executable, "-c", code, program, tmp_path / "m.gguf", "O sol", 240).stdout)
    assert peak <= weights + cache + 8 * 2**20


def test_it_needs_nothing_but_the_c_library(program):
    needed = [line.split()[0] for line in run("ldd", program).stdout.splitlines()]
    assert not [n for n in needed if not n.startswith(("linux-vdso", "libc.", "libm.", "/lib", "libpthread"))]


@pytest.mark.parametrize(
    "begin, said", [(b"GGUF, but", "GGUF"), (b"GGUF\0\0\0\3" + bytes(99), "big-endian machines")]
)
def test_what_fails_is_a_line_and_a_code(begin, said, program, tmp_path):
    (tmp_path / "m.gguf").write_bytes(begin)
    failed = subprocess.run([program, tmp_path / "m.gguf"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout == "" and failed.stderr.count("\n") == 1
    assert said in failed.stderr


COUNTED = "malloc calloc realloc posix_memalign aligned_alloc mmap".split()
STACK = 24 * 1024  # bytes of a thread's, of the 128 kB that the smallest C libraries give


@pytest.fixture(scope="module")
def small(whole, tmp_path_factory):
    wrapped = [f"-Wl,--wrap={name}" for name in COUNTED]
    out = tmp_path_factory.mktemp("small") / "small"
    return whole(ROOT / "tests/runtime/small.c", out, *wrapped, std="gnu11")


@pytest.mark.parametrize("fields", [{}, LLAMA], ids=["gpt-2", "llama"])
@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_0"])
def test_a_session_allocates_nothing_and_takes_little_stack(type, fields, small, tmp_path):
    model = random_model(n_layer=2, n_embd=256, n_head=8, block_size=160, **fields)
    write_gguf(tmp_path / "m.gguf", model, model.tokenizer, type)
    found = re.fullmatch(r"(\d+) alloc.*, (\d+) bytes of stack\n", run(small, tmp_path / "m.gguf").stdout)
    assert int(found[1]) == 0
    assert int(found[2]) <= STACK


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="there is no pkg-config here")
def test_pkg_config_finds_it_wherever_it_lies(program, saved, tmp_path):
    """As in a wheel that was unpacked somewhere; and the program runs where nothing else is to be found."""
    for folder in ("lib", "include"):
        shutil.copytree(LIBRARY.parents[1] / folder, tmp_path / "moved" / folder)
    where = {"PKG_CONFIG_PATH": str(tmp_path / "moved/lib/pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "npgpt", env=where).stdout.split()
    assert str(LIBRARY.parent) not in " ".join(flags)
    run("cc", ROOT / "csrc/examples/generate.c", *flags, "-o", tmp_path / "generate")
    what = saved[1], "O sol", 60, 1
    alone = run(tmp_path / "generate", *what, encoding="utf-8", env={"PATH": "/nowhere"}).stdout
    assert alone == run(program, *what, encoding="utf-8").stdout
