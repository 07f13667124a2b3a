"""Where the text comes from: the table of sources, their clones or packages, and their hashes."""

import hashlib
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from . import debian
from .errors import SourceError

KINDS = ("literature", "scripture", "parliament", "law", "news", "encyclopedia", "documentation", "dialogue")


@dataclass(frozen=True)
class Source:
    """One row of sources.toml: a repository at a commit, or Debian packages by the names of their files.

    `paths` chooses files and `without` takes some away, both by globs. A file with the words
    `files_without` in it is left out: where single texts of a collection have another licence.
    """

    name: str
    kind: str
    variety: str
    era: str
    licence: str
    licence_at: str
    format: str
    paths: list[str]
    repository: str = ""
    commit: str = ""
    packages: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    files_without: str = ""
    note: str = ""


def load(path: Path) -> list[Source]:
    """Read the table of sources at `path`; SourceError names the row and the key that are wrong."""
    sources = []
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["source"]:
        try:
            source = Source(**row)
        except TypeError as error:
            raise SourceError(f"{path}: {row.get('name', row)}: {error}") from None
        if bool(source.repository and source.commit) == bool(source.packages):
            raise SourceError(f"{path}: {source.name}: needs repository and commit, or packages")
        if source.kind not in KINDS:
            raise SourceError(f"{path}: {source.name}: kind {source.kind!r} is none of {', '.join(KINDS)}")
        sources.append(source)
    return sources


def files(source: Source, folder: Path) -> list[tuple[str, bytes]]:
    """Return (path, content) of every file that the row chooses, by path. Fetch first what is missing."""
    chosen = list(archive_files(source, folder) if source.packages else clone_files(source, folder))
    if not chosen:
        raise SourceError(f"{source.name}: none of its paths is in {folder}")
    return sorted(chosen)


def archive_files(source: Source, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen files of the row's packages."""
    for name in source.packages:
        for path, data in debian.members(debian.find(folder / name)):
            if wanted(source, path):
                yield path, data


def clone_files(source: Source, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen files of the row's repository: FOLDER/OWNER+NAME, at the row's commit."""
    git = Git(folder / source.repository.replace("/", "+"))
    if not git.has(source.commit):
        git.fetch(f"https://github.com/{source.repository}", source.commit)
    names = [name for name in git.names(source.commit) if wanted(source, name)]
    yield from zip(names, git.contents(source.commit, names), strict=True)


def wanted(source: Source, name: str) -> bool:
    """Return True where the row's globs choose this path. A glob's * crosses folders."""
    chosen = any(fnmatchcase(name, glob) for glob in source.paths)
    return chosen and not any(fnmatchcase(name, glob) for glob in source.without)


def digest(pairs: list[tuple[str, bytes]]) -> str:
    """Return the sha256 of chosen files: of their paths and own sha256, in order of path."""
    total = hashlib.sha256()
    for name, data in pairs:
        total.update(f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode())
    return total.hexdigest()


class Git:
    """A clone at `where`: a bare git directory, or a work tree with .git in it."""

    def __init__(self, where: Path):
        self.where = where / ".git" if (where / ".git").is_dir() else where

    def run(self, *words: str, data: bytes | None = None) -> bytes:
        """Return what git prints; SourceError with its last line where it fails."""
        command = ["git", "--git-dir", str(self.where), *words]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise SourceError(f"{self.where}: git {words[0]}: {last[0]}")
        return done.stdout

    def has(self, commit: str) -> bool:
        """Return True where the clone is there and knows the commit."""
        if not self.where.is_dir():
            return False
        command = ["git", "--git-dir", str(self.where), "cat-file", "-e", commit + "^{commit}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fetch(self, url: str, commit: str) -> None:
        """Bring this one commit here, without history."""
        if not self.where.is_dir():
            self.where.mkdir(parents=True)
            self.run("init", "--quiet", "--bare")
        self.run("fetch", "--quiet", "--depth", "1", url, commit)

    def names(self, commit: str) -> list[str]:
        """Return the paths of all files of a commit, in byte order."""
        listing = self.run("ls-tree", "-r", "-z", "--name-only", commit)
        return [name.decode() for name in sorted(listing.split(b"\0")) if name]

    def contents(self, commit: str, names: list[str]) -> Iterator[bytes]:
        """Yield the content of each of these files, read by one git process."""
        asked = "".join(f"{commit}:{name}\n" for name in names)
        answer, at = self.run("cat-file", "--batch", data=asked.encode()), 0
        for name in names:
            end = answer.index(b"\n", at)
            head = answer[at:end].split(b" ")
            if not head[-1].isdigit():
                raise SourceError(f"{self.where}: {name} of commit {commit} is not in this clone")
            size = int(head[-1])
            yield answer[end + 1 : end + 1 + size]
            at = end + size + 2
