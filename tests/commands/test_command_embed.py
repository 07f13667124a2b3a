"""`npgpt embed`: the compiler's flags for libnpgpt."""

from tests.commands.helpers import refused


def test_embed_prints_flags(command):
    refused(command("embed"), "give --cflags, --libs or both")
    code, out, _ = command("embed", "--cflags", "--libs")
    assert (code, out.count("-I"), "-lnpgpt" in out) == (0, 1, True) or code == 1  # 1: without a compiler
