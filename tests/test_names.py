"""Names that people type: each error says the right one; what things are called when they are shown."""

import ast
import inspect
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

import npgpt
from npgpt.__main__ import COMMANDS
from npgpt.__main__ import main as npgpt_main
from npgpt.console import progress
from npgpt.console.progress import Progress
from npgpt.engine.names import ELSEWHERE, INSTEAD
from npgpt.text.tokenizer import BPETokenizer
from npgpt.training.listener import Step
from npgpt.training.plan import FLAGS
from tests.models import random_model

ROOT = Path(npgpt.__file__).parent.parent
PUBLIC = [
    npgpt.GPT, npgpt.GPT.generate, npgpt.GPT.score, npgpt.GPT.classify, npgpt.GPT.embed,
    npgpt.GPT.save_pretrained, npgpt.GPTConfig, npgpt.AdamW, npgpt.Muon,
    npgpt.Dataset.from_text, npgpt.Dataset.from_ids, npgpt.GPT2LMHeadModel.generate,
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model()


CALLS = {
    "generate: there is no max_tokens; did you mean max_new_tokens?": lambda m: m.generate("a", max_tokens=3),
    "generate: there is no max_length; did you mean max_new_tokens?": lambda m: m.generate("a", max_length=3),
    "generate: there is no tempreture; did you mean temperature?": lambda m: m.generate("a", tempreture=1),
    "generate: there is no n; call it once for each text": lambda m: m.generate("a", n=2),
    "generate: there is no num_beams; npgpt.GPT2LMHeadModel": lambda m: m.generate("a", num_beams=2),
    "generate: there is no foo; its arguments are prompt, max_new": lambda m: m.generate("a", foo=2),
    "generate: prompt must be one text, got a list; call it once": lambda m: m.generate(["a", "b"]),
    "generate: prompt must be text or a row of ids, got None": lambda m: m.generate(None),
    "score: there is no completion; did you mean completions?": lambda m: m.score("a", completion="b"),
    "embed: there is no texts; did you mean text?": lambda m: m.embed(texts=["a"]),
    "classify: there is no classes; did you mean labels?": lambda m: m.classify("a", classes=[]),
    "classify: labels must be a list of texts, got the text 'yes, no'": lambda m: m.classify("a", "yes, no"),
    "from_text: there is no files; did you mean paths?": lambda m: npgpt.Dataset.from_text(files="a"),
    "GPTConfig: there is no n_layers; did you mean n_layer?": lambda m: npgpt.GPTConfig(n_layers=2),
    "GPTConfig: there is no hidden_size; did you mean n_embd?": lambda m: npgpt.preset("gpt2", hidden_size=8),
    "AdamW: there is no learning_rate; did you mean lr?": lambda m: npgpt.AdamW(m, learning_rate=1),
    "Train: there is no learning_rate; did you mean lr?": lambda m: npgpt.Train(dataset="x", learning_rate=1),
    "generate: there is no max_tokens; did you mean max_new": lambda m: npgpt.GPT2LMHeadModel(
        m.config
    ).generate([[1]], max_tokens=3),
}  # fmt: skip


@pytest.mark.parametrize("said", CALLS)
def test_a_wrong_name_or_form_is_answered_with_the_right_one(model, said):
    with pytest.raises(TypeError) as refused:
        CALLS[said](model)
    assert str(refused.value).startswith(said)


def test_the_table_holds_names_that_are_ours_and_no_name_twice():
    known = {name for of in PUBLIC for name in inspect.signature(of).parameters} | set(FLAGS)
    known |= {*inspect.signature(npgpt.load).parameters, *inspect.signature(npgpt.Train).parameters}
    for name in ("train", "serve", "finetune"):
        source = ast.parse(inspect.getsource(import_module(f"npgpt.{name}")))
        texts = [node.value for node in ast.walk(source) if isinstance(node, ast.Constant)]
        known |= {text.lstrip("-").replace("-", "_") for text in texts if isinstance(text, str)}
    assert ELSEWHERE.keys() <= known
    for of in PUBLIC:
        own = inspect.signature(of).parameters
        told = [name for ours in own for name in ELSEWHERE.get(ours, "").split() if name not in INSTEAD]
        if of is not npgpt.GPT2LMHeadModel.generate:  # which has both max_length and max_new_tokens
            assert not own.keys() & set(told), of
        assert len(told) == len(set(told)), of


@pytest.mark.parametrize(
    "command, said",
    [
        ("trian x", "npgpt: NAME must be one of train, "),
        ("trian x", "got trian; did you mean train?"),
        ("generate r --max-token 5", "there is no flag --max-token; did you mean --max-new-tokens?"),
        ("generate r --max-tokens=5", "there is no flag --max-tokens; did you mean --max-new-tokens?"),
        ("train t --learning-rate 1", "there is no flag --learning-rate; did you mean --lr?"),
        ("train t --n_layer 1", "there is no flag --n_layer; did you mean --n-layer?"),
        ("finetune r d --num-train-epochs 2", "no flag --num-train-epochs; did you mean --epochs?"),
        ("serve r --n 3", "npgpt serve: there is no flag --n (--help lists the flags)"),
    ],
)
@pytest.mark.parametrize("language", ["C", "pt_BR.UTF-8"])
def test_a_mistyped_command_or_flag_is_answered_with_the_right_one(
    command, said, language, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", language)
    monkeypatch.setenv("LANGUAGE", "pt_BR" if language != "C" else "")
    try:
        code = npgpt_main(shlex.split(command))
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2 and not out and err.count("\n") == 1 and said in err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_runs_and_a_text_are_no_path(tmp_path, model):
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / "runs" / name)
    with pytest.raises(ValueError, match=r"folder of several; load one: \S+/runs/a, \S+/runs/b$"):
        npgpt.load(tmp_path / "runs")
    for text in ("O sol brilhava na praia.", "O sol\nbrilhava", "O sol brilhava. " * 400):
        for door in (npgpt.load, npgpt.Dataset.from_text):
            with pytest.raises(FileNotFoundError, match="this must be a path, not a text") as refused:
                door(text)
            assert len(str(refused.value)) < 200
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'my runs/x\.gguf'"):
        npgpt.load("my runs/x.gguf")


def test_things_say_what_they_are(model):
    sizes = "n_layer=3, n_head=2, n_embd=64, block_size=48, vocab_size=257"
    n = f"{model.num_params:,} parameters"
    assert repr(model) == f"<GPT gpt-2: {sizes}, tokenizer bytes, {n}>"
    named = npgpt.GPT2LMHeadModel(npgpt.GPTConfig(**vars(model.config) | {"vocab_size": 300, "window": 4}))
    assert repr(named).startswith("<GPT2LMHeadModel gpt-3: ") and "tokenizer none" in repr(named)
    assert repr(model.tokenizer) == "<ByteTokenizer bytes: 257 tokens>"
    bpe = BPETokenizer.train([b"o mar, o sol, o mar"] * 3, 259)
    assert repr(bpe) == "<BPETokenizer bpe:259: 259 tokens>"
    assert repr(npgpt.GPT2Tokenizer(bpe)) == "<GPT2Tokenizer of bpe:259: 259 tokens>"
    data = npgpt.Dataset.from_ids(np.arange(1000) % 97, "0.8,0.1,0.1", bpe)
    assert repr(data) == "<Dataset of 1,000 tokens: train 800, validation 100, test 100; tokenizer bpe:259>"
    assert eval(repr(model.config), {"GPTConfig": npgpt.GPTConfig}) == model.config


def test_a_python_without_the_packages_is_refused_in_one_line(tmp_path):
    """As python3 -m npgpt.train in a clone whose virtual environment is not active."""

    def python(*args):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-S", *args]  # without site-packages
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    for module in ("npgpt", *(f"npgpt.{name}" for name in COMMANDS)):
        found = python("-m", module)
        assert found.returncode == 2 and not found.stdout and found.stderr.count("\n") == 1
        assert "it has no numpy, cffi, tqdm; activate the virtual environment" in found.stderr
    found = python("-c", "import npgpt; npgpt.GPT")
    assert "ImportError: npgpt: this is Python 3" in found.stderr.splitlines()[-1]
    assert "it has no numpy; activate" in found.stderr
    for name in ("__init__", "version"):  # an old Python must be able to read them, to say that it is old
        ast.parse((ROOT / "npgpt" / f"{name}.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("kernel", [True, False])
def test_a_notebook_has_a_bar_of_text_without_widgets(kernel, monkeypatch, capsys):
    shell = SimpleNamespace(kernel=1) if kernel else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    shown = Progress()
    shown.begin(0, 2)
    shown.step(Step(2, 2, 1.0, 1.0, 1.0, 1.0, 0.1))
    shown.end()
    out, err = capsys.readouterr()
    assert ("step 1/2" in err and not out) if kernel else (not err and out.startswith("step 2/2"))


def test_a_notebook_has_a_bar_of_widgets(monkeypatch, capsys):
    made = {}

    def widget(**options):
        made.update(options)
        return tqdm(disable=True)

    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    )
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "ipywidgets")
    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=widget))
    shown = Progress()
    shown.begin(1, 9)
    shown.step(Step(9, 9, 1.0, 1.0, 1.0, 1.0, 0.1))
    shown.end()
    assert (made["initial"], made["total"], made["disable"]) == (1, 9, False)
    assert " {bar} " in made["bar_format"]  # the place of the widget; one with a width would be text
    assert capsys.readouterr() == ("", "")
