"""Records: JSON, JSON lines, and tables of comma- or tab-separated values. A field of each is a document."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import IO, Any

from npgpt.text.forms.notes import Notes

FIELD = "text"  # where --field says nothing
LONGEST = 1 << 26  # characters of a field
WHOLE = 1 << 28  # bytes of a JSON file that is no lines, as it is in memory at once
SAMPLE = 100  # lines that show how a table is written
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
            raise ValueError(
                f"{self.path}: {where}: {what} (npgpt.prepare --skip-bad leaves such records out)"
            )
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
    """Yield (number, text) of the records of a JSON list or of one record, or as of JSON lines."""
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
    field.notes.unit = "record"
    for number, record in enumerate(records if isinstance(records, list) else [records], 1):
        text = field.of(f"record {number}", record)
        if text is not None:
            yield number, text


def separated(path: str, file: IO[str], field: Field, delimiter: str | None) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the rows of a table whose first row names the columns.

    delimiter: None finds it in the first row: a comma, or the semicolon of spreadsheets in Portuguese.
    """
    csv.field_size_limit(LONGEST)
    start = list(islice(file, SAMPLE))
    begin = 0  # lines before the names of the columns
    if start and (said := re.fullmatch(r"sep=(.)\s*", start[0])):  # as Excel says it
        delimiter, begin = said[1], 1
    first = next((line for line in start[begin:] if line.strip()), "")
    delimiter = delimiter or max(",;\t|", key=re.sub(r'"[^"]*"', "", first).count)
    quoted = delimiter != "\t" or _is_quoted(start)
    reader = csv.reader(
        chain(start[begin:], file),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    names: list[str] = []
    column = 0
    while True:
        line = begin + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            field.bad(f"line {line}", f"is no row of a table: {error}")
            continue
        if row is None:
            return
        if not row:
            continue
        if not names:
            names = [name.strip() for name in row]
            column = _column(path, names, field)
        elif len(row) > column:
            text = field.of(f"line {line}", row[column])
            if text is not None:
                yield line, text
        else:
            field.bad(f"line {line}", f"has {len(row)} columns, and {names[column]!r} is none of them")


def _is_quoted(lines: Sequence[str]) -> bool:
    """Return True where quotes in a tab-separated table stand around cells: then all rows are as long."""
    reader, widths, last = csv.reader(lines, delimiter="\t", strict=True), set[int](), 0
    try:
        for row in reader:
            widths.add(len(row))
            last = reader.line_num
    except csv.Error:
        if len(lines) < SAMPLE or last < SAMPLE // 2:  # else the sample may end in a cell of several lines
            return False
    return len(widths - {0}) < 2


def _column(path: str, names: list[str], field: Field) -> int:
    wanted = field.name or (FIELD if FIELD in names or len(names) > 1 else names[0])
    if wanted not in names:
        raise ValueError(f"{path}: has no column {wanted!r}; {choose(names)}")
    return names.index(wanted)
