"""`npgpt embed`: the compiler's flags for libnpgpt, and its one source."""

import shlex

import pytest

from npgpt.embed import HERE
from tests.commands.helpers import refused


def test_embed_prints_flags(command):
    refused(command("embed"), "give --cflags, --libs, both, or --source")
    code, out, _ = command("embed", "--cflags", "--libs")
    assert (code, out.count("-I"), "-lnpgpt" in out) == (0, 1, True) or code == 1  # 1: without a compiler


needs_source = pytest.mark.skipif(
    not (HERE / "runtime/source.tar.gz").exists(), reason="the source is packed by an installation"
)


@needs_source
def test_embed_writes_the_source_and_prints_the_line_that_builds_it(command, tmp_path):
    folder = tmp_path / "a folder"
    code, out, _ = command("embed", "--source", str(folder))
    assert code == 0 and out.count("\n") == 1
    training = {"train.c", "npgpt_train.cpp", "npgpt_train.h"}
    assert {path.name for path in folder.iterdir()} == {"generate.c", "npgpt.cpp", "npgpt.h"} | training
    line = shlex.split(out)
    assert line[0] == "g++" and line[-2:] == ["-o", "generate"]
    assert {f"-I{folder}", str(folder / "generate.c"), str(folder / "npgpt.cpp")} < {*line}
    (folder / "generate.c").write_text("int main(void) {}")  # one's own program
    (folder / "npgpt.h").write_text((folder / "npgpt.h").read_text()[:-100])  # of an older version
    assert command("embed", "--source", str(folder))[0] == 0
    assert (folder / "generate.c").read_text() == "int main(void) {}"
    assert (folder / "npgpt.h").read_text().endswith("#endif\n")


@needs_source
def test_embed_writes_over_nothing_of_others(command, tmp_path):
    refused(command("embed", "--source", "c", "--libs"), "--source needs no --cflags and no --libs")
    (tmp_path / "npgpt.h").write_text("mine")
    refused(command("embed", "--source", str(tmp_path)), "npgpt.h: is there already, and is not libnpgpt's")
    assert (tmp_path / "npgpt.h").read_text() == "mine" and not (tmp_path / "npgpt.cpp").exists()
    (tmp_path / "file").touch()
    refused(command("embed", "--source", str(tmp_path / "file" / "c")), "Not a directory")
