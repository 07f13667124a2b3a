"""The states of a disk that a power cut may leave, from recorded operations, under models of a file system.

posix: nothing is promised but by fsync. fsync of a file makes its bytes and size last, not its name; fsync of
a folder makes its names last. All that is not synced is there or not, each change by itself and in any order:
a change of names in one folder is whole or missing; a write is whole, missing or torn at sectors (512 bytes);
the size may be ahead of the bytes, which are zeros then. This follows the default of ALICE's abstract
persistence models (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 3), with names
atomic in a folder, and what POSIX says of fsync().

ext4-ordered: ext4 with data=ordered, its default, and delayed allocation (Linux: admin-guide/ext4.rst, "Data
Mode"; filesystems/ext4/journal.rst). Changes of names and sizes lie in one journal: what survives is a prefix
of them, and fsync of a file or folder commits all up to its last change. Bytes come before the size that
covers them: a file has the bytes up to any page, or none, even where a later rename survives (no use is made
of auto_da_alloc, which is kinder). Within a page that was on the disk before, the size may be ahead of the
bytes, and a write over old bytes is whole, missing or torn at sectors, whatever the journal has.

emptied: not a power cut but what older file systems and broken disks leave: all is there, and one file has no
bytes.
"""

import itertools
import math
import random
from collections.abc import Iterator

from calls import Recording, files, written

SECTOR, BLOCK = 512, 4096
MODELS = ("posix", "ext4-ordered", "emptied")
State = dict[str, bytes | None]  # path -> bytes of a file, None for a folder


def states(recording: Recording, model: str, most: int, rng: random.Random) -> Iterator[tuple[int, State]]:
    """Yield (number of calls before the cut, state): at most `most` of each moment, else all."""
    disk = {"posix": Posix, "ext4-ordered": Ext4, "emptied": Emptied}[model](recording)
    for n in range(len(recording.ops) + 1):
        if n:
            disk.take(n - 1)
        for choice in chosen(disk.choices(rng), most, rng):
            yield n, disk.build(choice)


