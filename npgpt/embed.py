"""`python -m npgpt.embed --cflags --libs`: print the flags with which C programs build against libnpgpt."""

from collections.abc import Sequence
from pathlib import Path

from npgpt.console.process import command, exit_with_error
from npgpt.console.settings import make_parser

HERE = Path(__file__).resolve().parent


@command("embed")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the flags and return exit code 0; exit with 1 where libnpgpt was not built, 2 for bad flags."""
    parser = make_parser("embed", "Print what a C compiler needs to build against libnpgpt (npgpt.h).")
    add = parser.add_argument
    add("--cflags", action="store_true", help="flags to compile with")
    add("--libs", action="store_true", help="flags to link with")
    add("--static", action="store_true", help="link libnpgpt and the C++ library into the program")
    args = parser.parse_args(argv)
    if not (args.cflags or args.libs):
        parser.error("give --cflags, --libs or both")
    library = HERE / "lib"
    if not (library / "libnpgpt.a").exists():
        exit_with_error("embed", f"libnpgpt was not built: there is no {library / 'libnpgpt.a'}", 1)
    flags = [f"-I{HERE / 'include'}"] if args.cflags else []
    if args.libs and args.static:
        # a C program's link names the C++ library, so that it can be the static one
        flags += [str(library / "libnpgpt.a"), "-Wl,--gc-sections", "-static-libgcc"]
        flags += ["-Wl,-Bstatic", "-lstdc++", "-Wl,-Bdynamic", "-pthread", "-lm"]
    elif args.libs:
        flags += [f"-L{library}", "-lnpgpt", f"-Wl,-rpath,{library}"]
    print(" ".join(flags))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
