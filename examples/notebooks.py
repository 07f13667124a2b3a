"""`python examples/notebooks.py`: makes the notebooks of the lesson from its pages, and runs them.

Blocks of Python become cells of code, what stands between them cells of text. The notebooks keep the results
and pictures of this run. Needs nbclient, ipykernel and matplotlib.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"aula": ROOT / "docs" / "pt" / "lesson.md", "lesson": ROOT / "docs" / "lesson.md"}
LOCALES = {"aula": "pt_BR.UTF-8", "lesson": "C.UTF-8"}  # the language of npgpt's messages
CODE = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def cells(page: Path) -> list[tuple[str, str]]:
    """Return ("code" or "markdown", its text) for each part of a page, with links as they go from here."""
    parts = CODE.split(page.read_text(encoding="utf-8"))  # text, code, text, ...
    here = Path(__file__).parent

    def link(found: re.Match[str]) -> str:
        return f"]({os.path.relpath(page.parent / found[1], here)}"

    named = [("code" if i % 2 else "markdown", part.strip()) for i, part in enumerate(parts)]
    return [(kind, LINK.sub(link, part) if kind == "markdown" else part) for kind, part in named if part]


def notebook(page: Path) -> nbformat.NotebookNode:
    """Return a page as a notebook that was not run."""
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    made = [make[kind](part, id=f"part-{n}") for n, (kind, part) in enumerate(cells(page))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def run(name: str) -> nbformat.NotebookNode:
    """Return one of PAGES as a notebook that was run, without its progress and the places of its files."""
    os.environ["LC_ALL"] = LOCALES[name]
    book = notebook(PAGES[name])
    here = {"metadata": {"path": str(Path(__file__).parent)}}
    NotebookClient(book, timeout=900, resources=here).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for one in cell.outputs:
                if "text" in one:
                    one["text"] = re.sub(rf"\S*/({name})-\w+", r"\1", one["text"].replace(str(ROOT), ".."))
    return book


def main() -> None:
    """Write each notebook."""
    for name in PAGES:
        file = Path(__file__).with_name(f"{name}.ipynb")
        nbformat.write(run(name), file)
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
