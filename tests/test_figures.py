"""Measured figures stand in generated blocks alone, and each block is what the results make of it."""

import argparse
import datetime
import json
import re
import time
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import blocks, first_hour, output, record, tables
from benchmarks.words_pt import WORDS
from npgpt.engine import kernels

PAGES = [path.relative_to(tables.ROOT).as_posix() for path in tables.pages()]
PROSE = [path.relative_to(tables.ROOT).as_posix() for path in tables.figure_pages()]


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_are_what_the_results_make(name):
    text = (tables.ROOT / name).read_text(encoding="utf-8")
    made = tables.written(text, blocks.Page(tables.ROOT / name))
    assert made == text, f"{name}: run python -m benchmarks.tables"


# ---------------------------------------------------------------------------- no figure outside a block

N = r"(?<![\w.,])[-+~]?\d(?:[\d.,]*\d)?"  # a number that stands by itself: not that of avx2 or of GPT-2
RATES = r"tokens/s|(?:G|T)FLOP/s|[kMG]B/s|bits/byte"
MEASURED = [re.compile(pattern) for pattern in (
    rf"{N}[ \u00a0]?(?:{RATES})",
    rf"{N}[ \u00a0](?:thousand |million |mil )?tokens (?:a|per|each|por) (?:second|segundo)",
    rf"{N}[ \u00a0]?(?:ms|us|[\u00b5\u03bc]s|ns|s)\b(?!/)",
    r"(?<![\w.,])\d+[.,]\d+[ \u00a0](?:seconds|minutes|hours|segundos|minutos|horas)\b",
    rf"{N}[ \u00a0]?(?:x|\u00d7)(?![\w ]*\d)(?!\w)(?! [A-Z]\b)",  # 1.5x, but neither 4 x 64 nor 4 x C
    rf"{N}[ \u00a0](?:times|vezes)\b",
    rf"{N}[ \u00a0](?:bits (?:per|a|por) byte|nats)\b",
    rf"{N}[ \u00a0]?% (?:of|d[oa]) (?:the |this |its )?(?:\w+ )?(?:peak|bandwidth|limit|pico|banda|limite)\b",
    rf"{N}[ \u00a0]?% (?:faster|slower|quicker|more|less|mais|menos)\b",
    r"(?<![\w-])(?:loss|perplexity|accuracy|F1|chrF|BLEU|perda|perplexidade|acurácia):? \d+[.,]\d",
)]  # fmt: skip
HEADING = re.compile(
    rf"(?<![\w/])(?:ms|us|{RATES})(?![\w/])|\bseconds\b|\bsegundos\b|bits (?:per|a|por) byte|\bof peak\b"
)
DECIMAL = re.compile(r"\d[.,]\d|\d%")


def measured(lines: list[str]) -> list[str]:
    """The places in these lines of prose, tables or code that quote a measurement."""
    matches = [(pattern.search(line), line.strip()) for line in lines for pattern in MEASURED]
    found = [f"{match[0]} in {line[:70]!r}" for match, line in matches if match]
    for group in re.split(r"\n\s*\n|^\s*```.*$", "\n".join(lines), flags=re.MULTILINE):
        rows = group.strip("\n").splitlines()
        columns = rows and ("|" in rows[0] or re.search(r"\S {2,}\S", rows[0]))
        if columns and HEADING.search(rows[0]) and any(DECIMAL.search(row) for row in rows[1:]):
            found.append(f"a table with the heading {rows[0].strip()}")
    return found


@pytest.mark.parametrize("name", PROSE)
def test_no_measured_figure_stands_outside_a_block(name):
    found = []
    for asked, lines in tables.parts((tables.ROOT / name).read_text(encoding="utf-8")):
        found += [] if asked else measured([re.sub(r"<!--.*?-->", "", line) for line in lines])
    assert not found, f"{name} quotes measurements outside of generated blocks:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "it writes 217 tokens/s on two cores",
        "about 41 thousand tokens per second",
        "a step takes 24.7 ms",
        "after 0.061 s (p50)",
        "done in 11 s.",
        "took 15.8 minutes",
        "1.79x as fast as PyTorch",
        "foi 1,8 vezes mais rápido",
        "7.2 times as fast",
        "2.514 bits per byte",
        "loss 3.8924 nats per token",
        "accuracy on test: accuracy 0.703",
        "reads 34 GB/s",
        "195.3 GFLOP/s",
        "98.66 MB/s",
        "at 92 % of the measured peak",
        "at 92% of peak",
        "5-22 % slower at 384",
        "step 60/600: loss 1.6291, 33,833 tokens/s, 13 s left",
        "perplexity 50.477",
    ],
)
def test_a_measurement_is_seen(line):
    assert measured([line])