def chosen(choices: list[int], most: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield for each of the choices an option 0..n-1: all combinations, or as many different ones as `most`.

    The last option of each is that all is there. None at all, all, and each one alone come first.
    """
    if math.prod(choices) <= most:
        yield from itertools.product(*map(range, choices))
        return
    last = tuple(n - 1 for n in choices)
    first = [last, (0,) * len(choices)]
    for i, n in enumerate(choices):
        first += [(*last[:i], option, *last[i + 1 :]) for option in range(n - 1)]
        first.append((*(0,) * i, n - 1, *(0,) * (len(choices) - i - 1)))
    head, tail = first[:2], first[2:]
    rng.shuffle(tail)
    seen = dict.fromkeys((head + tail)[: max(2, most * 2 // 3)])
    for _ in range(4 * most):
        if len(seen) >= most:
            break
        seen[tuple(map(rng.randrange, choices))] = None
    yield from list(seen)[:most]


class Disk:
    """What is on the disk for sure, and what may be there."""

    def __init__(self, recording: Recording):
        self.ops = recording.ops
        self.entries, self.content = dict(recording.entries), dict(recording.inodes)  # for sure
        self.names = []  # operations on names that may be lost
        self.data = {}  # inode -> its operations that may be lost

    def take(self, number: int):
        op = self.ops[number]
        if op.made:
            self.content[op.inode] = None if op.folder else b""
        if op.kind == "entries":
            self.names.append((number, op))
        elif op.kind in ("write", "truncate"):
            self.data.setdefault(op.inode, []).append((number, op))
        elif op.kind == "sync all":
            self._sync_all()
        elif op.kind == "sync":
            self._sync(op.inode)

    def _sync_all(self):
        for inode in list(self.data):
            self._settle(inode)
        for _, op in self.names:
            self._enter(self.entries, op.entries)
        self.names = []

    def _settle(self, inode: int):
        for _, op in self.data.pop(inode, ()):
            self.content[inode] = applied(self.content[inode], op)

    @staticmethod
    def _enter(entries: dict, changes):
        for slot, inode in changes:
            if inode is None:
                entries.pop(slot, None)
            else:
                entries[slot] = inode


def applied(content: bytes, op, at: int = 0, end: int | None = None) -> bytes:
    """The content after an operation, of a write its bytes from `at` to `end`."""
    if op.kind == "truncate":
        return content[: op.at].ljust(op.at, b"\0")
    return written(content, op.at + at, op.data[at:end])


def sectors(op, rng: random.Random, count: int = 2) -> list[tuple[int, int]]:
    """Some places (from, to) at which a write is torn: a beginning or an end of it is there."""
    edges = range(SECTOR - op.at % SECTOR, len(op.data), SECTOR)
    found = []
    for edge in rng.sample(edges, min(count, len(edges))):
        found.append((0, edge) if rng.random() < 0.7 else (edge, len(op.data)))
    return found


class Posix(Disk):
    """The model `posix`."""

    def _sync(self, inode: int):
        self._settle(inode)
        if self.content[inode] is None:
            kept = []
            for number, op in self.names:
                here = [change for change in op.entries if change[0][0] == inode]
                self._enter(self.entries, here)
                if rest := tuple(change for change in op.entries if change[0][0] != inode):
                    kept.append((number, op.with_entries(rest)))
            self.names = kept

    def choices(self, rng: random.Random) -> list[int]:
        self._parts = []  # (kind, what, options)
        for _, op in self.names:
            for folder in sorted({slot[0] for slot, _ in op.entries}):
                changes = [change for change in op.entries if change[0][0] == folder]
                self._parts.append(("names", changes, [False, True]))
        for inode, ops in self.data.items():
            for _, op in ops:
                torn = sectors(op, rng) if op.kind == "write" else []
                self._parts.append(("data", (inode, op), [None, *torn, (0, None)]))
            self._parts.append(("size", inode, [True, False]))
        return [len(options) for _, _, options in self._parts]

    def build(self, choice: tuple[int, ...]) -> State:
        entries, content, ahead = dict(self.entries), dict(self.content), {}
        for (kind, what, options), number in zip(self._parts, choice, strict=True):
            option = options[number]
            if kind == "names" and option:
                self._enter(entries, what)
            elif kind == "data":
                inode, op = what
                if option:
                    content[inode] = applied(content[inode], op, *option)
                size = ahead.get(inode, len(self.content[inode]))
                ahead[inode] = op.at if op.kind == "truncate" else max(size, op.at + len(op.data))
            elif kind == "size" and option:  # the size that all would give, zeros where bytes are missing
                content[what] = content[what][: ahead[what]].ljust(ahead[what], b"\0")
        return files(entries, content)


class Ext4(Disk):
    """The model `ext4-ordered`."""

    def _sync(self, inode: int):
        last = max((n for n, op in self.names if inode in op.touched), default=-1)
        last = max([last, *(n for n, _ in self.data.get(inode, ()))])
        self._settle(inode)
        for n, op in self.names:
            if n <= last:
                self._enter(self.entries, op.entries)
        self.names = [one for one in self.names if one[0] > last]
        for (
            other,
            ops,
        ) in self.data.items():  # a truncation is in the journal too, and what was written before it
            if cuts := [n for n, op in ops if op.kind == "truncate" and n < last]:
                for n, op in ops:
                    if n <= cuts[-1]:
                        self.content[other] = applied(self.content[other], op)
                self.data[other] = [one for one in ops if one[0] > cuts[-1]]

    def choices(self, rng: random.Random) -> list[int]:
        """One choice: where the journal ends. Others, of the bytes of each file, are made within options."""
        marks = [n for n, _ in self.names] + [
            n for ops in self.data.values() for n, op in ops if op.kind == "truncate"
        ]
        self._ends = [*sorted(marks), len(self.ops)]  # the first change that is lost
        self._parts = [(inode, self._versions(inode, ops, rng)) for inode, ops in self.data.items()]
        return [len(self._ends), *(len(versions) for _, versions in self._parts)]

    def _versions(self, inode: int, ops, rng: random.Random) -> list:
        """Functions of the journal's end: the bytes that a file may have, from as few as can be to all."""
        ends = {op.at + len(op.data) for _, op in ops if op.kind == "write"}
        top = max(ends, default=0)
        pages = rng.sample(range(BLOCK, top, BLOCK), min(2, len(range(BLOCK, top, BLOCK))))
        limits = [0, *sorted({*pages, *ends})]
        options = [(limit, False) for limit in limits]
        grown = min(top, -(-len(self.content[inode]) // BLOCK) * BLOCK)
        if len(self.content[inode]) < grown:  # the block was there: its size may be ahead of its bytes
            options.insert(1, (grown, True))
        seed = rng.random()
        return [
            lambda end, limit=limit, zeros=zeros: self._bytes(inode, ops, end, limit, zeros, seed)
            for limit, zeros in options
        ]

    def _bytes(self, inode: int, ops, end: int, limit: int, zeros: bool, seed: float) -> bytes:
        content, rng = self.content[inode], random.Random(seed)
        for n, op in ops:
            if op.kind == "truncate":
                if n >= end:
                    break
                content = applied(content, op)
                continue
            size = len(content)
            if op.at < size:  # over old bytes: whole, missing or torn, whatever the journal has
                old = min(len(op.data), size - op.at)
                part = rng.choice([(0, 0), (0, old), *[(a, min(b, old)) for a, b in sectors(op, rng)]])
                part = (0, old) if limit >= op.at + len(op.data) else part
                content = applied(content, op, *part)[:size]
            reach = min(limit, op.at + len(op.data))
            if reach > len(content) and n < end:
                new = b"\0" * len(op.data) if zeros else op.data
                content = written(content, len(content), new[len(content) - op.at : reach - op.at])
        return content

    def build(self, choice: tuple[int, ...]) -> State:
        end, *versions = choice
        end = self._ends[end]
        entries, content = dict(self.entries), dict(self.content)
        for n, op in self.names:
            if n < end:
                self._enter(entries, op.entries)
        for (inode, options), number in zip(self._parts, versions, strict=True):
            content[inode] = options[number](end)
        return files(entries, content)


class Emptied(Disk):
    """All is there but the bytes of one file."""

    def take(self, number: int):
        super().take(number)
        self._sync_all()

    def _sync(self, inode: int):
        pass

    def choices(self, rng: random.Random) -> list[int]:
        self._files = [path for path, data in files(self.entries, self.content).items() if data]
        return [len(self._files)]

    def build(self, choice: tuple[int, ...]) -> State:
        found = files(self.entries, self.content)
        return found | {self._files[choice[0]]: b""} if self._files else found
