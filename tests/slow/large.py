"""A text larger than the memory that the process may have: read in pieces, memory-mapped, trained on."""

import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import run

MEGABYTES, LIMIT = 1500, 700  # the text; what the process may hold of its own (RLIMIT_DATA)


def main():
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    os.environ["NPGPT_CACHE"] = str(folder / "cache")
    text = folder / "large.txt"
    line = "O céu, o mar e a praia: número {}.\r\n"
    try:
        with open(text, "w", newline="") as file:
            number = 0
            while file.tell() < MEGABYTES * 1_000_000:
                file.write("".join(line.format(i) for i in range(number, number + 100_000)))
                number += 100_000

        def limit():
            resource.setrlimit(resource.RLIMIT_DATA, (LIMIT << 20, LIMIT << 20))

        times = []
        for name in ("first", "again"):
            began = time.monotonic()
            flags = [
                "--steps",
                20,
                "--split",
                "0.998,0.001,0.001",
                "--tokenizer",
                "bytes",
                "--out",
                folder / name,
            ]
            said = run("train", text, *flags, preexec_fn=limit)
            times.append(time.monotonic() - began)
            print(next(part for part in said.splitlines() if part.startswith("text: ")), flush=True)
        (ids,) = (folder / "cache").iterdir()
        tokens = int(re.search(r"tokens: ([\d,]+)", said)[1].replace(",", ""))
        size, stored = f"{text.stat().st_size:,}", f"{ids.stat().st_size:,}"
        print(f"{size} bytes with {LIMIT} MiB of memory: {stored} bytes of tokens, {tokens:,} for training;")
        print(f"{times[0]:.0f} s the first time, {times[1]:.0f} s with the tokens in the cache")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
