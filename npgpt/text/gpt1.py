"""GPT-1's tokenizer: lower-cased words without accents, BPE on their characters, a word's end marked </w>.

It gives the ids of transformers' OpenAIGPTTokenizer (BERT's cleaning and splitting). It loses case, accents,
line ends and runs of blanks, and an unknown character becomes <unk>: it serves GPT-1's own weights only.
"""

import unicodedata

import numpy as np
from numpy.typing import ArrayLike

from npgpt.engine.types import Buffer, Integers
from npgpt.text.bpe import merge
from npgpt.text.tokenizer import StreamDecoder, Tokenizer, merge_table
from npgpt.text.tokenizer_json import END_OF_WORD, UNKNOWN, Vocabulary

# GPT-1 has no end of text; this token of its vocabulary, to which no text encodes here, stands for it.
LINE_END = "\n</w>"


class GPT1Tokenizer(Tokenizer):
    """The tokenizer that GPT-1 was published with (Radford et al. 2018)."""

    name = "gpt1"

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Check the vocabulary. ValueError, naming the first fault, where it is inconsistent."""
        where, tokens = vocabulary.where, vocabulary.tokens
        for token in (UNKNOWN, LINE_END):
            if token not in tokens:
                raise ValueError(f"{where}: there must be a token {token!r}")
        special = vocabulary.special | {UNKNOWN: tokens[UNKNOWN]}
        table = merge_table(vocabulary, special)
        self.vocabulary = Vocabulary(where, tokens, vocabulary.merges, special, LINE_END, words=True)
        self._names = sorted(tokens, key=tokens.__getitem__)
        self._merges = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(table)}
        self._known: dict[str, list[int]] = {}  # word -> its ids

    def _encode(self, data: Buffer) -> Integers:
        ids: list[int] = []
        for word in split(bytes(data).decode("utf-8", "replace")):
            if word not in self._known:
                if len(self._known) > 100_000:
                    self._known.clear()
                self._known[word] = self._encode_word(word)
            ids += self._known[word]
        return np.array(ids, self.dtype)

    def _encode_word(self, word: str) -> list[int]:
        tokens = self.vocabulary.tokens
        characters = [*word[:-1], word[-1] + END_OF_WORD]
        return merge([tokens.get(c, tokens[UNKNOWN]) for c in characters], self._merges)

    def _decode(self, ids: Integers) -> bytes:
        return "".join(self.words(ids)).removesuffix(" ").encode()

    def words(self, ids: ArrayLike) -> list[str]:
        """Return the text of each id (N,), with a blank after the end of a word."""
        return [self._names[i].replace(END_OF_WORD, " ") for i in np.asarray(ids).tolist()]

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that come one by one."""
        return WordStreamDecoder(self)


class WordStreamDecoder(StreamDecoder):
    """A decoder that holds a word's blank back until another token comes."""

    _tokenizer: GPT1Tokenizer

    def __init__(self, tokenizer: GPT1Tokenizer) -> None:
        super().__init__(tokenizer)
        self._blank = ""

    def push(self, *ids: int) -> str:
        """Return the text that these ids complete."""
        special = self._tokenizer.vocabulary.special.values()
        known = [i for i in ids if i < self._tokenizer.vocab_size and i not in special]
        text = self._blank + "".join(self._tokenizer.words(known))
        self._blank = " " if text.endswith(" ") else ""
        return text.removesuffix(" ")

    def close(self) -> str:
        """Return "": the blank after the last word is not part of the text."""
        return ""


def split(text: str) -> list[str]:
    """Return GPT-1's words: BERT's cleaning (no control characters, accents, capitals) and splitting."""
    cleaned = []
    for c in text:
        if c in "\t\n\r":
            cleaned.append(" ")
        elif c != "\ufffd" and unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"):
            cleaned.append(f" {c} " if _is_ideograph(ord(c)) else c)
    plain = "".join(
        c for c in unicodedata.normalize("NFD", "".join(cleaned)) if unicodedata.category(c) != "Mn"
    )
    lowered = "".join(c.lower() for c in plain)  # one by one: no final sigma
    return "".join(f" {c} " if _is_punctuation(c) else c for c in lowered).split()


def _is_punctuation(c: str) -> bool:
    ascii_sign = "!" <= c <= "~" and not c.isalnum()
    return ascii_sign or unicodedata.category(c)[0] == "P"


IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _is_ideograph(code: int) -> bool:
    return any(first <= code <= last for first, last in IDEOGRAPHS)
