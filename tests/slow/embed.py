"""`python tests/slow/embed.py`: size, start and memory of a C program around libnpgpt, with a model of 10 MB.

The start is to the first byte of text, the median of 20. Allowed: 400 kB, 20 ms, and 8 MB beyond the weights.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from npgpt.interop.gguf import write_gguf  # noqa: E402
from tests.models import random_model  # noqa: E402

# In a small process: a child begins with its parent's memory, which would be the most.
MEMORY = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"""


def start(command) -> float:
    """Seconds to the first byte."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.communicate()
    assert process.returncode == 0
    return seconds


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        how = [sys.executable, "-m", "npgpt.embed", "--source", out]
        line = subprocess.run(how, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        subprocess.run(line, shell=True, cwd=out, check=True)
        program = out / "generate"
        model = random_model(n_layer=3, n_embd=256, n_head=4, block_size=256)
        write_gguf(out / "m.gguf", model, model.tokenizer)
        weights, size = (out / "m.gguf").stat().st_size, program.stat().st_size
        command = [program, out / "m.gguf", "", "240"]  # no prompt: the first byte is the model's
        seconds = statistics.median(start(command) for _ in range(20))
        memory = int(subprocess.check_output([sys.executable, "-Sc", MEMORY, *command]))
    cache = 3 * 256 * 2 * 4 * 241
    above = memory - weights - cache
    print(f"program: {size / 1e3:.0f} kB stripped (400 allowed)")
    print(f"start to the first byte, {weights / 1e6:.1f} MB of weights: {seconds * 1e3:.1f} ms (20 allowed)")
    print(f"memory beyond weights and cache: {above / 2**20:.1f} MB (8 allowed)")
    return int(size > 400_000 or seconds > 0.02 or above > 8 * 2**20)


if __name__ == "__main__":
    raise SystemExit(main())
