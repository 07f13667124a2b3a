"""Encoding of one text by one vocabulary, on one thread: npgpt, tiktoken and Hugging Face's tokenizers.

The text is made up, so that it is the same everywhere: words of syllables, as frequent as real words are
(Zipf's law), in sentences. The vocabulary is learnt from it.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.engine import kernels
from npgpt.measure.contender import Samples, Work
from npgpt.text.tokenizer import BPETokenizer
from npgpt.text.tokenizer_json import END_OF_TEXT

CASES = {"made-up text, bpe:4096": 4096}
WORDS, LENGTH = 20_000, 400_000  # different words, and words in all: 2.7 MB
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def made_up_text() -> bytes:
    """Return the text, UTF-8."""
    rng = np.random.default_rng(0)
    syllables = [c + v for c in ("b", "c", "d", "lh", "m", "n", "r", "s", "t", "v") for v in "aeiouãéô"]
    words = ["".join(rng.choice(syllables, n)) for n in rng.integers(1, 5, WORDS)]
    share = 1 / np.arange(1, WORDS + 1)
    drawn, ends = rng.choice(WORDS, LENGTH, p=share / share.sum()), rng.random(LENGTH)
    marks = np.where(ends < 0.05, ".\n", np.where(ends < 0.12, ", ", " "))
    pieces = (words[i] + mark for i, mark in zip(drawn, marks, strict=True))
    return "".join(pieces).encode()


def work_of(case: str, name: str, path: Path | None = None) -> Work:
    """Return the work of a contender, in MB/s."""
    text = made_up_text()
    tokenizer = BPETokenizer.train([text], CASES[case])
    encode = {"npgpt": npgpt, "tiktoken": tiktoken, "tokenizers": hugging_face}[name](tokenizer, text)

    def turn() -> Samples:
        start = time.perf_counter()
        encode()
        return {"MB/s": [len(text) / 1e6 / (time.perf_counter() - start)]}

    ids = np.asarray(encode(), np.uint32)
    return Work(turn, digest=hashlib.sha256(ids.tobytes()).hexdigest())


def npgpt(tokenizer: BPETokenizer, text: bytes) -> Callable[[], Any]:
    """Return npgpt's encoding."""
    kernels.set_num_threads(1)
    return lambda: tokenizer.encode(text)


def tiktoken(tokenizer: BPETokenizer, text: bytes) -> Callable[[], Any]:
    """Return tiktoken's encoding, by the same vocabulary."""
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    from tiktoken import Encoding

    ends = {END_OF_TEXT: tokenizer.end_of_text}
    ids = (i for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text)
    ranks = {tokenizer.token_bytes(i): i for i in ids}
    encoding = Encoding("made", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=ends)
    decoded = text.decode()
    return lambda: encoding.encode_to_numpy(decoded, disallowed_special=())


def hugging_face(tokenizer: BPETokenizer, text: bytes) -> Callable[[], Any]:
    """Return the encoding of Hugging Face's tokenizers, by the same vocabulary, without offsets."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from tokenizers import ByteLevelBPETokenizer

    theirs = ByteLevelBPETokenizer(dict(tokenizer.vocabulary.tokens), list(tokenizer.vocabulary.merges))
    fast, decoded = theirs._tokenizer.encode_batch_fast, [text.decode()]
    return lambda: fast(decoded)[0].ids
