"""`python -m npgpt.embed`: what C programs need to build with libnpgpt: flags, or one source."""

import errno
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path

from npgpt.console.process import command, errors_as_lines, exit_with_error
from npgpt.console.settings import make_parser

HERE = Path(__file__).resolve().parent
# GCC: -Os makes small what computes little, the kernels stay fast. What a program needs stands in it.
BUILD = (
    "g++ -std=c++17 -Os -pthread -static-libstdc++ -static-libgcc -s -ffunction-sections -Wl,--gc-sections"
)
HEAD = 40  # bytes with which npgpt.cpp and npgpt.h of every version begin


def write_source(folder: Path) -> list[str]:
    """Write npgpt.cpp, npgpt_train.cpp, their headers and, where there is none, generate.c and train.c.

    Return the line that builds generate.c.
    FileExistsError for a file of those names that is another's: nothing is written then.
    """
    with tarfile.open(HERE / "runtime" / "source.tar.gz") as archive:
        files = {folder / entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    for path, data in [*files.items()]:
        if path.suffix == ".c" and path.exists():  # it may have become a program of one's own
            del files[path]
        elif path.exists() and path.read_bytes()[:HEAD] != data[:HEAD]:
            raise FileExistsError(errno.EEXIST, "is there already, and is not libnpgpt's", str(path))
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        path.write_bytes(data)
    return [
        *BUILD.split(),
        f"-I{folder}",
        f"{folder / 'generate.c'}",
        f"{folder / 'npgpt.cpp'}",
        "-o",
        "generate",
    ]


@command("embed")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the flags and return exit code 0; exit with 1 where libnpgpt was not built, 2 for bad flags."""
    parser = make_parser("embed", "Print what a C compiler needs to build against libnpgpt (npgpt.h).")
    add = parser.add_argument
    add("--cflags", action="store_true", help="flags to compile with")
    add("--libs", action="store_true", help="flags to link with")
    add(
        "--source",
        metavar="FOLDER",
        help="write libnpgpt as one source, npgpt.cpp, with npgpt.h and a program, generate.c, and print the "
        "line that builds it, for programs that hold everything and for other machines; training is in "
        "npgpt_train.cpp, npgpt_train.h and train.c",
    )
    args = parser.parse_args(argv)
    if args.source and (args.cflags or args.libs):
        parser.error("--source needs no --cflags and no --libs")
    if args.source:
        with errors_as_lines("embed"):
            line = write_source(Path(args.source))
        print(shlex.join(line))
        return 0
    if not (args.cflags or args.libs):
        parser.error("give --cflags, --libs, both, or --source")
    library = HERE / "lib"
    if not (library / "libnpgpt.so").exists():
        exit_with_error("embed", f"libnpgpt was not built: there is no {library / 'libnpgpt.so'}", 1)
    flags = [f"-I{HERE / 'include'}"] if args.cflags else []
    if args.libs:
        flags += [f"-L{library}", "-lnpgpt", f"-Wl,-rpath,{library}"]
    print(" ".join(flags))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
