"""Debian packages as sources: find or download one, and read the files in it without dpkg."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from .errors import SourceError


def find(where: Path) -> Path:
    """Return where a package's file is; download it with apt-get where it is not there yet."""
    if where.is_file():
        return where
    name, version, _ = where.name.split("_")
    where.parent.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", f"{name}={unquote(version)}"]
    try:
        done = subprocess.run(command, cwd=where.parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceError(f"{where} is not there, nor apt-get to download it") from None
    if done.returncode or not where.is_file():
        last = done.stderr.strip().splitlines()[-1:] or [f"apt-get brought no {where.name}"]
        raise SourceError(f"{where}: {last[0]}")
    return where


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of each file in a package: an ar archive around data.tar."""
    data = path.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise SourceError(f"{path} is no Debian package: it does not begin with !<arch>")
    at = 8
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(" /"), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name.removeprefix("./"), file.read()
            return
        at += 60 + size + size % 2
    raise SourceError(f"{path} holds no data.tar")
