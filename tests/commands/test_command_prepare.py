"""Chats and subtitles become conversations that a model is taught by; names and numbers get stand-ins."""

import io
import json
import sys
from pathlib import Path

import pytest

from npgpt.text.examples import add_roles, encode_example, read_examples
from npgpt.text.tokenizer import ByteTokenizer
from tests.commands.helpers import TINY, nothing_written, refused

CHAT = """12/03/2023 14:05 - As mensagens são protegidas com a criptografia de ponta a ponta.
12/03/2023 14:05 - João Silva: Oi, tudo bem?
12/03/2023 14:06 - Ana: Tudo! E você:
vai hoje?
12/03/2023 14:07 - João Silva: <Mídia oculta>
12/03/2023 14:09 - João Silva: Vou.
12/03/2023 14:09 - João Silva: liga 11 91234-5678
12/03/2023 14:10 - Ana: tá, joao
12/03/2023 20:11 - Ana: boa noite
12/03/2023 20:12 - João Silva: até 2024, Ana!
12/03/2023 20:13 - Ana: custa R$ 30,00, às 19:30
13/03/2023 02:14 - João Silva: dormiu?
"""
SAID = [
    ["Oi, tudo bem?", "Tudo! E você:\nvai hoje?", "Vou.\nliga 11 91234-5678", "tá, joao"],
    ["até 2024, Ana!", "custa R$ 30,00, às 19:30"],
]


def spoken(file="chat.jsonl"):
    """The contents of the conversations of a file; the user and the assistant take turns."""
    found = [json.loads(line)["messages"] for line in Path(file).read_text(encoding="utf-8").splitlines()]
    for turns in found:
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    return [[turn["content"] for turn in turns] for turns in found]


@pytest.fixture
def chat():
    """A chat in which a pause is longer than six hours by a minute twice."""
    Path("chat.txt").write_text(CHAT, encoding="utf-8")
    return Path("chat.txt")


def test_a_chat_becomes_conversations_of_the_user_and_me(command, chat):
    code, out, err = command("prepare", chat, "-o", "chat.jsonl", "--as", "chat", "--me", "ana")
    assert (code, err) == (0, "") and spoken() == SAID
    assert "conversations: 2, each at most 128 bytes" in out and "answers in them: 3" in out
    assert "1 turns that answer nothing left out, 1 turns without an answer left out" in out
    assert out.endswith("next: python -m npgpt.finetune RUN chat.jsonl\n")
    assert command("prepare", chat, "-o", "other.jsonl", "--as", "chat", "--me", "João Silva")[0] == 0
    assert spoken("other.jsonl") == [
        SAID[0][1:3],
        ["boa noite", "até 2024, Ana!"],
    ]  # a pause ends what is answered


EXPORTS = {  # a minute before and after midnight, with the day first or last, is no pause; the next day is
    "Android, Portuguese": (
        "31/03/2023 23:58 - Caio: {}\n01/04/2023 00:01 - Ana: {}\n"
        "02/04/2023 00:02 - Caio: {}\n02/04/2023 00:03 - Ana: {}\n"
    ),
    "Android, English": (
        "3/4/23, 11:58 PM - Caio: {}\n3/5/23, 12:01 AM - Ana: {}\n"
        "3/6/23, 12:02 AM - Caio: {}\n3/6/23, 12:03 AM - Ana: {}\n"
    ),
    "iPhone, Portuguese": (
        "[03/04/2023, 23:58:00] Caio: {}\r\n[04/04/2023, 00:01:10] Ana: {}\r\n"
        "\u200e[04/04/2023, 00:01:20] Ana: \u200eimagem ocultada\r\n"
        "[05/04/2023, 00:02:00] ~\u202fCaio: {}\r\n[05/04/2023, 00:03:00] Ana: {}\r\n"
    ),
    "iPhone, English": (
        "[3/31/23, 11:58:00\u202fPM] Caio: {}\r\n[4/1/23, 12:01:00\u202fAM] Ana: {}\r\n"
        "[4/2/23, 12:02:00\u202fAM] Caio: {}\r\n[4/2/23, 12:03:00\u202fAM] Ana: {}\r\n"
    ),
    "the year first": (
        "2023-03-04 23:58 - Caio: {}\n2023-03-05 00:01 - Ana: {}\n"
        "2023-03-06 00:02 - Caio: {}\n2023-03-06 00:03 - Ana: {}\n"
    ),
}


