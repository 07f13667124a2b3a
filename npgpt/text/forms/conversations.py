"""Chats and subtitles as conversations: who speaks, when another one begins, and what of it can be learnt.

A person of a chat is the assistant, all others are the user. Subtitles name nobody, so their turns alternate.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from typing import TypeAlias

from npgpt.text.forms.lines import Message

PAUSE = 6 * 3600  # seconds without a message, after which another conversation begins
SCENE = 10  # seconds without a subtitle, after which another conversation begins
SHOWN = 20  # names that an error lists
MARKS = 2  # tokens around each turn, of its role and its end
Turn: TypeAlias = tuple[str, str]  # role, text
AFTERNOON = re.compile(r"([AaPp])\.?[\s\u00a0]?[Mm]")
ORDERS = (2, 1, 0), (2, 0, 1), (0, 1, 2)  # where year, month and day are in a date
TIME = re.compile(r"(?:(\d+):)?(\d+):(\d+)(?:[.,:](\d+))?")
DASH = re.compile(r"[-\u2010-\u2015]\s*")  # before what one of several people says


def of_chat(path: str, messages: Iterable[Message], me: str | None) -> Iterator[tuple[int, list[Turn]]]:
    """Yield (line, turns) of the conversations of a chat in which `me` is the assistant.

    ValueError, with the names, where nobody is called so.
    """
    held = list(messages)
    names = dict.fromkeys(message.name for message in held)
    mine = {name for name in names if me is not None and _plain(name) == _plain(me)}
    if not mine:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        found = f"the names in it are {', '.join(list(names)[:SHOWN])}{more}"
        what = "--me must say who is the assistant" if me is None else f"nobody in it is called {me!r}"
        raise ValueError(f"{path}: {what}; {found}")
    times = _moments([message.when for message in held])
    begin, turns, before = 0, list[Turn](), None
    for message, time in zip(held, times, strict=True):
        if turns and before is not None and time is not None and time - before > PAUSE:
            yield begin, turns
            turns = []
        begin = begin if turns else message.line
        turns.append(("assistant" if message.name in mine else "user", message.text))
        before = time
    if turns:
        yield begin, turns


def _plain(name: str) -> str:
    """Return a name for a comparison: in small letters, and with the hyphens and blanks of a keyboard."""
    return " ".join(re.sub("[\u2010\u2011]", "-", unicodedata.normalize("NFC", name)).casefold().split())


def _moments(whens: Sequence[str]) -> list[int | None]:
    """Return the times of a chat, in seconds; None for what is no time.

    Whether the day or the month comes first is told by the whole chat: the order in which most are dates, and
    dates seldom go back. Where both do, the month is first beside times of twelve hours.
    """
    numbers = [list(map(int, re.findall(r"\d+", when))) for when in whens]
    halves = [AFTERNOON.search(when) for when in whens]
    days = [[_day([given[place] for place in order]) for given in numbers] for order in ORDERS]
    faults = [_faults(of_order) + (n == 0 and any(halves)) / 2 for n, of_order in enumerate(days)]
    found: list[int | None] = []
    for day, (*_date, hour, minute), half in zip(
        days[faults.index(min(faults))], (given[:5] for given in numbers), halves, strict=True
    ):
        hour = hour if half is None else hour % 12 + 12 * (half[1] in "Pp")
        found.append(None if day is None else (day * 24 + hour) * 3600 + minute * 60)
    return found


def _day(parts: Sequence[int]) -> int | None:
    year, month, day = parts
    try:
        return date(year + 2000 * (year < 100), month, day).toordinal()
    except (ValueError, OverflowError):
        return None


def _faults(days: Sequence[int | None]) -> int:
    """Return how many days are none, and how often one is before the last."""
    known = [day for day in days if day is not None]
    return len(days) - len(known) + sum(b < a for a, b in pairwise(known))


def of_subtitles(messages: Iterable[Message]) -> Iterator[tuple[int, list[Turn]]]:
    """Yield (line, turns) of the scenes of subtitles: a turn for each, or for each line behind a dash."""
    begin, turns, ended = 0, list[Turn](), 0.0
    for message in messages:
        first, last = (_seconds(part) for part in message.when.split(">", 1))
        if turns and first - ended > SCENE:
            yield begin, turns
            turns = []
        begin = begin if turns else message.line
        for said in _speakers(message.text.split("\n")):
            turns.append(("assistant" if len(turns) % 2 else "user", said))
        ended = last
    if turns:
        yield begin, turns


def _seconds(text: str) -> float:
    found = TIME.search(text)
    hours, minutes, seconds, _part = found.groups("0") if found else "0000"
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def _speakers(lines: Sequence[str]) -> Iterator[str]:
    """Yield what each person says in a subtitle: several do where several of its lines begin with a dash."""
    several, said = sum(bool(DASH.match(line)) for line in lines) > 1, list[str]()
    for line in lines:
        if several and said and DASH.match(line):
            yield " ".join(said)
            said = []
        said.append(DASH.sub("", line, count=1) if not said and DASH.match(line) else line)
    yield " ".join(said)


def parts(turns: Iterable[Turn], longest: int, left_out: Counter[str]) -> Iterator[list[Turn]]:
    """Yield the parts of a conversation that can be learnt: they end with an answer within `longest` bytes.

    What one side says in a row is one turn. Each turn counts MARKS bytes more, so that no tokenizer of npgpt
    makes more than `longest` tokens of a part. `left_out` counts the rest by its reason.
    """
    joined: list[Turn] = []
    for role, text in turns:
        if not text.strip():
            continue
        if joined and joined[-1][0] == role:
            joined[-1] = role, f"{joined[-1][1]}\n{text}"
        else:
            joined.append((role, text))
    if joined and joined[0][0] == "assistant":
        left_out["turns that answer nothing left out"] += 1
        del joined[0]
    if len(joined) % 2:
        left_out["turns without an answer left out"] += 1
    part, size = list[Turn](), 0
    for pair in zip(joined[::2], joined[1::2], strict=False):
        n = sum(len(text.encode("utf-8", "replace")) + MARKS for _role, text in pair)
        if part and size + n > longest:
            yield part
            part, size = [], 0
        if n > longest:
            left_out["answers longer than --longest, with their question, left out"] += 1
        else:
            part, size = [*part, *pair], size + n
    if part:
        yield part
