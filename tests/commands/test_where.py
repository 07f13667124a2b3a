"""What a text repeats from the training text of a run, by file and line; one line where that has gone."""

import json
import shutil
from pathlib import Path

import pytest

from npgpt.console.process import errors_as_lines
from npgpt.console.where import log_where
from npgpt.training import where as wheres
from npgpt.training.where import Repeat, where
from tests.commands.helpers import TINY, refused, text_path
from tests.form_files import pdf_file

CAT = "The cat sat on the mat.\n"
RAT = "A rat ate the hat of the bat.\n"
pytestmark = pytest.mark.usefixtures("cache")
ALL = ("--split", "1")


def test_the_command_tells_file_and_line(command, trained):
    run = trained(*ALL, a=CAT * 9, b=CAT + RAT * 9)
    text, flags = f"xx {RAT}", ("--prompt", "a rat ate", "-o", "found.json")
    code, out, err = command("explain", run, text, "--where", *flags)
    assert (code, err) == (0, "")
    assert f"    30  9 times, {text_path('b')}:2: {RAT!r}" in out.splitlines()
    assert "9 times" in out and "line 1: ' rat ate'" in out and "saved to found.json" in out.splitlines()[-1]
    found = json.loads(Path("found.json").read_text())["where"]
    assert found["training"][0] == vars(Repeat(RAT, 9, text_path("b"), 2, 3, 30))
    for flags, said in (
        (("--where", "--lens", "--target", "a"), "--target and --lens cannot be given"),
        (("--prompt", "a"), "--prompt is for --where"),
    ):
        refused(command("explain", run, text, *flags), said)
    refused(command("explain", run, "", "--where"), "TEXT: must not be empty")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_file_line_and_count(trained, tokenizer):
    run = trained(*ALL, "--tokenizer", tokenizer, a=CAT * 9, b=CAT + RAT * 9 + "Ação!\n")
    found = where(run, f"xx {RAT}xx the cat sat on a mat. Ação!", prompt="I saw\nthe cat sat")
    assert (
        found.training
        == [
            Repeat(RAT, 9, text_path("b"), 2, 3, 30),
            Repeat("he cat sat on ", 10, text_path("a"), 1, 37, 14),
            Repeat(" mat.", 10, text_path("a"), 1, 52, 5),
            Repeat("Ação!", 1, text_path("b"), 11, 58, 5),
        ][: len(found.training)]
    )
    assert [repeat.length for repeat in found.training] == [30, 14]
    assert found.prompt == [Repeat("the cat sat", 1, None, 2, 36, 11)]
    assert found.found_at is None and found.shortest == 8
    found = where(run, "Ação!", shortest=3)
    assert found.training == [Repeat("Ação!", 1, text_path("b"), 11, 0, 5)] and found.prompt == []


def test_nothing_crosses_files(trained):
    run = trained(*ALL, a="one two three four five six", b=" seven eight nine ten eleven")
    assert [r.text for r in where(run, "four five six seven eight").training] == [
        "four five six",
        " seven eight",
    ]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_what_was_not_trained_on_is_not_told(trained, tokenizer, data_dir):
    """The part that the ids of training decode to ends inside the second file."""
    from npgpt.text.corpus import Corpus
    from npgpt.text.dataset import Dataset, encode
    from npgpt.training.pretrained import read_tokenizer

    whole = (data_dir / "machado" / "conto_reliquias.txt").read_bytes()
    first, second = whole[:5000].decode("utf-8", "ignore"), whole[5000:15000].decode("utf-8", "ignore")
    run = trained("--split", "0.61,0.2,0.19", "--tokenizer", tokenizer, a=first, b=second)
    own = read_tokenizer(run)
    train = own.decode_bytes(Dataset.from_ids(encode(Corpus("texts"), own), (0.61, 0.2, 0.19), own).train)
    known = train.decode()
    assert known.startswith(first) and len(known) > len(first) + 1000
    shown = second[len(known) - len(first) - 500 :][:1000]  # half of it was trained on
    (found, *_) = where(run, shown).training
    assert found.text == known[-500:] and found.file == text_path("b") and found.start == 0
    assert found.line == second[: len(known) - len(first) - 500].count("\n") + 1


