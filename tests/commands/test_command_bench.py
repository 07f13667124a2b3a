"""`npgpt bench`: what the published sizes cost here."""

import json

from npgpt.engine import kernels


def test_bench_tells_the_cost_of_the_published_sizes(command):
    code, out, _ = command("bench", "--presets", "--json")
    costs = json.loads(out.splitlines()[-1])
    assert code == 0 and costs["gpt2"]["parameters"] == 124_439_808 and "gpt3-175b" in out
    compiled = kernels.name() != "numpy"
    assert all((c["step_seconds"] is not None) == compiled for c in costs.values())
