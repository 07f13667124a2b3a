"""A file of a run that somebody touched is read or refused by name; nothing of it is thrown away."""

from pathlib import Path

import pytest

import npgpt
from tests.commands.helpers import FLAGS, refused, stopped, weights


@pytest.fixture
def half(command, text, monkeypatch):
    """A run that was interrupted after 5 of 9 steps."""
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", text, *FLAGS, "--out", "r")[0] == 130
    return Path("r")


def files(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}


def put(line):
    """A change of a file: this line at the place of its second."""
    return lambda data: data.replace(data.split(b"\n")[1], line)


def reordered(data):
    return b"\n".join(b",".join(reversed(line.split(b","))) for line in data.split(b"\n"))


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            "metrics.csv",
            put(b"1;0,5;64;5,5"),
            "metrics.csv: line 2 must be what a run writes for a step after 0",
        ),
        ("metrics.csv", put(b"a note"), "metrics.csv: line 2 must be"),
        ("metrics.csv", lambda data: data + b"a note\n", "metrics.csv: line 7 must be"),
        ("metrics.csv", reordered, "metrics.csv: line 1 must be step,epoch,"),
        ("metrics.csv", lambda data: data.replace(b"\n", b",mine\n"), "metrics.csv: line 1 must be"),
        ("metrics.csv", lambda data: data.split(b"\n", 1)[1], "metrics.csv: line 1 must be"),
        ("metrics.csv", lambda data: data + data.split(b"\n")[1] + b"\n", "for a step after 5, got '1,"),
        ("metrics.csv", lambda data: data.replace(b"e", b"\xe9"), "metrics.csv: line 1 must be"),
        ("samples.jsonl", lambda data: b"{}\n" + data, "samples.jsonl: line 1 must be"),
        ("samples.jsonl", lambda data: b"[" * 99999 + b"\n" + data, "samples.jsonl: line 1 must be"),
        ("config.toml", lambda data: b"text = 1\n" + data.replace(b"text =", b"#"), "text must be a list"),
        ("config.toml", lambda data: b"a = " + b"[" * 99999 + data, "config.toml: must be TOML"),
        ("schedule.json", lambda data: b"[]", "schedule.json: must hold [[step, progress, last step], ...]"),
        ("schedule.json", lambda data: b"[" * 99999, "schedule.json: must hold"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(command, half, name, change, message):
    path = half / name
    path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    before = files(half)
    refused(command("train", "--resume", "--out", half), message)
    assert files(half) == before


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl", "config.toml"])
def test_what_editors_do_to_every_file_is_read(command, text, half, name):
    assert command("train", text, *FLAGS, "--out", "whole")[0] == 0
    path = half / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    code, _, err = command("train", "--resume", "--out", half)
    assert (code, err) == (0, "") and weights(half) == weights("whole")
    if name == "metrics.csv":
        written, expected = ((Path(run) / name).read_text() for run in (half, "whole"))
        assert [row.split(",")[:7] for row in written.split()] == [
            row.split(",")[:7] for row in expected.split()
        ]


def test_a_last_line_whose_end_an_editor_took_is_kept_and_a_torn_one_is_cut(command, half):
    path = half / "metrics.csv"
    rows = path.read_bytes()
    path.write_bytes(rows.rstrip(b"\n"))
    assert command("train", "--resume", "--out", half)[0] == 0
    assert path.read_bytes().startswith(rows) and path.read_text().count("\n") == 10


def test_what_a_power_cut_leaves_is_cut(command, half):
    path = half / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"\0" * 50 + b"\n7,1.5\n8,")
    assert command("train", "--resume", "--out", half)[0] == 0
    assert path.read_text().count("\n") == 10


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl"])
def test_the_report_stays_where_its_source_cannot_be_read(command, run, name):
    page = (run / "report.html").read_bytes()
    (run / name).write_bytes(b"a note\n" + (run / name).read_bytes())
    code, out, err = command("evaluate", run)
    assert code == 0 and "bits per byte" in out and (run / "test.json").exists()
    assert err.count("\n") == 1 and f"{name}: line 1 must be" in err and "report.html stays as it is" in err
    assert (run / "report.html").read_bytes() == page


def test_a_pointer_that_names_no_checkpoint_is_told(command, half):
    (half / "BEST").write_text("step-000999\n")
    with pytest.warns(UserWarning, match="r/BEST: must name a checkpoint that is there; passed over"):
        npgpt.load(half)
