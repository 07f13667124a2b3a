"""Examples of a task, from JSONL to ids: prompts with completions, conversations, texts with labels.

A conversation is written as the model's chat template does, without one as
<|user|>text<|end|><|assistant|>text<|end|>: each turn begins with its role's token and ends with the end.
These tokens are added after a tokenizer's own, whose ids stay; the end of a turn becomes its end of text, so
that generation stops there. A text with a label is a conversation of one question. A prompt is followed by
its completion as it stands, and that by the end of text.
"""

import functools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npgpt.engine.types import Fields, Integers, PathLike
from npgpt.text import kinds, records
from npgpt.text.added_tokens import BLANKS, Flags
from npgpt.text.chat_template import ChatTemplate
from npgpt.text.load import tokenizer_of
from npgpt.text.messages import CONVERSATION, role_of, text_of
from npgpt.text.tokenizer import Place, Tokenizer
from npgpt.text.tokenizer_json import CHAT_TEMPLATE, CHAT_TOKENS, END_OF_TEXT, END_OF_TURN, ROLES

FORMS = {
    "prompt": '{"prompt": "...", "completion": "..."}',
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "label": '{"text": "...", "label": "..."}',
}
MAX_BAD = 0.1  # the share of lines that --skip-bad leaves out: more is no slip, but data of another form
Encoded: TypeAlias = tuple[Integers, NDArray[np.bool]]  # ids (n,), loss mask (n,)
Packed: TypeAlias = tuple[Integers, Integers, Integers]  # x, y, starts (R,T) int32


@dataclass(frozen=True)
class Example:
    """One line of a file, as turns (role, text); the loss counts an assistant's turns, or a completion."""

    line: int
    form: str  # of FORMS
    turns: tuple[tuple[str, str], ...]
    unlearnt: frozenset[int] = frozenset()  # the assistant's turns that the loss leaves out: of weight 0

    @property
    def label(self) -> str | None:
        """The label of a text that has one, else None."""
        return self.turns[-1][1] if self.form == "label" else None

    @property
    def question(self) -> tuple[tuple[str, str], ...]:
        """The turns before the first that is learnt, in NFC and without space around; none is empty."""
        return tuple(turn for turn in map(_stripped, self.turns[: self._learnt]) if turn[1])

    @property
    def answer(self) -> tuple[tuple[str, str], ...]:
        """The turns from the first that is learnt on, as `question` has those before."""
        return tuple(map(_stripped, self.turns[self._learnt :]))

    def learns(self, n: int) -> bool:
        """Return True where the loss counts turn n."""
        return self.turns[n][0] in ("assistant", "completion") and n not in self.unlearnt

    @property
    def _learnt(self) -> int:
        return next(filter(self.learns, range(len(self.turns))))


def spells_an_end(example: Example) -> bool:
    """Return True where an answer spells <|end|> or <|endoftext|>, which is then learnt as letters."""
    return any(end in text for _, text in example.answer for end in (END_OF_TURN, END_OF_TEXT))


def _stripped(turn: tuple[str, str]) -> tuple[str, str]:
    return turn[0], unicodedata.normalize("NFC", turn[1]).strip()


# ---------------------------------------------------------------------------- tokens


def has_roles(tokenizer: Tokenizer) -> bool:
    """Return True where this tokenizer has the tokens of a conversation."""
    return all(token in tokenizer.vocabulary.special for token in CHAT_TOKENS)


