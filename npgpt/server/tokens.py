"""Single tokens as the API writes them, and a decoder that counts the characters of a text."""

from typing import NamedTuple

from npgpt.text.tokenizer import StreamDecoder, Tokenizer


class Token(NamedTuple):
    """A token and its log-probability, before any setting of the sampler."""

    id: int
    offset: int  # characters of the text before it
    logprob: float | None  # None: the first of a text, which nothing comes before
    top: list[tuple[int, float]]  # (id, logprob) of the most likely tokens, best first


class TokenNames:
    """The bytes and the name of each id of a tokenizer; both are computed once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}

    def bytes(self, id: int) -> bytes:
        """Return the bytes of a token: a special token's name, nothing for an id that stands for no token."""
        if id not in self._bytes:
            self._bytes[id] = self._tokenizer.token_bytes(id, skip_special_tokens=False)
        return self._bytes[id]

    def name(self, id: int) -> str:
        """Return the text of a token, or as OpenAI does its bytes, escaped, where they are no characters."""
        data = self.bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class CountingDecoder(StreamDecoder):
    """The tokenizer's stream decoder, which also counts the characters that it has returned."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._stream, self.characters = tokenizer.stream(), 0

    def push(self, *ids: int) -> str:
        """Return the text that these ids complete."""
        return self._count(self._stream.push(*ids))

    def close(self) -> str:
        """Return what is left: U+FFFD for half a character."""
        return self._count(self._stream.close())

    def _count(self, text: str) -> str:
        self.characters += len(text)
        return text
