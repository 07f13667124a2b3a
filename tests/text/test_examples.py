"""Examples of a task: what is refused and how, the tokens of a conversation, packing without leaks."""

import json
from collections import Counter

import numpy as np
import pytest

from npgpt.text import examples
from npgpt.text.load import load_tokenizer
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer
from tests.chat_templates import KINDS, tokenizer_of

TALK = [
    {"role": "system", "content": "seja breve"},
    {"role": "user", "content": "olá <|end|> mundo"},
    {"role": "assistant", "content": "olá"},
    {"role": "user", "content": "e daí?"},
]
GOOD = {
    "prompt": {"prompt": "um ", "completion": "dois"},
    "messages": {"messages": TALK[:3]},
    "label": {"text": "bom", "label": "sim"},
}


@pytest.fixture(params=["bytes", "bpe"])
def plain(request):
    return (
        ByteTokenizer() if request.param == "bytes" else BPETokenizer.train([b"ola mundo, ola ola " * 4], 264)
    )


def written(folder, *lines):
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_roles_leave_old_ids_and_survive_files(plain, tmp_path):
    tokenizer = examples.add_roles(plain)
    assert examples.has_roles(tokenizer) and not examples.has_roles(plain)
    assert tokenizer.vocab_size == plain.vocab_size + 4 and examples.add_roles(tokenizer) is tokenizer
    text = "olá <|user|> mundo <|endoftext|>"
    assert tokenizer.encode(text).tolist() == plain.encode(text).tolist()
    assert examples.end_token(tokenizer) == tokenizer.end_of_text == plain.vocab_size + 3
    assert examples.end_token(plain) == plain.end_of_text
    tokenizer.save(tmp_path, 64)
    assert load_tokenizer(tmp_path) == tokenizer
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path) == tokenizer  # from vocab.json, merges.txt and tokenizer_config.json


def test_chat_is_what_its_turns_are(plain):
    tokenizer = examples.add_roles(plain)
    ids = examples.encode_chat(tokenizer, TALK)
    special = tokenizer.vocabulary.special
    expected = []
    for message in TALK:
        expected += [
            special[f"<|{message['role']}|>"],
            *tokenizer.encode(message["content"]),
            special["<|end|>"],
        ]
    assert ids == [*expected, special["<|assistant|>"]]
    assert examples.encode_chat(tokenizer, TALK, reply=False) == expected
    assert tokenizer.decode(ids) == "".join(message["content"] for message in TALK)
    with pytest.raises(ValueError, match="role must be one of system, user, assistant, got 'root'"):
        examples.encode_chat(tokenizer, [{"role": "root", "content": ""}])
    with pytest.raises(ValueError, match="must have the tokens"):
        examples.encode_chat(plain, TALK)


def test_transformers_reads_the_same_tokens(plain, tmp_path):
    transformers = pytest.importorskip("transformers")
    import npgpt

    tokenizer = examples.add_roles(plain)
    config = npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=tokenizer.vocab_size)
    npgpt.GPT(config, tokenizer=tokenizer).save_pretrained(tmp_path)
    talk = [{**m, "content": m["content"].replace("<|end|>", "")} for m in TALK]  # which is a token there
    for _ in range(2):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        text = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert theirs.encode(text) == examples.encode_chat(tokenizer, talk)
        assert theirs.eos_token == "<|end|>"
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


def test_the_loss_mask_holds_replies_alone(plain):
    tokenizer = examples.add_roles(plain)
    turns = tuple((m["role"], m["content"]) for m in TALK[:3])
    ids, mask = examples.encode_example(tokenizer, examples.Example(1, "messages", turns))
    assert ids.tolist() == examples.encode_chat(tokenizer, TALK[:3], reply=False)
    assert ids[mask].tolist() == [*tokenizer.encode("olá"), tokenizer.end_of_text]
    example = examples.Example(1, "prompt", (("prompt", "um "), ("completion", "dois")))
    ids, mask = examples.encode_example(plain, example)
    assert ids.tolist() == [*plain.encode("um "), *plain.encode("dois"), plain.end_of_text]
    assert ids[mask].tolist() == [*plain.encode("dois"), plain.end_of_text]


