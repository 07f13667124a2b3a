"""Records: JSON, JSON lines, and tables of comma- or tab-separated values. A field of each is a document."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from npgpt.text.forms.notes import Notes

FIELD = "text"  # where --field says nothing
LONGEST = 1 << 26  # characters of a field
WHOLE = 1 << 28  # bytes of a JSON file that is no lines, as it is in memory at once
EMPTY = "records without text left out"
BAD = "bad records left out"


class Field:
    """Finds the text in the records of one file."""

    def __init__(self, path: str, name: str | None, skip_bad: bool, notes: Notes) -> None:
        self.path, self.name, self.skip_bad, self.notes = path, name, skip_bad, notes

    def of(self, where: str, record: Any) -> str | None:
        """Return the text of a record, None for one without; ValueError for a bad one, but for skip_bad."""
        if isinstance(record, str):
            text = record
        elif not isinstance(record, dict):
            self.bad(where, f"must be an object or a string, got {type(record).__name__}")
            return None
        else:
            self.name = self.name or self._usual(where, record)
            if self.name not in record:
                self.bad(where, f"has no {self.name!r}")
                return None
            text = record[self.name]
            if text is None:
                text = ""
            if not isinstance(text, str):
                self.bad(where, f"{self.name!r} must be a string, got {type(text).__name__}")
                return None
        if not text.strip():
            self.notes.drop(EMPTY, where)
            return None
        return text

    def bad(self, where: str, what: str) -> None:
        """Raise ValueError that names the record, or count it where bad ones are left out."""
        if not self.skip_bad:
            raise ValueError(f"{self.path}: {where}: {what} (--skip-bad leaves such records out)")
        self.notes.drop(BAD, f"{where}: {what}")

    def _usual(self, where: str, record: dict[str, Any]) -> str:
        """Return the field that holds the text, where nobody said: text, or the only one with a string."""
        strings = [name for name, value in record.items() if isinstance(value, str)]
        if FIELD in record:
            return FIELD
        if len(strings) == 1:
            return strings[0]
        if "messages" in record:
            raise ValueError(f"{self.path}: {where}: is a conversation, which npgpt.finetune learns")
        raise ValueError(f"{self.path}: {where}: has no {FIELD!r}; {choose(strings)}")


def choose(names: Sequence[str]) -> str:
    """Return the flags that would name one of these fields."""
    if not names:
        return "no field holds text"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"give --field, one of: {', '.join(names[:6])}{more}"


def json_lines(lines: Iterable[str], field: Field) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the records of JSON lines."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            field.bad(where, f"is not JSON: {error}")
            continue
        text = field.of(where, record)
        if text is not None:
            yield number, text


def json_file(path: str, file: IO[str], field: Field) -> Iterator[tuple[int, str]]:
    """Yield (line 1, text) of the records of a JSON list, of one record, or of JSON lines."""
    content = file.read(WHOLE + 1)
    if len(content) > WHOLE:
        raise ValueError(
            f"{path}: is more than {WHOLE >> 20} MB of JSON; one record a line (.jsonl) may be longer"
        )
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("{") and "\n{" in content:
            yield from json_lines(io.StringIO(content), field)
            return
        raise ValueError(f"{path}: is not JSON: {error}") from None
    for number, record in enumerate(records if isinstance(records, list) else [records], 1):
        text = field.of(f"record {number}", record)
        if text is not None:
            yield 1, text


def separated(path: str, file: IO[str], field: Field, delimiter: str | None) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the rows of a table whose first row names the columns.

    delimiter: None finds it in the first row: a comma, or the semicolon of spreadsheets in Portuguese.
    """
    csv.field_size_limit(LONGEST)
    first = file.readline()
    delimiter = delimiter or max(",;\t|", key=first.count)
    reader = csv.reader(_again(first, file), delimiter=delimiter)
    names: list[str] = []
    try:
        for row in reader:
            if not row:
                continue
            if not names:
                names = [name.strip() for name in row]
                column = _column(path, names, field)
                continue
            if len(row) > column:
                text = field.of(f"line {reader.line_num}", row[column])
                if text is not None:
                    yield reader.line_num, text
            else:
                field.bad(
                    f"line {reader.line_num}",
                    f"has {len(row)} columns, and {names[column]!r} is none of them",
                )
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None


def _column(path: str, names: list[str], field: Field) -> int:
    wanted = field.name or (FIELD if FIELD in names or len(names) > 1 else names[0])
    if wanted not in names:
        raise ValueError(f"{path}: has no column {wanted!r}; {choose(names)}")
    return names.index(wanted)


def _again(first: str, file: IO[str]) -> Iterator[str]:
    yield first
    yield from file
