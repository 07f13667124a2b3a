"""What lm-evaluation-harness's local-completions asks, as ids and as text; FOLDER is the model's.

Each log-likelihood must be the model's own.
"""

import os

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

import npgpt

url, folder = os.environ["OPENAI_BASE_URL"] + "/completions", os.environ["FOLDER"]
own = npgpt.load(folder)
PAIRS = [(a, b) for a in ("", "O sol", "a b", "xyz 1") for b in (" brilha", " e", "!", " 12")]
TEXT = "O sol brilha no mar e o mar brilha."


def log_probability(before: list[int], after: list[int]) -> float:
    z = own.logits(np.array([before + after]))[0].astype(np.float64)
    z -= z.max(1, keepdims=True)
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    return float(sum(z[len(before) - 1 + i, id] for i, id in enumerate(after)))


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


encode, end = own.tokenizer.encode, own.tokenizer.end_of_text
how = {"tokenizer": folder, "tokenizer_backend": "huggingface", "max_length": 96, "max_gen_toks": 8}
for tokenized in (True, False):
    lm = LocalCompletionsAPI(
        base_url=url, model=os.environ["MODEL"], tokenized_requests=tokenized, batch_size=1, **how
    )
    for (a, b), (found, _) in zip(PAIRS, lm.loglikelihood(asked("loglikelihood", *PAIRS)), strict=True):
        expected = log_probability([*map(int, encode(a))] or [end], [*map(int, encode(b))])
        assert abs(found - expected) < 1e-4, (a, b, found, expected)
    (rolling,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,)))
    assert abs(rolling - log_probability([end], [*map(int, encode(TEXT))])) < 1e-3
    lm.generate_until(asked("generate_until", ("O sol", {"until": ["\n"], "max_gen_toks": 8})))
print("the numbers of lm-eval are the model's own")
