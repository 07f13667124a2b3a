"""What lm-evaluation-harness's local-completions asks, as ids and as text; FOLDER is the model's.

Each log-likelihood, rolling log-likelihood and text must be that of `--model hf` for the same folder, of
texts that fit the context and of longer ones. HF=0 takes the model's own instead, without PyTorch.
"""

import os
import re
from pathlib import Path

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

import npgpt
from npgpt.compat.lm_eval import NpgptLM

url, folder = os.environ["OPENAI_BASE_URL"] + "/completions", os.environ["FOLDER"]
own = npgpt.load(folder)
context, end = own.config.block_size, own.tokenizer.end_of_text
TEXT = "O sol brilha no mar e o mar brilha. "
LONG = TEXT * (2 * context // len(TEXT) + 1)
PAIRS = [(a, b) for a in ("", "O sol", "a b", "xyz 1") for b in (" brilha", " e", "!", " 12")]
UNTIL = {"until": ["\n", "zz"], "do_sample": False}
FREE = UNTIL | {"max_gen_toks": 16}  # what the line of the page says


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def log_probability(before: list[int], after: list[int]) -> float:
    z = own.logits(np.array([before + after]))[0].astype(np.float64)
    z -= z.max(1, keepdims=True)
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    return float(sum(z[len(before) - 1 + i, id] for i, id in enumerate(after)))


def answers(lm, pairs, rolled, begun) -> tuple[list[float], list[float], list[str]]:
    pair = [float(found) for found, _ in lm.loglikelihood(asked("loglikelihood", *pairs))]
    rolling = lm.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in rolled)))
    texts = lm.generate_until(asked("generate_until", *((text, FREE) for text in begun)))
    return pair, [*map(float, rolling)], texts


def over_http(more: int, **how) -> LocalCompletionsAPI:
    """By the line of docs/serving.md, which is for a context of 128; `more` tokens than the context."""
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    (line,) = re.findall("^base_url=.*", page, re.MULTILINE)
    assert ",max_length=130," in line
    line = re.sub("(?<=base_url=)[^,]+", url, line.replace("tokenizer=MODEL", f"tokenizer={folder}"))
    line = line.replace("=MODEL", "=" + os.environ["MODEL"]).replace("=130", f"={context + more}")
    return LocalCompletionsAPI.create_from_arg_string(line, {"batch_size": 1, **how})


in_python = NpgptLM(folder)
assert get_model("npgpt") is NpgptLM
short = PAIRS, [TEXT], ["O sol", TEXT]
long = [(LONG, " brilha"), (LONG[:context], TEXT)], [LONG, LONG[1:]]
# the harness keeps one token of max_length for what is drawn, and one more of rolling windows
found = [answers(over_http(2, tokenized_requests=ids), *short) for ids in (True, False)]
found_long = answers(over_http(2), *long, short[2])
found.append(answers(in_python, *short))
texts = over_http(1).generate_until(asked("generate_until", (LONG, UNTIL), (LONG[3:], UNTIL)))
if os.environ.get("HF") == "0":
    encode = own.tokenizer.encode
    expected = [log_probability([*map(int, encode(a))] or [end], [*map(int, encode(b))]) for a, b in PAIRS]
    for pairs, rolling, _ in found:
        assert np.abs(np.subtract(pairs, expected)).max() < 1e-4
        assert abs(rolling[0] - log_probability([end], [*map(int, encode(TEXT))])) < 1e-3
    print("the numbers of lm-eval are the model's own")
else:
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    expected, expected_long = answers(hf, *short), answers(hf, *long, short[2])
    in_python_long = answers(in_python, *long, short[2])
    long_ones = [(one, expected_long) for one in (found_long, in_python_long)]
    for one, other in (*((one, expected) for one in found), *long_ones):
        worst = max(np.abs(np.subtract(a, b)).max() for a, b in zip(one[:2], other[:2], strict=True))
        print(f"log-likelihoods are at most {worst:.2e} from --model hf")
        assert worst < 1e-4 and one[2] == other[2], (one, other)
    free = in_python.generate_until(asked("generate_until", (LONG, FREE), (LONG[3:], FREE)))
    assert texts == free == hf.generate_until(asked("generate_until", (LONG, FREE), (LONG[3:], FREE)))
    assert all(texts), "no prompt goes out empty"
    print("the numbers and texts of lm-eval are those of --model hf")