@pytest.mark.parametrize("form", GOOD)
def test_forms_are_read(form, tmp_path):
    other = {"text": "mau", "label": "não"} if form == "label" else GOOD[form]
    read, bad = examples.read_examples(written(tmp_path, GOOD[form], "", other))
    assert [(e.line, e.form) for e in read] == [(1, form), (3, form)] and not bad


BAD = [
    ("{", "must be JSON"),
    ("[1]", "must be a JSON object"),
    ({"prompt": "a"}, "must have the fields of .*got 'prompt'"),
    ({"prompt": "a", "completion": "b", "id": 1}, "must have the fields of"),
    ({"prompt": "a", "completion": " "}, "completion must be text that is not empty, got ' '"),
    ({"prompt": 1, "completion": "b"}, "prompt must be text, got 1"),
    (GOOD["label"], "must be of one form with the lines before, .*got 'text', 'label'"),
    ({"messages": []}, "messages must be a list of messages"),
    ({"messages": TALK}, "the last message must be an assistant's"),
    (
        {"messages": [{"role": "root", "content": "a"}]},
        r"messages\[0\].role must be 'system' or 'developer' or 'user' or 'assistant', got 'root'",
    ),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] must have 'content'"),
    ({"messages": TALK[:3], "tools": [{"type": "function"}]}, "tools is not supported"),
    ({"messages": TALK[:3], "id": 1}, "Unrecognized .* id"),
    ({"messages": [TALK[2] | {"weight": 0.5}]}, r"messages\[0\].weight must be 0 or 1"),
    ({"messages": [TALK[2] | {"weight": 0}]}, "must have a weight that is not 0"),
    ({"messages": [TALK[1] | {"weight": 1}, TALK[2]]}, r"messages\[0\].weight is for an assistant's"),
    ({"messages": [TALK[1] | {"name": "Ana"}, TALK[2]]}, r"messages\[0\].name is not supported"),
    ({"messages": [{"role": "assistant", "content": "", "refusal": "no"}]}, r"messages\[0\].refusal is not"),
    ({"messages": [TALK[1], {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, r"messages\[1\]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"content\[0\]"),
    ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "1"}]}, r"messages\[0\].role must be"),
]


def test_a_line_in_all_that_openais_format_allows(tmp_path):
    """Parts, a developer, and what a reply holds that asks for nothing."""
    reply = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    line = {
        "messages": [
            {
                "role": "developer",
                "content": [{"type": "text", "text": "seja "}, {"type": "text", "text": "breve"}],
            },
            {"role": "user", "content": "olá", "name": None},
            {"role": "assistant", "content": "oi", **reply},
        ],
        "tools": [],
        "parallel_tool_calls": False,
        "metadata": None,
    }
    (read,), bad = examples.read_examples(written(tmp_path, line))
    assert read.turns == (("system", "seja breve"), ("user", "olá"), ("assistant", "oi")) and not bad
    (read,), _ = examples.read_examples(written(tmp_path, GOOD["prompt"] | {"id": None, "tags": []}))
    assert read.form == "prompt"


@pytest.mark.parametrize("kind", ["roles", "template"])
def test_a_reply_of_weight_0_is_read_and_not_learnt(kind, plain, tmp_path):
    tokenizer = examples.add_roles(plain) if kind == "roles" else tokenizer_of(KINDS["chatml"])
    asked = {"role": "user", "content": "e"}
    talk = [asked, {"role": "assistant", "content": "não", "weight": 0}]
    talk += [asked, {"role": "assistant", "content": "sim", "weight": 1}]
    (weighed,), _ = examples.read_examples(written(tmp_path, {"messages": talk}))
    without = [{"role": one["role"], "content": one["content"]} for one in talk]
    (plainly,), _ = examples.read_examples(written(tmp_path, {"messages": without}))
    ids, mask = examples.encode_example(tokenizer, weighed)
    same, both = examples.encode_example(tokenizer, plainly)
    assert ids.tolist() == same.tolist()
    assert tokenizer.decode(ids[mask]) == "sim" and tokenizer.decode(ids[both]) == "nãosim"
    assert weighed.answer == (("assistant", "sim"),) and len(weighed.question) == 3


