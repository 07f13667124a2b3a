"""`python -m npgpt.bench`: measure in a minute how fast npgpt is here, beside this machine's limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from npgpt.console.language import _, fill, number
from npgpt.console.messages import log, start_command
from npgpt.console.process import command
from npgpt.console.settings import make_parser, thread_count

if TYPE_CHECKING:
    from npgpt.engine.types import Fields

MATMULS = [(768, 512, 128), (4096, 1536, 384), (256, 3072, 768), (1024, 3072, 768)]  # M, N, K
STEPS = {  # name: n_layer, n_head, n_embd, vocab_size, batch, time
    "4 layers x 128, 12 x 64 tokens": (4, 4, 128, 257, 12, 64),
    "6 layers x 384, 4 x 256 tokens": (6, 6, 384, 257, 4, 256),
    "GPT-2 124M, 4 x 64 tokens": (12, 12, 768, 50257, 4, 64),
}


@command("bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Print GFLOP/s, milliseconds and tokens/s, and return exit code 0."""
    parser = make_parser("bench", "Measure matrix products and training steps, beside this machine's limits.")
    parser.add_argument(
        "--threads", type=thread_count, help="number of threads (default: the CPUs this process may use)"
    )
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON object on the last line of stdout"
    )
    parser.add_argument(
        "--presets",
        action="store_true",
        help="estimate the cost of the published sizes on this machine instead",
    )
    args = parser.parse_args(argv)
    start_command(args.threads)
    if args.presets:
        return _presets(args.json)

    results: Fields = {"matmul": {}, "step": {}}
    try:
        from npgpt.engine import kernels

        results["peak_gflops"], results["read_gb_per_second"] = kernels.limits()
        log(
            "limits: {peak:.0f} GFLOP/s of multiply-adds, {read:.0f} GB/s read from memory",
            **{"peak": results["peak_gflops"], "read": results["read_gb_per_second"]},
        )
    except RuntimeError:
        results["peak_gflops"] = results["read_gb_per_second"] = None
        log("limits: not measured, as NumPy alone cannot reach them")
    for M, N, K in MATMULS:
        name = f"{M} x {N} x {K}"
        results["matmul"][name] = _measure(f"matmul {name}", 2 * M * N * K, _matmul(M, N, K))
    for name, shape in STEPS.items():
        flops, step = _step(*shape)
        results["step"][name] = _measure(f"{_('step:')} {name}", flops, step, tokens=shape[4] * shape[5])
    if args.json:
        print(json.dumps(results, allow_nan=False))
    return 0


def _presets(as_json: bool) -> int:
    """Print a table of what the published sizes would cost here, with as_json also one JSON object."""
    from npgpt.engine import kernels
    from npgpt.engine.config import PRESETS, SHARE, cost, preset

    peak = kernels.peak_gflops(0.3)  # NaN without kernels
    measured = peak == peak
    log(
        "a step: forward, backward and update with one text as long as the context,\n"
        "at {share:.0%} of the {peak:.0f} GFLOP/s of multiply-adds measured here; generating: one such text"
        if measured
        else "a step is not estimated, as NumPy alone cannot reach this machine's limits",
        **{"share": SHARE, "peak": peak},
    )
    print(f"{'':13}{_('parameters'):>16}{_('context'):>9}{_('training'):>13}", end="")
    print(f"{_('generating'):>12}{_('a step'):>11}")
    costs = {name: cost(preset(name), peak) for name in PRESETS}
    for name, c in costs.items():
        training, generating = (
            number(c[key] / 1e9, ",.1f") + " GB" for key in ("training_bytes", "inference_bytes")
        )
        print(f"{name:13}{number(c['parameters'], '16,')}{preset(name).block_size:9}", end="")
        step = number(c["step_seconds"], ",.1f") + " s" if measured else ""
        print(f"{training:>13}{generating:>12}{step:>11}")
    if as_json:
        unknown = {} if measured else {"step_seconds": None}
        print(json.dumps({name: c | unknown for name, c in costs.items()}, allow_nan=False))
    return 0


def _matmul(M: int, N: int, K: int) -> Callable[[], object]:
    from npgpt.engine import kernels

    ops, rng = kernels.ops_for(np.float32), np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (K, N)))
    return lambda: ops.matmul(a, b)


def _step(
    n_layer: int, n_head: int, n_embd: int, vocab_size: int, batch: int, time: int
) -> tuple[float, Callable[[], None]]:
    """Return the floating-point operations of a training step, and a function that does one."""
    from npgpt.engine.config import GPTConfig, flops_per_token
    from npgpt.engine.model import GPT
    from npgpt.engine.optim import AdamW

    model = GPT(GPTConfig(n_layer, n_head, n_embd, time, vocab_size))
    optimizer, rng = AdamW(model), np.random.default_rng(0)
    x, y = rng.integers(0, vocab_size, (2, batch, time))

    def step() -> None:
        model.forward(x, targets=y)
        model.backward()
        optimizer.step(max_grad_norm=1.0)

    return flops_per_token(model.config, time) * batch * time, step


def _measure(name: str, flops: float, run: Callable[[], object], tokens: int = 0) -> Fields:
    """Time run() for about 2 s, and the machine's peak in between; print and return the medians."""
    from npgpt.engine import kernels

    run(), run()  # memory and caches
    times: list[float] = []
    peaks: list[float] = []
    end = time.perf_counter() + 2.0
    while time.perf_counter() < end or len(times) < 3:
        if len(times) % max(1, len(times) // 5) == 0:
            peaks.append(kernels.peak_gflops(0.02))
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    took, peak = median(times), median(peaks)
    gflops = flops / took / 1e9
    result: Fields = {"ms": took * 1e3, "gflops": gflops, "share_of_peak": None}
    line = f"{name:40}{number(took * 1e3, '9.2f')} ms{gflops:7.0f} GFLOP/s"
    if peak == peak:  # not NaN: there are kernels
        result["share_of_peak"] = gflops / peak
        line += fill(_("{share:7.0%} of peak"), share=gflops / peak)
    if tokens:
        result["tokens_per_second"] = tokens / took
        line += number(result["tokens_per_second"], "9,.0f") + " tokens/s"
    print(line, flush=True)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
