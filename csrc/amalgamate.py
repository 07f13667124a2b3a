"""`python csrc/amalgamate.py OUT`: libnpgpt as OUT/npgpt.cpp and OUT/npgpt.h, for those who vendor.

    c++ -std=c++17 -O2 -pthread -c npgpt.cpp      with GCC or clang; no other flag is needed

Every include of ours is put in its place. What setup.py says by flags for one file is said here by pragmas.
Of what differs by system Linux has NAME_linux.cpp, any other NAME_plain.cpp, where -pthread is not needed.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = ("kernels", "threads", "text", "runtime")
TARGETS = {"avx2": "avx2,fma,f16c", "avx512vnni": "avx2,fma,f16c,avx512vl,avx512vnni"}
SYSTEMS = {"_linux": "#ifdef __linux__\n", "_plain": "#ifndef __linux__\n"}
HEAD = """// libnpgpt in one file, made by csrc/amalgamate.py: do not edit. MIT licence.
#define NPGPT_INFERENCE
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
"""


def inline(path: Path, once: set) -> str:
    """The text of a file with our own includes replaced by theirs."""
    text = path.read_text(encoding="utf-8")
    if "#pragma once" in text or path.name == "npgpt.h":
        if path in once:
            return ""
        once.add(path)
    if path.name == "npgpt.h":
        return '#include "npgpt.h"\n'

    def put(match):
        return inline((path.parent / match[1]).resolve(), once)

    text = re.sub(r'^#include "(.*)"\n', put, text, flags=re.M)
    return f"// ---- {path.relative_to(HERE.resolve())}\n" + text.replace("#pragma once\n", "")


def unit(path: Path, once: set) -> str:
    """One source file; a kernel file's instruction set is a pragma around it."""
    # included by the kernel files too, and not to be compiled for their instruction set
    text = inline((HERE / "kernels/kernels.h").resolve(), once)
    for end, begin in SYSTEMS.items():
        if path.stem.endswith(end):
            shared = "".join(inline(header.resolve(), once) for header in sorted(path.parent.glob("*.h")))
            return text + shared + begin + inline(path.resolve(), once) + "#endif\n"
    text += inline(path.resolve(), once)
    if not path.name.startswith("isa_"):
        return text
    defined = ("ISA", "ISA_NAME", "VLEN", "INLINE", "METHOD", "VNNI")
    text += "".join(f"#undef NPGPT_{name}\n" for name in defined)
    target = TARGETS.get(path.stem.removeprefix("isa_"))
    if not target:
        return text
    clang = f'#pragma clang attribute push(__attribute__((target("{target}"))), apply_to = function)'
    gcc = f'#pragma GCC push_options\n#pragma GCC target("{target}")'
    begin = f"#ifdef __x86_64__\n#ifdef __clang__\n{clang}\n#else\n{gcc}\n#endif\n"
    end = "#ifdef __clang__\n#pragma clang attribute pop\n#else\n#pragma GCC pop_options\n#endif\n#endif\n"
    return begin + text + end


def main(out: str) -> None:
    found = [path for folder in FOLDERS for path in sorted((HERE / folder).glob("*.cpp"))]
    sources = [path for path in found if path.stem not in ("train", "suffixes")]
    once = set()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    text = HEAD + "".join(unit(path, once) for path in sources)
    (folder / "npgpt.cpp").write_text(text, encoding="utf-8")
    (folder / "npgpt.h").write_text((HERE / "runtime/npgpt.h").read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