@pytest.mark.parametrize("clean", ["none", "light", "full"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_those_of_the_file(trained, clean, end):
    """Also where cleaning shortened what is before them."""
    lines = [
        "\ufeffbegin",
        "",
        " \x01",
        "",
        "",
        "the first of it",
        "\t",
        "",
        "",
        "",
        "the second of it   ",
        "the third",
    ]
    lines = ["", "", "", "", *lines, "", "", "", "\x02", "the fourth of it "]
    run = trained(*ALL, "--clean", clean, a=end.join(lines))
    for word in ("first", "second", "fourth"):
        (found,) = where(run, f"the {word} of it").training
        assert "\n" not in found.text and lines[found.line - 1].strip() == f"the {word} of it"
    if clean == "full":
        (found,) = where(run, "the third\n\nthe fourth").training
        assert lines[found.line - 1] == "the third"
        (found,) = where(run, "\n\nthe fourth of").training
        assert lines[found.line - 1] == "the third"


def test_the_text_is_cleaned_as_that_of_the_model(trained):
    run = trained(*ALL, a="um café e\num pão de queijo\n")
    found = where(run, "um cafe\u0301 e\r\num pa\u0303o")
    assert found.text == "um café e\num pão"
    assert found.training == [Repeat(found.text, 1, text_path("a"), 1, 0, 16)]


def test_bytes_that_are_no_text(trained):
    run = trained(*ALL, "--encoding", "bytes", a=bytes(range(256)) * 3)
    assert where(run, "PQRSTUVWXYZ\udcc3").training[0] == Repeat("PQRSTUVWXYZ", 3, text_path("a"), 2, 0, 11)
    assert where(run, bytes(range(190, 200)).decode("utf-8", "surrogateescape")).training[0].length == 10


def test_the_index_is_made_once(trained, monkeypatch):
    run = trained(*ALL, a=CAT * 20)
    found = where(run, CAT)
    with monkeypatch.context() as patch:
        patch.setattr(wheres, "encode", None)
        assert where(run, CAT) == found
    (index,) = Path("../cache").glob("*.index")
    index.write_bytes(index.read_bytes()[:-9])
    assert where(run, CAT) == found


def test_a_run_that_was_moved(trained):
    run = trained(*ALL, a=CAT * 20)
    Path("elsewhere").mkdir()
    shutil.move(run, "elsewhere/run"), shutil.move("texts/a.txt", "elsewhere/a.txt")
    found = where("elsewhere/run", CAT)
    assert found.found_at == found.training[0].file and Path(found.found_at).samefile("elsewhere/a.txt")


def called(run, text="the cat", **more):
    """As a command would call it."""
    with errors_as_lines("explain"):
        log_where(where(run, text, **more))


def test_bad_input_is_one_line(trained, capsys, command):
    def refuses(message, *args, **more):
        with pytest.raises(SystemExit) as exit:
            called(*args, **more)
        refused((exit.value.code, *capsys.readouterr()), message)

    run = trained(*ALL, a=CAT * 20)
    capsys.readouterr()
    refuses("where: text must not be empty", run, "")
    refuses("where: text must not be empty", run, "\ufeff")  # of which cleaning leaves nothing
    refuses("where: shortest must be at least 1, got 0", run, shortest=0)
    refuses("text must be of at most 65,536 bytes to be looked up, got 70,000", run, "a" * 70_000)
    refuses("texts: must be a run, as only a run knows its training text", "texts")
    refuses("none: must be a run", "none")
    Path("texts/a.txt").write_text("another text")
    advice = "put it back, there or beside the run"
    refuses(f"{text_path('a')}: has changed since the run was trained on it; {advice}", run)
    Path("texts/a.txt").unlink()
    refuses(f"{text_path('a')}: No such file, nor any of this name in or beside run; {advice}", run)
    Path("ask.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    assert command("finetune", run, "ask.jsonl", "--epochs", 1, "-o", "taught")[0] == 0
    refuses("taught: was taught by examples", "taught")
    assert not list(Path("../cache").glob("*"))


def test_what_is_printed(trained, capsys):
    run = trained(*ALL, a=CAT * 3 + RAT * 2, b=RAT)
    capsys.readouterr()
    called(run, f"{CAT}{RAT[:20]}xyz", prompt="look: the cat sat on a hat")
    assert capsys.readouterr().out.splitlines() == [
        "94% of the 47 characters are in the training text too, in stretches of 8 or more",
        f"    44  once, {text_path('a')}:3: 'The cat sat on the mat.\\nA rat ate the hat of'",
        "30% of the 47 characters are in the prompt too, in stretches of 8 or more",
        "    14  once, line 1: 'he cat sat on '",
    ]
    called(run, "nothing of it")
    assert capsys.readouterr().out == (
        "0% of the 13 characters are in the training text too, in stretches of 8 or more\n"
    )
    called(run, " | ".join(CAT[i : i + 9] for i in range(12)), shortest=3)
    assert "\n... and 2 more\n" in capsys.readouterr().out


def test_a_chat_and_a_pdf_are_told_by_line_and_page(command, cache):
    pytest.importorskip("pypdf")
    Path("texts").mkdir()
    Path("texts/chat.txt").write_text(
        "12/03/2023 14:05 - Ana: Oi\n12/03/2023 14:06 - Ana: o trem\natrasou duas horas\n"
        "12/03/2023 14:07 - Bia: que pena, de novo\n"
    )
    Path("texts/records.jsonl").write_text('{"text": "um"}\n{"text": "o registro"}\n')
    pdf_file(Path("texts/paper.pdf"), "The first page.", "The second page has it.")
    assert command("train", "texts", *TINY, *ALL, "--steps", 2, "--out", "run")[0] == 0
    folder = Path("texts").resolve()
    for text, place, unit in (
        ("que pena, de novo", f"{folder}/chat.txt:4", "line"),
        ("atrasou duas horas", f"{folder}/chat.txt:3", "line"),
        ("second page has", f"{folder}/paper.pdf, page 2", "page"),
        ("o registro", f"{folder}/records.jsonl:2", "line"),
    ):
        code, out, _err = command("explain", "run", text, "--where", "-o", "found.json")
        assert code == 0 and f"once, {place}: " in out
        assert json.loads(Path("found.json").read_text())["where"]["training"][0]["unit"] == unit
    _code, out, _err = command("explain", "run", "o registro", "--influence", 99, "-o", "found.json")
    lessons = json.loads(Path("found.json").read_text())["influence"]["lessons"]
    assert {"line", "page"} == {lesson["unit"] for lesson in lessons} and "paper.pdf, page" in out
