"""Help, progress and results are in the locale's language, errors in English; the catalogues are whole."""

import ast
import gettext
import inspect
import json
import os
import re
import runpy
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import polib
import pytest

import npgpt
from npgpt.__main__ import COMMANDS
from npgpt.console import language, messages
from npgpt.engine import kernels
from npgpt.training.overfitting import Verdict

PACKAGE = Path(npgpt.__file__).parent
MAKE = runpy.run_path(str(PACKAGE / "console" / "locale" / "make.py"))
CATALOGUES = [pytest.param(path, id=path.parts[-3]) for path in MAKE["CATALOGUES"]]
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
HOW = "run python npgpt/console/locale/make.py"


def fields(message: str) -> list:
    """Its fields in {} with their formats, of whatever order; argparse's with %."""
    try:
        named = [(name, form) for _, name, form, _ in string.Formatter().parse(message) if name is not None]
    except ValueError:  # braces that are no fields
        named = []
    return sorted(named) + sorted(re.findall(r"%(?:\(\w+\))?[sr]", message))


@pytest.mark.parametrize("path", CATALOGUES)
def test_a_catalogue_is_whole(path):
    catalogue, needed = polib.pofile(str(path)), MAKE["messages"]()
    assert needed, "the source has messages"
    translations = {entry.msgid: entry.msgstr for entry in catalogue}
    lacking = sorted(message for message in needed if not translations.get(message))
    assert not lacking, f"{HOW}, and translate in {path}: {lacking}"
    gone = sorted(message for message in translations if message not in needed)
    assert not gone, f"{HOW}: the source does not say any more {gone}"
    files = [(entry.msgid, entry.occurrences[0][0]) for entry in catalogue]
    assert files == list(needed.items()), HOW
    with open(path.with_suffix(".mo"), "rb") as file:
        compiled = gettext.GNUTranslations(file)
    stale = sorted(message for message in needed if compiled.gettext(message) != translations[message])
    assert not stale, f"{HOW}: the compiled catalogue is not that of {path}: {stale}"


@pytest.mark.parametrize("file", MAKE["UNMARKED"])
def test_a_message_that_no_mark_shows_is_in_its_file(file):
    source = inspect.getsource(sys.modules["argparse"])
    if file != "argparse.py":
        source = (PACKAGE / file).read_text(encoding="utf-8")
    there = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert set(MAKE["UNMARKED"][file]) <= there


@pytest.mark.parametrize("path", CATALOGUES)
def test_a_translation_has_the_fields_of_its_message(path):
    for entry in polib.pofile(str(path)):
        message, translation = entry.msgid, entry.msgstr
        assert fields(translation) == fields(message), message
        ends = [
            re.match(r"\s*", text).group() + re.search(r"\s*$", text).group()
            for text in (message, translation)
        ]
        assert ends[0] == ends[1], message


