"""`python npgpt/console/locale/make.py`: bring each npgpt.po and its npgpt.mo up to the source.

A message is looked up by its English text. So is an f-string that is raised; its values are {0}, {1}, ...
"""

import argparse
import ast
import inspect
import re
import struct
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1]
CATALOGUES = sorted(HERE.glob("*/LC_MESSAGES/npgpt.po"))
# function: which argument of it is a message
MARKS = {"Setting": 2, "number": 1, "parser": 1, "_": 0, "say": 0, "fail": 1, "error": 0}
TABLES = ("DOORS", "SYSTEM", "COMMANDS")  # whose values are messages
# What a program alone can do wrong, or what a client of the server reads, stays English.
ENGLISH = ("server/", "engine/[lmo]", "runtime/batch.py", "text/bpe.py", "api.py")
BUGS = ("AssertionError", "AttributeError", "TypeError")


def messages() -> dict[str, str]:
    """message -> the file that it is in: those that must be in every catalogue."""
    found: dict[str, str] = {}
    for name, tree in _sources():
        for node in ast.walk(tree):
            for message in _marked(node, name):
                found.setdefault(message, name)
    return found


def strings() -> dict[str, str]:
    """text -> file of every string of the source, and of argparse's: what a catalogue may hold."""
    sources = [*_sources(), ("argparse", ast.parse(inspect.getsource(argparse)))]
    pairs = [(_text(node), name) for name, tree in sources for node in ast.walk(tree)]
    return {text: name for text, name in reversed(pairs) if text}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        if path.parent != HERE:
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _marked(node: ast.AST, file: str) -> Iterator[str]:
    """The messages that a node of the source holds."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        if not (getattr(node.exc.func, "id", "") in BUGS or re.match("|".join(ENGLISH), file)):
            yield from filter(_in_words, (t for arg in node.exc.args for t in _choices(arg)))
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        args = node.args[MARKS[name] :][:1] if name in MARKS else []
        args += [keyword.value for keyword in node.keywords if keyword.arg == "help"]
        yield from (text for arg in args for text in _choices(arg))
    elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in TABLES:
        values = getattr(node.value, "values", getattr(node.value, "elts", [node.value]))
        yield from filter(None, map(_text, values))


def _choices(node: ast.expr) -> Iterator[str]:
    """The text of an expression, each of them where it chooses; those that its values choose from too."""
    if isinstance(node, ast.IfExp):
        yield from _choices(node.body)
        yield from _choices(node.orelse)
    elif text := _text(node):
        yield text
        for value in getattr(node, "values", []):
            if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.IfExp):
                yield from _choices(value.value)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts, n = [], 0
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value).replace("{", "{{").replace("}", "}}"))
        else:
            parts.append(f"{{{n}}}")
            n += 1
    return "".join(parts)


def _in_words(text: str) -> bool:
    return bool(re.search("[a-z]{2}", re.sub(r"\{\d\}", "", text))) and " " in text


def read(path: Path) -> dict[str, str]:
    """message -> translation of a .po file."""
    entries, field, found = [], "", {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("msgid ", "msgstr ")):
            field, _, line = line.partition(" ")
            if field == "msgid":
                entries.append({"msgid": "", "msgstr": ""})
        if line.startswith('"'):
            entries[-1][field] += ast.literal_eval(line)
    for entry in entries:
        found[entry["msgid"]] = entry["msgstr"]
    return found


def written(catalogue: dict[str, str]) -> str:
    """The .po file of a catalogue: in the order of the source, each message with its file."""
    homes = strings() | messages()
    order = {message: place for place, message in enumerate(messages())}
    lines = []
    for message in sorted(catalogue, key=lambda m: (homes.get(m, ""), order.get(m, len(order)), m)):
        if message:
            lines.append(f"#: {homes[message]}")
        for field, text in (("msgid", message), ("msgstr", catalogue[message])):
            parts = text.splitlines(keepends=True) if "\n" in text[:-1] else [text]
            lines += [f"{field} {_quoted(parts[0])}", *map(_quoted, parts[1:])]
        lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def compiled(catalogue: dict[str, str]) -> bytes:
    """The .mo file: a head, tables of (length, offset), the texts (gettext manual, 10.3)."""
    pairs = sorted((k.encode(), v.encode()) for k, v in catalogue.items() if v)
    texts = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    at, tables = 28 + 8 * len(texts), []
    for text in texts:
        tables += [len(text), at]
        at += len(text) + 1
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, at)
    return head + struct.pack(f"<{len(tables)}I", *tables) + b"".join(text + b"\0" for text in texts)


def main() -> None:
    """Bring all catalogues up to the source, and tell how many messages each lacks."""
    needed, there = messages(), strings()
    for path in CATALOGUES:
        old = read(path)
        new = dict.fromkeys(needed, "") | {m: t for m, t in old.items() if t and (m in there or not m)}
        path.write_text(written(new), encoding="utf-8")
        path.with_suffix(".mo").write_bytes(compiled(new))
        lacking = [message for message, translation in new.items() if not translation]
        print(f"{path.relative_to(PACKAGE)}: {len(new)} messages, {len(lacking)} of them not translated")


if __name__ == "__main__":
    main()
