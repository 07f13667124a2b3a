"""The model card of a run, as huggingface_hub reads it, and its code, as Transformers runs it."""

import json
import re

import pytest

import npgpt
from npgpt.evaluate import main as evaluate
from npgpt.export import main as export
from npgpt.train import main as train

hub = pytest.importorskip("huggingface_hub")

SIZES = (
    "--n-layer 1 --n-head 2 --n-embd 16 --block-size 64 --batch-size 4 --steps 3 --split 0.6,0.2,0.2".split()
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run that was measured, and the folder that was exported from it."""
    folder = tmp_path_factory.mktemp("card")
    text, run, out = folder / 'á "b".txt', folder / "run: é", folder / "hf"
    text.write_text("o sol brilha e o mar também; " * 60, encoding="utf-8")
    assert train([str(text), *SIZES, "--out", str(run)]) == 0
    assert evaluate([str(run)]) == 0
    assert export([str(run), "--to", "hf", "-o", str(out)]) == 0
    return run, out


def test_the_hub_reads_its_metadata(exported):
    run, folder = exported
    card = hub.ModelCard.load(folder / "README.md")
    data, test = card.data, json.loads((run / "test.json").read_text())
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert data.license is None and data.language is None and data.tags == ["npgpt", "gpt-2"]
    assert data.model_name == "run: é"
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    assert found['á "b".txt, test part', "bits_per_byte"] == test["bits_per_byte"]
    assert found['á "b".txt, test part', "perplexity"] == test["perplexity"]
    assert len(found) == 4 and {one.task_type for one in data.eval_results} == {"text-generation"}
    assert card.text.lstrip().startswith("# run: é")
    # and writes it again as it is, once the user has said what is left to say
    data.license, data.language = "mit", "pt"
    again = hub.ModelCard(str(card)).data
    assert again.license == "mit" and len(again.eval_results) == 4


def test_its_code_runs(exported, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    _run, folder = exported
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("FOLDER", str(folder)).replace("max_new_tokens=50", "max_new_tokens=5"), {})
        assert capsys.readouterr().out.strip()
    assert npgpt.load(folder).tokenizer