def add_roles(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the tokens of a conversation after its own, which keep their ids.

    ValueError for GPT-1's.
    """
    if has_roles(tokenizer):
        return tokenizer
    vocabulary = tokenizer.vocabulary
    if vocabulary.words:
        raise ValueError("add_roles: tokenizer must be of bytes or byte-level BPE, got GPT-1's")
    new = [token for token in CHAT_TOKENS if token not in vocabulary.tokens]
    ids = {token: len(vocabulary.tokens) + n for n, token in enumerate(new)}
    special = vocabulary.special | {token: (vocabulary.tokens | ids)[token] for token in CHAT_TOKENS}
    tokens = vocabulary.tokens | ids
    return tokenizer_of(
        replace(
            vocabulary,
            tokens=tokens,
            special=special,
            flags={name: flags for name, flags in vocabulary.flags.items() if name not in special},
            end_of_text=END_OF_TURN,
            chat_template=None,
            pieces=vocabulary.pieces and vocabulary.pieces.of_size(len(tokens)),
        )
    )


def template_of(tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template that came with a tokenizer, None where there is none, or npgpt's own."""
    vocabulary = tokenizer.vocabulary
    if vocabulary.chat_template in (None, CHAT_TEMPLATE):
        return None
    named = {"eos_token": vocabulary.end_of_text} | vocabulary.names
    return _template(vocabulary.chat_template, tuple(vocabulary.special), tuple(named.items()))


_template = functools.lru_cache(maxsize=16)(ChatTemplate)  # each knows what it has found out about itself


def why_no_chat(tokenizer: Tokenizer) -> str:
    """Return why a model with this tokenizer cannot chat, '' where it can."""
    if template := template_of(tokenizer):
        return template.fault
    return "" if has_roles(tokenizer) else "has neither roles nor a chat template, so it cannot chat"


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id that ends a turn, and so a reply."""
    template = template_of(tokenizer)
    name = template.end_of_turn if template else END_OF_TURN
    return tokenizer.vocabulary.special.get(name or "", tokenizer.end_of_text)


def chat_ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a reply, the end of a turn first."""
    return tuple(dict.fromkeys((end_token(tokenizer), *tokenizer.ends)))


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Fields], reply: bool = True) -> list[int]:
    """Return the ids of messages [{"role", "content"}], up to where a reply begins unless `reply` is False.

    They are as the model's chat template writes them, or as turns of npgpt's roles. No text of a content
    becomes a special token. ValueError for another role than system, user and assistant, for a tokenizer with
    neither template nor roles, and for a template that fails or refuses the messages.
    """
    for n, message in enumerate(messages):
        if message["role"] not in ROLES:
            got = repr(message["role"])
            raise ValueError(f"encode_chat: messages[{n}]: role must be one of {', '.join(ROLES)}, got {got}")
    if template := template_of(tokenizer):
        marks = template.marks_for(messages)
        text = template.marked(messages, marks, reply)
        return list(map(int, _encode_marked(template, tokenizer, text, marks)))
    if not has_roles(tokenizer):
        raise ValueError(
            f"encode_chat: tokenizer must have the tokens {', '.join(CHAT_TOKENS)} or a chat template"
        )
    ids = [id for message in messages for id in _turn(tokenizer, message["role"], message["content"])]
    return ids + ([tokenizer.vocabulary.special["<|assistant|>"]] if reply else [])


def _encode_marked(template: ChatTemplate, tokenizer: Tokenizer, text: str, marks: str) -> Integers:
    """Return the ids of what a template wrote, with marks around what messages spell of control tokens."""
    if not set(marks) & set(text):
        return tokenizer.encode(text, special_tokens=True)
    v, parts, after = tokenizer.vocabulary, list[str | int](), Flags()
    for part, is_control in template.parts(text, marks):
        if is_control:
            before, after = parts[-1], v.flags.get(part, Flags())
            parts[-1] = before.rstrip(BLANKS) if after.lstrip and isinstance(before, str) else before
            parts.append(v.special[part])
        else:
            parts.append(part.lstrip(BLANKS) if after.rstrip else part)
    return tokenizer.encode_parts(parts)


