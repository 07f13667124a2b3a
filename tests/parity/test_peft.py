"""LoRA adapters in PEFT: put on their base, or found by AutoPeft, they give the logits of the merged run."""

import json

import numpy as np
import pytest

import npgpt
from npgpt import finetune
from npgpt.interop.gguf import write_gguf
from npgpt.text.examples import encode_chat
from npgpt.text.tokenizer import ByteTokenizer
from tests.models import LLAMA, random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# PEFT uses a name that Transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

FAMILY = {
    "gpt": {"post_norm": True},
    "gpt-2": {"bias": False},
    "gpt-3": {"window": 5},
    "gpt-3, vocabulary padded": {"window": 5, "vocab_size": 270},
    "llama": LLAMA | {"n_head": 4, "n_kv_head": 2, "head_size": 8},
}
TURNS = ["oi", "sim", "não", "um dois"]
EXAMPLES = {
    "prompts": [{"prompt": turn, "completion": turn[::-1]} for turn in TURNS],
    "talks": [
        {"messages": [{"role": "user", "content": turn}, {"role": "assistant", "content": turn[::-1]}]}
        for turn in TURNS
    ],
}


@pytest.fixture(params=FAMILY)
def base(request, tmp_path):
    """A folder with a model, its weights far from their initial values."""
    model = random_model(**FAMILY[request.param])
    model.tokenizer = ByteTokenizer()
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def taught(base, run, form, rank=2):
    """Fine-tune adapters into the folder `run` -> the adapter's folder, the merged model."""
    data = run.with_suffix(".jsonl")
    data.write_text("\n".join(map(json.dumps, EXAMPLES[form] * 3)) + "\n")
    flags = "--lora", rank, "--epochs", 5, "--batch-size", 4, "--lr", 0.02
    assert finetune.main([str(base), str(data), "-o", str(run), *map(str, flags)]) == 0
    return run / "adapter", npgpt.load(run)


def compare(ours, theirs, measured):
    """Ids of added tokens are among those read, too."""
    V = ours.config.vocab_size
    ids = np.concatenate([np.random.default_rng(5).integers(0, V, 30), np.arange(V - 5, V)])[None]
    with torch.no_grad():
        got = theirs.eval()(torch.tensor(ids)).logits.numpy()
    assert got.shape == (1, 35, V)
    error = np.abs(got - ours.logits(ids)).max() / np.abs(got).max()
    measured("logits of a LoRA adapter in PEFT, relative", error, 1e-5)


def loaded(run, base):
    """Their base, with room for the tokens that were added, and our adapter, with nothing left over."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokens = len(transformers.AutoTokenizer.from_pretrained(run / "adapter"))
    if tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens)
    theirs = peft.PeftModel.from_pretrained(model, run / "adapter")
    report = theirs.load_adapter(run / "adapter", "again")
    assert not report.unexpected_keys and not any("again" in key for key in report.missing_keys)
    return theirs


@pytest.mark.parametrize("form", EXAMPLES)
def test_an_adapter_gives_the_logits_of_the_run(base, form, tmp_path, measured):
    adapter, ours = taught(base, tmp_path / "run", form)
    ids = np.arange(97, 120)[None]
    changed = ours.logits(ids)[..., :257] - npgpt.load(base).logits(ids)[..., :257]
    assert np.abs(changed).max() > 0.5, "an adapter of next to nothing proves little"
    theirs = loaded(tmp_path / "run", base)
    compare(ours, theirs, measured)
    compare(ours, peft.AutoPeftModelForCausalLM.from_pretrained(adapter), measured)
    merged = theirs.merge_and_unload()
    compare(ours, merged, measured)
    merged.save_pretrained(tmp_path / "merged")
    again = npgpt.load(tmp_path / "merged")
    np.testing.assert_allclose(
        again.flat_params, ours.flat_params, atol=1e-5 * np.abs(ours.flat_params).max()
    )


def test_the_base_may_be_a_run_or_a_file(tmp_path, measured):
    """A run is named by its checkpoint; of a file that Transformers cannot open, the base is written."""
    random_model(window=5).save_pretrained(tmp_path / "folder")
    taught(tmp_path / "folder", tmp_path / "parent", "prompts")
    write_gguf(tmp_path / "m.gguf", random_model(n_embd=32), ByteTokenizer(), "q8_0")
    for base in "parent", "m.gguf":
        adapter, ours = taught(tmp_path / base, tmp_path / f"{base}-run", "talks")
        compare(ours, peft.AutoPeftModelForCausalLM.from_pretrained(adapter), measured)
        named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named.startswith(str(tmp_path / ("parent/step-" if base == "parent" else "m.gguf-run/base")))


def test_the_adapter_has_the_tokenizer_of_its_talks(tmp_path):
    random_model().save_pretrained(tmp_path / "base")
    adapter, ours = taught(tmp_path / "base", tmp_path / "run", "talks")
    theirs = transformers.AutoTokenizer.from_pretrained(adapter)
    messages = EXAMPLES["talks"][0]["messages"]
    ids = theirs.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert ids == encode_chat(ours.tokenizer, messages[:1])
