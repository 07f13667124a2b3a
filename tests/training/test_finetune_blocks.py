"""finetune --lora over a GGUF file: the base stays as it is there, and what is saved are the adapters."""

import contextlib
import hashlib
import json

import numpy as np
import pytest

import npgpt
from npgpt.console import job
from npgpt.engine.quantised import Quantised
from npgpt.interop.gguf import write_gguf
from npgpt.interop.gguf_quantised import open_in_blocks
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import pretrained
from npgpt.training.run import read_config
from tests.models import LLAMA, random_model
from tests.training.test_finetune import LABELLED, TALKS, refused, run, written

SHAPES = {"gpt-2": {}, "gpt-3": {"window": 5}, "llama": LLAMA | {"n_head": 4, "n_kv_head": 2, "head_size": 8}}
FLAGS = ("--epochs", 4, "--batch-size", 4, "--keep", 9, "--lora", 3)


@pytest.fixture(params=SHAPES)
def base(request, tmp_path):
    """A quantised file."""
    path = tmp_path / "base.gguf"
    write_gguf(path, random_model(**SHAPES[request.param]), ByteTokenizer(), "q4_0")
    return path


def test_a_file_opens_in_blocks_as_it_opens_in_floats(base):
    ours, read = open_in_blocks(base), pretrained.read(base)
    floats = read.model()
    assert ours.config == read.config and ours.tokenizer.fingerprint == read.tokenizer.fingerprint
    for name, w in floats.params.items():
        np.testing.assert_array_equal(ours.made.array(name), w)
        assert isinstance(ours.made.params[name], Quantised) == (w.ndim == 2 and name != "wpe.weight")
    ids = np.arange(40, 70)[None]
    np.testing.assert_array_equal(ours.model().logits(ids), floats.logits(ids))


@pytest.mark.parametrize("records", [TALKS * 3, LABELLED])
def test_a_run_holds_adapters_and_opens_as_any_other(base, records, tmp_path, capsys):
    data, before = written(tmp_path, records), hashlib.sha256(base.read_bytes()).digest()
    assert run(base, data, tmp_path / "new", *FLAGS) == 0
    assert hashlib.sha256(base.read_bytes()).digest() == before
    last = tmp_path / "new" / (tmp_path / "new/LATEST").read_text().strip()
    assert not list(last.glob("model*")), "no checkpoint holds the base's weights"
    assert json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    new = npgpt.load(tmp_path / "new")
    best = npgpt.load(base, adapter=tmp_path / "new" / (tmp_path / "new/BEST").read_text().strip())
    np.testing.assert_array_equal(new.flat_params, best.flat_params)
    np.testing.assert_allclose(npgpt.load(tmp_path / "new/adapter").flat_params, new.flat_params, atol=1e-6)
    np.testing.assert_array_equal(
        npgpt.load(tmp_path / "new/base").params["h.0.attn.c_attn.weight"],
        pretrained.read(base).tensors["h.0.attn.c_attn.weight"],
    )
    assert isinstance(new.generate("oi", 5, temperature=0), str)
    out = capsys.readouterr().out
    assert "MB of memory (all weights:" in out and ("label" not in records[0] or "accuracy" in out)


def test_the_loss_told_is_that_of_what_is_saved(base, tmp_path, capsys):
    assert run(base, written(tmp_path, TALKS * 3), tmp_path / "new", *FLAGS, "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["best_val_loss"]
    again = ("--epochs", 1, "--batch-size", 4, "--lr", 1e-9, "--json")
    assert run(tmp_path / "new", tmp_path / "data.jsonl", tmp_path / "again", *again) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["best_val_loss"]
    np.testing.assert_allclose(found, told, rtol=1e-5)


def test_resumed_is_never_stopped(base, tmp_path, monkeypatch, capsys):
    data = written(tmp_path, TALKS * 3)
    assert run(base, data, tmp_path / "whole", *FLAGS) == 0
    stops = iter([False] * 7)
    with monkeypatch.context() as m:
        m.setattr(job, "interruptible", lambda: contextlib.nullcontext(lambda: next(stops, True)))
        assert run(base, data, tmp_path / "cut", *FLAGS) == 130
    assert run(base, data, tmp_path / "cut", "--resume") == 0
    for name in ("BEST", "LATEST"):
        one, two = (tmp_path / run / (tmp_path / run / name).read_text().strip() for run in ("whole", "cut"))
        assert one.name == two.name
        for file in ("adapter_model.safetensors", "optimizer.safetensors"):
            assert (one / file).read_bytes() == (two / file).read_bytes()
    write_gguf(base, random_model(seed=9), ByteTokenizer(), "q8_0")
    assert "parent_sha256 is" in refused(capsys, base, data, tmp_path / "cut", "--resume")


def test_a_run_whose_base_is_gone_says_so(base, tmp_path):
    assert run(base, written(tmp_path, TALKS), tmp_path / "new", *FLAGS) == 0
    base.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(FileNotFoundError, match=r"the base of .* is not there"):
        npgpt.load(tmp_path / "new")
    npgpt.load(tmp_path / "elsewhere.gguf", adapter=tmp_path / "new")


def test_an_adapter_merged_makes_the_base_float32(base, tmp_path):
    data = written(tmp_path, TALKS)
    assert run(base, data, tmp_path / "one", *FLAGS) == 0
    assert run(base, data, tmp_path / "two", *FLAGS, "--adapter", tmp_path / "one") == 0
    last = tmp_path / "two" / (tmp_path / "two/LATEST").read_text().strip()
    assert (last / "config.json").exists(), "a model as any other"
    assert read_config(tmp_path / "two")["adapter"] == str(tmp_path / "one")


def test_bad_files_are_refused_with_nothing_written(tmp_path, capsys):
    data = written(tmp_path, TALKS)
    write_gguf(tmp_path / "ids.gguf", random_model(), None, "q8_0")
    assert "must have a tokenizer" in refused(capsys, tmp_path / "ids.gguf", data, tmp_path / "new", *FLAGS)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "ids.gguf").read_bytes()[:-4000])
    assert "open_in_blocks: " in refused(capsys, tmp_path / "cut.gguf", data, tmp_path / "new", *FLAGS)
    untied = random_model(**SHAPES["llama"], tied=False)
    write_gguf(tmp_path / "untied.gguf", untied, ByteTokenizer(), "q8_0")
    assert "the head must be tied" in refused(
        capsys, tmp_path / "untied.gguf", data, tmp_path / "new", *FLAGS
    )
    assert not (tmp_path / "new").exists()
