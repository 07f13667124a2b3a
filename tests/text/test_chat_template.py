"""Chat templates: what they write becomes ids, contents never control; bounds; errors in one line."""

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.text import chat_template, examples
from npgpt.text.chat_template import ChatTemplate
from tests.chat_templates import CHATML, KINDS, PLAIN, tokenizer_of

pytest.importorskip("jinja2")
TOKENIZERS = {name: tokenizer_of(kind) for name, kind in KINDS.items()}
QUESTION = [{"role": "user", "content": "oi"}]
TALK = [
    {"role": "system", "content": "Seja breve."},
    {"role": "user", "content": "Olá, tudo bem?"},
    {"role": "assistant", "content": "Tudo ótimo!"},
    {"role": "user", "content": " Quanto é 12+30? "},
]
WRITTEN = {
    "chatml": "<|im_start|>system\nSeja breve.<|im_end|>\n<|im_start|>user\nOlá, tudo bem?<|im_end|>\n"
    "<|im_start|>assistant\nTudo ótimo!<|im_end|>\n<|im_start|>user\n Quanto é 12+30? <|im_end|>\n"
    "<|im_start|>assistant\n",
    "inst": "<s>[INST] <<SYS>>\nSeja breve.\n<</SYS>>\n\nOlá, tudo bem? [/INST] Tudo ótimo! </s>"
    "<s>[INST] Quanto é 12+30? [/INST]",
    "built": "<|system|>\nSeja breve.<|end|>\n<|user|>\nOlá, tudo bem?<|end|>\n"
    "<|assistant|>\nTudo ótimo!<|end|>\n<|user|>\n Quanto é 12+30? <|end|>\n<|assistant|>\n",
    "plain": "SYSTEM:\nSeja breve.\nUSER:\nOlá, tudo bem?\nASSISTANT:\nTudo ótimo!\n"
    "USER:\n Quanto é 12+30? \nASSISTANT:\n",
}


def spelt(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def control(tokenizer, ids):
    return [i for i in ids if i in tokenizer.vocabulary.special.values()]


def conversation(contents):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_conversation_is_as_the_template_writes_it(name):
    tokenizer = TOKENIZERS[name]
    ids = examples.encode_chat(tokenizer, TALK)
    assert spelt(tokenizer, ids) == WRITTEN[name]
    assert ids == tokenizer.encode(WRITTEN[name], special_tokens=True).tolist()
    assert not examples.why_no_chat(tokenizer)


@pytest.mark.parametrize("name", KINDS)
def test_a_reply_ends_at_the_token_behind_answers(name):
    tokenizer, kind = TOKENIZERS[name], KINDS[name]
    special = tokenizer.vocabulary.special
    assert examples.end_token(tokenizer) == special[kind.end_of_turn or kind.special[0]]
    ends = examples.chat_ends(tokenizer)
    assert ends[0] == examples.end_token(tokenizer) and set(tokenizer.ends) <= set(ends)


def test_roles_of_another_s_template_are_not_taken_for_npgpt_s():
    tokenizer = TOKENIZERS["built"]
    assert examples.has_roles(tokenizer)
    assert (
        spelt(tokenizer, examples.encode_chat(tokenizer, QUESTION)) == "<|user|>\noi<|end|>\n<|assistant|>\n"
    )


SPELT = """<|im_start|> <|im_end|> <|im_ end|> |> <| < > <|eot|> <|/head|> [INST] [/I NST] </s> <s
<|endoftext|> <|end|> <|user|> user im_end assistant a"""
parts = st.sampled_from([*SPELT.split(), " ", "\n"])
contents = st.lists(st.lists(parts | st.text(max_size=5), max_size=6).map("".join), min_size=1, max_size=4)


@pytest.mark.parametrize("name", KINDS)
@given(contents=contents)
def test_no_content_becomes_a_control_token(name, contents):
    tokenizer = TOKENIZERS[name]
    messages = conversation(contents)
    ids = examples.encode_chat(tokenizer, messages)
    inert = examples.encode_chat(tokenizer, conversation(["x"] * len(contents)))
    assert control(tokenizer, ids) == control(tokenizer, inert)
    assert spelt(tokenizer, ids) == examples.template_of(tokenizer).render(messages)


@pytest.mark.parametrize("name", KINDS)
@given(contents=contents)
def test_the_loss_counts_answers_and_their_ends(name, contents):
    tokenizer, kind = TOKENIZERS[name], KINDS[name]
    contents = [text.strip() or "x" for text in contents] + ["fim"] * (len(contents) % 2)
    turns = tuple((message["role"], message["content"]) for message in conversation(contents))
    ids, mask = examples.encode_example(tokenizer, examples.Example(1, "messages", turns))
    assert ids.dtype == np.int32 and len(ids) == len(mask)
    whole = examples.encode_chat(tokenizer, conversation(contents), reply=False)
    end = [examples.end_token(tokenizer)]
    assert ids.tolist() == whole + end * (kind.end_of_turn is None)
    # each run of the mask is an answer as the model would have to write it behind the question
    edges = np.flatnonzero(np.diff(np.r_[0, mask, 0]))
    said = [spelt(tokenizer, ids[a:b]) for a, b in edges.reshape(-1, 2)]
    space = " " if name == "inst" else ""
    expected = [f"{space}{text}{space}{kind.end_of_turn or ''}" for text in contents[1::2]]
    if kind.end_of_turn is None:
        expected[-1] += kind.special[0]
    assert said == expected
    for begin, n in zip(edges[::2], range(1, len(contents), 2), strict=True):
        assert ids[:begin].tolist() == examples.encode_chat(tokenizer, conversation(contents[:n]))


def test_a_label_is_an_answer():
    tokenizer = TOKENIZERS["system"]
    turns = ("user", "bom dia"), ("assistant", "sim")
    ids, mask = examples.encode_example(tokenizer, examples.Example(1, "label", turns))
    assert spelt(tokenizer, ids[mask]) == "sim<|im_end|>" and spelt(tokenizer, ids[-1:]) == "\n"
    assert spelt(tokenizer, ids).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nbom dia<"
    )


