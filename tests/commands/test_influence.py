"""`npgpt explain --influence`: which windows of a run's text taught it a text; what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from npgpt.console.influence import Told
from npgpt.text.dataset import Batches
from npgpt.training.influence import influence
from tests.commands.helpers import refused, text_path

WORDS, DIGITS = "o gato viu o rato.\n", "12 mais 3 faz 15.\n"
ALL = ("--split", "1", "--dropout", 0)
pytestmark = pytest.mark.usefixtures("cache")


def test_digits_taught_it_digits_and_words_taught_it_words(trained):
    run = trained(*ALL, "--steps", 60, a=WORDS * 20, b=DIGITS * 20)
    for text, file in (("13 mais 2 faz", "b"), ("o rato viu", "a")):
        found = influence(run, text, 8)
        assert {lesson.file for lesson in found.lessons} == {text_path(file)}
        assert found.lessons[0].score > 0 and found.text == text
    everything = influence(run, "13 mais 2 faz", 1000)
    scores = [lesson.score for lesson in everything.lessons]
    assert len(scores) == everything.windows == -(-(20 * len(WORDS + DIGITS) + 2 - 2) // 16)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_windows_have_their_text_line_and_step(trained, tokenizer):
    run = trained(*ALL, "--steps", 4, "--seed", 5, "--tokenizer", tokenizer, a=WORDS * 40, b=DIGITS * 40)
    found = influence(run, "o gato", 1000)
    assert found.windows == 4 * 4  # of four steps; the rest of the text was never seen
    texts = {name: Path(text_path(name)).read_text() for name in "ab"}
    for lesson in found.lessons:
        own = texts[Path(lesson.file).stem]
        begun = "".join(own.splitlines(keepends=True)[lesson.line - 1 :])
        assert lesson.text[:8].split("\n")[0] in begun.split("\n")[0]
    from npgpt.text.dataset import encode
    from npgpt.training.pretrained import read_tokenizer
    from npgpt.training.where import open_source

    corpus, own = open_source(run)[1], read_tokenizer(run)
    batches = Batches(encode(corpus, own), 16, 4, 5, own.end_of_text)
    for step in range(4):
        taken = {lesson.token // 16 for lesson in found.lessons if lesson.step == step + 1}
        assert taken == set(batches.windows(step).tolist())
        _, y = batches.batch(step)
        shown = {lesson.text for lesson in found.lessons if lesson.step == step + 1}
        assert shown == {own.decode_bytes(row[row >= 0]).decode() for row in y}


def test_the_command(command, trained):
    run = trained(*ALL, "--steps", 30, "--keep", 3, "--save-every", 10, a=WORDS * 9, b=DIGITS * 9)
    flags = ("--influence", 3, "--prompt", "12 ", "-o", "found.json")
    code, out, err = command("explain", run, "mais 4", *flags)
    assert (code, err) == (0, "")
    found, lines = influence(run, "mais 4", 3, "12 "), out.splitlines()
    all = 3 * found.windows
    assert lines[1].startswith(f"{all} gradients of windows, about 0.0 minutes")
    assert lines[2].endswith(f"{found.windows} windows, by gradients of all weights at steps 10, 20, 30:")
    assert [step for step, _ in found.checkpoints] == [10, 20, 30] and lines[-1].startswith(
        "saved to found.json ("
    )
    for lesson, line in zip(found.lessons, lines[4:7], strict=True):
        assert f"{lesson.step}  {lesson.file}:{lesson.line}" in line and f"{lesson.score:+.3g}" in line
    data = json.loads(Path("found.json").read_text())["influence"]
    assert data["lessons"] == [vars(lesson) for lesson in found.lessons]
    first = Path("found.json").read_bytes()
    assert command("explain", run, "mais 4", *flags, "--threads", 3)[0] == 0
    assert Path("found.json").read_bytes() == first


def test_the_time_is_told_first_and_once(capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    told = Told()
    for done in range(1, 20):
        told(done, 20)
        if done == 5:  # four seconds for four gradients, and fifteen are left
            assert capsys.readouterr().out == "20 gradients of windows, about 0.2 minutes\n"
    assert capsys.readouterr().out == ""


def test_the_same_text_elsewhere(trained):
    run = trained(*ALL, "--steps", 4, a=WORDS * 9)
    Path("elsewhere").mkdir()
    shutil.move(run, "elsewhere/run"), shutil.move("texts/a.txt", "elsewhere/a.txt")
    found = influence("elsewhere/run", "o gato")
    assert found.found_at == found.lessons[0].file and Path(found.found_at).samefile("elsewhere/a.txt")


def test_bad_input(command, trained):
    run = trained(*ALL, "--steps", 4, a=WORDS * 9)

    def refuses(message, *arguments):
        code, _, err = command("explain", *arguments)
        refused((code, "", err), message)

    refuses("TEXT: must not be empty", run, "", "--influence", 3)
    refuses("influence: text must not be empty", run, "\ufeff", "--influence", 3)
    refuses("influence: text must have at most 16 tokens, got 17", run, "a" * 17, "--influence", 3)
    refuses("text must have at most 14 tokens, got 15", run, "a" * 15, "--influence", 3, "--prompt", "abc")
    refuses("--influence", run, "a", "--influence", 0)
    refuses("--lens and --flip cannot be given", run, "a", "--influence", 3, "--lens", "--flip")
    refuses("--where looks TEXT up and explains nothing: --influence", run, "a", "--influence", 3, "--where")
    refuses("texts: must be a run, as only a run knows", "texts", "a", "--influence", 3)
    Path("texts/a.txt").write_text("another text")
    refuses("has changed since the run was trained on it; put it back", run, "a", "--influence", 3)
    Path("texts/a.txt").unlink()
    refuses("No such file, nor any of this name in or beside run; put it back", run, "a", "--influence", 3)


def test_a_broken_checkpoint_is_passed_over_and_told(command, trained):
    run = trained(*ALL, "--steps", 4, "--save-every", 2, a=WORDS * 9)
    first, last = sorted(Path("run").glob("step-*"))
    (last / "model.safetensors").write_bytes(b"")
    code, out, err = command("explain", run, "o gato", "--influence", 3)
    assert code == 0 and f"steps {int(first.name[5:])}:" in out
    assert err.count("\n") == 1 and "model.safetensors must have" in err and "passed over" in err
    (first / "model.safetensors").write_bytes(b"")
    code, _, err = command("explain", run, "o gato", "--influence", 3)
    refused((code, "", err), "run: must hold a checkpoint that is whole, got ")
