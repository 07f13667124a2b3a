"""Exact and near duplicates: what is found, against every pair compared; what a corpus leaves out."""

import json
import random
import re
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest

from npgpt.console import messages
from npgpt.text import duplicates
from npgpt.text.dataset import Dataset, encode
from npgpt.text.distinct import DistinctCorpus
from npgpt.text.duplicates import NEAR, RUN, SKETCH, find
from npgpt.text.tokenizer import ByteTokenizer
from tests.form_files import word_file

WORD = re.compile(r"[^\W_]+")
WORDS = [a + b for a in ("ba", "ce", "di", "fo", "gu", "lá") for b in ("ca", "de", "fi", "go", "hu", "ção")]


def runs_of(text):
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))} if words else set()


def jaccard_by_pairs(texts):
    """{(i, j): Jaccard index} of all pairs j < i that share a run."""
    has, found = defaultdict(list), {}
    runs = [runs_of(text) for text in texts]
    for i, own in enumerate(runs):
        shared = Counter(j for run in own for j in has[run])
        found |= {(i, j): n / (len(own) + len(runs[j]) - n) for j, n in shared.items()}
        for run in own:
            has[run].append(i)
    return found


def found_in(texts):
    return find(((number, text.encode()) for number, text in enumerate(texts)), len(texts))


def edited(rng, text):
    """A copy of a text, exact, or with some of its words changed, cut or written otherwise."""
    words = text.split()
    match rng.randrange(5):
        case 0:
            return text
        case 1:
            return f"«{text.upper()}»!"
        case 2:
            for _ in range(max(1, round(len(words) * rng.choice([0.005, 0.01, 0.02, 0.05])))):
                words[rng.randrange(len(words))] = "outra"
            return " ".join(words)
        case 3:
            return "\n".join(words[round(len(words) * rng.choice([0.03, 0.1, 0.2])) :])
        case _:
            return f"{text} {' '.join(rng.choices(WORDS, k=max(1, len(words) // 8)))}"


def made_texts(rng, n, longest):
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, longest))) for _ in range(n)]
    return texts + [edited(rng, rng.choice(texts)) for _ in range(n)]


