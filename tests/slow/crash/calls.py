"""The calls of a program that change a folder, recorded by strace, as operations on inodes.

What is not modelled ends the recording (a file mapped to be written, io_uring, symbolic links). At the
end the operations, applied in order, must give the folder as it lies on the disk, byte for byte.
"""

import dataclasses
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "open openat creat write pwrite64 writev pwritev pwritev2 truncate ftruncate fallocate rename renameat "
    "renameat2 link linkat unlink unlinkat rmdir mkdir mkdirat symlink symlinkat fsync fdatasync sync syncfs "
    "sync_file_range mmap sendfile copy_file_range lseek io_uring_setup"
).split()
LINE = re.compile(
    r"^(?P<pid>\d+) +(?P<call>\w+)\((?P<args>.*)\) += (?P<result>-?\d+|0x[0-9a-f]+)(?:<(?P<path>[^>]*)>)?"
)
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
MARKS = "marks"  # a folder made in here, beside the folder that is watched, marks a moment


@dataclass(frozen=True)
class Op:
    """One change. `entries` are (folder's inode, name) -> inode or None; data belongs to `inode`."""

    kind: str  # entries, write, truncate, sync, sync all, mark
    entries: tuple = ()
    inode: int = -1
    at: int = 0  # the first byte of a write, or the size that truncate leaves
    data: bytes = b""
    made: bool = False  # the inode is new, and empty
    folder: bool = False  # and it is a folder
    name: str = ""  # of a mark
    touched: tuple = ()  # inodes whose metadata it changes

    def with_entries(self, entries: tuple) -> "Op":
        return dataclasses.replace(self, entries=entries)


@dataclass
class Recording:
    """The folder before the calls, and the calls as operations."""

    inodes: dict = field(
        default_factory=dict
    )  # inode -> bytes of a file, None for a folder: before the calls
    entries: dict = field(default_factory=dict)  # (folder, name) -> inode: before the calls
    ops: list = field(default_factory=list)


ROOT = 0


def record(command: list[str], root: Path, work: Path) -> Recording:
    """Run the command under strace, in `work`, and return what it did below `root`, which is in work."""
    tree = Tree(root)
    out = work / "calls"
    strace = ["strace", "-f", "-y", "-qq", "-xx", "-s", str(1 << 28), "--seccomp-bpf", "-o", str(out)]
    command = [*strace, "-e", f"trace={','.join(CALLS)}", *command]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"the recorded program ended with {done.returncode}:\n{done.stdout}")
    for line in whole_lines(out.read_text(encoding="ascii")):
        tree.take(line)
    out.unlink()
    tree.compare()
    return tree.recording


def whole_lines(text: str):
    """Yield strace's lines; a call in two, as another thread's came between, is joined where it ended."""
    waiting = {}
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        if rest.endswith(" <unfinished ...>"):
            waiting[pid] = line.removesuffix(" <unfinished ...>")
        elif found := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest):
            yield waiting.pop(pid) + found[1]
        else:
            yield line


def unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class Tree:
    """The watched folder as the calls change it."""

    def __init__(self, root: Path):
        self.root, self.recording = os.path.realpath(root), Recording()
        self.entries, self.content, self.place = {}, {ROOT: None}, {}
        self._read(self.root, ROOT)
        self.recording.entries, self.recording.inodes = dict(self.entries), dict(self.content)

    def _read(self, folder: str, inode: int):
        for one in sorted(os.scandir(folder), key=lambda one: one.name):
            new = len(self.content)
            self.entries[inode, one.name] = new
            self.content[new] = None if one.is_dir() else Path(one.path).read_bytes()
            if one.is_dir():
                self._read(one.path, new)

    # ------------------------------------------------------------------------ names

    def _inside(self, path: str) -> list[str] | None:
        """The names that lead from the root to a path; None outside."""
        path = os.path.normpath(path)
        if path == self.root:
            return []
        return path[len(self.root) + 1 :].split("/") if path.startswith(self.root + "/") else None

    def _find(self, path: str) -> int | None:
        names = self._inside(path)
        inode = None if names is None else ROOT
        for name in names or ():
            inode = self.entries.get((inode, name))
        return inode

    def _slot(self, path: str) -> tuple[int, str]:
        parent = self._find(os.path.dirname(os.path.normpath(path)))
        if parent is None:
            raise SystemExit(f"{path}: its folder is not known")
        return parent, os.path.basename(path)

    def _paths(self, call: str, args: str) -> list[str]:
        """The paths that a call names: a descriptor's, or strings, each from the folder before it."""
        found, folder = [], None
        for match in re.finditer(rf"{DESCRIPTOR.pattern}|{STRING.pattern}", args):
            if match[1] is not None:
                if folder is not None:
                    found.append(folder)
                folder = unescaped(match[1]).decode()
            else:
                path = unescaped(match[2]).decode()
                found.append(os.path.join(folder or os.path.dirname(self.root), path))
                folder = None
        return found + ([folder] if folder is not None else [])

    # ------------------------------------------------------------------------ calls

    def take(self, line: str):
        match = LINE.match(line)
        if not match or match["result"].startswith("-"):
            return
        call, args, result = match["call"], match["args"], int(match["result"], 0)
        if call == "io_uring_setup":
            raise SystemExit("the program uses io_uring, which is not modelled")
        kind = {
            "pwrite64": "write",
            "writev": "write",
            "fdatasync": "fsync",
            "creat": "open",
            "openat": "open",
        }.get(call, call)
        kind = (
            re.sub("(at2?)$", "", kind)
            if kind not in ("truncate", "ftruncate") and kind.endswith(("at", "at2"))
            else kind
        )
        getattr(self, f"_{kind}", self._unknown)(call, args, result)

    def _unknown(self, call: str, args: str, result: int):
        if any(self._inside(path) is not None for path in self._paths(call, args)):
            raise SystemExit(f"{call} is not modelled: {args[:200]}")

    def _change(self, entries: dict, touched=(), **new):
        slots = tuple(entries.items())
        inodes = {folder for folder, _ in entries} | set(touched)
        made = max((inode for inode in entries.values() if inode is not None), default=-1)
        self.recording.ops.append(Op("entries", slots, made, touched=tuple(sorted(inodes)), **new))
        for slot, inode in slots:
            if inode is None:
                self.entries.pop(slot, None)
            else:
                self.entries[slot] = inode

    def _open(self, call: str, args: str, result: int):
        path = self._paths(call, args)[0]
        if self._inside(path) is None or "O_TMPFILE" in args:
            return
        inode = self._find(path)
        if inode is None:
            inode = len(self.content)
            self.content[inode] = b""
            self._change({self._slot(path): inode}, [inode], made=True)
        elif ("O_TRUNC" in args or call == "creat") and self.content[inode]:
            self._cut(inode, 0)
        if self.content[inode] is not None and ("O_WRONLY" in args or "O_RDWR" in args):
            self.place[inode] = None if "O_APPEND" in args else 0

    def _lseek(self, call: str, args: str, result: int):
        inode = self._find(self._paths(call, args)[0])
        if self.place.get(inode) is not None:
            self.place[inode] = result

    def _write(self, call: str, args: str, result: int):
        path = unescaped(DESCRIPTOR.search(args)[1]).decode()
        if self._inside(path) is None or path.endswith(" (deleted)"):
            return
        inode = self._find(path)
        data = b"".join(unescaped(found) for found in STRING.findall(args[args.index(",") :]))[:result]
        self._put(inode, data, int(args.rpartition(",")[2]) if call == "pwrite64" else None)

    def _put(self, inode: int, data: bytes, at: int | None):
        old = self.content[inode]
        if at is None:
            at = len(old) if self.place.get(inode) is None else self.place[inode]
            if self.place.get(inode) is not None:
                self.place[inode] = at + len(data)
        self.recording.ops.append(Op("write", inode=inode, at=at, data=data, touched=(inode,)))
        self.content[inode] = written(old, at, data)

    def _sendfile(self, call: str, args: str, result: int):
        target, source = (unescaped(found).decode() for found in DESCRIPTOR.findall(args)[:2])
        if self._inside(target) is None or not result:
            return
        at = int(re.search(r"\[(\d+)\]", args)[1])
        inode = self._find(source)
        data = Path(source).read_bytes() if inode is None else self.content[inode]
        self._put(self._find(target), data[at : at + result], None)

    def _mmap(self, call: str, args: str, result: int):
        if "PROT_WRITE" in args and "MAP_SHARED" in args:
            self._unknown(call, args, result)

    def _cut(self, inode: int, size: int):
        self.recording.ops.append(Op("truncate", inode=inode, at=size, touched=(inode,)))
        self.content[inode] = self.content[inode][:size].ljust(size, b"\0")

    def _truncate(self, call: str, args: str, result: int):
        if (inode := self._find(self._paths(call, args)[0])) is not None:
            self._cut(inode, int(args.rpartition(",")[2]))

    _ftruncate = _truncate

    def _mkdir(self, call: str, args: str, result: int):
        path = self._paths(call, args)[0]
        if os.path.dirname(path) == os.path.join(os.path.dirname(self.root), MARKS):
            self.recording.ops.append(Op("mark", name=os.path.basename(path)))
        elif self._inside(path) is not None:
            inode = len(self.content)
            self.content[inode] = None
            self._change({self._slot(path): inode}, [inode], made=True, folder=True)

    def _unlink(self, call: str, args: str, result: int):
        path = self._paths(call, args)[0]
        if (inode := self._find(path)) is not None:
            self._change({self._slot(path): None}, touched=[inode])

    _rmdir = _unlink

    def _link(self, call: str, args: str, result: int):
        old, new = self._paths(call, args)[:2]
        if self._inside(new) is not None:
            self._change({self._slot(new): self._find(old)}, touched=[self._find(old)])

    def _rename(self, call: str, args: str, result: int):
        old, new = self._paths(call, args)[:2]
        inside = {self._inside(path) is not None for path in (old, new)}
        if inside == {True, False}:
            raise SystemExit(
                f"a rename between the watched folder and another is not modelled: {old} -> {new}"
            )
        if inside == {True} and old != new:
            inode = self._find(old)
            self._change({self._slot(old): None, self._slot(new): inode}, touched=[inode])

    def _fsync(self, call: str, args: str, result: int):
        if (inode := self._find(self._paths(call, args)[0])) is not None:
            self.recording.ops.append(Op("sync", inode=inode, name=call))

    def _sync(self, call: str, args: str, result: int):
        self.recording.ops.append(Op("sync all"))

    _syncfs = _sync

    # ------------------------------------------------------------------------ the proof

    def compare(self):
        """SystemExit where the folder on the disk is not what the calls have made of it."""
        mine = Tree(self.root)
        if files(self.entries, self.content) != files(mine.entries, mine.content):
            raise SystemExit("the recorded calls do not give the folder that lies on the disk")


def written(old: bytes, at: int, data: bytes) -> bytes:
    """The bytes of a file after a write."""
    return old[:at].ljust(at, b"\0") + data + old[at + len(data) :]


def files(entries: dict, content: dict) -> dict[str, bytes | None]:
    """path -> bytes of a file, None for a folder, of all that can be reached from the root."""
    below = {}
    for (folder, name), inode in entries.items():
        below.setdefault(folder, []).append((name, inode))
    found, waiting, seen = {}, [(ROOT, "")], set()
    while waiting:
        folder, path = waiting.pop()
        seen.add(folder)
        for name, inode in below.get(folder, ()):
            found[path + name] = content[inode]
            if content[inode] is None and inode not in seen:
                waiting.append((inode, f"{path}{name}/"))
    return found
