"""Text to token ids and back, one id per byte.

Any bytes go in and the same bytes come out, so no prompt ever holds an unknown character. Ids 0..255 are
the bytes; id 256 is the end of text, which no text can spell: a literal "<|endoftext|>" is 13 plain bytes.
The files written are Hugging Face's, in which a byte-level BPE without merges gives the very same ids.
"""

import codecs
import json
from pathlib import Path

import numpy as np

END_OF_TEXT = "<|endoftext|>"


class ByteTokenizer:
    """The byte tokenizer: 257 ids. It has no state, so any two are interchangeable."""

    name = "bytes"
    vocab_size = 257
    end_of_text = 256  # the id

    def encode(self, text) -> np.ndarray:
        """The ids of `text` (str or bytes) as uint16 (N,); an end of text is never added.

        In a str, what Python smuggles in for undecodable bytes of a file name or an argument
        (surrogateescape) becomes those bytes again.
        """
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:  # a lone surrogate of another kind, as half a JSON escape gives
                text = text.encode("utf-8", "surrogatepass")
        elif not isinstance(text, (bytes, bytearray, memoryview)):
            raise TypeError(f"encode: text must be str or bytes, got {type(text).__name__}")
        return np.frombuffer(text, np.uint8).astype(np.uint16)

    def decode_bytes(self, ids) -> bytes:
        """The bytes of `ids` (any iterable of integers); ends of text leave no trace."""
        ids = np.asarray(ids, np.int64).ravel()
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"decode: ids must be in 0..256, got {ids.min()}..{ids.max()}")
        return ids[ids < 256].astype(np.uint8).tobytes()

    def decode(self, ids) -> str:
        """The text of `ids`; bytes that are not UTF-8 show as U+FFFD (decode_bytes keeps them)."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """A decoder for ids that come one by one."""
        return StreamDecoder(self)

    def save(self, folder, model_max_length: int) -> None:
        """Write tokenizer.json, vocab.json, merges.txt and tokenizer_config.json into `folder`."""
        folder, vocab = Path(folder), _vocabulary()
        _write_json(folder / "tokenizer.json", _tokenizer_json(vocab))
        _write_json(folder / "vocab.json", vocab)
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        _write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": model_max_length,
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT,
                "add_prefix_space": False,
            },
        )

    @classmethod
    def from_folder(cls, folder) -> "ByteTokenizer":
        """The tokenizer that `folder` describes; ValueError if that is another than this one.

        tokenizer.json is read if it is there, else vocab.json with merges.txt.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").exists():
            model = _read_json(folder / "tokenizer.json").get("model", {})
            vocab, merges = model.get("vocab", {}), model.get("merges", [])
        else:
            vocab = _read_json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = [line for line in lines if line and not line.startswith("#version")]
        if vocab != _vocabulary() or merges:
            raise ValueError(
                f"from_folder: {folder} must hold the byte tokenizer (257 tokens, no merges), "
                f"got {len(vocab)} tokens and {len(merges)} merges"
            )
        return cls()


class StreamDecoder:
    """Ids in, text out, piece by piece: the pieces joined are decode() of all the ids.

    A character comes out once its last byte is in, so a piece never ends inside one.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids) -> str:
        """The text that these ids complete, often ''."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def close(self) -> str:
        """What is left: U+FFFD for a character that never got its last byte, else ''."""
        return self._utf8.decode(b"", final=True)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where it prints, else the next one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


def _vocabulary() -> dict[str, int]:
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    return vocab | {END_OF_TEXT: ByteTokenizer.end_of_text}


def _tokenizer_json(vocab: dict[str, int]) -> dict:
    """The form that the `tokenizers` library reads; every key is needed by one of its versions."""

    def byte_level(add_prefix_space, trim_offsets):
        return {
            "type": "ByteLevel",
            "add_prefix_space": add_prefix_space,
            "trim_offsets": trim_offsets,
            "use_regex": True,
        }

    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level(add_prefix_space=False, trim_offsets=True),
        "post_processor": byte_level(add_prefix_space=True, trim_offsets=False),
        "decoder": byte_level(add_prefix_space=True, trim_offsets=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8 or bad JSON
        raise ValueError(f"from_folder: {path} must be JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"from_folder: {path} must be a JSON object, got {type(value).__name__}")
    return value
