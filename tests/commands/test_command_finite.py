"""Numbers that are not finite: no command measures, writes or prints them."""

import ast
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt.interop.gguf import TYPES
from tests.commands.helpers import ROOT, TINY, nothing_written, refused

BROKEN = "transformer.h.0.mlp.c_fc.weight"
# json.dumps of texts, counts and names alone
NO_FLOATS = {
    "text/tokenizer.py", "text/tokenizer_json.py", "distributed/mpi.py", "server/connections.py",
    "interop/safetensors_file.py", "console/process.py", "chat.py",
}  # fmt: skip


def strictly(line):
    """The object of a line of JSON, in which no NaN or Infinity may stand."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.fixture
def model(run):
    """A model to break, as a folder of Hugging Face's."""
    npgpt.load(run).save_pretrained("hf")
    return Path("hf")


def changed(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(params=[math.nan, math.inf, -math.inf], ids=str)
def broken(model, request):
    def break_it(tensors):
        tensors[BROKEN][3, 4] = request.param

    changed(model, break_it)
    return model


def test_every_command_refuses_a_model_of_such_numbers(command, broken, text):
    Path("talks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    before = {path.name for path in Path(".").iterdir()}
    calls = [("generate", broken, "a"), ("evaluate", broken, text), ("chat", broken)]
    calls += [("serve", broken)] if find_spec("starlette") else []  # of an extra
    calls += [("export", broken, "--to", "gguf", "--type", t, "-o", "x") for t in TYPES]
    calls += [("export", broken, "--to", "hf", "-o", "x"), ("finetune", broken, "talks.jsonl", "--out", "x")]
    calls += [("train", text, "--init-from", broken, "--steps", 3, "--out", "x")]
    for name, *args in calls:
        refused(command(name, *args), f"{BROKEN} must be finite, got ")
        assert nothing_written(*before), name
    code, out, _ = command("evaluate", broken, text, "--json")
    assert code == 2 and BROKEN in strictly(out)["error"]


def test_a_loss_whose_perplexity_is_beyond_a_float_is_measured(command, model, text):
    def sharpen(tensors):
        tensors["transformer.ln_f.weight"] *= 1e5

    changed(model, sharpen)
    code, out, _ = command("evaluate", model, text, "--json")
    result = strictly(out.splitlines()[-1])
    assert code == 0 and result["loss"] > 709 and result["perplexity"] is None
    assert "perplexity above 1e308" in out


@pytest.mark.parametrize(
    "type, value, ok",
    [
        *[("f16", 65504, True), ("f16", 65530, False), ("q8_0", 8e6, True), ("q8_0", 9e6, False)],
        *[("q4_0", -5e5, True), ("q4_0", 6e5, False), ("f32", 3e38, True)],
    ],
)
def test_export_refuses_what_a_type_cannot_hold(command, model, type, value, ok):
    def enlarge(tensors):
        w = tensors["transformer.wte.weight"]
        tensors["transformer.wte.weight"] = np.pad(w, ((0, 0), (0, 16)))  # rows of 32, which have blocks
        tensors["transformer.wte.weight"][7, 3] = value
        for name, w in tensors.items():
            if "wte" not in name:
                shape = [n * 2 if n in (16, 48, 64) else n for n in w.shape]
                tensors[name] = np.zeros([16, 32] if "wpe" in name else shape, np.float32)

    changed(model, enlarge)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"n_embd": 32}))
    before = {path.name for path in Path(".").iterdir()}
    result = command("export", model, "--to", "gguf", "--type", type, "-o", "x.gguf")
    if ok:
        assert result[0] == 0 and "cannot" not in result[2]
        assert np.isfinite(npgpt.load("x.gguf").flat_params).all()
    else:
        refused(result, f"wte.weight holds {value:g}, which {type} cannot; choose --type f32")
        assert nothing_written(*before)


def test_double_precision_beyond_float32_is_refused(command, model):
    def widen(tensors):
        tensors[BROKEN] = tensors[BROKEN].astype(np.float64)
        tensors[BROKEN][0, 0] = 1e39

    changed(model, widen)
    refused(command("generate", model), f"{BROKEN} must be finite, got inf in 1 of its 1024 numbers")


def test_a_validation_that_is_not_finite_ends_the_run(command, text, monkeypatch):
    monkeypatch.setattr("npgpt.training.trainer.mean_loss", lambda *args: math.nan)
    flags = [*TINY, "--steps", 4, "--eval-every", 2, "--split", "0.8,0.2", "--out", "r"]
    code, out, err = command("train", text, *flags, "--json")
    assert code == 1 and "step 2: the validation loss is nan, so training stopped" in err
    assert "the validation loss is nan" in strictly(out.splitlines()[-1])["error"]


def test_no_writer_of_json_lets_such_numbers_through():
    seen = 0
    for path in (ROOT / "npgpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(r"json\.dumps?", ast.unparse(node.func)):
                strict = any(k.arg == "allow_nan" and not ast.literal_eval(k.value) for k in node.keywords)
                name = path.relative_to(ROOT / "npgpt").as_posix()
                assert strict or name in NO_FLOATS, f"{name}:{node.lineno}"
                seen += strict
    assert seen > 10
