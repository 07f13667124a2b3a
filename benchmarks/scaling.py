"""How training scales over ranks: measured here, and by a cost model what 8 to 4096 nodes would do.

    python -m benchmarks.scaling [--json]

Ranks of one thread each on this machine, no more than it has CPUs: weak scaling (each rank has as many
windows, however many ranks there are) and strong (all share as many). The sum of the gradients is timed
apart, alone, at several sizes; latency and bandwidth are fitted to that, the overlap to the whole steps.
The predictions put a network's figures in the place of those of this machine's memory.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import record

MODEL = {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 128}
ROWS, STEPS = 4, 8  # windows of a rank, steps timed
SIZES = (1 << 14, 1 << 18, 1 << 20, 1 << 22)  # floats
NODES = (8, 64, 512, 4096)
NETWORKS = {1: (100e-6, 0.117e9), 10: (50e-6, 1.17e9), 100: (20e-6, 11.7e9)}  # Gbit/s: seconds, bytes/s
COLUMNS = ["nodes", *(f"{gigabits} Gbit/s: sum, efficiency" for gigabits in NETWORKS)]
COLUMNS += ["tokens a step", "checkpoint", "failures a day", "lost", "breaks first"]
MESSAGE = 5e-6  # seconds of a CPU for a message over TCP
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257}
NODE_WINDOWS = 8  # of 1024 tokens, in a step of one node
LARGEST_BATCH = 2**19  # tokens: beyond about so many, a model of 124M parameters needs no fewer steps
DISK, LIFE, EVERY, AGAIN = (
    0.5e9,
    1000,
    300,
    60,
)  # bytes/s; days between failures of a node; s; s to start again


def work(world, rows: int) -> dict:
    """On one rank of several: seconds of a step, of its parts, and of sums alone."""
    from npgpt.api import GPT
    from npgpt.distributed.mpi import GradientAllReduce
    from npgpt.engine import kernels
    from npgpt.text.dataset import Dataset
    from npgpt.text.tokenizer import ByteTokenizer
    from npgpt.training.plan import make_plan
    from npgpt.training.trainer import Trainer

    ids = np.random.default_rng(0).integers(0, 256, 200_000).astype(np.uint16)
    plan = make_plan(len(ids), **MODEL, batch_size=rows, optimizer="adamw", dropout=0.0)
    dataset = Dataset.from_ids(ids, (0.9, 0.1, 0.0), ByteTokenizer())
    kernels.set_num_threads(1)
    trainer = Trainer(GPT(plan.model_config(257), 0), dataset, plan, world=world)
    found = {"parameters": trainer.model.num_params, "step": [], "optimizer": [], "waited": [], "sum": {}}

    def timed(function, *args):
        world.all_gather()  # all begin together
        began = time.perf_counter()
        function(*args)
        return time.perf_counter() - began

    def finish(gradients, finish=GradientAllReduce.finish):
        began = time.perf_counter()
        finish(gradients)
        found["waited"].append(time.perf_counter() - began)

    GradientAllReduce.finish = finish
    for _ in range(STEPS):
        found["step"].append(timed(lambda: (trainer._forward_backward(0), trainer._change_weights())))
        found["optimizer"].append(timed(trainer._change_weights))
    for n in (*SIZES, trainer.model.num_params):
        piece = np.ones(n, np.float32)
        found["sum"][n] = median(timed(add_up, world, piece) for _ in range(9))
    found |= {name: median(found[name]) for name in ("step", "optimizer", "waited")}
    return found


def add_up(world, piece) -> None:
    world.all_reduce(piece, 1.0)
    world.wait()


def measure(size: int, rows: int) -> dict:
    """work() on `size` ranks."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--work", str(rows)]
    if size > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(size), *command]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def sum_seconds(size: int, n: int, latency: float, bandwidth: float, message: float = 0.0) -> float:
    """The model: to sum n floats over `size` ranks, pieces of 16 MB are exchanged, added and given back."""
    pieces = -(-n // (1 << 22))
    bytes_moved = 2 * 4 * n * (size - 1) / size
    return pieces * 2 * (latency + message * (size - 1)) + bytes_moved / bandwidth


def fit(sums: dict, size: int) -> tuple[float, float]:
    """Latency and bandwidth, by least squares of relative errors."""
    n, seconds = np.array(list(map(float, sums))), np.array(list(sums.values()))
    columns = np.stack([2 * -(-n // (1 << 22)), 2 * 4 * n * (size - 1) / size], axis=1) / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(columns, np.ones(len(n)), rcond=None)[0]
    return max(latency, 1e-7), 1 / per_byte


def predict(flops: float, overlap: float, windows_at_most: float) -> list[list[str]]:
    """Rows of a table: GPT-2 (124M) on nodes that compute `flops` a second."""
    from npgpt.engine.config import GPTConfig, count_parameters, flops_per_token

    config = GPTConfig(**GPT2)
    n, rows = count_parameters(config), []
    for nodes in NODES:
        tokens = min(NODE_WINDOWS, max(1, windows_at_most / nodes)) * config.block_size
        compute = tokens * flops_per_token(config, config.block_size) / flops
        hidden = overlap * compute * 2 / 3  # backward is two thirds
        last = (config.vocab_size + config.block_size) * config.n_embd / n  # the embeddings' gradients
        cells, worst = [], ""
        for gigabits, (latency, bandwidth) in NETWORKS.items():
            summing = sum_seconds(nodes, n, latency, bandwidth, MESSAGE)
            step = compute + last * summing + max(0.0, (1 - last) * summing - hidden)
            cells.append(f"{summing:.1f} s, {compute / step:.0%}")
            if step > 1.1 * compute:
                worst = f"the network up to {gigabits} Gbit/s"
        batch, failures = nodes * tokens, nodes / LIFE
        lost = failures * (EVERY / 2 + AGAIN) / 86400
        if batch > LARGEST_BATCH:
            worst = f"the batch, {batch / LARGEST_BATCH:.0f} times what helps"
        save = 12 * n / DISK
        row = [f"{nodes}", *cells, f"{batch / 1e6:.2f} M", f"{save:.1f} s", f"{failures:.2f}", f"{lost:.1%}"]
        rows.append([*row, worst or "nothing"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    record.add_flags(parser)
    args = parser.parse_args()
    if args.work:
        from npgpt.distributed.mpi import init_world

        world = init_world()
        with world.abort_on_failure():  # one rank speaks
            print(json.dumps(work(world, args.work)))
        return
    from npgpt.engine.config import GPTConfig, flops_per_token

    sizes = [size for size in (1, 2, 4, 8) if size <= os.cpu_count()]
    print(f"{'ranks':>5}{'weak: step':>13}{'share':>7}{'strong: step':>14}{'share':>7}", end="")
    print(f"{'sum alone':>11}{'waited':>10}")
    found, rows = {}, []
    for size in sizes:
        weak, strong = measure(size, ROWS * size), measure(size, ROWS * max(sizes))
        found[size] = weak, strong
        n = str(int(weak["parameters"]))
        shares = found[1][0]["step"] / weak["step"], found[1][1]["step"] / size / strong["step"]
        cells = [1e3 * weak["step"], shares[0], 1e3 * strong["step"], shares[1], 1e3 * weak["sum"][n]]
        cells.append(1e3 * weak["waited"])
        names = "weak_ms", "weak_share", "strong_ms", "strong_share", "sum_ms", "waited_ms"
        rows.append({"ranks": size} | dict(zip(names, cells, strict=True)))
        print("{:5}{:10.1f} ms{:7.0%}{:11.1f} ms{:7.0%}{:8.2f} ms{:7.2f} ms".format(size, *cells), flush=True)
    last, (weak, _) = max(found.items())[0], max(found.items())[1]
    latency, bandwidth = fit(weak["sum"], last)
    alone = weak["sum"][str(int(weak["parameters"]))]
    overlap = min(1.0, max(0.0, 1 - weak["waited"] / alone)) if last > 1 else 0.0
    print(f"fitted to {last} ranks: latency {1e6 * latency:.0f} us, {bandwidth / 1e9:.2f} GB/s, "
          f"{overlap:.0%} of the sum hidden behind the backward pass")  # fmt: skip
    for size in sizes[1:]:
        for floats, seconds in found[size][0]["sum"].items():
            model = sum_seconds(size, int(floats), latency, bandwidth)
            size_and_time = f"{size} ranks, {4e-6 * int(floats):7.2f} MB: {1e3 * seconds:7.2f} ms"
            print(f"    {size_and_time}, model {1e3 * model:7.2f} ms")
    one = found[1][0]["step"] - found[1][0]["optimizer"]
    tokens = ROWS * MODEL["block_size"]
    flops = tokens * flops_per_token(GPTConfig(vocab_size=257, **MODEL), MODEL["block_size"]) / one
    flops *= os.cpu_count()
    print(f"GPT-2 (124M), {NODE_WINDOWS} x 1024 tokens a node, nodes of {flops / 1e9:.0f} GFLOP/s like this:")
    predictions = [predict(flops, overlap, math.inf), predict(flops, overlap, LARGEST_BATCH / 1024)]
    show(predictions[0])
    print(f"the same, but at most {LARGEST_BATCH:,} tokens a step, and a window a node:")
    show(predictions[1])
    fitted = {"latency": latency, "bandwidth": bandwidth, "overlap": overlap, "node_flops": flops}
    how = {"columns": COLUMNS, "predictions": predictions, "largest_batch": LARGEST_BATCH}
    record.save(args, "scaling", rows, ["mpi4py"], **fitted, **how)
    if args.json:
        print(json.dumps(found | fitted))


def show(prediction: list[list[str]]) -> None:
    print("\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *prediction)))


if __name__ == "__main__":
    main()
