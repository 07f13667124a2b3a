"""The generated blocks of pages: for each kind a function of (record, arguments, page) that gives its lines.

A page translates words with page.t; figures are the same in every language. tables.py writes the blocks.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import record
from benchmarks.words_pt import WORDS

DETAILS = record.ROOT / "docs" / "benchmarks.md"
NUMBER = r"\d[\d,.]*\d|\d"
NAMES = {"numpy": "NumPy", "torch": "PyTorch"}


@dataclass(frozen=True)
class Page:
    """A page that blocks stand in, and the folder of the results that they show."""

    path: Path
    results: Path = record.FOLDER

    def t(self, text, *values):
        """The text in the page's language, with its values."""
        portuguese = re.search(r"(^|[./])pt(-BR)?([./]|$)", self.path.relative_to(record.ROOT).as_posix())
        return (WORDS[text] if portuguese else text).format(*values)

    def translated(self, text):
        """What a record says, in the page's language as far as it is known there; its numbers stay."""
        numbers = re.findall(NUMBER, text)
        template = re.sub(NUMBER, "{}", text)
        return self.t(template, *numbers) if template in WORDS else text

    def load(self, name):
        return record.load(name, self.results)


def table(heads, rows):
    """Lines of a Markdown table; columns of numbers are at the right, of words at the left."""
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = [all(re.match(r"[-+*]*\d|$", cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [heads, ["---:" if right else "---" for right in numeric], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def provenance(page, *records):
    """When, where and by what it was measured: a small line for each machine, day and commit."""
    t, groups = page.t, {}
    for r in records:
        m = r["machine"]
        memory = f", {m['memory_gb']:g} GB {t('of memory')}" if "memory_gb" in m else ""
        kernels = f", {m['kernels']} {t('kernels')}" if "kernels" in m else ""
        threads = ""
        if "threads" in m:
            threads = f", {m['threads']} {t('threads' if m['threads'] > 1 else 'thread')}"
        where = f"{m['cpu']}, {m['cores']} {t('cores')}{memory}{kernels}{threads}"
        commit = f", {t('commit')} {r['commit']}" if r["commit"] else ""
        words = f"{t('Measured')} {r['date']}{commit}, {where}"
        found, commands = groups.setdefault(words, ({}, []))
        found.update(r["versions"])
        commands.append(r["command"])
    lines = []
    for words, (found, commands) in groups.items():
        packages = ", ".join(f"{NAMES.get(package, package)} {version}" for package, version in found.items())
        commands = ", ".join(f"`{command}`" for command in dict.fromkeys(commands))
        lines += ["", f"<small>{'; '.join(filter(None, [words, packages, commands]))}</small>"]
    return lines


# ---------------------------------------------------------------------------- the four figures


def headline(page):
    """Four figures for README, each with a link to the section that says how it was measured."""
    t, names = page.t, ("compare", "nanogpt", "decode", "tokenizers")
    steps, nano, decode, encode = records = [page.load(name) for name in names]
    ratios = [fastest_torch(case)["ratio"] for case in steps["rows"]]
    ours = median(run["seconds"] for run in nano["rows"]["npgpt"])
    theirs = nano["rows"]["nanogpt"]["seconds"]
    large = [row for row in decode["rows"] if row["size"] == "124M" and "llama.cpp" in row]
    speeds = [row["npgpt"]["decode"] for row in large]
    gains = [row["npgpt"]["decode"] / row["llama.cpp"]["decode"] for row in large]
    encoding = encode["rows"][0]["rows"]
    rates = encoding["npgpt"]["mb_per_second"], encoding["tiktoken"]["ratio"]
    rows = [
        (t("training step, {} cases", len(ratios)), t("{} times as fast", span(page, ratios)),
         t("PyTorch at its fastest setting"), "Training steps"),
        (t("nanoGPT's recipe for a CPU, to the same loss"),
         t("{}: {} times as fast", f"{ours:.0f} s", f"{theirs / ours:.1f}"), f"nanoGPT, {theirs:.0f} s",
         "To the loss of nanoGPT"),
        (t("generation, GPT-2 124M, {} to {}", large[0]["type"].upper(), large[-1]["type"].upper()),
         t("{}: {} times as fast", f"{span(page, speeds, 0)} tokens/s", span(page, gains)), "llama.cpp",
         "Generation"),
        (t("encoding, GPT-2's vocabulary, one thread"),
         t("{}: {} times as fast", f"{rates[0]:.0f} MB/s", f"{rates[1]:.1f}"), "tiktoken", "Tokenizers"),
    ]  # fmt: skip
    link = os.path.relpath(DETAILS, page.path.parent)
    cells = [
        [what, f"**{figure}**", other, f"[{t(section)}]({link}#{anchor(section)})"]
        for what, figure, other, section in rows
    ]
    measured = "<br>\n".join(filter(None, provenance(page, *records))).split("\n")  # one paragraph
    return [*table(["", t("figure"), t("beside"), t("how it was measured")], cells), "", *measured]


SECTIONS = "Training steps", "To the loss of nanoGPT", "Generation", "Tokenizers"


def anchor(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def fastest_torch(case):
    return min((row for peer, row in case["rows"].items() if "PyTorch" in peer), key=lambda row: row["ms"])


def span(page, values, digits=2):
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} {page.t('to')} {high}"


# ---------------------------------------------------------------------------- one for each benchmark


def compare(page, case=None):
    r, t, lines = page.load("compare"), page.t, []
    for found in chosen(r["rows"], "case", case):
        limits = f"{t('peak')} {found['peak_gflops']:.0f} GFLOP/s, "
        limits += f"{t('read')} {found['read_gb_per_second']:.0f} GB/s"
        lines += ["", f"**{found['case']}**: {found['gflop']:.2f} {t('GFLOP a step')}; {limits}", ""]
        rows = [
            [peer, f"{row['ms']:.1f}", f"{row['gflops']:.1f}", f"{row['share_of_peak']:.0%}",
             f"{row['peak_rss_mb']:.0f}", f"{row['ratio']:.2f}"]
            for peer, row in found["rows"].items()
        ]  # fmt: skip
        lines += table(["", "ms", "GFLOP/s", t("of peak"), "MB", t("theirs / ours")], rows)
    return lines[1:] + provenance(page, r)


def products(page, only=""):
    r, t = page.load("products"), page.t
    rows = [
        [name, f"{row['npgpt']:.0%}", f"{row['openblas']:.0%}", f"{row['ratio']:.2f}"]
        for name, row in r["rows"].items()
        if name.startswith(only)
    ]
    return table([t("product"), "npgpt", "OpenBLAS", "npgpt / OpenBLAS"], rows) + provenance(page, r)


def nanogpt(page):
    r, t = page.load("nanogpt"), page.t
    theirs = r["rows"]["nanogpt"]
    named = [("nanoGPT", theirs), *((f"npgpt, seed {i}", run) for i, run in enumerate(r["rows"]["npgpt"]))]
    rows = [
        [name, f"{run['seconds']:.1f}", f"{run['val_loss']:.4f}", f"{theirs['seconds'] / run['seconds']:.2f}"]
        for name, run in named
    ]
    heads = ["", t("seconds"), t("validation loss, nats per character"), t("theirs / ours")]
    return table(heads, rows) + provenance(page, r)


def tokenizers(page):
    r, t, lines = page.load("tokenizers"), page.t, []
    for found in r["rows"]:
        rows = [
            [by, f"{row['seconds']:.3f}", f"{row['mb_per_second']:.2f}", f"{row['ratio']:.2f}"]
            for by, row in found["rows"].items()
        ]
        same = t("the same result from all")
        lines += ["", f"**{found['case']}**: {found['megabytes']:.1f} MB, {same}", ""]
        lines += table(["", t("seconds"), "MB/s", t("theirs / ours")], rows)
    return lines[1:] + provenance(page, r)


def decode(page, size=None):
    r, t, lines = page.load("decode"), page.t, []
    for name in dict.fromkeys(row["size"] for row in chosen(r["rows"], "size", size)):
        found = [row for row in r["rows"] if row["size"] == name]
        peers = [peer for peer in ("llama.cpp", "CTranslate2") if any(peer in row for row in found)]
        heads = [t("weights")]
        for what in ("decode", "prompt"):
            heads += [t(f"{what}, tokens/s"), *(f"/ {peer}" for peer in peers)]
        heads += [t("of read bandwidth"), t("eight texts together, tokens/s")]
        rows = []
        for row in found:
            cells = [row["type"].upper()]
            for key in ("decode", "prefill"):
                ours = row["npgpt"][key]
                cells += [f"{ours:,.0f}", *(f"{ours / row[p][key]:.2f}" if p in row else "" for p in peers)]
            rows.append([*cells, f"{row['share']:.0%}", f"{row['eight']:,.0f}" if "eight" in row else ""])
        read = median(row["bandwidth"] for row in found)
        lines += ["", f"**{name}**: {t('read')} {read:.0f} GB/s", "", *table(heads, rows)]
    return lines[1:] + provenance(page, r)


def load(page):
    r, t = page.load("load"), page.t
    rows = [
        [row["server"], row["clients"], f"{row['tokens_per_second']:,.1f}", f"{row['first_p50']:.3f} s",
         f"{row['first_p99']:.3f} s"]
        for row in r["rows"]
    ]  # fmt: skip
    heads = [t("server"), t("clients"), t("tokens/s in all"), t("first token, median")]
    lines = table([*heads, t("first token, 99th percentile")], rows)
    ninth = t("a ninth client beside eight, first token")
    lines += ["", *table(["", ninth], [[name, f"{max(s):.3f} s"] for name, s in r["ninth"].items()])]
    return lines + provenance(page, r)


def explain(page):
    """Whole processes, and the attribution alone, of npgpt and inseq; and npgpt's command."""
    r, t, rows = page.load("explain"), page.t, []
    for ours, theirs in zip(r["rows"][::2], r["rows"][1::2], strict=True):
        for row in (ours, theirs):
            cells = [f"{median(row[key]):.2f} s" for key in ("seconds", "inside")]
            times = [f"{median(row[key]) / median(ours[key]):.1f}" for key in ("seconds", "inside")]
            rows.append([row["method"], row["who"], *cells, f"{max(row['memory']) / 1e6:,.0f} MB", *times])
    heads = [t("method"), "", t("process"), t("attribution"), t("memory"), t("process, times ours")]
    lines = table([*heads, t("attribution, times ours")], rows)
    commands = [[method, f"{median(seconds):.2f} s"] for method, seconds in r["commands"].items()]
    lines += ["", *table([t("method"), t("the command, with --attention")], commands)]
    return lines + provenance(page, r)


def index(page):
    r, t = page.load("index"), page.t
    rows = [
        [f"{row['megabytes']:,} MB", f"{row['seconds']:.0f} s", f"{row['peak'] / 1e6:,.0f} MB",
         f"{row['disk'] / 1e6:,.0f} MB", f"{row['asked']:.3f} s"]
        for row in r["rows"]
    ]  # fmt: skip
    heads = [t("text"), t("made in"), t("memory"), t("disk"), t("400 bytes looked up in")]
    return table(heads, rows) + provenance(page, r)


def records(page):
    r, t, rows = page.load("records"), page.t, []
    for row in r["rows"]:
        ours, theirs, distinct = row["npgpt"], row["datasets"], row["npgpt, without duplicates"]
        rate, ratio = row["megabytes"] / ours["seconds"], theirs["seconds"] / ours["seconds"]
        cells = [f"{rate:.0f} MB/s", f"{ratio:.1f}", f"{ours['peak'] / 1e6:.0f} MB"]
        cells += [
            f"{ours['peak'] / theirs['peak']:.2f}",
            f"{row['megabytes'] / distinct['seconds']:.0f} MB/s",
        ]
        rows.append([f"{row['file']}, {row['megabytes']} MB", *cells])
    heads = [t("to ids"), t("times datasets"), t("memory"), t("of datasets'"), t("duplicates left out")]
    return table(["", *heads], rows) + provenance(page, r)


def bands(page):
    r, t, rows = page.load("bands"), page.t, []
    for T, row in r["rows"].items():
        pairs = [[row[f"{w} {way}"] for way in ("forward", "backward")] for w in (r["window"], "none")]
        cells = [f"{forward:.1f} + {backward:.1f}" for forward, backward in pairs]
        rows.append([T, *cells, f"{1 - sum(pairs[0]) / sum(pairs[1]):.0%}"])
    heads = [t("tokens"), t("window of {}, us a token", r["window"]), t("no window, us a token"), t("saved")]
    return table(heads, rows) + provenance(page, r)


def perplexity(page):
    r, t = page.load("perplexity"), page.t
    rows = [[type.upper(), f"{p:.4f}", f"{p / r['rows']['f32'] - 1:+.4%}"] for type, p in r["rows"].items()]
    return table([t("weights"), t("perplexity"), t("beside F32")], rows) + provenance(page, r)


def vocabulary(page):
    """One column for each text that was measured."""
    names = sorted(path.stem for path in page.results.glob("vocabulary-*.json"))
    if not names:
        page.load("vocabulary")  # says what is missing
    records, t = [page.load(name) for name in names], page.t
    sizes = [t("{} MB, {} minutes", f"{r['megabytes']:.1f}", f"{r['minutes']:g}") for r in records]
    heads = [
        f"{t('tokenizer')}, {t('bits per byte')}",
        *(f"{r['text']}, {size}" for r, size in zip(records, sizes, strict=True)),
    ]
    rows = []
    for tokenizer in dict.fromkeys(name for r in records for name in r["rows"]):
        cells = [r["rows"].get(tokenizer) for r in records]
        rows.append([tokenizer, *(f"{cell['bits_per_byte']:.3f}" if cell else "" for cell in cells)])
    return table(heads, rows) + provenance(page, *records)


def by_text(page, name, heading, heads, cells):
    """A table for each text that was measured as NAME-TEXT, nothing before that: heading(r), cells(row)."""
    lines = []
    for path in sorted(page.results.glob(f"{name}-*.json")):
        r = page.load(path.stem)
        rows = [[*cells(row), f"{row['bits_per_byte']:.3f}", f"{row['apart']:.3f}"] for row in r["rows"]]
        columns = [*heads, page.t("bits per byte"), page.t("seeds apart")]
        lines += [heading(r), "", *table(columns, rows), *provenance(page, r), ""]
    return lines[:-1]


def shapes(page):
    t, words = page.t, "{}, {} MB, {} minutes each, {} seeds:"
    return by_text(
        page,
        "shapes",
        lambda r: t(words, r["text"], f"{r['megabytes']:.1f}", f"{r['minutes']:g}", r["seeds"]),
        [t("engine"), t("parameters"), t("steps")],
        lambda row: [row["engine"], f"{row['parameters']:,}", f"{row['steps']:,.0f}"],
    )


def softmax(page):
    t, words = page.t, "{}, {} MB, {}, {} seeds:"
    return by_text(
        page,
        "softmax",
        lambda r: t(words, r["text"], f"{r['megabytes']:.1f}", r["tokenizer"], r["seeds"]),
        ["--softmax", t("steps"), t("seconds")],
        lambda row: [row["softmax"], f"{row['steps']:,}", f"{row['seconds']:.0f}"],
    )


def tune(page):
    r, t = page.load("tune"), page.t
    heads = [t("text"), t("default"), t("tuned"), t("minutes each"), t("settings found")]
    rows = []
    for row in r["rows"]:
        settings = ", ".join(f"{k} {v}" for k, v in (row["settings"] or {}).items()) or t("the default")
        losses = f"{row['default']:.4f}", f"{row['tuned']:.4f}"
        rows.append([row["text"], *losses, f"{row['minutes']:.2f}", settings])
    return table(heads, rows) + provenance(page, r)


def tasks(page, base=""):
    """What a base learnt: `tasks` for 15 minutes of machado, `tasks base=smollm2` for that file."""
    names = sorted(path.stem for path in page.results.glob(f"tasks-{base}-*.json")) if base else ["tasks"]
    results, t, rows = [page.load(name) for name in names], page.t, {}
    for row in (row for r in results for row in r["rows"]):
        if row["measured"] not in ("an example", "a transcript"):
            ours = "npgpt" in row["by"] or "seeds" in row["by"]
            cell = (
                row["found"]
                if row["by"] == "npgpt.finetune"
                else f"{page.translated(row['by'])} {row['found']}"
            )
            rows.setdefault(row["measured"], ([], []))[not ours].append(cell)
    cells = [[page.translated(what), "; ".join(ours), "; ".join(rest)] for what, (ours, rest) in rows.items()]
    lines = table([t("task and measure"), "npgpt.finetune", t("beside it")], cells)
    return lines + provenance(page, *results)


def lora(page):
    r, t = page.load("lora"), page.t
    heads = [t("contender"), t("ms a step"), t("MB"), t("their time over ours"), t("their memory over ours")]
    rows = [
        [page.translated(name), f"{row['ms']:,.0f}", f"{row['peak_rss_mb']:,.0f}",
         f"{row['ratio']:.2f}", f"{row['memory_ratio']:.2f}"]
        for name, row in r["rows"].items()
    ]  # fmt: skip
    return table(heads, rows) + provenance(page, r)


def scaling(page):
    r, t = page.load("scaling"), page.t
    heads = [t("ranks"), t("weak: ms a step"), t("share of ideal"), t("strong: ms a step")]
    heads += [t("share of ideal"), t("sum alone, ms"), t("waited, ms")]
    rows = [
        [row["ranks"], f"{row['weak_ms']:.1f}", f"{row['weak_share']:.0%}", f"{row['strong_ms']:.1f}",
         f"{row['strong_share']:.0%}", f"{row['sum_ms']:.2f}", f"{row['waited_ms']:.2f}"]
        for row in r["rows"]
    ]  # fmt: skip
    return table(heads, rows) + provenance(page, r)


def scaling_nodes(page, batch="free"):
    """The prediction; batch=held: with no more tokens in a step than help."""
    r = page.load("scaling")
    return table(r["columns"], r["predictions"][batch == "held"]) + provenance(page, r)


def build(page):
    r, t = page.load("build"), page.t
    rows = [
        [row["tree"], ", ".join(f"{s:.1f}" for s in row["seconds"]), f"{median(row['seconds']):.1f}"]
        for row in r["rows"]
    ]
    return table([t("tree"), t("seconds of each build"), t("median")], rows) + provenance(page, r)


def output(page, name, first=None, last=None):
    """Commands and what they printed; of more than first + last lines those in between are `...`."""
    r, lines = page.load(f"output-{name}"), []
    for row in r["rows"]:
        printed = row["output"].splitlines()
        head, tail = int(first or 0), int(last or 0)
        if (first or last) and len(printed) > head + tail:
            printed = [*printed[:head], "...", *printed[len(printed) - tail :]]
        lines += [f"$ {row['command']}", *printed]
    return [*fenced(lines), *provenance(page, r)]


def fenced(lines):
    """Lines as text in a fence that none of them ends."""
    fence = "`" * max([3, *(len(run) + 1 for line in lines for run in re.findall("`{3,}", line))])
    return [f"{fence}text", *lines, fence]


def first_hour(page):
    """One text after some minutes: losses, then a sample of each; nothing before it was measured."""
    if not (page.results / "first_hour.json").exists():
        return []
    r, t = page.load("first_hour"), page.t
    text = t("The first {} kB of *{}*, by the default plan:", round(r["n_bytes"] / 1e3), r["title"])
    heads = [t("minutes"), t("steps"), t("validation loss"), t("bits per byte, test"), t("accuracy@1, test")]
    rows = [
        [f"{row['minutes']:g}", f"{row['steps']:,}", f"{row['best_val_loss']:.3f}",
         f"{row['bits_per_byte']:.3f}", f"{row['accuracy@1']:.1%}"]
        for row in r["rows"]
    ]  # fmt: skip
    lines = [text, "", *table(heads, rows)]
    for row in r["rows"]:
        words = t('After {} min it goes on from "{}":', f"{row['minutes']:g}", r["prompt"])
        lines += ["", words, "", *fenced((r["prompt"] + row["sample"]).splitlines())]
    return [*lines, *provenance(page, r)]


def chosen(rows, key, value):
    """The rows whose key has the value, all of them without one; none is an error."""
    found = [row for row in rows if value in (None, row[key])]
    if not found:
        raise SystemExit(f"no {key} is called {value}: {', '.join(row[key] for row in rows)}")
    return found


KINDS = {
    "headline": headline, "compare": compare, "products": products, "nanogpt": nanogpt,
    "tokenizers": tokenizers, "decode": decode, "load": load, "bands": bands, "perplexity": perplexity,
    "vocabulary": vocabulary, "shapes": shapes, "softmax": softmax, "tune": tune, "tasks": tasks,
    "lora": lora, "scaling": scaling, "scaling-nodes": scaling_nodes, "build": build, "output": output,
    "first-hour": first_hour, "explain": explain, "index": index, "records": records,
}  # fmt: skip