@pytest.mark.parametrize("line, what", BAD)
def test_bad_lines_are_named_or_skipped(line, what, tmp_path):
    path = written(tmp_path, GOOD["prompt"], line, GOOD["prompt"])
    with pytest.raises(ValueError, match=f"data.jsonl: line 2: .*{what}"):
        examples.read_examples(path)
    read, bad = examples.read_examples(path, max_bad=0.4)
    assert [e.line for e in read] == [1, 3] and len(bad) == 1 and bad[0].startswith("line 2: ")
    with pytest.raises(
        ValueError, match=f"data.jsonl: 1 of 3 lines are at fault, .* 30% .*; line 2: .*{what}"
    ):
        examples.read_examples(path, max_bad=0.3)


def test_a_file_without_a_good_line_shows_the_first_reasons(tmp_path):
    path = written(tmp_path, "{", "[1]", "{", "{")
    reasons = "line 1: must be JSON, .*; line 2: must be a JSON object, .*; line 3: must be JSON"
    with pytest.raises(ValueError, match=f"4 of 4 lines are at fault, .*10% .*; {reasons}"):
        examples.read_examples(path, examples.MAX_BAD)
    with pytest.raises(ValueError, match=r"must hold examples, .*, got line 1: must be JSON"):
        examples.read_examples(path, max_bad=1.0)


@pytest.mark.parametrize("max_bad", [0.0, examples.MAX_BAD, 1.0])
@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_wide_characters_are_refused_before_any_line(codec, max_bad, tmp_path):
    path = written(tmp_path, *[GOOD["prompt"]] * 30)
    path.write_bytes(path.read_text().encode(codec))
    name = codec.removesuffix("-le").removesuffix("-be").upper()
    with pytest.raises(
        ValueError, match=rf"data.jsonl: must be UTF-8: line 1 is .*likely {name}.*; iconv -f {name}"
    ):
        examples.read_examples(path, max_bad)


