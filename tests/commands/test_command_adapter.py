"""--adapter: every command that opens a model takes it; one that does not fit is refused, nothing written."""

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.engine.lora import LoRA
from npgpt.interop.peft import write_adapter
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training.run import read_config
from tests.commands.helpers import nothing_written, refused
from tests.models import LLAMA, random_model

COMMANDS = {
    "generate": ["oi"],
    "chat": [],
    **({"serve": []} if find_spec("starlette") else {}),  # of an extra
    "export": ["--to", "hf", "-o", "out"],
    "evaluate": ["text.txt"],
    "finetune": ["examples.jsonl", "-o", "out"],
}


@pytest.fixture
def base():
    """A base in the folder base, and an adapter of it in the folder adapter."""
    model = random_model(**LLAMA, n_kv_head=1)
    model.tokenizer = ByteTokenizer()
    model.save_pretrained("base")
    adapters = LoRA(model, rank=3)
    with adapters.edit() as params:
        for w in params.values():
            w += np.random.default_rng(1).normal(0, 0.1, w.shape)
    write_adapter("adapter", adapters, str(Path("base").resolve()), ByteTokenizer())
    Path("text.txt").write_text("abc abd abe " * 40)
    lines = [{"prompt": word, "completion": word[::-1]} for word in ("oi", "sim", "um dois") * 3]
    Path("examples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_adapter_of_another_base_is_refused(name, base, command):
    random_model().save_pretrained("other")
    before = {path.name for path in Path().iterdir()}
    refused(command(name, "other", *COMMANDS[name], "--adapter", "adapter"), "does not belong")
    refused(command(name, "base", *COMMANDS[name], "--adapter", "base"), "adapter must be a folder with")
    refused(command(name, "base", *COMMANDS[name], "--adapter", "gone/away"), "No such")
    assert nothing_written(*before)


@pytest.mark.parametrize("model", [["base", "--adapter", "adapter"], ["adapter"]])
def test_it_changes_what_is_measured(model, base, command):
    code, out, _ = command("evaluate", *model, "text.txt", "--json")
    merged = json.loads(out.splitlines()[-1])
    code, out, _ = command("evaluate", "base", "text.txt", "--json")
    alone = json.loads(out.splitlines()[-1])
    ids = np.frombuffer(Path("text.txt").read_bytes(), np.uint8).astype(np.int32)[None]
    assert merged["tokens"] == alone["tokens"] and merged["loss"] != alone["loss"], code
    assert np.isfinite(npgpt.load("base", adapter="adapter").loss(ids[:, :40], ids[:, 1:41]))


def test_the_figures_of_a_run_stay_its_own(run, command):
    model = npgpt.load(run)
    write_adapter("adapter", LoRA(model, 2), str(run), model.tokenizer)
    assert command("evaluate", run, "--adapter", "adapter")[0] == 0
    assert not (run / "test.json").exists()


@pytest.mark.parametrize("lora", [[], ["--lora", 2]])
def test_fine_tuning_begins_with_the_adapter_merged(lora, base, command):
    how = ["--adapter", "adapter", *lora, "--epochs", 1, "--batch-size", 4]
    assert command("finetune", "base", "examples.jsonl", "-o", "new", *how)[0] == 0
    assert read_config("new")["adapter"] == str(Path("adapter").resolve())
    merged = npgpt.load("base", adapter="adapter")
    new = npgpt.load("new")
    moved = np.abs(new.flat_params - merged.flat_params).max()
    assert 0 < moved < np.abs(new.flat_params - npgpt.load("base").flat_params).max()
    if lora:  # its base is neither a folder nor on the Hub, so the run holds it
        np.testing.assert_array_equal(npgpt.load("new/base").flat_params, merged.flat_params)
        np.testing.assert_allclose(npgpt.load("new/adapter").flat_params, new.flat_params, atol=1e-6)
    again = command("finetune", "base", "examples.jsonl", "-o", "new", *how, "--resume", "--epochs", 2)
    assert again[0] == 0
    refused(command("finetune", "base", "examples.jsonl", "-o", "new", "--resume"), "parent_sha256 is")


@pytest.mark.skipif(kernels.library() is None, reason="libnpgpt was not built here")
def test_the_server_merges_it_into_its_own_model_alone(base):
    from npgpt.runtime.libnpgpt import Session
    from npgpt.serve import open_model

    pytest.importorskip("starlette")
    adapters = {Path("base"): "adapter"}
    for path, model in ("base", npgpt.load("adapter")), ("./base/.", npgpt.load("adapter")):
        runtime, _ = open_model(Path(path), adapters)
        session = Session(runtime)
        session.feed([1, 2, 3])
        np.testing.assert_allclose(session.logits(), model.logits([[1, 2, 3]])[0, -1], atol=1e-4)


def test_the_server_tunes_what_it_serves(base, monkeypatch):
    pytest.importorskip("starlette")
    from npgpt.serve import start_finetune
    from npgpt.server.jobs import FinetuneArguments

    called = []

    async def record(*words, **more):
        called.append(words)

    monkeypatch.setattr("asyncio.subprocess.create_subprocess_exec", record)
    served = Path("base").resolve()
    for path in served, served.parent / "tuned":
        arguments = FinetuneArguments(path, Path("examples.jsonl"), Path("out"), 1, None, None)
        asyncio.run(start_finetune(arguments, {served: "adapter"}))
    assert called[0][-2:] == ("--adapter", str(Path("adapter").resolve()))
    assert "--adapter" not in called[1]