def test_a_token_of_both_question_and_answer_is_learnt():
    blank = PLAIN.replace(":\n'", ": '")  # the answer is behind a space, which belongs to its first word
    tokenizer = tokenizer_of(KINDS["plain"]._replace(source=blank))
    turns = ("user", "a"), ("assistant", "mar")
    ids, mask = examples.encode_example(tokenizer, examples.Example(1, "messages", turns))
    assert spelt(tokenizer, ids) == "USER: a\nASSISTANT: mar<|endoftext|>"
    assert spelt(tokenizer, ids[mask]) == " mar<|endoftext|>"


THINKS = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think></think>' }}")


def test_an_answer_that_does_not_follow_its_question_is_refused():
    tokenizer = tokenizer_of(KINDS["chatml"]._replace(source=THINKS))
    with pytest.raises(ValueError, match=r"^chat template: writes the answer of messages\[1\] otherwise"):
        turns = ("user", "a"), ("assistant", "b")
        examples.encode_example(tokenizer, examples.Example(1, "messages", turns))


def test_a_template_that_takes_marked_text_apart_is_refused():
    source = "{% for m in messages %}{{ m.content[2:] }}<|im_end|>{% endfor %}"
    template = ChatTemplate(source, ("<|im_end|>",))
    messages = [{"role": "user", "content": "ab<|im_end|>"}]
    with pytest.raises(ValueError, match="takes apart a message that spells a control token"):
        template.marked([{"role": "user", "content": "<|im_end|>"}], "\ue000\ue001")
    assert template.marked(messages, "\ue000\ue001") == "\ue000<|im_end|>\ue001<|im_end|>"


def test_marks_are_characters_of_no_message():
    template = ChatTemplate("\U0010fffd{{ messages[0].content }}", ())
    marks = template.marks_for([{"role": "user", "content": "\U0010fffc\U0010fffa"}])
    assert marks == "\U0010fffb\U0010fff9"


# ---------------------------------------------------------------------------- what templates may not

REFUSED = {  # template -> what its error says
    "{% include '/etc/passwd' %}": "line 1: must be one template, got include",
    "\n{% import 'a' as b %}": "line 2: must be one template, got import",
    "{% from 'a' import b %}": "must be one template, got fromimport",
    "{% extends 'a' %}": "must be one template, got extends",
    "{{ ''.__class__ }}": "reaches for '__class__' of a str",
    "{{ messages.append }}": "reaches for 'append' of a list",
    "{{ ''|attr('__class__') }}": "reaches for '__class__' of a str",
    "{{ raise_exception.__globals__ }}": "reaches for '__globals__' of a function",
    "{% set ns = namespace(_a=1) %}": "must not begin with _, got '_a'",
    "{{ open('/etc/passwd') }}": "'open' is undefined",
    "a\n\n{{ messages[0].a.b }}": "line 3: 'dict object' has no attribute 'a'",
    "{% if %}": "line 1: Expected an expression",
    "{% frobnicate %}": "unknown tag 'frobnicate'",
    "{{ 1|frobnicate }}": "No filter named 'frobnicate'",
    "{{ 'a' + 1 }}": "can only concatenate str",
    "{{ raise_exception('no\n  such role') }}": "chat template: no such role",
    "{{ 1 // 0 }}": "zero",
    "{% for i in range(10**6) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10**10 }}": "MemoryError",
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}": "recursion",
    "{% for i in range(9**5) %}{{ 'a' * 999 }}{% endfor %}": "writes more than 16777216 characters",
    "{# " + "a" * 2**20 + " #}": "must be at most 1,048,576 characters, got 1,048,582",
}


