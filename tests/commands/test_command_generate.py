"""`npgpt generate`: one text, several, streamed, as JSON; a broken checkpoint is passed over."""

import json
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import kernels
from tests.commands.helpers import TINY, refused


def test_generate(command, run):
    flags = ["--seed", 1, "--max-new-tokens", 20]
    code, out, err = command("generate", run, "abc", *flags)
    assert code == 0 and out.startswith("abc") and err == f"running on {kernels.describe()}\n"
    assert command("generate", run, "abc", *flags, "--stream")[1] == out
    spoken = json.loads(command("generate", run, "abc", *flags, "--json")[1])
    assert "abc" + spoken["text"] + "\n" == out
    assert command("generate", run / "step-000003", "abc", *flags)[1] == out


def test_generate_several(command, run):
    flags = ["--seed", 5, "--max-new-tokens", 20]
    one, two = (command("generate", run, "abc", "--seed", seed, "--max-new-tokens", 20)[1] for seed in (5, 6))
    assert command("generate", run, "abc", *flags, "--num-samples", 2)[1] == f"{one}{'-' * 70}\n{two}"
    texts = json.loads(command("generate", run, "abc", *flags, "--num-samples", 2, "--json")[1])["texts"]
    assert [f"abc{text}\n" for text in texts] == [one, two]


@pytest.mark.parametrize("flags", ["--temperature -1", "--top-k 0", "--top-p 2", "--max-new-tokens -1"])
def test_bad_flags_for_generate(command, run, flags):
    result = command("generate", run, "a", *flags.split())
    refused(result, " must be ")
    assert flags.split()[0].lstrip("-") in result[2].replace("_", "-")


def test_a_schema_and_a_regex_hold(command, run):
    Path("s.json").write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    )
    for seed in range(3):
        flags = ["--seed", seed, "--json"]
        written = json.loads(command("generate", run, "abc", *flags, "--schema", "s.json")[1])["text"]
        assert [*json.loads(written)] == ["n"] and isinstance(json.loads(written)["n"], int)
        written = json.loads(command("generate", run, "abc", *flags, "--regex", "[xyz]{3}-é")[1])["text"]
        assert len(written) == 5 and written.endswith("-é")
    Path("bad.json").write_text('{"not": {}}')
    refused(
        command("generate", run, "a", "--schema", "bad.json"), "schema: the keyword 'not' is not supported"
    )
    refused(command("generate", run, "a", "--schema", "none.json"), "none.json: No such file or directory")
    refused(command("generate", run, "a", "--regex", "("), "the regex '(' cannot be used")
    both = command("generate", run, "a", "--regex", "a", "--schema", "s.json")
    refused(both, "schema and regex cannot be given together")


def test_load_names_a_broken_checkpoint_and_takes_the_one_before(command, text):
    assert command("train", text, *TINY, "--steps", 4, "--save-every", 2, "--out", "r")[0] == 0
    weights = Path("r/step-000004/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-000004: model.safetensors must have .* passed over"):
        model = npgpt.load("r")
    before = npgpt.load("r/step-000002")
    assert (model.flat_params == before.flat_params).all()
    code, _, err = command("generate", "r", "abc", "--max-new-tokens", 2)
    assert code == 0 and err.startswith("warning: ") and err.count("\n") == 2
    refused(command("generate", "r/step-000004"), "step-000004: model.safetensors must have")