def test_other_bytes_and_other_kinds(tmp_path):
    path = written(tmp_path, *[json.dumps(GOOD["label"], ensure_ascii=False)] * 9)
    other = json.dumps({"text": "mau", "label": "não"}, ensure_ascii=False)
    path.write_bytes(path.read_bytes() + b"\r\n" + other.encode() + b"\n" + other.encode("latin-1"))
    with pytest.raises(ValueError, match=r"data\.jsonl: must be UTF-8: line 11 is not UTF-8, likely"):
        examples.read_examples(path)
    read, bad = examples.read_examples(path, examples.MAX_BAD)
    assert len(read) == 10 and bad == ["line 11: must be UTF-8, got byte 0xe3"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(examples.read_examples(path, examples.MAX_BAD)[0]) == 10
    path.write_bytes(b"PK\3\4" + b"x" * 40)
    with pytest.raises(ValueError, match=r"data\.jsonl: must be text, got a zip archive; first: unzip"):
        examples.read_examples(path, examples.MAX_BAD)


def test_files_without_examples_or_with_one_label(tmp_path):
    with pytest.raises(ValueError, match="must hold examples"):
        examples.read_examples(written(tmp_path, "", ""))
    with pytest.raises(ValueError, match="two labels at least, got 'sim' alone"):
        examples.read_examples(written(tmp_path, GOOD["label"], GOOD["label"]))


def test_packed_rows_hold_each_example_once(rng):
    given = []
    for n in rng.integers(2, 12, 40):
        ids = rng.integers(0, 99, n).astype(np.int32)
        given.append((ids, rng.random(n) < 0.5))
    x, y, starts = examples.pack(given, 16)
    assert x.shape[1] <= 16 and x.size < 1.2 * sum(len(ids) - 1 for ids, _ in given)
    seen = []
    for r in range(len(x)):
        for begin in np.unique(starts[r]):
            where = np.flatnonzero(starts[r] == begin)
            assert where[0] == begin and (np.diff(where) == 1).all()
            seen.append((x[r, where].tolist(), y[r, where].tolist()))
    wanted = [(i[:-1].tolist(), np.where(k[1:], i[1:], -1).tolist()) for i, k in given]
    for example in wanted:
        seen.remove(example)
    assert all(x == [0] and y == [-1] for x, y in seen)  # padding, which sees itself alone


def test_batches_balance_labels_and_repeat_by_seed():
    labels = ["a"] * 9 + ["b"] * 3
    given = [(np.array([i, i + 1], np.int32), np.array([False, True])) for i in range(12)]
    batches = examples.ExampleBatches(given, 8, 4, seed=3, balanced_by=labels)
    assert batches.per_epoch == 5
    drawn = np.concatenate(
        [x[starts == np.arange(x.shape[1])] for x, _, starts in map(batches.batch, range(5))]
    )
    assert (drawn < 9).sum() >= 9 and (drawn >= 9).sum() == 9
    again = examples.ExampleBatches(given, 8, 4, seed=3, balanced_by=labels)
    assert all((a == b).all() for a, b in zip(batches.batch(7), again.batch(7), strict=True))
    train, held = examples.split_examples(labels, 1 / 3, seed=0)
    assert sorted([*train, *held]) == list(range(12)) and sorted(labels[i] for i in held) == ["a"] * 3 + ["b"]


def asked(form, question, answer, line=1):
    shapes = {
        "prompt": (("prompt", question), ("completion", answer)),
        "label": (("user", question), ("assistant", answer)),
        "messages": (
            ("system", "s"),
            ("user", question),
            ("assistant", answer),
            ("user", "e?"),
            ("assistant", "x"),
        ),
    }
    return examples.Example(line, form, shapes[form])


@pytest.mark.parametrize("form", list(GOOD))
def test_examples_of_one_question_are_on_one_side(form):
    """However it is written, and whatever the answer is: a model that knows one knows all of them."""
    rng = np.random.default_rng(1)
    ways = ("é {}", " é {}\n", "e\u0301 {}")  # NFC and NFD
    read = [asked(form, way.format(n), rng.choice(["a", "b"])) for n in range(40) for way in ways]
    groups = examples.groups_of(read, 24)
    assert len(set(groups)) == 40
    labels = [example.label for example in read]
    for seed in range(5):
        train, held = examples.split_examples(labels, 0.2, seed, groups)
        assert sorted([*train, *held]) == list(range(120)) and len(held) == pytest.approx(24, abs=4)
        assert not {groups[i] for i in train} & {groups[i] for i in held}
        assert not {read[i].question for i in train} & {read[i].question for i in held}


@pytest.mark.parametrize("form", ["prompt", "messages"])
@pytest.mark.parametrize("instruction", ["", "escreva: "])
def test_an_instruction_that_all_begin_with_is_no_question(form, instruction):
    """Then the answers decide, or nothing could be held out."""
    read = [asked(form, instruction, f"verso {n}") for n in range(30) for _ in range(2)]
    groups = examples.groups_of(read, 12)
    assert len(set(groups)) == 30
    train, held = examples.split_examples([None] * 60, 0.2, 0, groups)
    assert len(held) == 12 and not {read[i].answer for i in train} & {read[i].answer for i in held}


def test_without_equal_examples_the_split_is_the_same():
    labels = list("aabbbcccc" * 5)
    plain = examples.split_examples(labels, 0.3, 7)
    groups = examples.groups_of([asked("label", str(n), label) for n, label in enumerate(labels)], 13)
    for one, two in zip(plain, examples.split_examples(labels, 0.3, 7, groups), strict=True):
        np.testing.assert_array_equal(one, two)
    assert Counter(labels[i] for i in plain[1]) == {"a": 3, "b": 4, "c": 6}


def test_a_label_keeps_an_example_for_training():
    labels = ["a"] * 4 + ["b"] * 4
    train, held = examples.split_examples(labels, 0.9, 0, [1, 1, 1, 1, 2, 2, 3, 3])
    assert sorted(held) in ([4, 5], [6, 7]) and {labels[i] for i in train} == {"a", "b"}
