"""Every file that fuzzing once found, and mutations of valid ones: read, or refused with a ValueError."""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import targets

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*-*"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    before = sys.modules.get("tensorflow")
    sys.modules["tensorflow"] = None  # what comes before it is ours
    yield targets.Folders(tmp_path_factory.mktemp("fuzz") / "t")
    del sys.modules["tensorflow"]
    if before:
        sys.modules["tensorflow"] = before


@pytest.mark.parametrize("name", targets.TARGETS)
def test_valid_files_are_read(folders, name):
    expected = "refused" if name in ("hparams", "checkpoint") else "read"  # these end where TensorFlow begins
    assert folders.run(name, folders.seeds[name][-1]) == expected


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_findings(folders, path):
    start = time.perf_counter()
    folders.run(path.name.split("-")[0], path.read_bytes())
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", targets.TARGETS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(data=st.data())
def test_mutations(folders, name, data):
    """A valid file with a stretch of it replaced by other bytes, or by numbers that lie."""
    valid = data.draw(st.sampled_from(folders.seeds[name]))
    begin = data.draw(st.integers(0, len(valid)))
    end = data.draw(st.integers(begin, min(len(valid), begin + 20)))
    lies = st.sampled_from(
        [b"-1", b"1e999", b"9" * 30, b"9" * 400, b"null", b"[]", b"{}", b'"../x"', b"NaN", b"true", b"\xff"]
    )
    folders.run(name, valid[:begin] + data.draw(lies | st.binary(max_size=8)) + valid[end:])