def test_what_is_found_is_what_comparing_every_pair_finds():
    """Where no document has more runs than a sketch it is exact, but for the one in 3,000 without a key."""
    texts = made_texts(random.Random(0), 1500, SKETCH // 2)
    assert max(len(runs_of(text)) for text in texts) < SKETCH
    near = {pair: index for pair, index in jaccard_by_pairs(texts).items() if index >= NEAR}
    expected = np.array([min((j for j in range(i) if (i, j) in near), default=-1) for i in range(len(texts))])
    of, exact = found_in(texts)
    first = {text: number for number, text in reversed(list(enumerate(texts)))}
    assert exact.tolist() == [first[text] < number for number, text in enumerate(texts)]
    assert (of[exact] == [first[text] for text, same in zip(texts, exact, strict=True) if same]).all()
    of[exact & (of[of] >= 0)] = of[of[exact & (of[of] >= 0)]]
    assert all((i, int(of[i])) in near for i in np.flatnonzero(of >= 0))
    assert (of != expected).sum() <= 3 and ((of >= 0) != (expected >= 0)).sum() <= 1
    assert 100 < exact.sum() < (of >= 0).sum() - 300


def check_real_texts(texts, seed):
    rng = random.Random(seed)
    rng.shuffle(texts)
    texts = texts + [edited(rng, text) for text in rng.sample(texts, len(texts) // 3)]
    highest = dict.fromkeys(range(len(texts)), 0.0)
    for (i, _j), index in jaccard_by_pairs(texts).items():
        highest[i] = max(highest[i], index)
    duplicate = found_in(texts).of >= 0
    near = np.array(list(highest.values())) >= NEAR
    assert near.sum() > len(texts) // 6
    recall, precision = (duplicate & near).sum() / near.sum(), (duplicate & near).sum() / duplicate.sum()
    assert recall >= 0.98 and precision >= 0.98, (recall, precision)
    # those on the wrong side of NEAR are long and were near to it
    wrong = [highest[i] for i in np.flatnonzero(duplicate != near)]
    assert all(abs(index - NEAR) < 0.1 for index in wrong), wrong


def test_answers_with_planted_duplicates(data_dir):
    lines = (data_dir / "pira-qa/pira_qa_pt_en.jsonl").read_text(encoding="utf-8").splitlines()
    check_real_texts([json.loads(line)[name] for line in lines for name in ("resposta", "answer")][:3000], 1)


def test_pages_of_books_with_planted_duplicates(data_dir):
    rng, pages = random.Random(2), []
    for path in sorted((data_dir / "machado").glob("*.txt")):
        lines, at = path.read_text(encoding="utf-8").splitlines(), 0
        while at < len(lines):
            n = rng.choice([6, 20, 60, 200])
            pages.append("\n".join(lines[at : at + n]))
            at += n
    check_real_texts([page for page in pages if page.strip()][:700], 3)


def test_words_are_what_is_compared():
    near = {
        "Olá, MUNDO velho de guerra": "olá mundo... velho; de guerra!",
        "um dois": "Um; dois.",
        "昔々ある所にお爺さんとお婆さんが住んでいました"
        * 3: "昔々ある所にお爺さんとお婆さんが住んでいました。" * 3,
        "ÁÉÍ Привет Мир": "áéí привет мир",
        "x\N{GRINNING FACE}y": "X\N{GRINNING FACE}Y",
        "a\0b c": "a b\0c",
    }
    apart = {"um dois": "dois um", "42": "43", "!!!": "???", "": "-", "昔々ある所に": "昔々ある家に"}
    for a, b in near.items():
        assert found_in([a, b, a]).of.tolist() == [-1, 0, 0] and not found_in([a, b]).exact.any(), a
    for a, b in apart.items():
        assert found_in([a, b]).of.tolist() == [-1, -1], a
    assert found_in(["!!!", "!!!"]).of.tolist() == [-1, 0]  # without words only the same bytes are the same


def test_the_same_is_found_in_parts(monkeypatch):
    """However many documents, pairs and keys are looked at together."""
    texts = made_texts(random.Random(4), 400, 60)
    whole = found_in(texts)
    for name, value in (("CHARACTERS", 3000), ("DOCUMENTS", 7), ("ENTRIES", 100), ("PAIRS", 3)):
        monkeypatch.setattr(duplicates, name, value)
    duplicates._powers.cache_clear()
    again = found_in(texts)
    duplicates._powers.cache_clear()
    assert again.of.tolist() == whole.of.tolist() and (again.exact == whole.exact).all()


def test_long_documents_are_found_in_chunks_as_a_whole():
    rng = random.Random(5)
    words = rng.choices([f"{word}{n}" for word in WORDS for n in range(2000)], k=250_000)
    long = " ".join(words).encode()
    changed = words[:]
    for _ in range(2500):  # a hundredth
        changed[rng.randrange(len(words))] = "outra"
    near, other = " ".join(changed).encode(), " ".join(words[: len(words) // 2]).encode()
    assert len(long) > 3 * duplicates.CHARACTERS
    documents = [long, b"a b c", near, long, other, b"A b c!"]
    cut = [
        (number, document[at : at + 700_000])
        for number, document in enumerate(documents)
        for at in range(0, len(document), 700_000)
    ]
    assert find(iter(cut), 6).of.tolist() == [-1, -1, 0, 0, -1, 1]
    assert find(iter(cut), 6).exact.tolist() == [False, False, False, True, False, False]


def test_memory_does_not_grow_with_the_text(monkeypatch):
    for name, value in (("CHARACTERS", 60_000), ("DOCUMENTS", 1000), ("ENTRIES", 10_000), ("PAIRS", 100)):
        monkeypatch.setattr(duplicates, name, value)

    def peak(n):
        tracemalloc.start()
        find(((i, b" ".join(b"%d" % (i * k) for k in range(30))) for i in range(n)), n)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)  # tables that are kept
    assert peak(12_000) - peak(4_000) < 8_000 * 100  # of 200 bytes of text and as many of its sketch each
    duplicates._powers.cache_clear()


# ---------------------------------------------------------------------------- corpora

RECORDS = ["um dia de sol", "dois\ndias", "Um dia, de sol!", "três", "dois\ndias", "quatro", "QUATRO"]
KEPT = ["um dia de sol", "dois\ndias", "três", "quatro"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in RECORDS))
    (tmp_path / "b.txt").write_text("três\n<|endoftext|>\nquatro\n<|endoftext|>\ncinco\n")
    (tmp_path / "c.csv").write_text("text\ncinco\nseis\n")
    return tmp_path


def documents_of(corpus):
    found = [""] * corpus.n_documents
    for number, chunk in corpus.chunks():
        found[number] += chunk.decode()
    return found


def test_records_that_repeat_documents_before_them_are_left_out(files):
    corpus = DistinctCorpus(files, "records", True)
    assert documents_of(corpus) == [*KEPT, "três\n", "quatro\n", "cinco\n", "seis"]
    assert corpus.n_left_out == {"exact": 1, "near": 3}
    assert [corpus.places(number, [1]) for number in (1, 2, 3, 5, 7)] == [
        (str(files / name), [line])
        for name, line in (("a.jsonl", 2), ("a.jsonl", 4), ("a.jsonl", 6), ("b.txt", 3), ("c.csv", 3))
    ]
    told = [
        one._replace(place=messages.place(*one.place), first_place=messages.place(*one.first_place))
        for one in corpus.repeated()
    ]
    assert [tuple(one) for one in told] == [
        (True, "a.jsonl:5", "dois dias", "a.jsonl:2", "dois dias"),
        (False, "a.jsonl:3", "Um dia, de sol!", "a.jsonl:1", "um dia de sol"),
        (False, "a.jsonl:7", "QUATRO", "a.jsonl:6", "quatro"),
        (False, "c.csv:2", "cinco", "b.txt:5", "cinco"),
    ]
    # those of b.txt are kept, and known to be duplicates
    assert corpus.twins().tolist() == [-1, -1, -1, -1, 2, 3, -1, -1]
    everything = DistinctCorpus(files, "all", True)
    assert documents_of(everything) == [*KEPT, "cinco\n", "seis"]
    assert (everything.twins() == -1).all()
    for none in ("none", None):
        corpus = DistinctCorpus(files, none, True)
        assert (
            len(documents_of(corpus)) == 12 and corpus.selection == "" and not any(corpus.n_left_out.values())
        )
        assert corpus.twins().tolist() == [-1, -1, 0, -1, 1, -1, 5, 3, 5, -1, 9, -1]
    with pytest.raises(ValueError, match="dedupe must be one of records, all, none, got 'most'"):
        DistinctCorpus(files, "most", True)


def test_places_are_counted_as_their_files_are(tmp_path):
    """A record of a list has no line, and a paragraph of Word neither."""
    (tmp_path / "a.json").write_text('[{"text": "um dia de sol"},\n\n{"text": "um dia de sol"}]')
    for name in ("b.docx", "c.docx"):
        word_file(tmp_path / name, ["o mar e o vento"])
    corpus = DistinctCorpus([tmp_path / name for name in ("a.json", "b.docx", "c.docx")], "all", True)
    assert [(one.place, one.first_place) for one in corpus.repeated()] == [
        (("a.json", 2, "record"), ("a.json", 1, "record")),
        (("c.docx", 1, "paragraph"), ("b.docx", 1, "paragraph")),
    ]
    assert messages.duplicates_report(corpus, shown=True)[1:] == [
        "  a.json, record 2 repeats a.json, record 1: 'um dia de sol'",
        "  c.docx, paragraph 1 repeats b.docx, paragraph 1: 'o mar e o vento x'",
    ]


def test_a_twin_that_is_left_out_gives_its_own_one(tmp_path):
    (tmp_path / "a.txt").write_text("um dois\n")
    (tmp_path / "b.csv").write_text("text\nUm dois\n")
    (tmp_path / "c.txt").write_bytes(b"Um dois")
    corpus = DistinctCorpus([tmp_path / name for name in ("a.txt", "b.csv", "c.txt")], "records", True)
    assert documents_of(corpus) == ["um dois\n", "Um dois"] and corpus.twins().tolist() == [-1, 0]


def test_what_is_left_out_is_in_no_ids_of_before(files, monkeypatch):
    """Tokens that are kept on the disk are those of the documents that are not left out."""
    monkeypatch.setattr("npgpt.text.corpus.IN_MEMORY", 10)
    monkeypatch.setenv("NPGPT_CACHE", str(files / "cache"))
    sizes = [
        len(encode(DistinctCorpus(files, how, True), ByteTokenizer())) for how in ("none", "records", "all")
    ]
    assert sizes == [
        len(encode(DistinctCorpus(files, how, True), ByteTokenizer())) for how in ("none", "records", "all")
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_from_text_leaves_repeated_records_out(files):
    dataset = Dataset.from_text(files / "a.jsonl", "1")
    assert bytes(dataset.train[dataset.train < 256].astype(np.uint8)).decode() == "".join(KEPT)
    assert len(Dataset.from_text(files / "a.jsonl", "1", dedupe="none")) > len(dataset)