@pytest.fixture
def locale(monkeypatch):
    """locale(LC_ALL="pt_BR.UTF-8"): the language is what these variables say, until the test ends."""

    def set_to(**variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        language.set_language()

    before = gettext.textdomain()
    yield set_to
    gettext.textdomain(before)


@pytest.mark.parametrize(
    "variables, portuguese",
    [
        ({}, False),
        ({"LANG": "en_GB.UTF-8"}, False),
        ({"LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "pt_BR.UTF-8"}, True),
        ({"LC_MESSAGES": "pt_PT"}, True),
        ({"LANG": "pt_BR.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "pt_BR.UTF-8", "LC_ALL": "en_US.UTF-8"}, False),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "pt_BR:en"}, True),
        ({"LANG": "C", "LANGUAGE": "pt_BR:en"}, False),
    ],
)
def test_which_language_is_spoken(locale, variables, portuguese):
    locale(**variables)
    assert language._("it writes:") == ("ele escreve:" if portuguese else "it writes:")


def test_nothing_but_english_before_a_command_asks():
    code = "import npgpt.console.language as l; print(l._('it writes:'))"
    environment = os.environ | {"LC_ALL": "pt_BR.UTF-8", "PYTHONPATH": str(PACKAGE.parent)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.stdout == "it writes:\n"


@pytest.mark.parametrize(
    "name, known, threads",
    [
        ("avx2", ["numpy", "avx2"], 1),
        ("avx2", ["numpy", "avx2"], 2),
        ("numpy", ["numpy", "avx2"], 1),
        ("numpy", ["numpy"], 1),
    ],
)
def test_the_first_line_of_a_run(locale, monkeypatch, capsys, name, known, threads):
    monkeypatch.setattr(kernels, "name", lambda: name)
    monkeypatch.setattr(kernels, "available", lambda: known)
    monkeypatch.setattr(kernels, "get_num_threads", lambda: threads)
    monkeypatch.setattr(kernels, "_compiled", name != "numpy")
    monkeypatch.setattr(kernels, "_kernels", kernels._kernels if len(known) > 1 else None)
    locale(LC_ALL="C")
    messages.start_command(None)
    assert capsys.readouterr().out == f"running on {kernels.describe()}\n"
    locale(LC_ALL="pt_BR")
    messages.start_command(None)
    said = capsys.readouterr().out
    assert said.startswith("rodando com kernels avx2, " if name == "avx2" else "rodando com só o NumPy")


RESULT = {"run": "r", "steps": 60, "seconds": 1.25}


@pytest.mark.parametrize(
    "ended, english, portuguese",
    [
        ("done", "done", "concluído"),
        ("memorised", "memorised", "memorizado"),
        ("target reached", "target reached", "alvo alcançado"),
        ("patience", "stopped, 3 validations without a better one,", "parado, 3 validações sem melhora,"),
        ("interrupted", "interrupted", "interrompido"),
    ],
)
def test_how_a_run_ended(locale, capsys, ended, english, portuguese):
    in_english, in_portuguese = "after 60 steps, 1.2 s: 2.00", "após 60 passos, 1,2 s: 2,00"
    for language_, how, after in (("C", english, in_english), ("pt", portuguese, in_portuguese)):
        locale(LC_ALL=language_)
        messages.log_result(RESULT | {"ended": ended, "loss": 2.0}, "{loss:.2f}", 3)
        assert capsys.readouterr().out.startswith(f"{how} {after}")
        messages.log_finished(RESULT | {"ended": ended}, 3)
        assert f": {how} {after.partition(',')[0]}\n" in capsys.readouterr().out


def test_sentences_of_results_in_portuguese(locale):
    locale(LC_ALL="pt_BR")
    overlap = {"n_samples": 4, "bytes": 3, "text": "céu", "held_out_bytes": None}
    said = "Trecho mais longo do texto de treino em 4 amostras: 3 bytes, 'céu'"
    assert messages.overlap_message(overlap) == said
    unseen = "; em igual quantidade de texto que ele nunca viu: 2 bytes"
    assert messages.overlap_message(overlap | {"held_out_bytes": 2}) == said + unseen
    found = {"is_default": False, "loss": 2, "default_loss": 3, "minutes": 1, "changed": {}, "epochs": 4}
    assert "em vez de 3,0000" in messages.tuning_message(found)
    assert "com metade do tempo;" in messages.tuning_message(found)
    assert "com lr 0.01, n_layer 4;" in messages.tuning_message(
        found | {"changed": {"lr": 0.01, "n_layer": 4}}
    )
    assert messages.tuning_message(found | {"is_default": True}).startswith("A configuração padrão foi")
    assert messages.tuning_message(found, str).startswith("Validation loss 2.0000 instead of")


@pytest.mark.parametrize(
    "value, form, english, portuguese",
    [
        (446080, ",", "446,080", "446.080"),
        (1.903, ".3f", "1.903", "1,903"),
        (1234567.891, ",.1f", "1,234,567.9", "1.234.567,9"),
        (np.float32(0.25), "7.1%", "  25.0%", "  25,0%"),
        (np.int64(-1234), "+,", "-1,234", "-1.234"),
        (1.5e-7, ".1e", "1.5e-07", "1,5e-07"),
        (60, "", "60", "60"),
    ],
)
def test_numbers_have_the_separators_of_the_language(locale, value, form, english, portuguese):
    template = "{value:" + form + "} a.b,c {text} {text!r}"
    for name, expected in (("C", english), ("pt_BR", portuguese)):
        locale(LC_ALL=name)
        assert language.number(value, form) == expected
        filled = language.fill(template, value=value, text="1.5,x")
        assert filled == f"{expected} a.b,c 1.5,x '1.5,x'", "texts and names stay as they are"


def test_a_report_is_in_portuguese_and_its_files_are_not(tmp_path):
    text, run = tmp_path / "t.txt", tmp_path / "run"
    text.write_bytes(b"abc abd abe " * 400)
    flags = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --steps 6 --split 0.8,0.1,0.1 --json".split()
    trained = command("npgpt.train", text, *flags, "--out", run, LC_ALL="pt_BR.UTF-8")
    measured = command("npgpt.evaluate", run, "--json", LC_ALL="pt_BR.UTF-8")
    for said in (trained, measured):
        assert said.returncode == 0 and isinstance(json.loads(said.stdout.splitlines()[-1]), dict)
    page = (run / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"<style>.*?</style>|<pre>.*?</pre>|<[^>]*>", "\n", page, flags=re.S)
    assert '<html lang="pt-BR">' in page
    for shown in ("Perda", "Um GPT treinado com t.txt: 6 passos, ", "menor é melhor", "Configurações"):
        assert shown in words
    english = "Loss|step|Test|training|validation|epochs|tokens seen|wrote|Learning|Gradient|Settings|best"
    assert not re.search(rf"\b({english})\b", words), "words that stayed English"
    loss = json.loads((run / "test.json").read_text())["loss"]
    assert f"{loss:.3f}".replace(".", ",") in words
    numbers = re.search(r'<polyline class="one" points="([^"]*)"', page)[1]
    assert all(len(list(map(float, point.split(",")))) == 2 for point in numbers.split())
    rows = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
    assert len({len(row) for row in rows}) == 1 and float(rows[1][3]) > 0
    assert (
        command("npgpt.train", "--config", run / "config.toml", text, "--out", tmp_path / "again").returncode
        == 0
    )


def test_train_speaks_the_language_and_leaves_it_as_it_was(tmp_path):
    code = (
        "import gettext, sys, npgpt; flags = dict(steps=2, n_layer=1, n_head=1, n_embd=8, block_size=8);"
        "npgpt.Train(dataset=sys.argv[1], out=sys.argv[2], **flags); print(gettext.textdomain())"
    )
    text = tmp_path / "t.txt"
    text.write_bytes(b"abc abd abe " * 40)
    for name, line in (("C", r"step 2/2: loss \d\.\d{4}"), ("pt_BR.UTF-8", r"passo 2/2: perda \d,\d{4}")):
        variables = {n: v for n, v in os.environ.items() if n not in VARIABLES} | {"LC_ALL": name}
        variables |= {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUTF8": "1"}
        run = [sys.executable, "-c", code, str(text), str(tmp_path / name)]
        said = subprocess.run(run, env=variables, capture_output=True, text=True, encoding="utf-8")
        assert said.returncode == 0 and re.search(f"(?m)^{line}, ", said.stdout), said
        assert said.stdout.endswith("messages\n")


def test_warnings_stay_english(locale, capsys):
    locale(LC_ALL="pt_BR")
    messages.log_warnings(["a checkpoint is broken; passed over"])
    assert capsys.readouterr().err == "warning: a checkpoint is broken; passed over\n"
    verdict = Verdict(4, 8, (2, 0.5), (2, 2.4))
    assert "from 2.000 to 0.500 while" in messages.overfitting_message(verdict)
    page = messages.overfitting_message(verdict, translate=language._)
    assert page.startswith("há sobreajuste") and "de 2,000 para 0,500" in page


def command(*args, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUTF8": "1"} | variables
    line = [sys.executable, "-m", *map(str, args)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_a_command_speaks_portuguese(tmp_path):
    text = tmp_path / "t.txt"
    text.write_bytes(b"abc abd abe " * 40)
    flags = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --steps 2 --json".split()
    both = [
        command("npgpt.train", text, *flags, "--out", tmp_path / locale, LC_ALL=locale)
        for locale in ("C", "pt_BR.UTF-8")
    ]
    english, portuguese = (run.stdout.splitlines() for run in both)
    assert [run.stderr for run in both] == ["", ""]
    assert portuguese[0].startswith("rodando com ")
    assert "tokenizer: bytes, 257 tokens, 1.00 bytes in one" in english
    assert "tokenizador: bytes, 257 tokens, 1,00 bytes em cada um" in portuguese
    assert any(re.match(r"passo 2/2: perda \d,\d{4}, ", line) for line in portuguese)
    assert any(line.startswith("concluído após 2 passos, ") for line in portuguese)
    sample = portuguese.index("ele escreve:")
    assert not set(portuguese[: sample + 1]) & set(english), "lines that stayed English"
    assert re.sub(r"C|pt_BR.UTF-8|[\d.]+", "", english[-1]) == re.sub(
        r"C|pt_BR.UTF-8|[\d.]+", "", portuguese[-1]
    )


@pytest.mark.parametrize(
    "split, on, of_samples",
    [
        ("1", "o texto com que foi treinado, que era para memorizar (não há parte de teste)", " amostras: "),
        ("0.8,0.2,0", "o texto com que foi treinado (não há parte de teste)", " amostras: "),
        ("0.8,0.1,0.1", "a parte de teste do seu texto", "; em igual quantidade de texto que ele nunca viu"),
    ],
)
def test_evaluate_speaks_portuguese(tmp_path, split, on, of_samples):
    text, run = tmp_path / "t.txt", tmp_path / "run"
    text.write_bytes(b"abc abd abe " * (40 if split == "1" else 400))
    flags = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --steps 2".split()
    trained = command("npgpt.train", text, *flags, "--split", split, "--out", run, LC_ALL="C")
    assert trained.returncode == 0, trained.stderr
    measured = command("npgpt.evaluate", run, LC_ALL="pt_BR.UTF-8")
    assert (measured.returncode, measured.stderr) == (0, "")
    lines = measured.stdout.splitlines()
    assert lines[1].startswith(f"medido sobre {on}: ")
    assert lines[-1].startswith("Trecho mais longo do texto de treino em 4 amostras: ")
    assert of_samples in lines[-1]
    if split == "1":
        given = command("npgpt.evaluate", run, text, LC_ALL="pt_BR.UTF-8")
        assert "medido sobre o texto dado: 481 tokens\n" in given.stdout


FLAGS = "(--help lists the flags)"
NAMES = "train, prepare, tune, evaluate, compare, generate, explain, finetune, chat, serve, export, "
NAMES += "embed, bench"


@pytest.mark.parametrize(
    "args, line",
    [
        ("npgpt.train none.txt", "npgpt train: none.txt: No such file or directory"),
        (
            "npgpt.train t --steps 0",
            f"npgpt train: argument --steps: must be a whole number, at least 1, got 0 {FLAGS}",
        ),
        (
            "npgpt.train t --optimizer sgd",
            f"npgpt train: argument --optimizer: must be adamw or muon, got sgd {FLAGS}",
        ),
        ("npgpt.tune t", f"npgpt tune: the following arguments are required: --minutes {FLAGS}"),
        ("npgpt dance", f"npgpt: NAME must be one of {NAMES}, got dance"),
        (
            "npgpt.train",
            "npgpt train: TEXT must be given (or --resume --out RUN, or --config FILE with text)",
        ),
        ("npgpt.train t --launch x", "npgpt train: --launch is for --restarts, which is missing"),
        (
            f"npgpt.evaluate {PACKAGE}",
            f"npgpt evaluate: load: path must be a run, a checkpoint or a Hugging Face folder, got {PACKAGE}",
        ),
        ("npgpt.embed", f"npgpt embed: give --cflags, --libs, both, or --source {FLAGS}"),
    ],
)
def test_errors_are_one_english_line_whatever_the_locale(args, line):
    refused = command(*args.split(), LC_ALL="pt_BR.UTF-8")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", line + "\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_portuguese(name):
    helps = command(f"npgpt.{name}", "--help", LANG="pt_BR.UTF-8", COLUMNS="300").stdout
    assert (
        helps.startswith(f"uso: npgpt {name} ")
        and "\nopções:\n" in helps
        and "mostrar esta ajuda e sair" in helps
    )
    in_english = command(f"npgpt.{name}", "--help", LC_ALL="C", COLUMNS="300").stdout
    usages = [re.sub(r"\s+", " ", text.partition("\n\n")[0]) for text in (in_english, helps)]
    assert usages[0].removeprefix("usage: ") == usages[1].removeprefix("uso: "), "the usage is cut"
    english = set(in_english.split("\n"))
    prose = [line for line in helps.split("\n") if "  " in line.strip() and line in english]
    assert not prose, "helps that stayed English"


def test_the_list_of_commands_in_portuguese():
    lists = [command("npgpt", LC_ALL=locale).stdout.splitlines() for locale in ("C", "pt_BR.UTF-8")]
    assert len(lists[0]) == len(lists[1]) == len(COMMANDS) + 2 and not set(lists[0]) & set(lists[1])


@pytest.mark.parametrize("args", ["npgpt", "npgpt.train --help"])
def test_a_console_without_the_characters_is_no_reason_to_die(args):
    shown = command(*args.split(), LANG="pt_BR", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and not shown.stderr
    assert ("experiment?-lo" if args == "npgpt" else "\nop??es:\n") in shown.stdout
