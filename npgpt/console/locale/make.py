"""`python npgpt/console/locale/make.py`: bring each npgpt.po up to the source, and compile it to npgpt.mo.

Run it after a message has changed, translate what it names, and run it again. setup.py compiles the .po files
of a package that is built. Needs polib: pip install "npgpt[test]".
"""

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1]
CATALOGUES = sorted(HERE.glob("*/LC_MESSAGES/npgpt.po"))
# function: which argument of it is a message; so is each `help=`
MARKS = {"_": 0, "N_": 0, "log": 0, "translate": 0, "make_parser": 1, "Setting": 2}
# file: its messages without a mark. The counts of computing code are translated by their names.
UNMARKED = {
    "argparse.py": ["usage: ", "options", "positional arguments", "show this help message and exit"],
    "text/cleaning.py": [
        "byte-order marks removed",
        "line ends made \\n",
        "characters composed (NFC)",
        "control characters removed",
        "line ends stripped of blanks",
        "runs of blank lines shortened",
    ],
    "text/forms/reading.py": [
        "text",
        "JSON lines",
        "comma-separated values",
        "tab-separated values",
        "subtitles",
        "a Word document",
        "a PDF",
    ],
    "text/forms/tables.py": ["records without text left out", "bad records left out"],
    "text/forms/markup.py": ["pages without text left out"],
    "text/forms/lines.py": [
        "repeated subtitles left out",
        "notices left out",
        "media left out",
        "deleted messages left out",
        "lines of licence left out",
    ],
    "text/forms/conversations.py": [
        "turns that answer nothing left out",
        "turns without an answer left out",
        "answers longer than --longest, with their question, left out",
    ],
    "text/anonymise.py": [
        "names",
        "telephones",
        "e-mail addresses",
        "links",
        "CPF",
        "CNPJ",
        "other numbers",
    ],
    "training/evaluation.py": ["uniform", "unigram"],
    "console/tuning.py": [
        "trial,minutes,layers x channels,batch,lr,dropout,epochs,steps,val loss,vs default"
    ],
}


def messages() -> dict[str, str]:
    """Return message -> file, in the order of the source, of all that a catalogue must hold."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        file = path.relative_to(PACKAGE).as_posix()
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
            for message in _marked(call):
                found.setdefault(message, file)
    for file, unmarked in UNMARKED.items():
        found |= dict.fromkeys(unmarked, file)
    return found


def _marked(call: ast.Call) -> Iterator[str]:
    """Yield the messages that a call holds."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in MARKS:
        yield from _texts(call.args[MARKS[name]])
    for keyword in call.keywords:
        if keyword.arg == "help":
            yield from _texts(keyword.value)


def _texts(node: ast.expr) -> Iterator[str]:
    """Yield the text of an expression, both texts of a choice, none of a variable."""
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        raise ValueError(f"make: a message must be no f-string, got {ast.unparse(node)}")


def main() -> None:
    """Update and compile all catalogues, and print the messages that each lacks."""
    import polib

    for path in CATALOGUES:
        catalogue = polib.pofile(str(path), wrapwidth=110)
        translations = {entry.msgid: entry.msgstr for entry in catalogue}
        catalogue.clear()
        for message, file in messages().items():
            translation = translations.get(message, "")
            catalogue.append(polib.POEntry(msgid=message, msgstr=translation, occurrences=[(file, "")]))
        catalogue.save()
        catalogue.save_as_mofile(str(path.with_suffix(".mo")))
        for entry in catalogue.untranslated_entries():
            print(f"{path.relative_to(PACKAGE)}: not translated: {entry.msgid}")


if __name__ == "__main__":
    main()
