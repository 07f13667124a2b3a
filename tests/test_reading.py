"""The guided reading names functions that are there; the lesson and the page for teachers agree."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from npgpt.engine import ops

DOCS = Path(__file__).parent.parent / "docs"
READINGS = [DOCS / "reading.md", DOCS / "pt" / "reading.md"]
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)]+\.py)\)")
NAMED = [(page, *found) for page in READINGS for found in LINK.findall(page.read_text(encoding="utf-8"))]
PARTS = {  # of the article: what must be there to be read
    *("embedding_forward", "layernorm_forward", "softmax_forward", "_masked_scores", "attention_forward"),
    *("gelu_forward", "cross_entropy", "GPT.backward", "attention_backward", "adamw_step", "probabilities"),
    *("draw", "merge", "ByteTokenizer", "GPT._blocks", "Trainer._one_step"),
}


def names_in(path: Path) -> set[str]:
    """The functions, classes and methods of a file: f, C, C.f."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page, name, link", NAMED, ids=[f"{p.parent.name} {n}" for p, n, _ in NAMED])
def test_a_function_that_is_named_is_in_its_file(page, name, link):
    assert name in names_in((page.parent / link).resolve()), f"{page} names {name}, which is not in {link}"


@pytest.mark.parametrize("page", READINGS, ids=["en", "pt"])
def test_every_part_is_read(page):
    assert {name for where, name, _ in NAMED if where == page} >= PARTS
    text = page.read_text(encoding="utf-8")
    formulas = re.findall(r"^```text\n", text, re.MULTILINE)
    assert len(formulas) == len(re.findall(r"^## ", text, re.MULTILINE)), "each section has its formula"


def test_the_formulas_are_what_the_functions_compute():
    """Those of the page, typed anew."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 5))
    w, b = draw.normal(size=(2, 5))
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = ops.layernorm_forward(x, w, b, 1e-5)[0]
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * w + b)
    gelu = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ops.gelu_forward(x), gelu)
    losses = ops.cross_entropy(x.copy(), np.array([1, 3]), 0)
    np.testing.assert_allclose(losses, np.log(np.exp(x).sum(-1)) - x[[0, 1], [1, 3]])
    p, g, m, v = draw.normal(size=(4, 6))
    v = v**2
    lr, b1, b2, eps, decay, t = 0.1, 0.9, 0.99, 1e-8, 0.2, 3
    after, m_, v_ = p.copy(), m.copy(), v.copy()
    ops.adamw_step(after, g.copy(), m_, v_, 6, lr, b1, b2, eps, decay, t, 1.0)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    np.testing.assert_allclose((m_, v_), (m, v))
    step = lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    np.testing.assert_allclose(after, p - step - lr * decay * p)
    qkv = draw.normal(size=(1, 4, 12))
    q, k, v = (qkv[0][:, i * 4 : i * 4 + 4] for i in range(3))
    scores = np.where(np.tri(4, dtype=bool), q @ k.T / 2, -np.inf)
    np.testing.assert_allclose(ops.attention_forward(qkv, 1, 0.5)[0][0], ops.softmax_forward(scores) @ v)


TEACHERS = {"lesson.md": "teachers.md", "pt/lesson.md": "pt/teachers.md"}
CODE = re.compile(r"\bE[FM]\d\dCO\d\d\b")


@pytest.mark.parametrize("lesson, teachers", TEACHERS.items())
def test_the_plan_for_teachers_is_that_of_the_lesson(lesson, teachers):
    parts = re.findall(
        r"^## (.*) \((\d+) min\w+\)$", (DOCS / lesson).read_text(encoding="utf-8"), re.MULTILINE
    )
    page = (DOCS / teachers).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| (.*?) \| (\d+) \| (.*?) \|$", page, re.MULTILINE)
    assert [row[:2] for row in rows] == parts
    assert sum(int(minutes) for _part, minutes in parts) == 60, "the lesson is of an hour"
    explained = re.findall(r"^\| (E\w+) \| \w.* \|$", page, re.MULTILINE)
    assert explained == sorted(set(CODE.findall(" ".join(row[2] for row in rows))))
    asked = re.findall(r"^\*\*(.*?)\?\*\* \S", page, re.MULTILINE)
    assert len(asked) == 10, "each question has its answer"
