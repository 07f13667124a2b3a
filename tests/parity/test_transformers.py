"""The family side by side with Transformers: GPT, GPT-2, GPT-3 and GPT-Neo in files of either give the same
logits to the end of the context, the same gradients, the same text.
"""

import numpy as np
import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.engine.config import GPTConfig, Rope, count_parameters
from npgpt.interop.huggingface import family_of
from npgpt.interop.layout import tensor_specs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # two pools that both spin are a hundred times slower than either

LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "rope": Rope(), "bias": False}
FAMILY = {
    "gpt": {"post_norm": True, "block_size": 512},
    "gpt-2": {"block_size": 1024},
    "gpt-2, exact gelu": {"activation": "gelu", "block_size": 64},
    "gpt-2 unscaled": {"scale_attn_weights": False, "block_size": 64},
    "gpt-3": {"window": 19, "block_size": 2048},
    "gpt-neo": {"window": 19, "scale_attn_weights": False, "block_size": 300},
    "gpt, untied": {"post_norm": True, "tied": False, "block_size": 512},
    "gpt-2, untied": {"tied": False, "block_size": 64},
    "gpt-3, untied": {"window": 19, "tied": False, "block_size": 300},
    "llama": LLAMA | {"n_kv_head": 2, "n_inner": 176, "block_size": 1024},
    "llama, one head of keys": LLAMA | {"n_kv_head": 1, "head_size": 32, "block_size": 128},
    "llama, untied, biases": LLAMA | {"tied": False, "bias": True, "block_size": 128},
    "llama 3": LLAMA | {"rope": Rope(5e5, "llama3", 8.0, 1.0, 4.0, 32), "n_kv_head": 2, "block_size": 512},
    "llama, linear": LLAMA
    | {"rope": Rope(1e4, "linear", 4.0), "block_size": 512, "layer_norm_epsilon": 1e-6},
}
CLASSES = {
    "openai-gpt": transformers.OpenAIGPTLMHeadModel,
    "gpt2": transformers.GPT2LMHeadModel,
    "gpt_neo": transformers.GPTNeoForCausalLM,
    "llama": transformers.LlamaForCausalLM,
}


@pytest.fixture(params=FAMILY)
def model(request, rng):
    return our_model(rng, **FAMILY[request.param])


def our_model(rng, **fields):
    """Weights far from their initial values; those of unscaled queries small enough for a soft softmax."""
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 257}
    model = npgpt.GPT(GPTConfig(**sizes | fields))
    with model.edit() as params:
        for name, w in params.items():
            spread = 0.5 if name in ("wte.weight", "lm_head.weight") else 0.1
            w[...] = spread * rng.standard_normal(w.shape) + (w.ndim == 1 and name.endswith("weight"))
            if name.endswith("c_attn.weight") and not model.config.scale_attn_weights:
                w[:, : len(w)] *= 0.25
    return model


def in_transformers(model, folder):
    """What Transformers makes of our folder, with nothing missing or left over."""
    model.save_pretrained(folder)
    theirs, report = CLASSES[family_of(model.config)].from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    theirs.generation_config.eos_token_id = None  # so that both go on
    return theirs.eval()


def logits_of(theirs, ids):
    with torch.no_grad():
        return theirs(torch.tensor(ids)).logits.numpy()


def test_logits_to_the_end_of_the_context(rng, measured, tmp_path, model):
    """Our folder in Transformers, and what Transformers writes of it in npgpt again."""
    theirs = in_transformers(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = npgpt.load(tmp_path / "theirs")
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(auto) is type(theirs)
    ids = rng.integers(0, 257, (1, model.config.block_size))
    expected = logits_of(theirs, ids)
    assert 5 < np.abs(expected).max() < 100, "logits of next to nothing, or of next to all, prove little"
    for name in kernels.available():
        with kernels.use(name):
            for ours in (model, again):
                error = np.abs(ours.logits(ids) - expected).max()
                measured(f"logits of {family_of(model.config)} at full context", error, 1e-4)


def test_gradients_are_those_of_autograd(impl, rng, measured, tmp_path, model):
    theirs = in_transformers(model, tmp_path)
    ids, targets = rng.integers(0, 257, (2, 2, 61))
    loss = model.forward(ids, targets)
    model.backward()
    logits = theirs(torch.tensor(ids)).logits
    their = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    their.backward()
    assert loss == pytest.approx(their.item(), rel=1e-5)
    form, parameters, seen = family_of(model.config), dict(theirs.named_parameters()), set()
    for name, spec in tensor_specs(form, model.config).items():
        expected = parameters[name].grad.numpy()
        if form == "gpt_neo" and spec.is_query:
            expected = expected * model.config.scale  # their queries' weights are ours times the scale
        g = spec.view(model.grads)
        error = np.abs(g - expected).max() / np.abs(expected).max()
        measured("gradient of a parameter of the family, relative to autograd's", error, 1e-4)
        seen.add(spec.name)
    assert seen == model.params.keys()


def test_two_hundred_greedy_tokens(rng, tmp_path):
    for name in ("gpt", "gpt-2", "gpt-3", "llama"):
        model = our_model(rng, **FAMILY[name] | {"block_size": 230})
        with model.edit() as params:
            params["wte.weight"][...] *= 0.2  # else the text soon repeats itself, whatever the context
            if "wpe.weight" in params:
                params["wpe.weight"][...] *= 5
        theirs = in_transformers(model, tmp_path / name)
        prompt = rng.integers(0, 256, (1, 21))
        expected = theirs.generate(
            torch.tensor(prompt),
            attention_mask=torch.ones(1, 21, dtype=torch.long),
            do_sample=False,
            max_new_tokens=200,
            pad_token_id=0,
            suppress_tokens=[256],
        )
        for implementation in kernels.available():
            with kernels.use(implementation):
                ours = model.generate(
                    prompt, max_new_tokens=200, temperature=0, ignore_eos=True, return_ids=True
                )
            assert ours == expected[0, 21:].tolist()
        assert len(set(ours)) > 20, "a constant says little"


def test_shards_of_transformers_are_read(rng, tmp_path):
    model = our_model(rng, n_layer=4)
    theirs = in_transformers(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(npgpt.load(tmp_path / "shards").flat_params, model.flat_params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_of_transformers_are_read(rng, tmp_path, dtype):
    model = our_model(rng, window=7, scale_attn_weights=False)
    in_transformers(model, tmp_path / "ours").to(dtype).save_pretrained(tmp_path / "half")
    again = npgpt.load(tmp_path / "half")
    for name, w in again.params.items():
        expected = torch.tensor(model.params[name]).to(dtype).float().numpy()
        np.testing.assert_array_equal(w, expected, name)


def test_autotokenizer_finds_ours_in_every_folder(rng, tmp_path, model):
    model.save_pretrained(tmp_path)
    theirs, text = transformers.AutoTokenizer.from_pretrained(tmp_path), "naïve 日本語<|endoftext|>"
    assert theirs.encode(text) == npgpt.GPT2Tokenizer(model.tokenizer).encode(text)
    assert theirs.eos_token_id == 256


def test_the_released_sizes():
    """Transformers' own numbers of parameters for the configs that it has as defaults."""
    for name, theirs in (("gpt", transformers.OpenAIGPTConfig), ("gpt2", transformers.GPT2Config)):
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(theirs())
        assert count_parameters(npgpt.preset(name)) == model.num_parameters()
