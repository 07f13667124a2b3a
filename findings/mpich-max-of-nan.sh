#!/usr/bin/env bash
# mpich 5.0.2 (through mpi4py 4.1.2), two ranks: Allreduce with MAX or MIN, where one rank holds a NaN.
# Guess: every rank receives the same value, be it NaN or a number.
# Seen: each rank receives the value of the other one, so the ranks disagree: NaN on rank 0: rank 0 receives
#   1.0, rank 1 receives nan; NaN on rank 1: rank 0 receives nan, rank 1 receives 1.0.
# Why it matters: ranks that agree in this way on "the largest loss" or "is a gradient finite" take different
#   turns when a loss is NaN, in the one case that the check is there for. Reduce a count of non-finite values
#   instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check mpi4py==4.1.2 mpich==5.0.2 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import sys

import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
seen = {}
for name, op in (("MAX", MPI.MAX), ("MIN", MPI.MIN)):
    for bad in (0, 1):
        mine, reduced = np.array([np.nan if world.rank == bad else 1.0]), np.empty(1)
        world.Allreduce(mine, reduced, op=op)
        both = world.allgather(reduced.item())
        seen[name, bad] = [int(np.isnan(value)) for value in both]
        if world.rank == 0:
            print(f"{name}, NaN on rank {bad}: received by ranks 0 and 1: {both}")
sys.exit(any(received != [bad != 0, bad != 1] for (name, bad), received in seen.items()))
EOF
if mpiexec -n 2 python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
