#!/usr/bin/env bash
# onnxruntime 1.32.0 on CPUs: a model in float16 whose numbers overflow between two operators: x + x - x, x =
#   60000.
# Guess: x + x is infinity in float16, and so is the result.
# Seen: 60000. Operators without a float16 form run in float32, and between two of them the rounding to
#   float16 is left out. But if x + x is asked for as well, as an output of its own, it is infinity, beside a
#   result of 60000.
# Why it matters: a float16 export is tested on a CPU, gives the numbers of float32, and writes NaN on
#   hardware that has float16. And looking at the layer in between does not show what was computed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def run(outputs):
    """Return x + x - x, and what else is asked for."""
    nodes = [helper.make_node("Add", ["x", "x"], ["double"]), helper.make_node("Sub", ["double", "x"], ["y"])]

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1])

    graph = helper.make_graph(nodes, "g", [value("x")], [value(name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [float(found[0]) for found in session.run(None, {"x": np.array([60000], np.float16)})]


x = np.array([60000], np.float16)
with np.errstate(over="ignore"):
    wanted = float((x + x - x)[0])
seen = run(["y"]), run(["y", "double"])
print("NumPy, x + x - x:          ", wanted)
print("ONNX Runtime, x + x - x:   ", seen[0][0])
print("and with x + x as an output:", seen[1])
sys.exit(not (wanted == float("inf") and seen == ([60000.0], [60000.0, float("inf")])))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
