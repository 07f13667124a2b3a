"""The states of a disk that tests/slow/crash.py builds: what its models allow, and what they do not."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "slow" / "crash"


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def crash():
    calls = module("calls")
    yield calls, module("states")
    del sys.modules["calls"], sys.modules["states"]


def hexed(text):
    data = text if isinstance(text, bytes) else str(text).encode()
    return "".join(f"\\x{byte:02x}" for byte in data)


DATA = bytes(range(256)) * 24  # 1.5 pages


class Program:
    """Calls as strace writes them, of a program that works in a folder."""

    def __init__(self, calls, root):
        self.root, self.tree = root, calls.Tree(root)
        self.calls = calls

    def do(self, *lines):
        for line in self.calls.whole_lines("\n".join(f"71 {line}" for line in lines)):
            self.tree.take(line)
        return self

    def write(self, name, data):
        path = hexed(self.root / name)
        return self.do(
            f'openat(AT_FDCWD<{hexed("/")}>, "{path}", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3<{path}>',
            f'write(3<{path}>, "{hexed(data)}", {len(data)} <unfinished ...>',
            f"<... write resumed>) = {len(data)}",
        )

    def append(self, name, data):
        path = hexed(self.root / name)
        return self.do(
            f'openat(AT_FDCWD<{hexed("/")}>, "{path}", O_WRONLY|O_CREAT|O_APPEND, 0666) = 3<{path}>',
            f'write(3<{path}>, "{hexed(data)}", {len(data)}) = {len(data)}',
        )

    def sync(self, name=""):
        return self.do(f"fsync(3<{hexed(self.root / name)}>) = 0")

    def rename(self, old, new):
        return self.do(f'rename("{hexed(self.root / old)}", "{hexed(self.root / new)}") = 0')


@pytest.fixture
def contents(crash, tmp_path):
    """contents(model, *steps) -> what `name` may hold when all steps are done; None: it is not there."""
    calls, states = crash
    (tmp_path / "name").write_bytes(b"old")

    def of(model, *steps):
        program = Program(calls, tmp_path)
        for method, *args in steps:
            getattr(program, method)(*args)
        recording = program.tree.recording
        found = states.states(recording, model, 500, random.Random(0))
        return {state.get("name") for n, state in found if n == len(recording.ops)}

    return of


NEW, SYNC, RENAME = ("write", "tmp", DATA), ("sync", "tmp"), ("rename", "tmp", "name")


@pytest.mark.parametrize("model", ["posix", "ext4-ordered"])
def test_a_file_that_is_renamed_without_a_sync_may_be_empty(contents, model):
    found = contents(model, NEW, RENAME)
    assert {b"old", b"", DATA} <= found
    sectors = {bytes(512 * n) + DATA[512 * n :] for n in range(1, 12)} | {
        DATA[: 512 * n] for n in range(1, 12)
    }
    assert (DATA[:4096] in found) if model == "ext4-ordered" else found & sectors


@pytest.mark.parametrize("model", ["posix", "ext4-ordered"])
def test_a_file_that_is_synced_and_renamed_is_the_old_or_the_new_one(contents, model):
    assert contents(model, NEW, SYNC, RENAME) == {b"old", DATA}
    assert contents(model, NEW, SYNC, RENAME, ("sync", "")) == {DATA}


def test_a_sync_of_another_file_makes_a_name_last_on_ext4_alone(contents):
    steps = (NEW, SYNC, RENAME, ("write", "other", b"x"), ("sync", "other"))
    assert contents("ext4-ordered", *steps) == {DATA}
    assert contents("posix", *steps) == {b"old", DATA}


def test_names_are_lost_in_order_on_ext4_and_in_any_order_in_posix(crash, tmp_path):
    calls, states = crash
    program = Program(calls, tmp_path)
    for name in ("a", "b"):
        program.write(name, b"x").sync(name)
    program.sync().rename("a", "c").rename("b", "d")
    later = {}
    for model in ("posix", "ext4-ordered"):
        found = states.states(program.tree.recording, model, 100, random.Random(0))
        later[model] = any("d" in state and "c" not in state for _, state in found)
    assert later == {"posix": True, "ext4-ordered": False}


def test_bytes_that_were_appended_come_with_zeros_in_a_page_of_old_alone(contents):
    """In the page that was on the disk the size may be ahead of the bytes on ext4; in posix, everywhere."""
    kept = ("write", "name", b"head"), ("sync", "name"), ("sync", "")
    found = contents("ext4-ordered", *kept, ("append", "name", DATA))
    page = b"head" + bytes(4092)
    assert {b"head", page, (b"head" + DATA)[:4096], b"head" + DATA} <= found
    assert all(one == page or (b"head" + DATA).startswith(one) for one in found)
    assert b"head" + bytes(len(DATA)) in contents("posix", *kept, ("append", "name", DATA))


def test_all_is_recorded(crash, tmp_path):
    """What the operations give must be what lies there."""
    calls, _ = crash
    program = Program(calls, tmp_path).write("name", DATA)
    (tmp_path / "name").write_bytes(DATA)
    program.tree.compare()
    (tmp_path / "name").write_bytes(DATA[1:])
    with pytest.raises(SystemExit, match="do not give the folder"):
        program.tree.compare()
    with pytest.raises(SystemExit, match="not modelled"):
        program.do(f'symlink("x", "{hexed(tmp_path / "y")}") = 0')


def test_choices_are_all_or_as_many_as_asked_for(crash):
    _, states = crash
    assert len(set(states.chosen([2, 3, 2], 12, random.Random(0)))) == 12
    drawn = list(states.chosen([4] * 30, 50, random.Random(0)))
    assert len(drawn) == len(set(drawn)) == 50 and (3,) * 30 in drawn and (0,) * 30 in drawn
    assert drawn == list(states.chosen([4] * 30, 50, random.Random(0)))
