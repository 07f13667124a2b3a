"""Folders as others write them, their keys under any name: npgpt makes of them what Transformers does."""

import json
import pathlib

import numpy as np
import pytest

import npgpt
from npgpt.interop.huggingface import EMPTY, FAMILIES, GELUS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

CLASSES = {
    "gpt2": transformers.GPT2LMHeadModel,
    "openai-gpt": transformers.OpenAIGPTLMHeadModel,
    "gpt_neo": transformers.GPTNeoForCausalLM,
}
# 4 heads, where 12 or 16 are the default of the file that does not say it
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 48, "n_positions": 24, "vocab_size": 90, "eos_token_id": None}
NEO = {"num_layers": 2, "num_heads": 4, "hidden_size": 48, "max_position_embeddings": 24, "vocab_size": 90}
NEO |= {"attention_types": [[["global", "local"], 1]], "window_size": 5, "eos_token_id": None}


@pytest.fixture(params=CLASSES)
def family(request):
    return request.param


def written(family, folder, **changes) -> dict:
    """Write a random model of the family with Transformers -> its config.json."""
    kind = CLASSES[family]
    config = kind.config_class(**(NEO if family == "gpt_neo" else SIZES), bos_token_id=None)
    torch.manual_seed(5)
    model = kind(config)
    with torch.no_grad():
        for name, w in model.named_parameters():
            w.copy_(0.3 * torch.randn_like(w) + ("ln" in name and name.endswith("weight")))
    model.save_pretrained(folder)
    return edited(folder, **changes)


def edited(folder, rename=None, **changes) -> dict:
    path = pathlib.Path(folder) / "config.json"
    settings = json.loads(path.read_text()) | changes
    settings = {(rename or {}).get(key, key): value for key, value in settings.items()}
    path.write_text(json.dumps(settings))
    return settings


def same_logits(folder, measured):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = np.random.default_rng(3).integers(0, 90, (2, 24))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected).max() > 1
    error = np.abs(npgpt.load(folder).logits(ids) - expected).max()
    measured(f"logits of {theirs.config.model_type} at full context", error, 1e-4)


def test_every_name_of_a_key_is_read(family, tmp_path, measured):
    settings = written(family, tmp_path)
    aliases = FAMILIES[family].aliases
    theirs = CLASSES[family].config_class.attribute_map
    assert {alias: key for key, alias in aliases.items()} == theirs and set(aliases) <= set(settings)
    edited(tmp_path, rename=aliases)
    same_logits(tmp_path, measured)
    edited(tmp_path, **{key: settings[key] for key in aliases})  # both names, with the same value
    same_logits(tmp_path, measured)


def test_two_names_that_differ_are_refused(family, tmp_path):
    settings = written(family, tmp_path)
    for key, alias in FAMILIES[family].aliases.items():
        edited(tmp_path, **{alias: settings[key] // 2})
        with pytest.raises(ValueError, match=f"{key} and {alias} must be equal, got {settings[key]} and"):
            npgpt.load(tmp_path)
        edited(tmp_path, **{alias: settings[key]})


@pytest.mark.parametrize("name", GELUS)
def test_gelu_by_every_name(name, tmp_path, measured):
    written("gpt2", tmp_path, activation_function=name)
    same_logits(tmp_path, measured)


@pytest.mark.parametrize(
    "types, layers",
    [
        (None, ["global", "local"]),
        (None, ["global", "global"]),
        ([[["global", "local"], 1]], ["global", "local"]),
        ([[["global"], 2]], ["global", "global"]),
        ([[["global"], 2]], None),
    ],
)
def test_the_layers_of_gpt_neo_by_either_key(types, layers, tmp_path, measured):
    told = {"attention_types": types, "attention_layers": layers}
    settings = written("gpt_neo", tmp_path)
    settings = {key: value for key, value in settings.items() if key not in told}
    settings |= {key: value for key, value in told.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    same_logits(tmp_path, measured)


@pytest.mark.parametrize(
    "layers", [["global", "global"], ["local", "global"], ["local", "local"], ["global"]]
)
def test_layers_that_are_not_those_of_the_types_are_refused(layers, tmp_path):
    written("gpt_neo", tmp_path, attention_layers=layers)
    with pytest.raises(ValueError, match="attention_layers must"):
        npgpt.load(tmp_path)


def test_every_other_key_of_their_classes_changes_nothing(family, tmp_path, measured):
    """Whoever adds a key to Transformers' class that changes the logits fails this test."""
    settings = written(family, tmp_path)
    known = FAMILIES[family]
    read = (
        {key for key, _ in known.keys.values()} | set(known.fixed) | set(EMPTY) | {known.inner, "vocab_size"}
    )
    read |= {"attention_types", "attention_layers", "tie_word_embeddings", "model_type", "architectures"}
    others = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2, str: lambda v: v}
    changed = {
        key: others[type(value)](value)
        for key, value in settings.items()
        if key not in read and type(value) in others and not key.endswith("_id")
    }
    assert len(changed) > 5
    edited(tmp_path, **changed)
    same_logits(tmp_path, measured)
