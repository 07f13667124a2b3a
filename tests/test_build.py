"""setup.py, with a compiler that only notes what it is asked to do: what is compiled, how, and when."""

import os
import platform
import shutil
import stat
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("polib")
pytest.importorskip("pybind11")
pytest.importorskip("setuptools", minversion="77")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are built on Linux alone")

ROOT = Path(__file__).parents[1]
COMPILER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *--version) echo c++ {version}; exit;; esac
case "$*" in *{fails}*) echo "error: no room" >&2; exit 1;; esac
for argument; do [ "$last" = -o ] && echo "$argument" > "$argument"; last=$argument; done
exit 0
"""


class Clone:
    """A copy of what setup.py reads, and the commands that its compiler saw since the last build began."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.compiler = folder / "clone", folder / "log", folder / "c++"
        self.folder.mkdir()
        shutil.copytree(ROOT / "csrc", self.folder / "csrc")
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "npgpt/version.py"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        self.compiler_fails_on("nothing at all")

    def compiler_fails_on(self, text: str, version: str = "1") -> None:
        fails = text.replace(" ", "\\ ")
        self.compiler.write_text(COMPILER.format(log=self.log, fails=fails, version=version))
        self.compiler.chmod(self.compiler.stat().st_mode | stat.S_IXUSR)

    def build(
        self, *command: str, **variables: str
    ) -> tuple[list[list[str]], subprocess.CompletedProcess[str]]:
        """Return the commands that compile, as lists of arguments, and the finished process."""
        self.log.write_text("")
        kept = {
            name: value for name, value in os.environ.items() if name not in ("CFLAGS", "CXXFLAGS", "LDFLAGS")
        }
        environment = (
            kept | {"CXX": str(self.compiler), "NPGPT_REQUIRE_KERNELS": "1", "NPGPT_PURE": "0"} | variables
        )
        done = subprocess.run(
            [sys.executable, "setup.py", *(command or ["build_ext"])],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        commands = [line.split() for line in self.log.read_text().splitlines()]
        return [command for command in commands if "-c" in command], done

    def change(self, name: str) -> bytes:
        """Add a comment to a file, whose time stays, as of one out of an archive; return what it held."""
        path = self.folder / name
        before, times = path.read_bytes(), path.stat()
        path.write_bytes(before + b"// another\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return before


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def sources(commands: list[list[str]]) -> list[str]:
    return sorted(argument for command in commands for argument in command if argument.endswith(".cpp"))


def test_each_file_is_compiled_once(clone):
    commands, done = clone.build(NPGPT_BUILD_JOBS="3")
    assert done.returncode == 0, done.stderr
    compiled = sources(commands)
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*/*.cpp")}
    there = {name for name in there if "/training/" not in name}  # for the one source alone
    x86 = platform.machine() == "x86_64"
    assert compiled == sorted(
        name
        for name in there
        if (x86 or "isa_avx" not in name) and not name.endswith(("_posix.cpp", "_windows.cpp", "_none.cpp"))
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("compiling ")]
    assert [line.split()[1] for line in told] == [f"{i + 1}/{len(compiled)}" for i in range(len(compiled))]
    (package,) = clone.folder.glob("build/lib.*/npgpt")
    assert (package / "lib/libnpgpt.so").exists() and (package / "include/npgpt.h").exists()


def test_flags_that_bits_depend_on(clone):
    for command in clone.build()[0]:
        (source,) = sources([command])
        assert "-ffp-contract=off" in command and not {"-march=native", "-ffast-math", "-Ofast"} & {*command}
        assert ("-mavx2" in command) == ("avx" in source)


def test_the_one_source_is_packed_to_the_same_bytes_each_time(tmp_path):
    for name in ("a.tar.gz", "b.tar.gz", "plain"):
        subprocess.run([sys.executable, ROOT / "csrc/amalgamate.py", tmp_path / name], check=True)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    shutil.unpack_archive(tmp_path / "a.tar.gz", tmp_path / "unpacked", filter="data")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "unpacked" / path.name).read_bytes() == path.read_bytes()


def test_only_what_changed_is_compiled_again(clone):
    everything = sources(clone.build()[0])
    assert clone.build()[0] == []
    os.utime(clone.folder / "csrc/kernels/matmul.inl", (2**31, 2**31))  # a new time alone changes nothing
    assert clone.build()[0] == []
    before = clone.change("csrc/runtime/session.cpp")
    assert sources(clone.build()[0]) == ["csrc/runtime/session.cpp"]
    (clone.folder / "csrc/runtime/session.cpp").write_bytes(before)
    assert sources(clone.build()[0]) == ["csrc/runtime/session.cpp"]
    for header in ("csrc/kernels/matmul.inl", "csrc/runtime/npgpt.h"):
        clone.change(header)
        assert sources(clone.build()[0]) == everything


def test_another_compiler_or_flag_compiles_everything_again(clone):
    everything = sources(clone.build()[0])
    for variables in ({"CXX": f"{clone.compiler} -m32"}, {"CXXFLAGS": "-O1"}, {}):
        assert sources(clone.build(**variables)[0]) == everything
        assert clone.build(**variables)[0] == []
    clone.compiler_fails_on("nothing at all", version="2")
    assert sources(clone.build()[0]) == everything


def test_a_second_editable_install_compiles_nothing(clone, tmp_path):
    first, done = clone.build("editable_wheel", "--dist-dir", str(tmp_path / "wheel"))
    assert done.returncode == 0, done.stderr
    assert len(first) > 10
    assert clone.build("editable_wheel", "--dist-dir", str(tmp_path / "wheel"))[0] == []


def test_a_script_beside_a_clone_named_npgpt_imports_the_package(tmp_path):
    """The clone is a folder that `import npgpt` finds first, and that is not the package."""
    clone, environment = tmp_path / "npgpt", tmp_path / "environment"
    (clone / "npgpt").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "csrc", clone / "csrc")
    for path in (ROOT / "npgpt").glob("*.py"):
        shutil.copy(path, clone / "npgpt" / path.name)
    wheel = [sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run(wheel, cwd=clone, env=os.environ | {"NPGPT_PURE": "1"}, check=True, capture_output=True)
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    (built,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(built, packages, "zip")
    (tmp_path / "mine.py").write_text("import npgpt; print(npgpt.__version__, npgpt.__file__)")
    for command in (["mine.py"], ["-c", "import npgpt; print(npgpt.__version__, npgpt.__file__)"]):
        done = subprocess.run(
            [str(environment / "bin" / "python"), *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert str(clone / "npgpt" / "__init__.py") in done.stdout, done.stderr


def test_the_file_that_failed_is_compiled_again(clone):
    clone.compiler_fails_on("csrc/text/bpe.cpp")
    _, done = clone.build()
    assert done.returncode != 0 and "csrc/text/bpe.cpp" in done.stderr and "no room" in done.stdout
    clone.compiler_fails_on("nothing at all")
    assert "csrc/text/bpe.cpp" in sources(clone.build()[0])


def test_a_failure_is_one_warning_and_leaves_no_kernels(clone):
    clone.build()
    clone.compiler_fails_on("csrc/text/bpe.cpp")
    clone.change("csrc/text/bpe.cpp")
    _, done = clone.build(NPGPT_REQUIRE_KERNELS="0")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("WARNING") == 1 and "on NumPy alone" in done.stderr
    assert not [
        *clone.folder.glob("build/lib.*/npgpt/_kernels*"),
        *clone.folder.glob("build/lib.*/npgpt/lib/*"),
    ]


def test_no_compiler_is_one_warning(clone):
    _, done = clone.build(NPGPT_REQUIRE_KERNELS="0", CXX="/nowhere/c++")
    assert done.returncode == 0
    assert (done.stdout + done.stderr).count("WARNING") == 1 and "/nowhere/c++" in done.stderr


def test_a_number_of_jobs_that_is_none_is_named(clone):
    _, done = clone.build(NPGPT_BUILD_JOBS="many")
    assert done.returncode != 0 and "NPGPT_BUILD_JOBS must be" in done.stderr
