"""`python csrc/wasm.py OUT.wasm.gz`: libnpgpt as WebAssembly, with Debian 12's emscripten (3.1.6).

npgpt/runtime/npgpt.wasm.gz is made so, and committed: who exports a page needs no compiler. `.ci/full wasm`
makes it again and compares the unpacked bytes. It has one thread, SIMD of 128 bits, exceptions of WebAssembly
and no files. Whoever loads it gives it two functions, emscripten_notify_memory_growth and proc_exit.
"""

import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import amalgamate

FLAGS = [
    *("-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fwasm-exceptions"),
    *("-msimd128", "-msse2"),  # SSE2's intrinsics, as SIMD128's
]
EXPORTED = (
    "open_memory get_config begin_of_text end_of_text encode token_bytes "
    "session_new session_reset session_rewind session_length feed logits sample"
).split()
LINK = [
    *("-sSTANDALONE_WASM", "--no-entry", "-sALLOW_MEMORY_GROWTH", "-sMAXIMUM_MEMORY=4GB"),
    "-sEXPORTED_FUNCTIONS=" + ",".join(["_malloc", "_free", *(f"_npgpt_{name}" for name in EXPORTED)]),
]
VERSION = "3.1.6"


def main(out: str) -> None:
    told = subprocess.run(["em++", "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(rf"\b{re.escape(VERSION)}\b", told):
        sys.exit(f"wasm.py: em++ must be {VERSION}, which makes the same bytes, got {told.splitlines()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        amalgamate.main(folder)
        # in that folder: the file holds no path of this machine
        subprocess.run(["em++", *FLAGS, "npgpt.cpp", *LINK, "-o", "npgpt.wasm"], cwd=folder, check=True)
        wasm = Path(folder, "npgpt.wasm").read_bytes()
    Path(out).write_bytes(gzip.compress(wasm, mtime=0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
