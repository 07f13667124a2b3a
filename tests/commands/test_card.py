"""README.md of an exported folder: the model card, made of the run's own report."""

import json
import math
import re
from pathlib import Path

import pytest

from npgpt import evaluate
from npgpt.console import card
from tests.commands.helpers import refused, text_path


def card_of(command, run):
    folder = f"hf-{Path(run).name}"
    code, _out, err = command("export", run, "--to", "hf", "-o", folder)
    assert code == 0, err
    path = Path(folder, "README.md")
    return path.read_text(encoding="utf-8") if path.exists() else None, err


def index_of(text):
    """The model-index of a card's metadata, [] without one."""
    found = re.search(r"^model-index: (.*)$", text.split("\n---\n")[0], re.MULTILINE)
    return json.loads(found[1]) if found else []


@pytest.fixture
def measured(command, trained):
    """A run with a test part, measured."""
    trained("--split", "0.6,0.2,0.2", **{"a|b": "abc abd abe " * 60})
    assert command("evaluate", "run")[0] == 0
    return "run"


def test_it_has_what_the_report_has(command, measured):
    text, err = card_of(command, measured)
    assert err == "" and text.startswith("---\n")
    head, body = text[4:].split("\n---\n", 1)
    for line in ("library_name: transformers", "pipeline_tag: text-generation", 'tags: ["npgpt", "gpt-2"]'):
        assert f"\n{line}\n" in f"\n{head}\n"
    assert "\n# license: " in head and "\n# language: " in head, "both are left to the user, and said"
    assert not re.search(r"^(license|language|base_model):", head, re.MULTILINE)
    (index,) = index_of(text)
    assert index["name"] == "run"
    on_test, while_training = index["results"]
    test = json.loads(Path("run/test.json").read_text())
    values = {metric["type"]: metric["value"] for metric in on_test["metrics"]}
    assert values == {"bits_per_byte": test["bits_per_byte"], "perplexity": test["perplexity"]}
    assert on_test["dataset"] == {"type": "text", "name": "a|b.txt, test part"}
    rows = [row.split(",") for row in Path("run/metrics.csv").read_text().splitlines()[1:]]
    best = min(float(row[4]) for row in rows if row[4])
    values = {metric["type"]: metric["value"] for metric in while_training["metrics"]}
    assert values["perplexity"] == math.exp(best)
    assert while_training["dataset"]["name"] == "a|b.txt, validation part"
    assert f"| a\\|b.txt, test part | {test['bits_per_byte']:.3f} | {test['perplexity']:.3f} |" in body
    assert f"| without a model: xz | {test['baselines']['xz']['bits_per_byte']:.3f} | |" in body
    assert "| n_embd | 16 |" in body and "1 layer, a context of 16 tokens" in body
    assert str(Path.cwd()) not in text, "it names files, and not where they lie here"


def test_a_memorised_text_is_no_measurement(command, run):
    text = card_of(command, run)[0]
    assert index_of(text) == [] and "Nothing was measured on text that it did not see" in text
    assert command("evaluate", run)[0] == 0
    assert command("export", run, "--to", "hf", "-o", "again")[0] == 0
    text = Path("again/README.md").read_text()
    assert index_of(text) == [] and "\n| the text that it was trained on, which was to be memorised" in text
    assert "The text was small, and was to be memorised." in text


def test_what_evaluate_calls_a_held_out_text():
    assert set(card.HELD_OUT) == {evaluate.TEST, evaluate.VALIDATION}


def test_a_run_that_was_taught(command, run):
    lines = [{"prompt": f"{n}\n", "completion": "abc"} for n in range(20)]
    Path("e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert command("finetune", run, "e.jsonl", "--epochs", 1, "-o", "f")[0] == 0
    text = card_of(command, "f")[0]
    (result,) = index_of(text)[0]["results"]
    assert result["dataset"]["name"] == "e.jsonl, examples held out"
    assert [metric["type"] for metric in result["metrics"]] == ["perplexity"]
    assert "taught with the examples of `e.jsonl`" in text


def test_another_model_has_no_report(command, run):
    folder = Path("hf-run")
    assert card_of(command, run)[0]
    assert command("export", folder, "--to", "hf", "-o", "copy")[0] == 0
    assert not Path("copy/README.md").exists()


def test_a_file_that_was_changed_leaves_the_card_out(command, run):
    (run / "test.json").write_text("{}")
    text, err = card_of(command, run)
    assert text is None and err.startswith("warning: run/test.json: must be what npgpt.evaluate writes")
    assert err.endswith("; the folder gets no README.md\n") and Path("hf-run/model.safetensors").exists()


def test_what_somebody_wrote_stays(command, run):
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    refused(command("export", run, "--to", "hf", "-o", "mine"), "mine: is there already")
    with pytest.raises(FileExistsError):
        card.write(Path("mine"), "the card")
    assert Path("mine/README.md").read_text() == "mine"


def test_a_name_on_the_hub_is_the_base(command, run):
    config = (run / "config.toml").read_text()
    for base, told in (("owner/name", True), (str(run.resolve()), False), (text_path("x"), False)):
        (run / "config.toml").write_text(f'init_from = "{base}"\n{config}')
        assert command("export", run, "--to", "hf", "-o", f"hf-{told}-{len(base)}")[0] == 0
        text = Path(f"hf-{told}-{len(base)}/README.md").read_text()
        assert ('\nbase_model: "owner/name"\n' in text) is told
