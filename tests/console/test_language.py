"""The doors speak the locale's language; the catalogues are whole, and say what the source says."""

import gettext
import os
import re
import runpy
import string
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from npgpt.console import language

PACKAGE = Path(npgpt.__file__).parent
MAKE = runpy.run_path(str(PACKAGE / "console" / "locale" / "make.py"))
CATALOGUES = [pytest.param(path, id=path.parts[-3]) for path in MAKE["CATALOGUES"]]
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")


def fields(message: str) -> list:
    """Its fields in {} with their formats, of whatever order; argparse's with %."""
    try:
        named = [(name, form) for _, name, form, _ in string.Formatter().parse(message) if name is not None]
    except ValueError:  # braces that are no fields
        named = []
    return sorted(named) + sorted(re.findall(r"%(?:\(\w+\))?[sr]", message))


@pytest.mark.parametrize("path", CATALOGUES)
def test_a_catalogue_is_whole(path):
    catalogue, needed, there = MAKE["read"](path), MAKE["messages"](), MAKE["strings"]()
    lacking = sorted(message for message in needed if not catalogue.get(message))
    assert not lacking, f"python npgpt/console/locale/make.py, and translate in {path}: {lacking}"
    gone = sorted(message for message in catalogue if message and message not in there)
    assert not gone, f"python npgpt/console/locale/make.py: the source does not say any more {gone}"
    assert path.read_text(encoding="utf-8") == MAKE["written"](catalogue), (
        "python npgpt/console/locale/make.py"
    )
    assert path.with_suffix(".mo").read_bytes() == MAKE["compiled"](catalogue), (
        "python npgpt/console/locale/make.py"
    )


@pytest.mark.parametrize("path", CATALOGUES)
def test_a_translation_has_the_fields_of_its_message(path):
    for message, translation in MAKE["read"](path).items():
        if message:
            assert fields(translation) == fields(message), message
            ends = [
                re.match(r"\s*", text).group() + re.search(r"\s*$", text).group()
                for text in (message, translation)
            ]
            assert ends[0] == ends[1], message


@pytest.fixture
def locale(monkeypatch):
    """locale(LC_ALL="pt_BR.UTF-8"): the doors speak as these variables say, until the test ends."""

    def set_to(**variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        language.set_language()

    before = gettext.textdomain()
    language._templates.cache_clear()
    yield set_to
    gettext.textdomain(before)
    language._templates.cache_clear()


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
    assert (
        language.told("a: must be TOML, got b")
        == f"a: {'deve ser TOML; veio' if portuguese else 'must be TOML, got'} b"
    )


def test_nothing_but_english_before_a_door_asks():
    code = "import npgpt.console.language as l; print(l._('it writes:'), l.told('the loss is nan'))"
    environment = os.environ | {"LC_ALL": "pt_BR.UTF-8", "PYTHONPATH": str(PACKAGE.parent)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.stdout == "it writes: the loss is nan\n"


def test_what_is_raised_is_told_with_its_values(locale):
    """Each message with values is recognised, whatever else it looks like."""
    locale(LC_ALL="pt_BR.UTF-8")
    for message, translation in MAKE["read"](MAKE["CATALOGUES"][0]).items():
        if re.search(r"\{\d\}", message):
            values = [f"v{n}/w" for n in range(8)]
            assert language.told(message.format(*values)) == translation.format(*values)


def test_values_are_told_where_they_are_messages_and_kept_where_they_are_not(locale):
    locale(LANG="pt_BR.UTF-8")
    assert (
        language.told("t: must hold text, got an empty file") == "t: deve conter texto; veio um arquivo vazio"
    )
    line = "d.jsonl: line 3: label must be text that is not empty, got 'no limit is known or done'"
    told = "d.jsonl: linha 3: label deve ser texto não vazio; veio 'no limit is known or done'"
    assert language.told(line) == told
    line = "d.jsonl: line 3: must be JSON, as {...}, got done"
    assert language.told(line) == "d.jsonl: linha 3: deve ser JSON, como {...}; veio done"
    assert language.told("x needs y: 'a is missing'") == "x needs y: 'a is missing'"
    assert language.told("what nobody ever said") == "what nobody ever said"


def door(*args, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUTF8": "1"} | variables
    command = [sys.executable, "-m", *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_a_door_speaks_portuguese(tmp_path):
    text = tmp_path / "t.txt"
    text.write_bytes(b"abc abd abe " * 40)
    flags = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --steps 2 --json".split()
    both = [
        door("npgpt.train", text, *flags, "--out", tmp_path / locale, LC_ALL=locale)
        for locale in ("C", "pt_BR.UTF-8")
    ]
    english, portuguese = (run.stdout.splitlines() for run in both)
    assert [run.stderr for run in both] == ["", ""]
    assert "tokenizer: bytes, 257 tokens, 1.00 bytes in one" in english
    assert "tokenizador: bytes, 257 tokens, 1.00 bytes em cada um" in portuguese
    assert any(line.startswith("passo 2/2: perda ") for line in portuguese)
    assert any(line.startswith("concluído após 2 passos, ") for line in portuguese)
    assert re.sub(r"C|pt_BR.UTF-8|[\d.]+", "", english[-1]) == re.sub(
        r"C|pt_BR.UTF-8|[\d.]+", "", portuguese[-1]
    )


FLAGS = "(--help lista as opções)"
DOORS = "train, tune, evaluate, generate, finetune, chat, serve, export, embed, bench"


@pytest.mark.parametrize(
    "args, line",
    [
        ("npgpt.train none.txt", "npgpt train: none.txt: Arquivo ou pasta não existe"),
        (
            "npgpt.train t --steps 0",
            f"npgpt train: argumento --steps: deve ser um número inteiro, no mínimo 1; veio 0 {FLAGS}",
        ),
        (
            "npgpt.train t --optimizer sgd",
            f"npgpt train: argumento --optimizer: deve ser adamw ou muon; veio sgd {FLAGS}",
        ),
        ("npgpt.tune t", f"npgpt tune: faltam os argumentos: --minutes {FLAGS}"),
        ("npgpt dance", f"npgpt: NAME deve ser um de {DOORS}; veio dance"),
    ],
)
def test_errors_in_portuguese(args, line):
    refused = door(*args.split(), LC_ALL="pt_BR.UTF-8")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", line + "\n")


def test_help_in_portuguese():
    helps = door("npgpt.train", "--help", LANG="pt_BR.UTF-8").stdout
    assert (
        helps.startswith("uso: npgpt train ")
        and "\nopções:\n" in helps
        and "mostrar esta ajuda e sair" in helps
    )
    english = set(door("npgpt.train", "--help", LC_ALL="C").stdout.split("\n"))
    prose = [line for line in helps.split("\n") if "  " in line.strip() and line in english]
    assert not prose, "helps that stayed English"


def test_a_console_without_the_characters_is_no_reason_to_die():
    refused = door("npgpt.train", "none.txt", LANG="pt_BR", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert (
        refused.returncode == 2 and refused.stderr == "npgpt train: none.txt: Arquivo ou pasta n?o existe\n"
    )
