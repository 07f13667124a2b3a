"""What prompts have in common is read once: keys and values of their beginnings, in blocks, for the next.

A block is known by the blocks before it and by its ids; the end of a whole prompt has its logits, too. The
least recently used go first. What comes from here is what reading would compute, to the bit: libnpgpt reads
WIDE tokens and more at once by another order of sums than fewer, so that one kind never stands for the other.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple, TypeAlias

from npgpt.engine.types import Floats
from npgpt.runtime.libnpgpt import Session

PREFILL = 64  # tokens of prompts between two steps: about as long as a few steps of eight streams
BLOCK = 16  # tokens; PREFILL is a multiple
WIDE = 6  # of csrc/runtime/forward.h
OVERHEAD = 1000  # bytes of Python's for a block
Key: TypeAlias = tuple[Hashable, tuple[int, ...]]  # number of the block before, or a root; ids


class Block(NamedTuple):
    """Keys and values of a few tokens."""

    number: int
    data: Floats  # (L,2,heads,count,D)
    logits: Floats | None  # (V,) behind a whole prompt

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return self.data.nbytes + (0 if self.logits is None else self.logits.nbytes) + OVERHEAD


class PrefixCache:
    """The blocks of all models and clients, for any thread; at most so many bytes of them are kept."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes, self._count = most, 0, 0
        self._blocks: OrderedDict[Key, Block] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def get(self, key: Key) -> Block | None:
        """Return a block, None if it is not there."""
        with self._lock:
            return self._blocks.get(key)

    def add(self, key: Key, data: Floats, logits: Floats | None, besides: int) -> Block | None:
        """Keep a block and return it; None where it and `besides` bytes are more than may be kept."""
        with self._lock:
            self._count += 1
            block = Block(self._count, data, logits)
            if block.bytes + besides > self.most or key in self._blocks:
                return self._blocks.get(key)
            self._blocks[key] = block
            self.bytes += block.bytes
            while self.bytes > self.most:
                self.bytes -= self._blocks.popitem(last=False)[1].bytes
            return block

    def touch(self, keys: list[Key]) -> None:
        """Count the blocks of a prompt as used, its first as the last: none outlives one before it."""
        with self._lock:
            for key in reversed(keys):
                if key in self._blocks:
                    self._blocks.move_to_end(key)


class Prompt:
    """A prompt that a session reads: its beginning comes from the cache, and what it reads is kept there."""

    def __init__(self, cache: PrefixCache, root: Hashable, ids: tuple[int, ...]) -> None:
        """Only prompts of one `root` share what was read: it stands for the model, and for who may share."""
        whole = len(ids) // BLOCK * BLOCK
        self.cache, self.ids, self._before = cache, ids, root
        self._pieces = [*((n, n + BLOCK) for n in range(0, whole, BLOCK)), (whole, len(ids))]
        self._keys: list[Key] = []  # of the pieces that are in the cache
        self._bytes = self.kept = 0  # bytes of these; tokens that were read and kept

    def load(self, session: Session) -> int:
        """Append to an empty session what is known of the prompt; return how many ids: all with logits."""
        found: list[Block] = []
        while len(found) < len(self._pieces) and (block := self.cache.get(self._key(len(found)))):
            found.append(block)
            self._enter(block)
        unread = len(self.ids) - BLOCK * len(found)
        if len(found) < len(self._pieces) and unread < WIDE and not 0 < len(self.ids) % PREFILL < WIDE:
            found = found[:-1]  # so few would be read as they are not without the cache
        for (begin, end), block in zip(self._pieces, found, strict=False):
            session.load(self.ids[begin:end], block.data, block.logits)
        self.cache.touch(self._keys)
        return len(session)

    def save(self, session: Session, logits: Floats | None = None) -> None:
        """Keep what the session has read; logits (V,), behind the whole prompt, come with the last of it."""
        self.cache.touch(self._keys)
        while (n := len(self._keys)) < len(self._pieces):
            (begin, end), is_last, key = self._pieces[n], n + 1 == len(self._pieces), self._key(n)
            if end > len(session) or (is_last and logits is None):
                break
            if n and not self.cache.get(self._keys[-1]):  # nobody would find what is behind it
                break
            block = self.cache.get(key)
            if not block:
                data = session.save(begin, end - begin)
                block = self.cache.add(key, data, logits if is_last else None, self._bytes)
                self.kept += end - begin if block else 0
            if not block:
                break
            self._enter(block)
        self.cache.touch(self._keys)

    def _key(self, n: int) -> Key:
        begin, end = self._pieces[n]
        return self._before, self.ids[begin:end]

    def _enter(self, block: Block) -> None:
        self._keys.append(self._key(len(self._keys)))
        self._before, self._bytes = block.number, self._bytes + block.bytes
