"""Adapters that PEFT wrote, with many options: over their base they give its logits, or are refused."""

import json

import numpy as np
import pytest

import npgpt
from npgpt import export, generate
from npgpt.interop.gguf import write_gguf
from npgpt.text.tokenizer import ByteTokenizer
from tests.models import LLAMA, random_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    # PEFT uses a name that Transformers is about to drop.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

GROUPED = LLAMA | {"n_head": 4, "n_kv_head": 2, "head_size": 8}
FAMILY = {"gpt2": {}, "llama": GROUPED, "llama, a head": GROUPED | {"tied": False}, "gpt-3": {"window": 5}}
FOLLOWED = {
    "default": {},
    "rslora": {"use_rslora": True, "r": 4, "lora_alpha": 3},
    "all": {"target_modules": "all-linear", "r": 3, "init_lora_weights": "gaussian"},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"c_proj|o_proj": 5, r"h\.1\.attn\.c_attn": 2, "layers.1.self_attn.q_proj": 1},
        "alpha_pattern": {"c_attn|v_proj": 32},
    },
    "layers": {"layers_to_transform": [0, 2]},
    "expression": {
        "target_modules": r".*\.1\.(attn|self_attn|attn.attention)\.(c_attn|k_proj|o_proj|out_proj)"
    },
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["c_proj", "k_proj", "down_proj"]},
    "biases": {"bias": "all"},
    "norms": {"modules_to_save": ["ln_f", "norm"]},
    "tokens": {"trainable_token_indices": [3, 5, 256]},
}
REFUSED = {
    "use_dora": {"use_dora": True},
    "init_lora_weights": {"init_lora_weights": "pissa", "target_modules": ["q_proj"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "lora_embedding_A": {"target_modules": ["embed_tokens"]},
    "lm_head.lora_A": {"target_modules": ["lm_head"]},
    "must change together": {"modules_to_save": ["embed_tokens"]},
}


def made(tmp_path, shape, **options):
    """A base of this shape, and an adapter of PEFT's with these options, changed at random -> two folders."""
    model = random_model(**shape)
    model.tokenizer = ByteTokenizer()
    model.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for w in adapted.parameters():
            if w.requires_grad:
                w += 0.05 * torch.randn_like(w)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def theirs(base, adapter, ids):
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


IDS = np.random.default_rng(5).integers(0, 257, (2, 30))


@pytest.mark.parametrize("shape", FAMILY)
@pytest.mark.parametrize("options", FOLLOWED)
def test_an_adapter_of_peft_gives_its_logits(shape, options, tmp_path, measured):
    base, adapter = made(tmp_path, FAMILY[shape], **FOLLOWED[options])
    ours = npgpt.load(base, adapter=adapter)
    want = theirs(base, adapter, IDS)
    assert np.abs(want - npgpt.load(base).logits(IDS)).max() > 0.05, (
        "an adapter of next to nothing proves little"
    )
    measured("logits of an adapter of PEFT's, absolute", np.abs(ours.logits(IDS) - want).max(), 1e-4)
    np.testing.assert_array_equal(npgpt.load(adapter).flat_params, ours.flat_params)  # it names its base


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_followed_is_refused_by_name(named, tmp_path):
    base, adapter = made(tmp_path, GROUPED, **REFUSED[named])
    with pytest.raises(ValueError, match=named):
        npgpt.load(base, adapter=adapter)


def test_a_larger_vocabulary_comes_with_the_adapter(tmp_path, measured):
    """As after resize_token_embeddings(): PEFT then stores the embedding, and the head, whole."""
    for shape in GROUPED, GROUPED | {"tied": False}:
        folder = tmp_path / str(shape.get("tied"))
        folder.mkdir()
        base, adapter = made(folder, shape)
        grown = transformers.AutoModelForCausalLM.from_pretrained(base)
        grown.resize_token_embeddings(260)
        adapted = peft.get_peft_model(
            grown, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
        )
        adapted.save_pretrained(adapter)
        ours = npgpt.load(adapter)
        ids = np.arange(230, 260)[None]
        with torch.no_grad():
            want = adapted.eval()(torch.tensor(ids)).logits.numpy()
        assert ours.logits(ids).shape == want.shape == (1, 30, 260)
        measured("logits of an adapter of PEFT's, absolute", np.abs(ours.logits(ids) - want).max(), 1e-4)


def test_the_commands_take_it(tmp_path, capsys, measured):
    base, adapter = made(tmp_path, GROUPED, target_modules="all-linear")
    assert generate.main([str(base), "oi", "--adapter", str(adapter), "--temperature", "0", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text == npgpt.load(adapter).generate("oi", temperature=0)
    assert text != npgpt.load(base).generate("oi", temperature=0)
    assert (
        export.main([str(base), "--adapter", str(adapter), "--to", "hf", "-o", str(tmp_path / "merged")]) == 0
    )
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        got = merged(torch.tensor(IDS)).logits.numpy()
    measured("logits of an adapter of PEFT's, absolute", np.abs(got - theirs(base, adapter, IDS)).max(), 1e-4)


def test_the_base_may_be_quantised(tmp_path, measured):
    """The weights of the file are made float32, and the adapter is merged into these."""
    base, adapter = made(tmp_path, {})
    write_gguf(tmp_path / "base.gguf", npgpt.load(base), ByteTokenizer(), "q8_0")
    npgpt.load(tmp_path / "base.gguf").save_pretrained(tmp_path / "unpacked")
    ours = npgpt.load(tmp_path / "base.gguf", adapter=adapter)
    want = theirs(tmp_path / "unpacked", adapter, IDS)
    measured("logits of an adapter of PEFT's, absolute", np.abs(ours.logits(IDS) - want).max(), 1e-4)
    assert ours.generate("oi", 20, temperature=0) == npgpt.load(
        tmp_path / "unpacked", adapter=adapter
    ).generate("oi", 20, temperature=0)
