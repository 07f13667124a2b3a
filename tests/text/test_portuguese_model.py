"""The steps of models/pt after the text: what is held out, the build of a tiny model, what it refuses."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import measure as measuring
import pytest
import trials
from corpus import held_out
from corpus.errors import SourceError

import npgpt

ROOT = Path(__file__).parents[2]
PT = ROOT / "models/pt"
SENTENCES = [  # of less than 40 bytes, as what stands in two documents may be
    "Naquela manhã o barco saiu da vila.",
    "A professora abriu a janela da sala.",
    "Os primos jogavam bola na rua.",
]
RECIPE = """\
text = "{digest}"

[train]
engine = "llama"
n_layer = 1
n_head = 2
n_embd = 32
block_size = 16
batch_size = 4
tokenizer = "bpe:700"
softmax = "sampled"
optimizer = "muon"
dropout = 0
steps = 6
eval_every = 3
save_every = 2
"""


def write_text(folder: Path) -> Path:
    """A text of two sources as text.py writes it, of 60 documents and of one."""
    names = ["".join(syllables) for syllables in itertools.product("bcdfglmnprstv", "aeiou", "lmrs", "aeio")]
    found = [
        ("many", f"{n:02}.txt", "\n".join([*SENTENCES[n % 3 :], *[" ".join(names[n::60])] * 2, str(n)]))
        for n in range(60)
    ]
    found.append(("one", "one.txt", "\n".join(f"{n}. {SENTENCES[n % 3]}" for n in range(200))))
    text, rows = b"", ["source\tpath\tlicence\tkind\toffset\tbytes\n"]
    for source, path, document in found:
        rows.append(f"{source}\t{path}\tCC0-1.0\tliterature\t{len(text)}\t{len(document.encode())}\n")
        text += document.encode() + held_out.SEPARATOR
    (folder / "pt.txt").write_bytes(text)
    (folder / "pt.txt.tsv").write_text("".join(rows))
    digest = hashlib.sha256(text).hexdigest()
    (folder / "recipe.toml").write_text(RECIPE.format(digest=digest))
    return folder / "pt.txt"


def build(text: Path, out: Path, *more: object, code: int = 0) -> str:
    """What `build.py` prints, by the recipe beside the text; stderr where it must end with another code."""
    command = [sys.executable, PT / "build.py", "--text", text, "-o", out]
    command += ["--recipe", text.with_name("recipe.toml"), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("NPGPT_CACHE", None)
    done = subprocess.run(map(str, command), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


class TestHeldOut:
    def test_a_fiftieth_of_the_documents_is_in_one_part_alone_and_nothing_is_lost(self, text):
        index = held_out.read_index(text.with_name("pt.txt.tsv"))
        train, held = held_out.split(text.read_bytes(), index)
        read, kept = measuring.documents(train), measuring.documents(held["many"])
        assert len(kept) == 2 and len(read) == 58 + 1
        assert not set(read) & set(kept)
        assert sorted(read + kept)[1:] == sorted(measuring.documents(text.read_bytes())[:-1] + read[-1:])[1:]

    def test_those_with_the_lowest_sha256_of_their_paths_are_held_out(self, text):
        index = held_out.read_index(text.with_name("pt.txt.tsv"))
        _, held = held_out.split(text.read_bytes(), index)
        lowest = sorted((hashlib.sha256(f"{n:02}.txt".encode()).digest(), n) for n in range(60))[:2]
        last_lines = {document.rsplit(b"\n", 1)[-1] for document in measuring.documents(held["many"])}
        assert last_lines == {str(n).encode() for _, n in lowest}

    def test_of_one_document_the_last_whole_lines_are_held_out(self, text):
        index = held_out.read_index(text.with_name("pt.txt.tsv"))
        data = text.read_bytes()
        train, held = held_out.split(data, index)
        (last,) = measuring.documents(held["one"])
        whole = measuring.documents(data)[-1]
        assert measuring.documents(train)[-1] + b"\n" + last == whole
        assert last.startswith(b"196. ") and len(last) >= len(whole) // 50

    def test_of_a_long_document_its_first_lines_are_measured(self):
        line = b"a" * 99 + b"\n"
        assert held_out.first_lines(line * 1000) == (line * (held_out.MEASURED // 100))[:-1]

    def test_a_document_that_is_read_elsewhere_too_is_in_neither_part(self):
        lines = [f"{n} " * 30 for n in range(9)]
        same, odd = "\n".join(lines).encode(), "\n".join(str(n) * 50 for n in range(9)).encode()
        text, index = b"", []
        for source, documents in {
            "again": [same, same],
            "new": [same + b"\n" + odd, odd.upper() + odd[::-1]],
        }.items():
            for n, document in enumerate(documents):
                index.append(held_out.Document(source, f"{n}", len(text), len(document)))
                text += document + held_out.SEPARATOR
        train, held = held_out.split(text, index)
        assert len(measuring.documents(train)) == 2 and "again" not in held

    def test_a_tenth_of_the_longer_lines_may_be_known(self):
        lines = [b"%d" % n * 50 for n in range(10)]
        document = b"\n".join([*lines, b"- Sim, senhor."])
        assert not held_out.repeats(document, {lines[0], b"- Sim, senhor."})
        assert held_out.repeats(document, set(lines[:2]))

    def test_an_index_of_another_text_is_refused(self, text):
        index = held_out.read_index(text.with_name("pt.txt.tsv"))
        for other in (text.read_bytes()[:2000], b"a" + text.read_bytes()):
            with pytest.raises(SourceError, match="of another text"):
                held_out.split(other, index)


class TestBuild:
    def test_one_thread_and_two_threads_with_a_stop_between_give_the_same_bytes(self, text, tmp_path):
        told = build(text, tmp_path / "a", "--threads", 1)
        assert "stopped behind step 3" in build(text, tmp_path / "b", "--threads", 2, "--until", 3)
        assert not (tmp_path / "b/pt.gguf").exists()
        build(text, tmp_path / "b", "--threads", 2)
        model = (tmp_path / "a/pt.gguf").read_bytes()
        assert model == (tmp_path / "b/pt.gguf").read_bytes()
        built = json.loads((tmp_path / "a/build.json").read_text())
        assert built["sha256"] == hashlib.sha256(model).hexdigest() and built["sha256"] in told
        assert built["kernels"] in told and built["train"]["steps"] == 6

    def test_it_writes_and_knows_more_than_chance_and_again_is_the_same(self, text, tmp_path):
        build(text, tmp_path / "a")
        before = (tmp_path / "a/pt.gguf").read_bytes()
        assert isinstance(npgpt.load(tmp_path / "a/pt.gguf").generate("A professora", 5), str)
        assert build(text, tmp_path / "a") and (tmp_path / "a/pt.gguf").read_bytes() == before
        bits = measuring.of_model(str(tmp_path / "a/pt.gguf"), measuring.read_texts(tmp_path / "a"))
        assert {"held-out", "many", "one"} <= set(bits) and 0 < bits["many"] < 8

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda text: text.unlink(), "pt.txt"),
            (lambda text: text.write_bytes(b"another"), "has sha256"),
            (lambda text: text.with_name("pt.txt.tsv").write_text("source\n1\n"), "is no index"),
            (lambda text: text.with_name("recipe.toml").write_text("text = 'x'"), "'train' is missing"),
            (lambda text: text.with_name("recipe.toml").write_text("text = "), "recipe.toml"),
        ],
    )
    def test_bad_input_is_one_line_and_nothing_is_written(self, text, tmp_path, change, told):
        change(text)
        line = build(text, tmp_path / "a", code=2)
        assert line.startswith("build.py: ") and line.count("\n") == 1 and told in line
        assert not (tmp_path / "a").exists()

    def test_a_model_that_would_be_too_large_is_refused_before_it_is_trained(self, text, tmp_path):
        recipe = text.with_name("recipe.toml")
        recipe.write_text(recipe.read_text().replace("n_embd = 32", "n_embd = 2048"))
        assert "MB in q8_0" in build(text, tmp_path / "a", code=2)
        assert not (tmp_path / "a").exists()

    def test_a_folder_of_another_recipe_or_of_something_else_is_left_alone(self, text, tmp_path):
        build(text, tmp_path / "a", "--until", 1)
        recipe = text.with_name("recipe.toml")
        recipe.write_text(recipe.read_text().replace("steps = 6", "steps = 7"))
        assert "another recipe" in build(text, tmp_path / "a", code=2)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/letter.txt").write_text("Querida,")
        assert "not empty" in build(text, tmp_path / "mine", code=2)
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


class TestMeasure:
    def test_a_byte_counts_once_and_the_end_of_a_document_belongs_to_it(self):
        texts = {"a": [b"x" * 9, b"y" * 9], "subtitles": [b"z" * 4]}
        row = measuring.per_byte({"a": 40.0, "subtitles": 10.0}, texts)
        assert row == {"held-out": 2.0, "a": 2.0, "subtitles": 2.0}


class TestTrials:
    def test_each_trial_is_a_recipe_and_has_been_measured(self):
        table = tomllib.loads((PT / "trials.toml").read_text(encoding="utf-8"))
        rows = json.loads((PT / "trials.json").read_text(encoding="utf-8"))
        assert [row["name"] for row in rows] == list(table)
        for row in rows:
            changes = {} if row["name"] == "base" else table[row["name"]]
            assert row["changes"] == changes and row["steps"] == (table["base"] | changes)["steps"]

    @pytest.mark.parametrize("name", trials.HEADS)
    def test_the_table_on_a_page_is_what_trials_json_makes(self, name):
        rows = json.loads((PT / "trials.json").read_text(encoding="utf-8"))
        assert trials.page(name, rows) == (PT / name).read_text(encoding="utf-8")


def test_the_recipe_is_of_the_text_that_is_recorded():
    recipe = tomllib.loads((PT / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["text"] == json.loads((PT / "record.json").read_text(encoding="utf-8"))["text"]["sha256"]
