"""Chat templates: how a model writes a conversation, in Jinja as Hugging Face's files and GGUF hold it.

A template is a program that somebody else wrote. jinja2's sandbox runs it in a process of its own,
chat_worker.py, with bounds on time, memory and length: inside one process nothing would end an operation such
as 'a' * 10**10. It sees messages and special tokens, and no file.

A content may spell a control token. It is put between two characters that occur nowhere else, the marks, and
so comes out of the template as what it is: text.
"""

import atexit
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from npgpt.engine.types import Fields

SECONDS = 5.0  # to render once; templates take milliseconds
MAX_TEMPLATE, MAX_TEXT = 1 << 20, 1 << 24  # characters of a template, and of what it writes
JINJA = (3, 1, 6)  # the sandbox of versions before it has known holes
ANSWER = "\U0010fffd"  # what the assistant says in a conversation for trial: no template writes it
Messages: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, with the special tokens of its model."""

    source: str
    control: tuple[str, ...]  # the tokens that a content never becomes, by name
    named: tuple[tuple[str, str], ...] = ()  # ("bos_token", its name), ...: variables of the template

    def render(self, messages: Messages, reply: bool = True) -> str:
        """Return what the template writes, as Transformers' apply_chat_template does.

        `reply`: up to where the assistant's next message begins. ValueError, in one line, for a template that
        fails, refuses the messages, reaches for what it may not have, or goes beyond the bounds.
        """
        if len(self.source) > MAX_TEMPLATE:
            raise ValueError(
                f"chat template: must be at most {MAX_TEMPLATE:,} characters, got {len(self.source):,}"
            )
        plain = [{key: value for key, value in one.items() if value is not None} for one in messages]
        variables = {"messages": plain, "tools": None, "documents": None, "add_generation_prompt": reply}
        return _render(
            {"template": self.source, "variables": dict(self.named) | variables, "max_text": MAX_TEXT}
        )

    def marked(self, messages: Messages, marks: str, reply: bool = True) -> str:
        """Return render() with marks around what contents, and all but roles, spell of control tokens.

        `marks` are those of marks_for(). ValueError where the template writes something else with them.
        """
        text = self.render(messages, reply)
        within = [
            {key: value if key == "role" else _within(value, self._mark(marks)) for key, value in one.items()}
            for one in messages
        ]
        if within == list(messages):
            return text
        marked = self.render(within, reply)
        if re.sub(f"[{marks}]", "", marked) != text:
            raise ValueError("chat template: takes apart a message that spells a control token")
        return marked

    def marks_for(self, messages: Messages) -> str:
        """Return two characters that occur nowhere in the template or the messages."""
        used = {*self.source, *json.dumps(list(messages), ensure_ascii=False, allow_nan=False)}
        private = (chr(code) for code in range(0x10FFFD, 0xFFFFF, -1) if chr(code) not in used)
        return next(private) + next(private)

    def parts(self, text: str, marks: str) -> Iterator[tuple[str, bool]]:
        """Yield the parts of text of marked(), with True for a control token; marks are dropped."""
        at = 0
        for found in self._control_tokens(text, marks):
            yield re.sub(f"[{marks}]", "", text[at : found.start()]), False
            yield found[0], True
            at = found.end()
        yield re.sub(f"[{marks}]", "", text[at:]), False

    def end_of_answer(self, text: str, begin: int, marks: str) -> int:
        """Return the place behind the first end of a turn from `begin` on in text of marked(), 0 for none."""
        found = self._control_tokens(text, marks, begin)
        return next((one.end() for one in found if one[0] == self.end_of_turn), 0)

    def _control_tokens(self, text: str, marks: str, begin: int = 0) -> Iterator[re.Match[str]]:
        names = _any_of(self.control)
        spelt = f"{marks[0]}(?:{names}){marks[1]}"
        return (found for found in re.compile(f"{spelt}|({names})").finditer(text, begin) if found[1])

    @functools.cached_property
    def fault(self) -> str:
        """What is wrong with the template, as render() says it of a first question; '' where nothing is."""
        try:
            self.render([{"role": "user", "content": "?"}])
        except ValueError as error:
            return str(error)
        return ""

    @functools.cached_property
    def end_of_turn(self) -> str | None:
        """The control token behind an answer, None for a template that writes none there."""
        asked = {"role": "user", "content": "?"}
        try:
            text = self.render([asked, {"role": "assistant", "content": ANSWER}], reply=False)
        except ValueError:
            return None
        found = re.match(rf"\s*({_any_of(self.control)})", text.rpartition(ANSWER)[2])
        return found[1] if found else None

    def _mark(self, marks: str) -> Any:
        """Return the function that marks a text: whole tokens, and ends that could be part of one."""
        tokens = re.compile(_any_of(self.control))
        longest, beginnings, ends = self._parts

        def mark(text: str) -> str:
            if not (core := text.strip()):  # a template may trim
                return text
            before, _, after = text.partition(core)
            sizes = range(1, min(longest, len(core) + 1))
            first = any(core[:n] in ends for n in sizes) or any(core in name[1:] for name in self.control)
            last = any(core[-n:] in beginnings for n in sizes)
            core = tokens.sub(lambda found: marks[0] + found[0] + marks[1], core)
            return before + marks[0] * first + core + marks[1] * last + after

        return mark

    @functools.cached_property
    def _parts(self) -> tuple[int, set[str], set[str]]:
        """The length of the longest control token, all that one begins with, and all that one ends with."""
        cuts = [(name, n) for name in self.control for n in range(1, len(name))]
        longest = max(map(len, self.control), default=0)
        return longest, {name[:n] for name, n in cuts}, {name[n:] for name, n in cuts}


def _any_of(names: Iterable[str]) -> str:
    """Return the regular expression of any of these names, a longer one before what it begins with."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"


