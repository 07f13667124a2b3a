#!/usr/bin/env bash
# ziglang 0.17.1: python -m ziglang cc without -march and without -target, on x86-64.
# Guess: code for every x86-64, as gcc and clang make it; -march=native is what asks for this machine.
# Seen: code for this very CPU: __SSE3__ (and __AVX2__ where there is one) is defined. With -target
#   x86_64-linux-gnu, even where that is the machine's own, or with -mcpu=baseline it is not.
# Why it matters: a wheel built with it runs here and dies of an illegal instruction on an older CPU.
#   auditwheel reads symbol versions, and has nothing to say. Every call that builds a wheel needs -target,
#   also on the same platform.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check ziglang==0.17.1
cat >"$folder/look.py" <<'EOF'
import pathlib
import subprocess
import sys

folder = pathlib.Path(__file__).parent
source = """
#include <stdio.h>
int main(void) {
#ifdef __SSE3__
    puts("beyond baseline");
#else
    puts("baseline");
#endif
}
"""
(folder / "cpu.c").write_text(source)
seen = []
for flags in ([], ["-target", "x86_64-linux-gnu"], ["-mcpu=baseline"]):
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        *flags,
        "-o",
        str(folder / "cpu"),
        str(folder / "cpu.c"),
    ]
    subprocess.run(command, check=True)
    seen.append(
        subprocess.run([str(folder / "cpu")], check=True, capture_output=True, text=True).stdout.strip()
    )
    print(f"zig cc {' '.join(flags)}: {seen[-1]}")
sys.exit(seen != ["beyond baseline", "baseline", "baseline"])
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