@pytest.mark.parametrize(
    "text",
    [
        "| | ms | MB |\n|---|---|---|\n| npgpt | 24.7 | 76 |",
        "```\n                 ms  GFLOP/s  of peak\nnpgpt          24.7    155.5      69%\n```",
        "| tokenizer | bits per byte |\n|---|---|\n| bytes | 2.583 |",
    ],
)
def test_a_typed_table_is_seen(text):
    assert measured(text.splitlines())


@pytest.mark.parametrize(
    "line",
    [
        "python -m npgpt.train input.txt --minutes 5 --target-loss 1.5",
        "a context of 64 tokens, 8 x 128 tokens a step",
        "4 layers x 128 channels; tiles of 6 x 16; (B, T) is 12 x 64; a matrix of 4 x C",
        "the file has 98 MB",
        "Python 3.11 or newer, GPT-2's shape, avx512vnni, x86-64, manylinux_2_28",
        "a rank that is silent for 30 seconds ends the job; training for 15 minutes",
        "mean cross-entropy in nats; losses in bits per byte",
        'model.generate("O sol", temperature=0.8, top_k=50)',
        "betas=(0.9, 0.95), weight_decay=0.1",
        "within 1e-4 of the reference, 5 % of the tokens",
        "2 of 3 ranks, twice; version 0.2.0; port 8000; exit code 130",
        "tinyshakespeare's 1,115,394 bytes",
    ],
)
def test_what_is_no_measurement_is_free(line):
    assert measured([line]) == []


# ---------------------------------------------------------------------------- the machinery


def test_a_block_is_replaced_and_its_surroundings_stay(tmp_path):
    rows = {"nanogpt": {"seconds": 90.0, "val_loss": 1.88}, "npgpt": [{"seconds": 15.0, "val_loss": 1.87}]}
    write(tmp_path, "nanogpt", rows)
    text = "# Page\n\n<!-- figures: nanogpt -->\nold 1\nold 2\n<!-- /figures -->\n\nafter\n"
    new = tables.written(text, page(tmp_path))
    assert new.startswith("# Page\n\n<!-- figures: nanogpt -->\n| ") and new.endswith(
        "\n<!-- /figures -->\n\nafter\n"
    )
    assert "old" not in new
    assert "| npgpt, seed 0 | 15.0 | 1.8700 | 6.00 |" in new
    assert (
        "Measured 2026-11-29, commit abc1234, a CPU, 2 cores" in new
        and "`python -m benchmarks.nanogpt`" in new
    )
    assert tables.written(new, page(tmp_path)) == new


def test_a_block_inside_a_fence_is_an_example(tmp_path):
    text = "```\n<!-- figures: nanogpt -->\n<!-- /figures -->\n```\n"
    assert tables.written(text, page(tmp_path)) == text


