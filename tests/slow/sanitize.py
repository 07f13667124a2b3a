"""`python tests/slow/sanitize.py`: the C ABI (tests/runtime/abi.c) under ASan with UBSan, then TSan.

About a minute. Exit code 0 and "all holds" twice, or the sanitizer's report.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from npgpt.interop.gguf import write_gguf  # noqa: E402
from tests.models import random_model  # noqa: E402

SANITIZERS = {
    "address and undefined behaviour": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        model = random_model(n_embd=192, n_head=6)
        write_gguf(out / "m.gguf", model, model.tokenizer)
        subprocess.run([sys.executable, ROOT / "csrc/amalgamate.py", out], check=True)
        for what, flags in SANITIZERS.items():
            flags = [*flags, "-g", "-O1", "-fno-omit-frame-pointer", "-pthread", f"-I{out}"]
            subprocess.run(
                ["gcc", *flags, "-c", ROOT / "tests/runtime/abi.c", "-o", out / "abi.o"], check=True
            )
            subprocess.run(
                ["g++", "-std=c++17", *flags, out / "npgpt.cpp", out / "abi.o", "-o", out / "abi"], check=True
            )
            print(f"{what}: ", end="", flush=True)
            subprocess.run([out / "abi", out / "m.gguf"], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