def _within(value: Any, mark: Any) -> Any:
    """Return a JSON value with mark(text) for each text in it."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {key: _within(item, mark) for key, item in value.items()}
    return [_within(item, mark) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------- the process


class _Process:
    """The process that renders; it starts with the first template and stays."""

    def __init__(self) -> None:
        """Start it; ValueError where jinja2 is missing or too old."""
        if importlib.util.find_spec("jinja2") is None:
            raise ValueError("chat template: needs jinja2: pip install 'npgpt[chat]'")
        self.owner = os.getpid()
        worker = Path(__file__).with_name("chat_worker.py")
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path if folder)
        self._running = subprocess.Popen(
            [sys.executable, "-S", "-P", str(worker)],  # without site, whose folders the path has
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C ends a reply, and not this
        )
        version = str(self._line(60.0).get("version", "none"))
        if tuple(map(int, re.findall(r"\d+", version)[:3])) < JINJA:
            self.end()
            least = ".".join(map(str, JINJA))
            raise ValueError(f"chat template: jinja2 must be {least} or newer, got {version}")

    def ask(self, request: Fields) -> Fields:
        """Return the answer to a request; ValueError where none comes in time, and the process has ended."""
        assert self._running.stdin
        try:
            line = json.dumps(request, ensure_ascii=False, allow_nan=False) + "\n"
            self._running.stdin.write(line.encode("utf-8", "surrogatepass"))
            self._running.stdin.flush()
            return self._line(SECONDS)
        except BaseException:  # an answer that comes after all would be taken for that of the next request
            self.end()
            raise

    def _line(self, seconds: float) -> Fields:
        assert self._running.stdout
        late = threading.Event()

        def expire() -> None:
            late.set()
            self._running.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        line = self._running.stdout.readline()
        timer.cancel()
        if not line:
            took = (
                f"takes more than {seconds:g} seconds"
                if late.is_set()
                else "ends the process that renders it"
            )
            raise ValueError(f"chat template: {took}")
        found: Fields = json.loads(line.decode("utf-8", "surrogatepass"))
        return found

    def is_running(self) -> bool:
        """Return whether requests can be asked, from this process and not from one that it was copied to."""
        return self.owner == os.getpid() and self._running.poll() is None

    def end(self) -> None:
        """End the process."""
        self._running.kill()
        self._running.communicate()


_lock = threading.Lock()
_process: _Process | None = None


@atexit.register
def _end() -> None:
    if _process and _process.is_running():
        _process.end()


def _render(request: Fields) -> str:
    global _process
    with _lock:
        if _process is None or not _process.is_running():
            _process = _Process()
        answer = _process.ask(request)
    if "error" in answer:
        raise ValueError(f"chat template: {answer['error']}")
    return str(answer["text"])
