#!/usr/bin/env bash
# mpi4py 4.1.2: Bcast of a Fortran-ordered NumPy array (as w.T is) into C-ordered arrays of the same shape.
# Guess: an error, or a broadcast that keeps row and column; a slice with gaps, such as w[:, ::2], is indeed
#   refused.
# Seen: memory travels, not the matrix. Root has [[0, 1, 2], [3, 4, 5]]; rank 1 ends with [[0, 3, 1], [4, 2,
#   5]].
# Why it matters: shape, dtype and sum are right, so nothing fails; the ranks train different weights. GPT-2's
#   Conv1D weights are often transposed by a view before they are sent. np.ascontiguousarray on the root
#   avoids it.
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
stored = np.array([[0, 3], [1, 4], [2, 5]], np.float32)
weight = stored.T if world.rank == 0 else np.empty((2, 3), np.float32)
world.Bcast(weight, root=0)
everywhere = world.gather(weight.tolist())
refused = False
try:
    world.Bcast(np.zeros((2, 6), np.float32)[:, ::2], root=0)
except (ValueError, BufferError) as error:
    refused = True
    if world.rank == 0:
        print("a slice with gaps:", error)
same = True
if world.rank == 0:
    print("root:  ", everywhere[0])
    print("rank 1:", everywhere[1])
    same = refused and everywhere == [[[0, 1, 2], [3, 4, 5]], [[0, 3, 1], [4, 2, 5]]]
sys.exit(not world.bcast(same))
EOF
if mpiexec -n 2 python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
