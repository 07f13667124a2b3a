"""Adapter folders: what does not fit its base or is not followed is refused, all at once, nothing changed."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt.engine.lora import LoRA
from npgpt.interop.peft import write_adapter
from npgpt.interop.peft_config import RULES, AdapterConfig
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.training import pretrained
from tests.models import LLAMA, random_model

GPT2 = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"


@pytest.fixture(params=["gpt-2", "gpt-3", "llama"])
def written(request, tmp_path):
    """A base's folder, an adapter's folder, and the merged weights."""
    model = random_model(
        **{"gpt-2": {}, "gpt-3": {"window": 5}, "llama": LLAMA | {"n_kv_head": 1}}[request.param]
    )
    model.tokenizer = ByteTokenizer()
    model.save_pretrained(tmp_path / "base")
    adapters = LoRA(model, rank=3, rows=2)
    with adapters.edit() as params:
        for w in params.values():
            w += np.random.default_rng(1).normal(0, 0.1, w.shape)
    write_adapter(tmp_path / "adapter", adapters, str(tmp_path / "base"), ByteTokenizer())
    return tmp_path / "base", tmp_path / "adapter", model.flat_params


def gpt2(tmp_path):
    model = random_model(n_layer=1)
    model.tokenizer = ByteTokenizer()
    model.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "adapter", LoRA(model, 2), str(tmp_path / "base"), ByteTokenizer())
    return tmp_path / "base", tmp_path / "adapter"


def change(adapter, **settings):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_what_npgpt_writes_it_reads(written):
    base, adapter, merged = written
    np.testing.assert_allclose(npgpt.load(base, adapter=adapter).flat_params, merged, rtol=0, atol=2e-6)
    np.testing.assert_allclose(npgpt.load(adapter).flat_params, merged, rtol=0, atol=2e-6)


def test_the_adapter_of_a_run_is_found_in_it(tmp_path):
    base, adapter = gpt2(tmp_path)
    (tmp_path / "run").mkdir()
    adapter.rename(tmp_path / "run" / "adapter")
    npgpt.load(base, adapter=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"r": 0}, "r must be a whole number above 0, got 0"),
        ({"r": True, "bias": "some"}, "r must be a whole .*; bias must be none, all or lora_only"),
        ({"use_dora": True, "novelty": [1]}, "use_dora must be left out .*; novelty must be left out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights must be one of True"),
        ({"init_lora_weights": 1}, "init_lora_weights must be one of True"),
        ({"alpha_pattern": {"x": float("nan")}}, "alpha_pattern must be numbers"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern must hold regular expressions"),
        ({"target_modules": "(a+)+b"}, "target_modules must hold expressions of at most"),
        ({"target_modules": "a?" * 30 + "a" * 30}, "target_modules must hold expressions of at most"),
        ({"alpha_pattern": {"(a|a)" * 30: 1}}, "alpha_pattern must hold expressions of at most"),
        ({"target_modules": 5}, "target_modules must be a name or names"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be a number or numbers"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices must be ids"),
        ({"r": 4}, r"lora_A.weight must have shape \(4, 64\), got \(2, 64\).*lora_B.weight must have shape"),
        ({"target_modules": ["c_proj"]}, "c_attn has tensors and is not among target_modules"),
        ({"trainable_token_indices": [1]}, "the rows of trainable_token_indices are missing"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path must be the base's path"),
    ],
)
def test_a_setting_that_is_not_followed_is_named(settings, said, tmp_path):
    base, adapter = gpt2(tmp_path)
    change(adapter, **settings)
    with pytest.raises(ValueError, match=said):
        npgpt.load(base, adapter=adapter)


def test_every_tensor_that_does_not_fit_is_named_and_nothing_is_changed(tmp_path):
    base, adapter = gpt2(tmp_path)
    stored = load_file(adapter / "adapter_model.safetensors")
    stored["h.0.attn.c_attn.lora_A.weight"] = stored.pop(GPT2.format("A"))
    stored["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"] = np.ones((2, 64), np.float32)
    stored["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"] = np.ones((5, 2), np.float32)
    stored["base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"] = np.ones((2, 64), np.int32)
    save_file(stored, adapter / "adapter_model.safetensors")
    found = pretrained.read(base)
    before = found.weights.copy()
    with pytest.raises(ValueError) as error:
        pretrained.peft.apply_adapter(found, adapter)
    for said in (
        "h.0.attn.c_attn.lora_A.weight must begin with base_model.model.",
        "h.1.attn.c_attn.lora_A.weight does not belong",
        "h.0.attn.c_attn.lora_A.weight is missing",
        "c_attn.lora_B.weight must have shape (192, 2), got (5, 2)",
        "c_fc.lora_A.weight must be one of F16",
    ):
        assert said in str(error.value)
    np.testing.assert_array_equal(found.weights, before)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    base, adapter = gpt2(tmp_path)
    stored = load_file(adapter / "adapter_model.safetensors")
    stored[GPT2.format("A")][0, 0] = np.nan
    stored[GPT2.format("B")] += 1
    save_file(stored, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"h.0.attn.c_attn.weight must be finite"):
        npgpt.load(base, adapter=adapter)


def test_an_adapter_needs_its_files_and_its_base(tmp_path):
    base, adapter = gpt2(tmp_path)
    with pytest.raises(ValueError, match=r"adapter must be a folder with adapter_config.json"):
        npgpt.load(base, adapter=base)
    with pytest.raises(ValueError, match="adapter must not be empty"):
        npgpt.load(base, adapter="")
    with pytest.raises(FileNotFoundError):
        npgpt.load(base, adapter=tmp_path / "none" / "at all")
    change(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="its base must be a model, got the adapter"):
        npgpt.load(adapter)
    change(adapter, base_model_name_or_path=str(tmp_path / "gone" / "away"))
    with pytest.raises(FileNotFoundError, match=r"the base of .* is not there.*--adapter"):
        npgpt.load(adapter)
    change(adapter, base_model_name_or_path="../base")
    npgpt.load(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"must hold adapter_model.safetensors \(pickles are not opened\)"):
        npgpt.load(base, adapter=adapter)


def test_rows_of_tokens_far_away_are_not_made(tmp_path):
    base, adapter = gpt2(tmp_path)
    change(adapter, trainable_token_indices={"wte": [2**40, 257]})
    stored = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
    stored[name] = np.ones((2, 64), np.float32)
    save_file(stored, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"wte.weight lacks the rows of 1099511627518 tokens"):
        npgpt.load(base, adapter=adapter)


@pytest.mark.parametrize("key", RULES)
def test_no_value_of_a_setting_is_an_error_of_another_kind(key):
    for value in (
        True,
        -1,
        0.5,
        "x",
        "(" * 3,
        [],
        [[]],
        [None],
        [{}],
        {},
        {"a": {}},
        {"(": 1},
        [1, "a"],
        float("inf"),
        10**400,
    ):
        settings = {"peft_type": "LORA", key: value}
        try:
            config = AdapterConfig(settings, "here")
        except ValueError as error:
            assert str(error).startswith("here: ")
        else:
            for module in ("transformer.h.0.attn.c_attn", "lm_head"):
                assert config.is_target(module) in (True, False)
                assert config.rank(module) > 0 and np.isfinite(config.scale(module))
                assert isinstance(config.token_ids(module), list)
