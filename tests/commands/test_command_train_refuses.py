"""`npgpt train` refuses bad input before it writes anything; a plan needs the memory that it announces."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.helpers import ROOT, TINY, nothing_written, python, refused, stopped, weights


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "must hold text, got an empty file"),
        (b" \n", "only whitespace"),
        (b"a", "at least 2 tokens, got 1"),
    ],
)
def test_text_with_too_little_in_it(command, content, message):
    Path("t").write_bytes(content)
    refused(command("train", "t"), message)
    assert nothing_written("t")


@pytest.mark.parametrize(
    "path, message",
    [
        ("missing.txt", "missing.txt: No such file or directory"),
        (".", "must be a file or a folder with .txt, .jsonl, "),
        (
            "/proc/self/mem",
            "/proc/self/mem: Input/output error",
        ),  # opens, but cannot be read, not even by root
    ],
)
def test_text_that_cannot_be_read(command, path, message):
    refused(command("train", path), message)
    assert nothing_written()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--n-embd 130 --n-head 4", "n_embd must be a multiple of n_head (4), got 130"),
        ("--n-embd 0", "--n-embd: must be a whole number, at least 1, got 0"),
        ("--n-layer -1", "--n-layer: must be"),
        ("--n-head 0", "--n-head: must be"),
        ("--block-size 0", "--block-size: must be"),
        ("--batch-size -4", "--batch-size: must be"),
        ("--batch-size 1.5", "got 1.5"),
        ("--steps 0", "--steps: must be"),
        ("--epochs -1", "--epochs: must be"),
        ("--lr 0", "--lr: must be a number above 0, got 0"),
        ("--lr nan", "--lr: must be"),
        ("--lr inf", "--lr: must be"),
        ("--dropout 1", "--dropout: must be"),
        ("--weight-decay -1", "--weight-decay: must be"),
        ("--eval-every 0", "--eval-every: must be"),
        ("--keep 0", "--keep: must be"),
        ("--threads 0", "--threads: must be"),
        ("--seed -1", "--seed: must be"),
        ("--split 0.5,0.6", "split must be"),
        ("--clean hard", "must be none or light or full, got hard"),
        ("--optimizer sgd", "must be adamw or muon, got sgd"),
        ("--tokenizer bpe:100", "bpe: vocab_size must be a whole number, at least 257"),
        ("--tokenizer bpe:4096", "bpe:4096: the text has pairs for at most"),
        ("--tokenizer text.txt", "text.txt: holds no tokenizer"),
        ("--tokenizer words", "must be bytes, bpe:N or the path of a vocabulary, got words"),
        ("--epochs 1 --steps 1", "--epochs and --steps cannot both be given"),
        ("--minutes 1 --steps 1", "--steps and --minutes cannot both be given"),
        ("--minutes 0", "--minutes: must be a number above 0, at most a million, got 0"),
        ("--patience 0", "--patience: must be"),
        ("--gradient-accumulation-steps 0", "--gradient-accumulation-steps: must be"),
        ("--schedule steps", "must be linear or cosine or constant, got steps"),
        ("--init-from no/such/run", "no/such/run: No such file or directory"),
        ("--resume --out text.txt", "Not a directory"),
        ("--config none.toml", "none.toml: No such file or directory"),
        ("--no-such-flag", "there is no flag --no-such-flag"),
        ("--n-embd 40000000", "not enough memory"),
        ("--out /proc/run", "/proc/run"),
        ("--out text.txt/run", "Not a directory"),
        ("--out text.txt", "exists already"),
        ("--out .", "exists already"),
    ],
)
def test_bad_flags(command, text, flags, message):
    refused(command("train", text, *flags.split()), message)
    assert nothing_written("text.txt")


@pytest.mark.parametrize(
    "toml, message",
    [
        ("n_embd = 0", "bad.toml: n_embd must be a whole number, at least 1, got 0"),
        ("n_embed = 64", "n_embed is not a setting; did you mean n_embd?"),
        ("n_embd = ", "bad.toml: must be TOML"),
        ("a = " + 9999 * "[", "bad.toml: must be TOML, got tables or lists nested too deeply"),
        ("minutes = 1e308", "bad.toml: minutes must be a number above 0, at most a million, got 1e+308"),
        ("lr = nan", "bad.toml: lr must be a number above 0, got nan"),
    ],
)
def test_bad_config_files(command, text, toml, message):
    Path("bad.toml").write_text(toml)
    refused(command("train", text, "--config", "bad.toml"), message)
    assert nothing_written("text.txt", "bad.toml")


def test_bad_variables(command, text, monkeypatch):
    monkeypatch.setenv("NPGPT_BATCH_SIZE", "many")
    refused(command("train", text), "NPGPT_BATCH_SIZE must be a whole number, at least 1, got many")


def test_a_run_that_exists_is_not_touched(command, run):
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    refused(command("train", "text.txt", "--out", run), "run: exists already")
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


def limited(bytes_of_addresses):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (bytes_of_addresses, bytes_of_addresses))

    return limit


def test_a_plan_that_does_not_fit_is_refused_with_one_that_would():
    text = Path("text.txt")
    text.write_bytes(b"abc abd abe " * 20000)
    flags = "--n-layer 2 --n-embd 64 --block-size 256 --batch-size 512 --steps 1 --out r".split()
    process = python("npgpt.train", text, *flags, preexec_fn=limited(900 << 20))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and err.count("\n") == 1, err
    assert "not enough memory: this plan needs " in err and "(ulimit -v)" in err
    advice = re.search(r"; (--batch-size \d+ --gradient-accumulation-steps \d+) would fit", err)[1].split()
    assert int(advice[1]) * int(advice[3]) == 512
    assert nothing_written("text.txt")
    process = python("npgpt.train", text, *flags, *advice, preexec_fn=limited(900 << 20))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err


@pytest.mark.parametrize(
    "flags", ["", "--n-layer 4 --n-embd 256 --block-size 256 --batch-size 8 --gradient-accumulation-steps 2"]
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_what_was_announced(flags, optimizer):
    """The peak over the whole process is within 25 % of the announcement."""
    announced = (
        "import re, sys; from npgpt import train; code = train.main(sys.argv[1:])\n"
        "peak = re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]\n"
        "print('peak', 1024 * int(peak)); sys.exit(code)"
    )
    Path("text.txt").write_bytes(b"abc abd abe " * 2000)
    flags = [*flags.split(), "--steps", "3", "--optimizer", optimizer]
    command = [sys.executable, "-c", announced, "text.txt", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = 1e6 * float(re.search(r"expected: ([\d,]+) MB", done.stdout)[1])
    peak = int(done.stdout.splitlines()[-1].split()[1])
    assert 0.8 <= peak / expected <= 1.25, f"the peak was {peak / expected:.2f} times the memory announced"


def test_what_is_no_text_is_refused_and_taken_as_bytes(command):
    Path("report.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 2)
    way_out = (
        "report.png: must be text, got a PNG picture; first: tesseract report.png report (--encoding bytes "
    )
    refused(command("train", "report.png", "--tokenizer", "bpe:300"), way_out)
    refused(command("tune", "report.png", "--minutes", 1), way_out)
    assert nothing_written("report.png")
    flags = "--encoding", "bytes"
    refused(
        command("train", "report.png", *flags, "--clean", "light"), "clean must be none where the encoding is"
    )
    code, out, err = command("train", "report.png", *TINY, "--steps", 3, "--out", "r", *flags)
    assert code == 0 and err == "" and "cleaning (none) changed nothing" in out
    config = Path("r/config.toml").read_text()
    assert 'encoding = "bytes"' in config and 'clean = "none"' in config
    own, given = (command("evaluate", "r", *text, "--json") for text in ([], ["report.png"]))
    assert own[0] == given[0] == 0 and own[2] == given[2] == ""
    assert json.loads(own[1].splitlines()[-1])["loss"] == json.loads(given[1].splitlines()[-1])["loss"]
    refused(command("evaluate", "r", "report.png", "--encoding", "utf-8"), way_out)
    for flag in ("encoding", "field"):
        refused(command("evaluate", "r", f"--{flag}", "utf-8"), f"--{flag} is of TEXT, which must be given")
    again = command("train", "report.png", *TINY, "--steps", 3, "--out", "s", "--config", "r/config.toml")
    assert again[0] == 0 and weights("r") == weights("s")
    assert command("train", "report.png", *TINY, "--steps", 3, "--out", "r", "--resume")[0] == 0
    refused(
        command("train", "report.png", "--out", "r", "--resume", "--encoding", "utf-8"),
        "encoding is bytes in this run",
    )


def test_another_encoding_is_converted_or_a_question(command):
    Path("t.txt").write_bytes("Não há ação. ".encode("latin-1") * 20)
    Path("few.txt").write_bytes("Não há ação. ".encode("latin-1"))
    flags = [*TINY, "--steps", 2]
    code, out, err = command("train", "t.txt", *flags, "--out", "r")
    assert code == 0 and err == "" and "files read as text, windows-1252: 1; documents in them: 1" in out
    assert "read as text, windows-1252" in command("prepare", "t.txt", "-o", "u.txt")[1]
    assert Path("u.txt").read_text(encoding="utf-8") == "Não há ação. " * 20 + "\n"
    assert command("evaluate", "r", "t.txt")[0] == 0
    says = "few.txt: is not UTF-8, and its encoding is not sure; give --encoding windows-1252, "
    refused(command("train", "few.txt", *flags, "--out", "s"), says)
    refused(command("train", "few.txt", "--encoding", "nonsense"), "must be auto, bytes, or an encoding as ")
    assert nothing_written("t.txt", "few.txt", "r", "u.txt")
    assert command("train", "few.txt", *flags, "--out", "s", "--encoding", "latin-1")[0] == 0
    assert 'encoding = "latin-1"' in Path("s/config.toml").read_text()
    assert command("train", "--resume", "--out", "s", "--steps", 3)[0] == 0
    code, _, err = command("train", "t.txt", *flags, "--out", "b", "--encoding", "utf-8")
    kept = "kept byte for byte, as it is not UTF-8, likely ISO-8859-1; iconv -f ISO-8859-1 -t UTF-8 t.txt > "
    assert code == 0 and err.startswith(f"warning: t.txt: {kept}") and err.count("\n") == 1


def test_records_are_read_by_their_field_and_read_again(command):
    Path("t.jsonl").write_text(
        "".join(f'{{"title": "t", "body": "story {i} of some words"}}\n' for i in range(30))
    )
    flags = [*TINY, "--steps", 2, "--out", "r"]
    refused(
        command("train", "t.jsonl", *flags),
        "t.jsonl: line 1: has no 'text'; give --field, one of: title, body",
    )
    assert nothing_written("t.jsonl")
    assert command("train", "t.jsonl", *flags, "--field", "body")[0] == 0
    for again in (("train", "--resume", "--out", "r", "--steps", 3), ("evaluate", "r")):
        assert command(*again)[0] == 0
    assert command("evaluate", "r", "t.jsonl", "--field", "title")[0] == 0
    code, out, _ = command("explain", "r", "ry 7 of some", "--where")
    assert code == 0 and "t.jsonl" in out and "8" in out
    Path("bad.jsonl").write_text('{"text": "one"}\n[]\n{"text": ""}\n{"text": "two"}\n')
    refused(
        command("prepare", "bad.jsonl", "-o", "o.txt"), "bad.jsonl: line 2: must be an object or a string"
    )
    refused(command("prepare", "bad.jsonl", "-o", "o.csv"), "-o: must be a file that ends in .txt or .jsonl")
    refused(
        command("prepare", "bad.jsonl", "-o", "bad.jsonl", "--skip-bad"),
        "-o: must not be a file that is read",
    )
    code, out, _ = command("prepare", "bad.jsonl", "-o", "o.txt", "--skip-bad", "--json")
    assert code == 0 and Path("o.txt").read_text() == "one\n<|endoftext|>\ntwo\n"
    (file,) = json.loads(out.splitlines()[-1])["files"]
    assert file["documents"] == 2
    assert file["left_out"] == {"bad records left out": 1, "records without text left out": 1}
    assert command("prepare", "o.txt", "-o", "o.jsonl")[0] == 0
    assert Path("o.jsonl").read_text() == '{"text": "one\\n"}\n{"text": "two\\n"}\n'


def test_a_run_of_0_1_0_on_what_is_no_text_goes_on(command, monkeypatch):
    """Its config.toml has no encoding: any file was taken, and cleaned where it was UTF-8."""
    Path("t").write_bytes(b"%PDF-1.7\r\n" + b"abc " * 80)
    flags = ["t", *TINY, "--steps", 4, "--save-every", 1, "--seed", 3]
    with monkeypatch.context() as patch:
        stopped(patch, at=2)
        assert command("train", *flags, "--encoding", "bytes", "--out", "r")[0] == 130
    config = Path("r/config.toml")
    config.write_text(re.sub("encoding = .*", "", config.read_text()))
    code, _, err = command("train", "--resume", "--out", "r")
    assert code == 0 and err == "" and command("evaluate", "r")[0] == 0
    assert command("train", *flags, "--encoding", "bytes", "--out", "s")[0] == 0
    assert weights("r") == weights("s")


def test_a_config_file_in_another_encoding(command, text):
    settings = "# não\nsteps = 2\n"
    for codec, name in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("latin-1", "ISO-8859-1")):
        Path("c.toml").write_bytes(settings.encode(codec))
        says = (
            f"c.toml: must be UTF-8: line 1 is not UTF-8, likely {name}; iconv -f {name} -t UTF-8 c.toml > c"
        )
        refused(command("train", text, "--config", "c.toml", "--out", "r"), says)
    Path("c.toml").write_bytes(settings.encode("utf-8-sig"))  # as Windows writes it
    assert nothing_written("text.txt", "c.toml")
    assert command("train", text, *TINY, "--config", "c.toml", "--out", "r")[0] == 0