@pytest.mark.parametrize(
    "text, says",
    [
        ("<!-- figures: compare -->\n", "no end"),
        ("<!-- /figures -->\n", "did not begin"),
        ("<!-- figures: compare -->\n<!-- figures: load -->\n<!-- /figures -->\n", "inside"),
        ("<!-- figures: nothing -->\n<!-- /figures -->\n", "no kind"),
    ],
)
def test_what_is_no_block_is_an_error(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        tables.written(text, page(tmp_path))


def test_results_that_are_missing_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks\.compare"):
        tables.block("compare", page(tmp_path))


def test_a_page_in_portuguese_has_portuguese_words(tmp_path):
    write(tmp_path, "nanogpt", {"nanogpt": {"seconds": 9, "val_loss": 2}, "npgpt": []})
    for name in ("README.pt-BR.md", "docs/pt/x.md", "docs/tasks.pt-BR.md"):
        assert "Medido em" in "\n".join(tables.block("nanogpt", page(tmp_path, name)))
    for name in ("README.md", "docs/ptarmigan.md"):
        assert "Measured" in "\n".join(tables.block("nanogpt", page(tmp_path, name)))


def test_every_word_of_the_blocks_has_its_portuguese():
    source = Path(blocks.__file__).read_text(encoding="utf-8")
    words = re.findall(r"""\bt\(\s*("(?:[^"\\]|\\.)*")""", source)
    assert words and {json.loads(word) for word in words} <= set(WORDS)


def test_a_long_output_is_cut_in_its_middle(tmp_path):
    write(tmp_path, "output-x", [{"command": "seq 9", "output": "\n".join("123456789")}])
    assert tables.block("output x first=2 last=1", page(tmp_path))[:6] == [
        "```text",
        "$ seq 9",
        "1",
        "2",
        "...",
        "9",
    ]
    assert tables.block("output x", page(tmp_path))[1:11] == ["$ seq 9", *"123456789"]


def test_one_text_after_some_minutes_is_shown_once_it_was_measured(tmp_path):
    assert tables.block("first-hour", page(tmp_path)) == []
    row = {"steps": 1234, "best_val_loss": 1.5, "bits_per_byte": 2.25, "accuracy@1": 0.375}
    rows = [row | {"minutes": minutes, "sample": " disse que\nnão."} for minutes in (1, 60)]
    write(tmp_path, "first_hour", rows, title="Dom Casmurro", n_bytes=199_980, prompt="Capitu")
    english, portuguese = (
        "\n".join(tables.block("first-hour", page(tmp_path, name))) for name in ("x.md", "pt/x.md")
    )
    assert english.startswith("The first 200 kB of *Dom Casmurro*")
    assert "| 60 | 1,234 | 1.500 | 2.250 | 37.5% |" in english and "Measured 2026-11-29" in english
    assert 'After 60 min it goes on from "Capitu":\n\n```text\nCapitu disse que\nnão.\n```' in english
    assert "Os primeiros 200 kB" in portuguese and "Depois de 60 min" in portuguese


def test_shapes_are_compared_once_they_were_measured(tmp_path):
    assert tables.block("shapes", page(tmp_path)) == []
    row = {"engine": "llama", "parameters": 812_345, "bits_per_byte": 1.25, "apart": 0.015, "steps": 1234.5}
    write(tmp_path, "shapes-machado", [row], text="machado", megabytes=4.93, minutes=3, seeds=3)
    english, portuguese = (
        "\n".join(tables.block("shapes", page(tmp_path, name))) for name in ("x.md", "pt/x.md")
    )
    assert english.startswith("machado, 4.9 MB, 3 minutes each, 3 seeds:")
    assert "| llama | 812,345 | 1,234 | 1.250 | 0.015 |" in english and "Measured 2026-11-29" in english
    assert "3 minutos cada" in portuguese


def test_softmaxes_are_compared_once_they_were_measured(tmp_path):
    assert tables.block("softmax", page(tmp_path)) == []
    row = {"softmax": "sampled", "steps": 1600, "seconds": 61.4, "bits_per_byte": 1.25, "apart": 0.015}
    write(tmp_path, "softmax-machado", [row], text="machado", megabytes=4.93, tokenizer="bpe:8192", seeds=3)
    english, portuguese = (
        "\n".join(tables.block("softmax", page(tmp_path, name))) for name in ("x.md", "pt/x.md")
    )
    assert english.startswith("machado, 4.9 MB, bpe:8192, 3 seeds:")
    assert "| sampled | 1,600 | 61 | 1.250 | 0.015 |" in english and "Measured 2026-11-29" in english
    assert "3 sementes:" in portuguese


def test_the_text_of_the_first_hour_is_whole_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"um\n" + b"x" * 199_990 + b"\n" + b"cortado aqui\n")
    assert first_hour.beginning(tmp_path / "a.txt") == b"um\n" + b"x" * 199_990 + b"\n"


