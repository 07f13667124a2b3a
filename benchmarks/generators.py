"""One contender of decode.py in a process of its own.

`python -m benchmarks.generators NAME FILE THREADS` answers each line of stdin with one of JSON: "turn" with
the samples of npgpt/measure/decoding.py, npgpt's "eight" with the tokens a second of eight sessions together.
"""

import sys
import time
from pathlib import Path

from npgpt.engine import kernels
from npgpt.measure import decoding
from npgpt.measure.contender import answer
from npgpt.measure.decoding import IDS, NEW
from npgpt.runtime import libnpgpt
from npgpt.runtime.sampling import Sampling

SIZES = {
    "124M": {},
    "4L x 128": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 257},
}


def eight(path):
    """New tokens a second of eight sessions together."""
    model, how = libnpgpt.Model.open(path), libnpgpt.sampling_struct(Sampling(0), 256)
    many = [libnpgpt.Session(model) for _ in range(8)]
    for session in many:
        session.feed(IDS)
    start = time.perf_counter()
    for _ in range(NEW):
        libnpgpt.feed_many(many, [session.sample(how) for session in many])
    return 8 * NEW / (time.perf_counter() - start)


def main():
    name, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    kernels.set_num_threads(threads)
    work = decoding.work_of("", name, path)
    answer(lambda line: eight(path) if line == "eight" else work.turn())


if __name__ == "__main__":
    main()
