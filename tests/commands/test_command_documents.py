"""Documents from files to a run: duplicates are left out and told, and runs of before stay as they were."""

import json
import re
from pathlib import Path

import pytest

from npgpt.training.influence import influence
from npgpt.training.where import where
from tests.commands.helpers import FLAGS, TINY, nothing_written, refused, stopped, weights

SAID = [f"A maré {n} subiu {n * n} vezes até o porto {n * 7}, e o barco {n} partiu." for n in range(40)]
REPEATED = [SAID[3], SAID[5].upper(), SAID[3], f"{SAID[7]}!!"]


@pytest.fixture
def records():
    lines = [
        json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in SAID[:30] + REPEATED + SAID[30:]
    ]
    Path("said.jsonl").write_text("".join(lines), encoding="utf-8")
    return "said.jsonl"


def test_prepare_leaves_duplicates_out_and_shows_them(command, records):
    code, out, err = command("prepare", records, "-o", "clean.jsonl", "--json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[2:] and "duplicates left out: 2 exact and 2 near ones; 40 documents are left" in out
    assert f"  said.jsonl:31 repeats said.jsonl:4: {SAID[3][:57]!r}"[:60] in out
    assert re.search(
        r"^  said\.jsonl:32 is near to said\.jsonl:6: 'A MARÉ 5 .*', 'A maré 5 .*'$", out, re.MULTILINE
    )
    result = json.loads(lines[-1])
    assert (result["documents"], result["duplicates"]) == (40, {"exact": 2, "near": 2})
    kept = [json.loads(line)["text"] for line in Path("clean.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == SAID and result["bytes"] == sum(len(text.encode()) for text in SAID)
    for how, n in (("none", 44), ("all", 40)):
        assert command("prepare", records, "-o", "other.txt", "--dedupe", how)[0] == 0
        assert Path("other.txt").read_text(encoding="utf-8").count("<|endoftext|>") == n - 1
    assert command("prepare", "other.txt", "-o", "third.txt")[0] == 0  # of plain text nothing is left out
    assert Path("third.txt").read_bytes() == Path("other.txt").read_bytes()
    refused(
        command("prepare", records, "-o", "b.txt", "--dedupe", "most"),
        "must be records or all or none, got most",
    )


def test_a_run_keeps_documents_apart_and_knows_their_places(command, records):
    code, out, _err = command("train", records, *FLAGS, "--out", "run")
    assert code == 0 and "duplicates left out: 2 exact and 2 near ones" in out
    config = Path("run/config.toml").read_text()
    assert 'dedupe = "records"' in config and 'documents = "apart"' in config
    counts = re.search(r"tokens: ([\d,]+) for training, ([\d,]+) for validation, ([\d,]+) for", out)
    counts = [int(count.replace(",", "")) for count in counts.groups()]
    sizes = [len(text.encode()) + 1 for text in SAID]
    assert counts == [sum(sizes[:28]), sum(sizes[28:36]), sum(sizes[36:])]
    assert f"measured on the test part of its text: {sum(sizes[36:])} tokens" in command("evaluate", "run")[1]
    # the line of the file, whatever was left out before it
    (found,) = where("run", SAID[25]).training
    assert (found.line, found.text) == (26, SAID[25])
    assert (
        where("run", SAID[33].split(",")[0]).training[0].text != SAID[33].split(",")[0]
    )  # is for validation
    for lesson in influence("run", "A maré", n=3).lessons:
        line = Path(records).read_text(encoding="utf-8").splitlines()[lesson.line - 1]
        begin = lesson.text.split("<|endoftext|>")[0][:5].lstrip("\ufffd")
        assert begin in json.loads(line)["text"], lesson


def test_a_run_of_several_documents_resumes_to_the_same_bits(command, records, monkeypatch):
    assert command("train", records, *FLAGS, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 4)
        assert command("train", records, *FLAGS, "--out", "run")[0] == 130
    assert command("train", "--resume", "--out", "run")[0] == 0
    assert weights("run") == weights("whole")
    for flag, value in (("--documents", "joined"), ("--dedupe", "none")):
        assert command("train", records, *FLAGS, "--out", f"run{flag}", flag, value)[0] == 0
        assert weights(f"run{flag}") != weights("whole")
        code, _out, err = command("train", "--resume", "--out", "run", flag, value)
        assert code == 2 and flag[2:] in err


def test_runs_without_these_settings_stay_as_they_were(command, records, monkeypatch):
    """Their windows read across documents, and they learnt all records."""
    old = ("--documents", "joined", "--dedupe", "none")
    assert command("train", records, *FLAGS, *old, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 4)
        assert command("train", records, *FLAGS, *old, "--out", "run")[0] == 130
    for run in ("run", "whole"):
        config = Path(run, "config.toml")
        config.write_text(re.sub(r'(dedupe|documents) = ".*"\n', "", config.read_text()))
    assert command("train", "--resume", "--out", "run")[0] == 0
    assert weights("run") == weights("whole")
    measured = [
        json.loads(command("evaluate", run, "--json")[1].splitlines()[-1]) for run in ("run", "whole")
    ]
    assert measured[0]["loss"] == measured[1]["loss"]
    n = sum(len(text.encode()) + 1 for text in SAID + REPEATED)
    assert measured[0]["tokens"] == n - round(0.9 * n)


def test_texts_that_are_given_are_measured_document_by_document(command, records):
    """As a whole: of a text nothing is left out where it is measured."""
    assert command("train", records, *TINY, "--steps", 3, "--split", "1", "--out", "run")[0] == 0
    Path("one.jsonl").write_text(json.dumps({"text": SAID[1]}), encoding="utf-8")
    Path("twice.jsonl").write_text((json.dumps({"text": SAID[1]}) + "\n") * 2, encoding="utf-8")
    assert command("export", "run", "--to", "hf", "-o", "hf")[0] == 0
    found = {}
    for name in ("one", "twice"):
        for model in ("run", "hf"):
            code, out, _err = command("evaluate", model, f"{name}.jsonl", "--json")
            assert code == 0
            result = json.loads(out.splitlines()[-1])
            found[name, model] = result["loss"]
            assert result["tokens"] == (len(SAID[1].encode()) + 1) * (2 if name == "twice" else 1)
    assert found["one", "run"] == pytest.approx(found["one", "hf"], rel=1e-6)
    assert found["twice", "run"] == pytest.approx(found["twice", "hf"], rel=1e-6)


def test_bad_values_are_refused_and_nothing_is_written(command, records):
    refused(command("train", records, "--documents", "mixed"), "must be apart or joined, got mixed")
    refused(
        command("tune", records, "--minutes", 1, "--dedupe", "yes"), "must be records or all or none, got yes"
    )
    assert nothing_written("said.jsonl")