def _turn(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
    return [
        tokenizer.vocabulary.special[f"<|{role}|>"],
        *tokenizer.encode(text, place=Place.SEGMENT).tolist(),
        end_token(tokenizer),
    ]


def encode_example(tokenizer: Tokenizer, example: Example) -> Encoded:
    """Return the ids (n,) int32 of an example and their loss mask (n,) bool."""
    if example.form == "prompt":
        (_, prompt), (_, completion) = example.turns
        before = tokenizer.encode_prompt(prompt).tolist() or [tokenizer.end_of_text]
        after = tokenizer.encode(completion, place=Place.INSIDE if prompt else Place.BEGIN).tolist()
        segments = [(before, 0), ([*after, tokenizer.end_of_text], 1)]
    elif template := template_of(tokenizer):
        return _encode_by(template, tokenizer, example)
    else:
        segments = []
        for n, (role, text) in enumerate(example.turns):
            role_id, *rest = _turn(tokenizer, role, text)
            segments += [([role_id], 0), (rest, int(example.learns(n)))]
    ids = np.concatenate([ids for ids, _ in segments]).astype(np.int32)
    return ids, np.repeat([mask for _, mask in segments], [len(ids) for ids, _ in segments]).astype(bool)


def _encode_by(template: ChatTemplate, tokenizer: Tokenizer, example: Example) -> Encoded:
    """Return the ids of turns as a chat template writes them; the mask holds the answers with their ends.

    ValueError for a template that writes an answer otherwise than behind the beginning of a reply.
    """
    messages = [{"role": role, "content": text} for role, text in example.turns]
    marks = template.marks_for(messages)

    def encoded(text: str) -> Integers:
        return _encode_marked(template, tokenizer, text, marks).astype(np.int32)

    text = template.marked(messages, marks, reply=False)
    ids = encoded(text)
    mask = np.zeros(len(ids), bool)
    for n in filter(example.learns, range(len(messages))):
        before = template.marked(messages[:n], marks)
        after = text[: template.end_of_answer(text, len(before), marks)]
        if not after:  # a template without such a token
            after = template.marked(messages[: n + 1], marks, reply=False)
        if not (text.startswith(before) and text.startswith(after)):
            why = f"writes the answer of messages[{n}] otherwise than it asks for one, so it cannot be learnt"
            raise ValueError(f"chat template: {why}")
        mask[_shared(ids, encoded(before)) : _shared(ids, encoded(after))] = True
    if template.end_of_turn is None:  # nothing else would end a reply
        ids, mask = np.append(ids, np.int32(tokenizer.end_of_text)), np.append(mask, True)
    return ids, mask


def _shared(a: Integers, b: Integers) -> int:
    """Return how many ids at their beginning two texts share."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def normalized(tokenizer: Tokenizer, example: Example, changed: Counter[str]) -> Example:
    """Return the example as the tokenizer cleans its turns, so that two spellings of a label are one.

    `changed` counts what was done.
    """

    def clean(text: str) -> str:
        try:
            return bytes(tokenizer.normalize(text, changed)).decode("utf-8")
        except UnicodeDecodeError:  # half a JSON escape: no text, so it stays
            return text

    return replace(example, turns=tuple((role, clean(text)) for role, text in example.turns))


# ---------------------------------------------------------------------------- files


def read_examples(
    path: PathLike, max_bad: float = 0.0, form: str | None = None
) -> tuple[list[Example], list[str]]:
    """Return the examples of a JSONL file, all of one form, and what is wrong with each bad line.

    max_bad is the share of the lines that may be bad, and are left out. `form` is that of the examples for
    training, where these are for validation. ValueError, with file, line and what was expected, for the first
    bad line (max_bad 0) or for more of them, for a file that is not UTF-8 or has no examples, and for labels
    to learn that are all the same.
    """
    data = Path(path).read_bytes()
    if not max_bad or kinds.wide_encoding(data):
        kinds.check_utf8(str(path), data)
    kinds.check_text(str(path), data)
    examples, bad, learnt = [], [], form is None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            example = _example(line, number)
            form = form or example.form
            if example.form != form:
                lines = "the lines before" if learnt else "the examples for training"
                raise ValueError(f"must be of one form with {lines}, {FORMS[form]}, got {_keys(line)}")
            examples.append(example)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
            if not max_bad:
                raise ValueError(f"{path}: {bad[0]}") from None
    check_share(path, bad, len(examples), max_bad)
    if not examples:
        got = bad[0] if bad else "none"
        raise ValueError(f"{path}: must hold examples, a JSON object a line, as {FORMS['prompt']}, got {got}")
    if learnt:
        check_labels(path, examples)
    return examples, bad


def check_labels(path: PathLike, examples: Iterable[Example]) -> None:
    """Raise ValueError where examples have labels, and these are all the same."""
    labels = {example.label for example in examples}
    if len(labels) == 1 and (label := labels.pop()) is not None:
        raise ValueError(f"{path}: must have two labels at least, got {label!r} alone")


def check_share(path: PathLike, bad: Sequence[str], n_good: int, max_bad: float) -> None:
    """Raise ValueError, with the first reasons, where more than the share max_bad of the lines are bad."""
    n = len(bad) + n_good
    if len(bad) > max_bad * n:
        more = f"more than the {max_bad:.0%} of them that may be left out"
        raise ValueError(f"{path}: {len(bad)} of {n} lines are at fault, {more}; {'; '.join(bad[:3])}")


def _example(line: bytes, number: int) -> Example:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8, got byte 0x{line[error.start]:02x}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON, as {FORMS['prompt']}, got {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, as {FORMS['prompt']}, got {type(record).__name__}")
    given = {name for name, value in record.items() if value not in (None, [], {})}
    if given == {"prompt", "completion"}:
        turns = ("prompt", _text(record, "prompt", empty=True)), ("completion", _text(record, "completion"))
        return Example(number, "prompt", turns)
    if given == {"text", "label"}:
        return Example(
            number, "label", (("user", _text(record, "text")), ("assistant", _text(record, "label")))
        )
    if "messages" in record:
        return _conversation(records.checked(CONVERSATION, record)["messages"], number)
    raise ValueError(f"must have the fields of one of {', '.join(FORMS.values())}, got {_keys(line)}")


def _conversation(messages: list[Fields], number: int) -> Example:
    turns = tuple((role_of(one), text_of(one["content"])) for one in messages)
    for n, (_, text) in enumerate(turns):
        if not text.strip():
            raise ValueError(f"messages[{n}].content must be text that is not empty, got {text!r:.40}")
    if turns[-1][0] != "assistant":
        raise ValueError(f"the last message must be an assistant's, to learn from, got a {turns[-1][0]}'s")
    unlearnt = set()
    for n, message in enumerate(messages):
        if "weight" in message and turns[n][0] != "assistant":
            raise ValueError(f"messages[{n}].weight is for an assistant's messages, got a {turns[n][0]}'s")
        if message.get("weight") == 0:
            unlearnt.add(n)
    if all(n in unlearnt for n, (role, _) in enumerate(turns) if role == "assistant"):
        raise ValueError("an assistant's message must have a weight that is not 0, to learn from")
    return Example(number, "messages", turns, frozenset(unlearnt))


def _text(record: Fields, field: str, empty: bool = False) -> str:
    value = record[field]
    if not isinstance(value, str) or not (value.strip() or empty):
        raise ValueError(f"{field} must be text{'' if empty else ' that is not empty'}, got {value!r:.40}")
    return value


def _keys(line: bytes) -> str:
    return ", ".join(map(repr, json.loads(line))) or "{}"


# ---------------------------------------------------------------------------- batches


def groups_of(examples: Sequence[Example], most: int) -> list[Hashable]:
    """Return a key for each example; those of equal keys belong on the same side of a split.

    Examples of one question have one key, whatever their answers. A question of more than `most` examples, or
    an empty one, is an instruction that they all begin with: of these, those with equal answers have one key.
    """
    questions = [example.question for example in examples]
    asked = Counter(questions)
    return [
        question
        if question and (example.form == "label" or asked[question] <= most)
        else (question, example.answer)
        for example, question in zip(examples, questions, strict=True)
    ]


def split_examples(
    labels: Sequence[str | None], fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[Integers, Integers]:
    """Return the indices of the examples for training and for validation, drawn by seed.

    Each label is held out in proportion, and keeps at least one example for training. Examples of equal
    `groups` are on one side; without groups each example is one.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    keys = range(len(labels)) if groups is None else groups
    for i, key in enumerate(keys):
        members[key].append(i)
    total, held = Counter(labels), set[int]()
    wanted = {label: min(round(fraction * n), n - 1) for label, n in total.items()}
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    ordered = [i for label in total for i in order if labels[i] == label]
    taken: Counter[str | None] = Counter()
    for i in ordered:
        group = Counter(labels[j] for j in members[keys[i]])
        # a group is held out where that comes nearer to what is wanted of each of its labels
        if i not in held and all(
            2 * (wanted[label] - taken[label]) >= n and taken[label] + n < total[label]
            for label, n in group.items()
        ):
            held.update(members[keys[i]])
            taken += group
    training, validation = [i for i in ordered if i not in held], [i for i in ordered if i in held]
    return np.array(training, np.int64), np.array(validation, np.int64)


def pack(examples: Sequence[Encoded], block_size: int) -> Packed:
    """Pack examples (ids, mask) side by side in rows, and return x, y, starts (R,T) int32.

    Rows are filled first fit, the longest example first. y is -1 where the mask is False; starts is where the
    example of each token begins, so that no token sees another example and positions count from there. T is
    the longest row, at most block_size.
    """
    rows: list[list[Encoded]] = []
    free: list[int] = []
    for ids, mask in sorted(examples, key=lambda example: -len(example[0])):
        size = len(ids) - 1
        row = next((r for r, left in enumerate(free) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(block_size)
        rows[row].append((ids, mask))
        free[row] -= size
    T = block_size - min(free)
    x, y = np.zeros((len(rows), T), np.int32), np.full((len(rows), T), -1, np.int32)
    starts = np.tile(np.arange(T, dtype=np.int32), (len(rows), 1))  # padding sees itself alone
    for r, packed in enumerate(rows):
        at = 0
        for ids, mask in packed:
            end = at + len(ids) - 1
            x[r, at:end] = ids[:-1]
            y[r, at:end] = np.where(mask[1:], ids[1:], -1)
            starts[r, at:end], at = at, end
    return x, y, starts


class ExampleBatches:
    """Batches of `batch_size` examples, packed; the batch of a step is a function of (seed, step).

    An epoch has every example once. With balanced_by, the examples' labels, each label comes equally often:
    the examples of the rarer ones are repeated.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        block_size: int,
        batch_size: int,
        seed: int,
        balanced_by: Sequence[str | None] | None = None,
    ) -> None:
        self.examples, self.block_size, self.batch_size, self.seed = examples, block_size, batch_size, seed
        self.order = np.arange(len(examples))
        if balanced_by:
            groups = [np.flatnonzero(np.array(balanced_by) == label) for label in dict.fromkeys(balanced_by)]
            largest = max(map(len, groups))
            self.order = np.concatenate([np.resize(group, largest) for group in groups])
        self.per_epoch = -(-len(self.order) // batch_size)

    def batch(self, step: int) -> Packed:
        """Return x, y, starts (R,T) of step 0, 1, ...: see pack()."""
        epoch, position = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.order)
        chosen = order[position * self.batch_size :][: self.batch_size]
        return pack([self.examples[i] for i in chosen], self.block_size)
