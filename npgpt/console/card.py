"""The model card of a run: README.md of a Hugging Face folder, with the metadata that the Hub reads.

It is made of the files of the run alone, and it is English, as what stands on the Hub is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from npgpt.console import report
from npgpt.console.comparison import Run, compare
from npgpt.engine.config import engine_of
from npgpt.engine.model import GPT
from npgpt.engine.types import Fields
from npgpt.training.run import read_config, shown

HELD_OUT = {  # what npgpt.evaluate calls a text that the model did not train on -> what the card does
    "the test part of its text": "test part",
    "its validation text (there is no test part)": "validation text",
}
SETTINGS = (
    *("engine", "n_layer", "n_head", "n_embd", "block_size", "dropout", "tokenizer", "clean", "dedupe"),
    *("documents", "optimizer", "lr", "batch_size", "steps", "epochs", "minutes", "lora", "seed"),
)
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
ids = tokenizer("TEXT", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```

```python
import npgpt

print(npgpt.load("FOLDER").generate("TEXT", max_new_tokens=50))
```
"""


def card_of(run: Path, model: GPT) -> str:
    """Return the card of a run, whose model this is; ValueError where a file of it was changed by hand."""
    config, test = read_config(run), report.test_result(run / "test.json")
    measured, name = compare([run]).runs[0], shown(run.resolve().name)
    results = list(_results(measured, test, "text_sha256" in config["about"]))
    lines = ["---", *_metadata(name, model, config, results), "---", "", f"# {name}", ""]
    lines += [_description(model, config, measured), "", "## Use", "", USE]
    lines += [
        "## Measured",
        "",
        *_measured(results, test),
        "",
        "## Training",
        "",
        "| setting | value |",
        "| --- | --- |",
    ]
    lines += [f"| {key} | {_cell(config[key])} |" for key in SETTINGS if config.get(key) is not None]
    lines += [
        "",
        "## Limits",
        "",
        "A small model knows nothing but its text. What it writes about the world is made up.",
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, card: str) -> None:
    """Write folder/README.md; FileExistsError where there is one, as somebody may have written it."""
    with open(folder / "README.md", "x", encoding="utf-8", errors="replace") as file:
        file.write(card)


def _metadata(name: str, model: GPT, config: Fields, results: list[Fields]) -> Iterator[str]:
    """Yield the lines of YAML that the Hub reads; of a value, JSON is YAML too."""
    yield "# Yours to say, before others use it:"
    yield "# license: which licence it has, which depends on the text too; see https://huggingface.co/docs/hub/repositories-licenses"
    yield "# language: the language of the text, as pt"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield f"tags: {json.dumps(['npgpt', engine_of(model.config)], allow_nan=False)}"
    base = config.get("init_from")
    if isinstance(base, str) and base.count("/") == 1 and not Path(base).is_absolute():  # a name on the Hub
        yield f"base_model: {json.dumps(base, allow_nan=False)}"
    if results:
        index = [{"name": name, "results": results}]
        yield f"model-index: {json.dumps(index, ensure_ascii=False, allow_nan=False)}"


def _results(measured: Run, test: Fields | None, of_text: bool) -> Iterator[Fields]:
    """Yield what was measured on text that the model did not train on, as the Hub's model-index has it."""
    of = ", ".join(map(str, measured.settings.get("text", [])))
    if test and test["part"] in HELD_OUT:
        figures = {"bits_per_byte": test["bits_per_byte"], "perplexity": test.get("perplexity")}
        yield _result(f"{of}, {HELD_OUT[test['part']]}", figures)
    if measured.val_loss is not None and measured.val_loss < math.log(1e30):
        figures = {"bits_per_byte": measured.val_bits_per_byte, "perplexity": math.exp(measured.val_loss)}
        yield _result(f"{of}, " + ("validation part" if of_text else "examples held out"), figures)


def _result(dataset: str, figures: Fields) -> Fields:
    names = {"bits_per_byte": "bits per byte", "perplexity": "perplexity per token"}
    return {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"type": "text", "name": dataset},
        "metrics": [
            {"type": kind, "name": names[kind], "value": value}
            for kind, value in figures.items()
            if value is not None
        ],
    }


def _description(model: GPT, config: Fields, measured: Run) -> str:
    texts = [f"`{shown(Path(text).name)}`" for text in config["text"]]
    text = ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
    c, about = model.config, config["about"]
    how = "trained on" if "text_sha256" in about else "taught with the examples of"
    line = f"A GPT {how} {text} by npgpt {about.get('npgpt', '')}"
    layers = f"{c.n_layer} layer{'s' * (c.n_layer > 1)}"
    line += f": {model.num_params:,} parameters, {layers}, a context of {c.block_size:,} tokens."
    if measured.train_tokens:
        line += f" It saw {measured.train_tokens:,} tokens in {measured.train_minutes:.1f} minutes on a CPU."
    return line + (" The text was small, and was to be memorised." if about.get("memorise") else "")


def _measured(results: list[Fields], test: Fields | None) -> Iterator[str]:
    if not results and not test:
        yield "Nothing was measured on text that it did not see. `python -m npgpt.evaluate RUN` does."
        return
    yield "| on | bits per byte | perplexity per token |"
    yield "| --- | ---: | ---: |"
    for result in results:
        values = {metric["type"]: f"{metric['value']:.3f}" for metric in result["metrics"]}
        cells = (values.get(kind, "") for kind in ("bits_per_byte", "perplexity"))
        yield f"| {_cell(result['dataset']['name'])} | {' | '.join(cells)} |"
    if test and test["part"] not in HELD_OUT:
        yield f"| {test['part']} | {test['bits_per_byte']:.3f} | |"
    for name, one in (test or {"baselines": {}})["baselines"].items():
        yield f"| without a model: {name} | {one['bits_per_byte']:.3f} | |"


def _cell(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else Path(str(value)).name
    return text.replace("|", "\\|").replace("\n", " ")
