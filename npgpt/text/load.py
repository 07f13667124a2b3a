"""A tokenizer from its files, or from a name: bytes, bpe:N or a path."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from npgpt.distributed.world import SINGLE, World
from npgpt.engine.types import PathLike
from npgpt.text import tokenizer_json
from npgpt.text.gpt1 import GPT1Tokenizer
from npgpt.text.sentencepiece import SentencePieceTokenizer
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from npgpt.text.tokenizer_json import Vocabulary


def load_tokenizer(path: PathLike) -> Tokenizer:
    """Return the tokenizer of a folder, or of one of its files: ours, GPT-2's, GPT-1's, a byte-level BPE.

    FileNotFoundError where there is none, ValueError for files that are faulty or of another kind.
    """
    return tokenizer_of(tokenizer_json.read_vocabulary(path))


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of a vocabulary; ValueError, naming the first fault, where it is inconsistent."""
    bytes_alone = vocabulary.tokens == ByteTokenizer.vocabulary.tokens and not vocabulary.merges
    if bytes_alone and not vocabulary.beyond_gpt2():
        tokenizer = ByteTokenizer(vocabulary.normalizer)
        tokenizer.vocabulary = replace(tokenizer.vocabulary, chat_template=vocabulary.chat_template)
        return tokenizer
    if vocabulary.pieces:
        return SentencePieceTokenizer(vocabulary)
    return (GPT1Tokenizer if vocabulary.words else BPETokenizer)(vocabulary)


def make_tokenizer(name: str, documents: Iterable[bytes], world: World = SINGLE) -> Tokenizer:
    """Return the tokenizer of a name: bytes; bpe:N, trained on documents (bytes); the path of a tokenizer.

    ValueError for another name. The ranks of `world` count a shard of the documents each.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name.startswith("bpe:"):
        size: Any = name.removeprefix("bpe:")  # train raises for one that is no number
        return BPETokenizer.train(documents, int(size) if size.isdecimal() else size, world)
    if not (name and Path(name).exists()):
        raise ValueError(f"tokenizer must be bytes, bpe:N or the path of one, got {name}")
    return load_tokenizer(name)