@pytest.mark.parametrize("where", EXPORTS)
def test_exports_of_other_telephones(command, where):
    words = ["oi: tudo?", "tudo", "dormiu?", "sim"]
    Path("_chat.txt").write_bytes(EXPORTS[where].format(*words).encode())
    assert command("prepare", "_chat.txt", "-o", "chat.jsonl", "--as", "chat", "--me", "Ana")[0] == 0
    assert spoken() == [words[:2], words[2:]]


def test_a_model_is_taught_by_it_and_chats(command, run, chat, monkeypatch):
    assert command("train", chat, *TINY, "--block-size", 128, "--steps", 2, "--out", "base")[0] == 0
    assert command("prepare", chat, "-o", "chat.jsonl", "--as", "chat", "--me", "Ana")[0] == 0
    code, out, err = command(
        "finetune", "base", "chat.jsonl", "-o", "taught", "--epochs", 2, "--val-fraction", 0.3
    )
    assert (code, err) == (0, "") and "1 examples for training, 1 for validation" in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Oi, tudo bem?\n"))
    assert command("chat", "taught", "--max-new-tokens", 5, "--seed", 1)[0] == 0


def test_subtitles_take_turns_and_a_scene_is_a_conversation(command):
    cue = "{}\n00:00:{:02},000 --> 00:00:{:02},500\n{}\n\n"
    said = ["Onde você\nestava?", "- Em casa.\n- Às 10?", "- Sim.", "Fim?", "Fim.", "Só."]
    times = [1, 3, 14, 25, 27, 28]
    Path("film.srt").write_text(
        "".join(cue.format(n, t, t, s) for n, (t, s) in enumerate(zip(times, said, strict=True), 1))
    )
    assert command("prepare", "film.srt", "-o", "chat.jsonl", "--as", "chat")[0] == 0
    assert spoken() == [
        ["Onde você estava?", "Em casa."],
        ["Fim?", "Fim."],
    ]  # 10.5 s end a scene, 10.0 do not