def test_the_four_figures_lead_to_how_they_were_measured():
    lines = tables.block("headline", blocks.Page(tables.ROOT / "README.md"))
    linked = {anchor for line in lines for anchor in re.findall(r"\(docs/benchmarks\.md#([\w-]+)\)", line)}
    there = re.findall(r"^#+ (.+)$", blocks.DETAILS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(linked) == 4 and linked <= set(map(blocks.anchor, there))


@pytest.mark.parametrize("path", sorted(record.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_says_when_where_and_how_it_was_measured(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["name"] == path.stem and found["rows"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["machine"]["cpu"] and found["machine"]["cores"]
    assert re.match(r"python -m benchmarks\.\w+", found["command"])
    if path.stem.startswith("output-"):
        assert path.stem.removeprefix("output-") in output.QUOTES
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work)/", text), "a path of the machine that measured"


def test_a_command_is_shown_without_paths_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("NPGPT_DATA", str(tmp_path / "data"))
    for name in ("data/machado/a.txt", "data/machado/b.txt", "data/x/input.txt", "nanoGPT/train.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    machado = [str(tmp_path / "data" / "machado" / name) for name in ("a.txt", "b.txt")]
    words = [str(tmp_path / "nanoGPT"), *machado, str(tmp_path / "data/x/input.txt"), "--case", "4L x 128"]
    shown = ["nanoGPT", "$NPGPT_DATA/machado/*.txt", "$NPGPT_DATA/x/input.txt", "--case", "'4L x 128'"]
    assert record.arguments([*words, "--save", str(tmp_path), "--no-save"]) == shown
    assert record.arguments(machado[:1]) == ["$NPGPT_DATA/machado/a.txt"]


def page(results: Path, name: str = "docs/x.md") -> blocks.Page:
    return blocks.Page(tables.ROOT / name, results)


def write(folder: Path, name: str, rows, **more) -> None:
    machine = {"cpu": "a CPU", "cores": 2}
    command = f"python -m benchmarks.{name}"
    found = {"name": name, "command": command, "date": "2026-11-29", "commit": "abc1234", "machine": machine}
    record.write(folder / f"{name}.json", {**found, "versions": {}, **more, "rows": rows})


def test_a_benchmark_saves_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "command", lambda: "python -m benchmarks.x --rounds 1")
    parser = argparse.ArgumentParser()
    record.add_flags(parser)
    assert parser.parse_args([]).save == record.FOLDER
    record.save(parser.parse_args(["--no-save"]), "x", [1])
    assert not list(tmp_path.iterdir())
    record.save(parser.parse_args(["--save", str(tmp_path)]), "x", [1], ["pytest"], rounds=1)
    found = record.load("x", tmp_path)
    assert (found["rows"], found["rounds"], found["versions"]["pytest"]) == ([1], 1, pytest.__version__)
    assert (
        found["machine"]["kernels"] == kernels.name() and found["date"] == datetime.date.today().isoformat()
    )


def test_what_is_quoted_is_what_was_printed(monkeypatch, tmp_path):
    quotes = {
        "first": {"seconds": 1, "commands": ["echo one >file; pwd"]},
        "second": {"seconds": 1, "after": "first", "commands": ["cat file; echo two >&2", "echo $LC_ALL"]},
        "broken": {"seconds": 1, "commands": ["echo why; exit 3"]},
    }
    monkeypatch.setattr(output, "QUOTES", quotes)
    session = output.Session(tmp_path)
    second = session.run("second")
    assert [row["output"] for row in second] == ["one\ntwo", "C.UTF-8"]
    assert session.done["first"] == [{"command": "echo one >file; pwd", "output": "."}]
    with pytest.raises(SystemExit, match=r"(?s)ended with 3.*why"):
        session.run("broken")


def test_a_server_is_stopped_after_it_is_quoted(monkeypatch, tmp_path):
    server = "python -u -c 'import time; print(\"at http://x\"); time.sleep(60)' &"
    monkeypatch.setattr(output, "QUOTES", {"serve": {"seconds": 1, "commands": [server, "echo asked"]}})
    began = time.monotonic()
    rows = output.Session(tmp_path).run("serve")
    assert [row["output"] for row in rows] == ["at http://x", "asked"]
    assert time.monotonic() - began < 30


def test_what_all_measures_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("NPGPT_DATA", str(tmp_path))
    plan = everything.plan("nanoGPT", "b7b067b")
    assert all((record.ROOT / "benchmarks" / f"{words[0]}.py").exists() for _, words in plan.values())
    assert set(plan["output"][1][1:]) <= set(output.QUOTES)
    assert sum(seconds for seconds, _ in plan.values()) < 30 * 60
    assert "nanogpt" not in everything.plan(None, None)
