"""`python csrc/amalgamate.py OUT`: libnpgpt as OUT/npgpt.cpp and OUT/npgpt.h, and OUT/generate.c, a program.

    c++ -std=c++17 -O2 -pthread -c npgpt.cpp      with GCC or clang; no other flag is needed

Training is a second source, npgpt_train.cpp with npgpt_train.h and train.c: both are compiled with
-DNPGPT_TRAIN, by which npgpt.cpp keeps the kernels that training alone needs.

With -Os GCC makes small what computes little, and the rest as fast as ever. OUT.tar.gz is packed, the same
bytes each time: wheels hold it, and `python -m npgpt.embed --source` unpacks it.
Every include of ours is put in its place. What setup.py says by flags for one file is said here by pragmas.
What differs by system stands in NAME_linux.cpp, NAME_windows.cpp, NAME_posix.cpp for other POSIX systems, and
NAME_none.cpp, for one thread and files that are read whole: where the system is none of these, or with
-DNPGPT_NO_SYSTEM. NAME_threads.cpp is for all but the last. Only here a system is asked for by its macro.
"""

import gzip
import io
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = ("kernels", "threads", "text", "runtime")
# Of these folders all, or the files named, are npgpt_train.cpp
TRAINING = {"parallel": ("matmul", "ops"), "text": ("train",), "training": ()}
TARGETS = {"avx2": "avx2,fma,f16c", "avx512vnni": "avx2,fma,f16c,avx512vl,avx512vnni"}
SYSTEMS = {  # how a file's name ends, and for which number of NPGPT_SYSTEM it is
    "_none": "NPGPT_SYSTEM == 0",
    "_linux": "NPGPT_SYSTEM == 1",
    "_posix": "NPGPT_SYSTEM == 2",
    "_windows": "NPGPT_SYSTEM == 3",
    "_threads": "NPGPT_SYSTEM",
}
# What opens files, checks arguments and leads a session computes little: with -Os this alone is small.
SMALL = re.compile(
    r"/(runtime/(api|gguf|model|session|stream|vocabulary)|text/spm|training/(export|files\w*|train))\.cpp$"
)
FAST = """#if defined(__OPTIMIZE_SIZE__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O2")
#endif
"""
AS_BEFORE = """#if defined(__OPTIMIZE_SIZE__) && !defined(__clang__)
#pragma GCC pop_options
#endif
"""
WRITTEN = "runtime/npgpt.h", "examples/generate.c", "runtime/npgpt_train.h", "examples/train.c"
PUBLIC = ("npgpt.h", "npgpt_train.h")  # which stand beside the one source
HEAD = """// libnpgpt in one file, made by csrc/amalgamate.py: do not edit. MIT licence.
#if !defined(NPGPT_TRAIN)
#define NPGPT_INFERENCE
#endif
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunused-function"
#pragma clang fp contract(off)
#else
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC optimize("no-math-errno", "fp-contract=off")
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(NPGPT_NO_SYSTEM) || defined(__wasm__)
#define NPGPT_SYSTEM 0
#elif defined(__linux__)
#define NPGPT_SYSTEM 1
#elif defined(_WIN32)
#define NPGPT_SYSTEM 3
#elif defined(__unix__) || defined(__APPLE__)
#define NPGPT_SYSTEM 2
#else
#define NPGPT_SYSTEM 0
#endif
"""


def inline(path: Path, once: set) -> str:
    """The text of a file with our own includes replaced by theirs."""
    text = path.read_text(encoding="utf-8")
    if "#pragma once" in text or path.name in PUBLIC:
        if path in once:
            return ""
        once.add(path)
    if path.name in PUBLIC:
        return f'#include "{path.name}"\n'

    def put(match):
        return inline((path.parent / match[1]).resolve(), once)

    text = re.sub(r'^#include "(.*)"\n', put, text, flags=re.M)
    # visibility is for libraries that share what is in it
    for said in ("#pragma once\n", '[[gnu::visibility("default")]] '):
        text = text.replace(said, "")
    return f"// ---- {path.relative_to(HERE.resolve())}\n" + text


def unit(path: Path, once: set) -> str:
    """One source file; a kernel file's instruction set is a pragma around it."""
    # included by the kernel files too, and not to be compiled for their instruction set
    text = inline((HERE / "kernels/kernels.h").resolve(), once)
    for end, asked in SYSTEMS.items():
        if path.stem.endswith(end):
            headers = [*sorted((HERE / "threads").glob("*.h")), *sorted(path.parent.glob("*.h"))]
            headers = [header.resolve() for header in headers if header.name != "system.h"]
            shared = "".join(inline(header, once) for header in headers)
            return text + shared + f"#if {asked}\n" + inline(path.resolve(), once) + "#endif\n"
    file = inline(path.resolve(), once)
    if SMALL.search(path.as_posix()):
        return text + file
    text += FAST + file
    if not path.name.startswith("isa_"):
        return text + AS_BEFORE
    defined = ("ISA", "ISA_NAME", "VLEN", "INLINE", "METHOD", "VNNI")
    text += "".join(f"#undef NPGPT_{name}\n" for name in defined)
    target = TARGETS.get(path.stem.removeprefix("isa_"))
    if not target:
        return text + AS_BEFORE
    clang = f'#pragma clang attribute push(__attribute__((target("{target}"))), apply_to = function)'
    gcc = f'#pragma GCC push_options\n#pragma GCC target("{target}")'
    begin = f"#ifdef __x86_64__\n#ifdef __clang__\n{clang}\n#else\n{gcc}\n#endif\n"
    end = "#ifdef __clang__\n#pragma clang attribute pop\n#else\n#pragma GCC pop_options\n#endif\n#endif\n"
    return begin + text + AS_BEFORE + end


def write(folder: Path) -> None:
    """Write the sources, their headers and a program for each."""
    found = [path for name in FOLDERS for path in sorted((HERE / name).glob("*.cpp"))]
    sources = [path for path in found if path.stem not in ("train", "suffixes")]
    training = [
        path
        for name, files in TRAINING.items()
        for path in sorted((HERE / name).glob("*.cpp"))
        if not files or path.stem in files
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, paths in {"npgpt.cpp": sources, "npgpt_train.cpp": training}.items():
        once: set = set()
        text = HEAD + "".join(unit(path, once) for path in paths)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    for name in WRITTEN:
        shutil.copyfile(HERE / name, folder / Path(name).name)


def main(out: str) -> None:
    if not out.endswith(".tar.gz"):
        write(Path(out))
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=packed, mode="w") as archive:
        write(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    Path(out).write_bytes(gzip.compress(packed.getvalue(), mtime=0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