@pytest.mark.parametrize("longest", [25, 60, 128])
def test_no_conversation_is_longer_than_the_context(command, longest):
    lines = [f"12/03/2023 14:{n:02} - {'Ana' if n % 2 else 'Bé'}: {'ação ' * (n % 4 + 1)}" for n in range(60)]
    Path("chat.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = ("--as", "chat", "--me", "Ana", "--longest", longest)
    code, out, _ = command("prepare", "chat.txt", "-o", "chat.jsonl", *flags, "--json")
    counted = json.loads(out.splitlines()[-1])
    tokenizer, (examples, _bad) = add_roles(ByteTokenizer()), read_examples("chat.jsonl")
    sizes = [len(encode_example(tokenizer, example)[0]) for example in examples]
    assert code == 0 and len(sizes) == counted["conversations"] and max(sizes) <= longest
    assert sum(len(turns) // 2 for turns in spoken()) == counted["answers"]
    left_out = sum(n for why, n in counted["left_out"].items() if why.startswith("answers longer"))
    assert counted["answers"] + left_out == 30 and (left_out > 0) == (longest == 25)


def test_what_is_no_chat_is_refused(command, chat):
    def refuses(message, *args):
        refused(command("prepare", *args), message)
        assert nothing_written("chat.txt", "notes.txt", "other")

    Path("notes.txt").write_text("no chat")
    Path("other").mkdir()
    names = "the names in it are João Silva, Ana"
    as_chat = ("-o", "c.jsonl", "--as", "chat")
    refuses(f"chat.txt: --me must say who is the assistant; {names}", chat, *as_chat)
    refuses(f"chat.txt: nobody in it is called 'Bia'; {names}", chat, *as_chat, "--me", "Bia")
    refuses(
        "notes.txt: must be a WhatsApp export or subtitles to become a chat, got text", "notes.txt", *as_chat
    )
    refuses("-o: must be a file that ends in .jsonl where it is a chat", chat, "-o", "c.txt", "--as", "chat")
    refuses("--me is for --as chat, which is missing", chat, "-o", "c.jsonl", "--me", "Ana")
    refuses("--longest is for --as chat", chat, "-o", "c.jsonl", "--longest", "9")
    refuses("--as: must be chat, got talk", chat, "-o", "c.jsonl", "--as", "talk")
    refuses(
        "--as chat reads what files say, so --encoding cannot be bytes", chat, *as_chat, "--encoding", "bytes"
    )
    refuses("--anonymise reads what files say", chat, "-o", "c.txt", "--anonymise", "--encoding", "utf-8")
    refuses("--field is of records", chat, *as_chat, "--me", "Ana", "--field", "text")
    few = ("--me", "Ana", "--longest", "5")
    refuses("no conversation is left: 3 answers longer than --longest", chat, *as_chat, *few)


def test_bad_files_are_left_out_and_told(command, chat):
    Path("in").mkdir()
    chat.rename("in/chat.txt")
    Path("in/notes.txt").write_text("no chat")
    flags = ("-o", "c.jsonl", "--as", "chat", "--me", "Ana")
    refused(command("prepare", "in", *flags), "in/notes.txt: must be a WhatsApp export or subtitles")
    code, out, _ = command("prepare", "in", *flags, "--skip-bad", "--json")
    assert (
        code == 0
        and "\nleft out: in/notes.txt: must be a WhatsApp export" in out
        and spoken("c.jsonl") == SAID
    )
    assert len(json.loads(out.splitlines()[-1])["skipped"]) == 1


@pytest.mark.parametrize("as_chat", [True, False])
def test_names_and_numbers_get_stand_ins(command, chat, as_chat):
    more = '12/03/2023 14:00 - Ana criou o grupo "Silva 2023"\n'
    more += "12/03/2023 14:01 - +55 21 99999\u20110000: Oi @\u2068Caio\u2069\n"
    chat.write_text(more + CHAT, encoding="utf-8")
    flags = ("--as", "chat", "--me", "Ana") if as_chat else ()
    code, out, err = command("prepare", chat, "-o", "c.jsonl", "--anonymise", "--json", *flags)
    written = Path("c.jsonl").read_text(encoding="utf-8")
    assert (code, err) == (0, "")
    for secret in ("João", "joao", "Silva", "Ana", "Caio", "91234", "99999"):
        assert secret not in written and secret not in out, secret
    for stays in ("2024", "R$ 30,00", "19:30"):
        assert stays in written
    assert json.loads(out.splitlines()[-1])["replaced"] == (
        {"names": 3, "telephones": 1} if as_chat else {"telephones": 2, "names": 12}
    )
    if as_chat:
        assert "liga [phone 1]" in written and "tá, [person 2]" in written
    else:
        assert "[phone 1]: Oi @[person 1]\\n[person 2]: Oi, tudo bem?\\n[person 3]: Tudo!" in written


def test_the_same_name_is_the_same_in_all_files(command, chat):
    Path("b.txt").write_text(CHAT.replace("Ana:", "Caio:").replace("Ana!", "Ana"), encoding="utf-8")
    assert command("prepare", chat, "b.txt", "-o", "o.txt", "--anonymise")[0] == 0
    written = Path("o.txt").read_text(encoding="utf-8")
    assert "Ana" not in written, "whom another file names"
    assert (
        written.count("[person 1]:") == 2 * CHAT.count("João Silva:") - 2
        and "até 2024, [person 2]\n" in written
    )