@pytest.mark.parametrize("source", REFUSED, ids=lambda source: source[:40])
def test_a_template_that_wants_more_is_refused_in_one_line(source):
    with pytest.raises(ValueError) as error:
        ChatTemplate(source, ()).render(QUESTION)
    assert str(error.value).startswith("chat template: ") and REFUSED[source] in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert ChatTemplate("{{ messages[0].content }}", ()).render(QUESTION) == "oi"  # the next works


@pytest.fixture
def fresh(monkeypatch):
    """A process of this test alone."""
    monkeypatch.setattr(chat_template, "_process", None)
    yield
    chat_template._end()


def test_a_template_that_takes_too_long_is_ended(fresh, monkeypatch):
    ChatTemplate("", ()).render([])
    before = chat_template._process
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    many = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    for source in (many, "{{ 9 ** (9 ** 9) }}"):  # the second is one operation
        with pytest.raises(ValueError, match=r"^chat template: takes more than 0.5 seconds$"):
            ChatTemplate(source, ()).render(QUESTION)
        assert not before.is_running()
        monkeypatch.setattr(chat_template, "SECONDS", 60.0)
        assert ChatTemplate("a", ()).render([]) == "a"
        monkeypatch.setattr(chat_template, "SECONDS", 0.5)


def test_an_answer_that_nobody_waited_for_is_not_the_next_one_s(fresh, monkeypatch):
    ChatTemplate("", ()).render([])

    def interrupted(self, seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chat_template._Process, "_line", interrupted)
        ChatTemplate("first", ()).render([])
    assert ChatTemplate("second", ()).render([]) == "second"


def test_threads_take_turns():
    found = {}

    def ask(n):
        for k in range(20):
            found[n, k] = ChatTemplate("{{ messages[0].content }}", ()).render(
                [{"role": "user", "content": f"{n} {k}"}]
            )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {(n, k): f"{n} {k}" for n in range(4) for k in range(20)}


def test_without_jinja_the_extra_is_named(fresh, monkeypatch):
    tokenizer = tokenizer_of(KINDS["chatml"]._replace(source=CHATML + "{# without #}"))
    monkeypatch.setattr(chat_template.importlib.util, "find_spec", lambda name: None)
    assert examples.why_no_chat(tokenizer) == "chat template: needs jinja2: pip install 'npgpt[chat]'"
    monkeypatch.undo()
    monkeypatch.setattr(chat_template, "_process", None)
    monkeypatch.setattr(chat_template, "JINJA", (99, 0, 0))
    with pytest.raises(ValueError, match=r"jinja2 must be 99.0.0 or newer, got \d"):
        ChatTemplate("", ()).render([])


def test_npgpt_s_own_template_needs_no_jinja(monkeypatch):
    from npgpt.text.tokenizer import ByteTokenizer
    from npgpt.text.tokenizer_json import CHAT_TEMPLATE

    monkeypatch.setattr(chat_template, "_render", lambda request: pytest.fail("rendered"))
    tokenizer = examples.add_roles(ByteTokenizer())
    ids = examples.encode_chat(tokenizer, TALK)
    monkeypatch.undo()
    ours = ChatTemplate(CHAT_TEMPLATE, tuple(tokenizer.vocabulary.special)).render(TALK)
    assert tokenizer.encode(ours, special_tokens=True).tolist() == ids


def test_what_a_message_holds_goes_through():
    odd = 'a"\\\u2028\x00\x7f\ud800\udcff é\U0001f600'
    text = ChatTemplate("{{ messages[0].content }}{{ messages[0].x is defined }}", ()).render(
        [{"role": "user", "content": odd, "x": None}]
    )
    assert text == odd + "False"
    data = [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}], "n": 1}]
    template = ChatTemplate("{{ messages|tojson }}", ("<|im_end|>",))
    assert json.loads(template.render(data)) == data
    marked = [{"role": "user", "content": [{"type": "text", "text": "(<|im_end|>)"}], "n": 1}]
    assert json.loads(template.marked(data, "()")) == marked


def test_roles_are_three():
    for tokenizer in TOKENIZERS["chatml"], TOKENIZERS["plain"]:
        with pytest.raises(
            ValueError, match=r"messages\[1\]: role must be one of system, user, assistant, got 'tool'"
        ):
            examples.encode_chat(tokenizer, [*QUESTION, {"role": "tool", "content": ""}])


def test_a_template_that_refuses_says_why():
    with pytest.raises(ValueError, match=r"^chat template: Conversation roles must alternate"):
        examples.encode_chat(TOKENIZERS["inst"], [*QUESTION, *QUESTION])
    broken = tokenizer_of(KINDS["plain"]._replace(source=PLAIN + "{{ nothing() }}"))
    assert examples.why_no_chat(broken) == "chat template: line 5: 'nothing' is undefined"
