"""`npgpt bench`: what it measures and writes, two of its files side by side, the cost of published sizes."""

import json

import numpy as np
import pytest

from npgpt.engine import kernels
from npgpt.measure import machine, peers
from npgpt.measure.contender import Contender
from npgpt.measure.report import compare, typical


def test_bench_tells_the_cost_of_the_published_sizes(command):
    code, out, _ = command("bench", "--presets", "--json")
    costs = json.loads(out.splitlines()[-1])
    assert code == 0 and costs["gpt2"]["parameters"] == 124_439_808 and "gpt3-175b" in out
    compiled = kernels.name() != "numpy"
    assert all((c["step_seconds"] is not None) == compiled for c in costs.values())


def test_bench_writes_every_sample(command, tmp_path):
    file = tmp_path / "here.json"
    code, out, err = command(
        "bench", "--only", "products", "--turns", 2, "--out", file, "--json", "--threads", 1
    )
    assert code == 0, err
    content = json.loads(file.read_text())
    assert content == json.loads(out.splitlines()[-1])
    assert content["machine"] == {**machine.machine(), "threads": 1} and content["turns"] == 2
    assert content["versions"] == machine.versions(content["versions"])
    assert [row["case"] for row in content["rows"]] == list(peers.PARTS["products"].cases)
    compiled = kernels.name() != "numpy"
    for row in content["rows"]:
        assert row["measure"] == "GFLOP/s" and list(row["samples"]) == ["npgpt", "NumPy"]
        for turns in row["samples"].values():
            assert len(turns) == 2 and all(sample > 0 for turn in turns for sample in turn)
        assert (row["share_of_peak"] is not None) == compiled
        assert row["case"] in out
    assert len(content["limits"]["GFLOP/s"]) == 2 * len(content["rows"]) * compiled
    assert [p.name for p in tmp_path.iterdir() if "json" in p.name] == ["here.json"]


def test_bench_overwrites_nothing(command, tmp_path):
    (tmp_path / "here.json").write_text("mine")
    for file, said in (
        (tmp_path / "here.json", "is there already"),
        (tmp_path / "no" / "a.json", "No such folder"),
    ):
        code, out, err = command("bench", "--out", file)
        assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1
    assert (tmp_path / "here.json").read_text() == "mine"


def content(**samples):
    """What bench writes, with these samples of one contender."""
    parts = {"GFLOP/s": "products", "ms to the first token": "serving"}
    rows = [
        {
            "part": parts[what],
            "case": "one",
            "measure": what,
            "samples": {"npgpt": turns},
            "share_of_peak": None,
        }
        for what, turns in samples.items()
    ]
    return {
        "npgpt.bench": 1,
        "date": "2026-01-01",
        "commit": None,
        "machine": {"cpu": "one", "kernels": "avx2", "threads": 2},
        "versions": {"npgpt": "1"},
        "limits": {"GFLOP/s": [[100.0]] * 3},
        "rows": rows,
    }


def test_compare_says_how_many_times_better_and_how_sure(rng):
    noise = 1 + 0.1 * rng.standard_normal((2, 40, 5))
    first = content(
        **{"GFLOP/s": (10 * noise[0]).tolist(), "ms to the first token": (30 * noise[1]).tolist()}
    )
    second = content(
        **{"GFLOP/s": (15 * noise[1]).tolist(), "ms to the first token": (30 * noise[0]).tolist()}
    )
    limits, products, serving = compare(first, second)
    assert (limits.part, limits.ratio, limits.low, limits.high) == ("limits", 1, 1, 1)
    assert products.ratio == pytest.approx(1.5, rel=0.05) and products.low < products.ratio < products.high
    assert products.low > 1.3 and products.high < 1.7
    # of milliseconds fewer are better
    for line, a, b in ((products, first, second), (serving, second, first)):
        row = [r for r in (a["rows"], b["rows"])]
        medians = [typical(rows[line is serving]["samples"]["npgpt"]) for rows in row]
        assert line.ratio == pytest.approx(medians[1] / medians[0])
    same = compare(first, first)
    assert all(line.ratio == 1 and line.low <= 1 <= line.high for line in same)
    del second["rows"][0]["samples"]["npgpt"]
    assert [line.part for line in compare(first, second)] == ["limits", "serving"]


def test_the_interval_comes_from_turns_and_not_from_samples_within_them(rng):
    """A thousand samples of two turns, of which one is slow, leave the ratio open."""
    turns = [
        (1 + 0.001 * rng.standard_normal(1000)).tolist(),
        (2 + 0.001 * rng.standard_normal(1000)).tolist(),
    ]
    line = compare(content(**{"GFLOP/s": turns}), content(**{"GFLOP/s": turns}))[1]
    assert line.low == pytest.approx(0.5, rel=0.01) and line.high == pytest.approx(2, rel=0.01)


def test_compare_reads_files_and_printed_lines(command, tmp_path):
    a, b, other = (tmp_path / name for name in ("a.json", "b.txt", "other.json"))
    a.write_text(json.dumps(content(**{"GFLOP/s": [[10.0], [10.0]]}), indent=1))
    b.write_text("running on avx2 kernels\n" + json.dumps(content(**{"GFLOP/s": [[20.0], [20.0]]})) + "\n")
    code, out, _ = command("bench", "compare", a, b, "--json")
    lines = json.loads(out.splitlines()[-1])
    assert code == 0 and "2.00 [2.00, 2.00]" in out
    assert [(line["case"], line["ratio"]) for line in lines] == [("", 1), ("one", 2)]
    for text in ("{}", "no JSON", json.dumps({"npgpt.bench": 0})):
        other.write_text(text)
        code, out, err = command("bench", "compare", a, other)
        assert (code, out) == (2, "") and "other.json: must be a file that bench wrote" in err
    code, _, err = command("bench", "compare", a, tmp_path / "none.json")
    assert code == 2 and "none.json" in err


def test_a_contender_that_ends_leaves_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "talking.py").write_text(
        "import os, sys\nfrom npgpt.measure.contender import answer\n"
        "def reply(line):\n"
        "    print('a library talks'); os.write(1, b'and so does C')\n"
        "    if line == 'end': raise ValueError('the end')\n"
        "    return [line]\n"
        "answer(reply)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{machine.ROOT}")
    contender = Contender("talking")
    assert contender.ask("one") == ["one"] and contender.ask("two") == ["two"]
    with pytest.raises(RuntimeError, match="ended with exit code 1: ValueError: the end"):
        contender.ask("end")
    contender.close()


def test_what_cannot_be_measured_is_said(command, monkeypatch):
    monkeypatch.setattr(peers, "_installed", lambda package: package == "numpy")
    code, _, err = command("bench", "--only", "serving", "--turns", 1)
    assert code == 0 and "serving is not measured: " in err and "starlette, uvicorn" in err


def test_a_median_of_turns():
    assert typical([[1.0], [2.0, 4.0, 100.0], [5.0]]) == 4
    assert np.isnan(typical([[np.nan]]))
