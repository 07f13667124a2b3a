"""Ranks in three network namespaces, each with an address of its own, train as one process; a link is cut:
that of each host, and then the way between the two that mpiexec does not run on, which both still reach it.

    sudo python tests/slow/netns.py

Makes the namespaces npgpt1 to npgpt3 (the hosts), their links, and npgpt0 (the switch), and removes them at
the end. mpiexec enters a namespace where it would call ssh. MPI is told to use TCP, as it would find the
memory that these hosts share.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT

from npgpt.training import checkpoint

HOSTS, STEPS = (1, 2, 3), 400
FLAGS = (
    f"--n-layer 2 --n-head 2 --n-embd 64 --block-size 32 --batch-size 6 --steps {STEPS} --dropout 0.1 "
    "--seed 3 --tokenizer bytes --eval-every 99 --save-every 20 --split 0.8,0.2 --optimizer adamw --threads 1"
).split()
CUTS = {  # what -> how
    **{f"link of 10.77.0.{host}": [f"-n npgpt0 link set port{host} down"] for host in HOSTS},
    "the way from 10.77.0.2 to 10.77.0.3": [
        "-n npgpt2 route add blackhole 10.77.0.3",
        "-n npgpt3 route add blackhole 10.77.0.2",
    ],
}
ENTER = """#!/bin/sh
# As hydra calls ssh: ENTER [-x] ADDRESS COMMAND...
while [ "${1#-}" != "$1" ]; do shift; done
address=$1; shift
exec ip netns exec "npgpt${address##*.}" sh -c "$*"
"""


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)


def make_network() -> None:
    ip("netns add npgpt0")
    ip("-n npgpt0 link add switch type bridge")
    ip("-n npgpt0 link set switch up")
    for host in HOSTS:
        ip(f"netns add npgpt{host}")
        ip(f"-n npgpt{host} link add veth0 type veth peer name port{host} netns npgpt0")
        ip(f"-n npgpt{host} addr add 10.77.0.{host}/24 dev veth0")
        for place in (
            f"npgpt{host} link set veth0",
            f"npgpt{host} link set lo",
            f"npgpt0 link set port{host}",
        ):
            ip(f"-n {place} up")
        ip(f"-n npgpt0 link set port{host} master switch")


def remove_network() -> None:
    for host in (0, *HOSTS):
        subprocess.run(["ip", "netns", "del", f"npgpt{host}"], stderr=subprocess.DEVNULL)


def start(folder: Path, *args) -> subprocess.Popen:
    """A rank on each host."""
    enter = folder / "enter"
    enter.write_text(ENTER)
    enter.chmod(0o755)
    tcp = f"UCX_TLS=tcp,self UCX_NET_DEVICES=veth0 FI_PROVIDER=tcp PYTHONPATH={ROOT}"
    hosts = ",".join(f"10.77.0.{host}" for host in HOSTS)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = f"ip netns exec npgpt1 env {tcp} {mpiexec} -launcher ssh -launcher-exec {enter} -iface veth0"
    command += f" -hosts {hosts} -ppn 1 -n {len(HOSTS)} {sys.executable} -m npgpt.train"
    with open(folder / "output", "w") as output:
        return subprocess.Popen([*command.split(), *map(str, args)], stdout=output, stderr=output)


def show(folder: Path) -> None:
    text = folder / "text.txt"
    text.write_text("a rata roeu a roupa do rei de Roma; o rei, com raiva, rasgou o resto. " * 200)
    one = [sys.executable, "-m", "npgpt.train", text, *FLAGS, "--out", folder / "one"]
    subprocess.run(
        [str(part) for part in one],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    for cut, (what, lines) in enumerate(CUTS.items()):
        run = folder / f"cut-{cut}"
        process = start(folder, text, *FLAGS, "--out", run)
        while not checkpoint.is_run(run):
            if process.poll() is not None:
                sys.exit((folder / "output").read_text())
            time.sleep(0.02)
        for line in lines:
            ip(line)
        began = time.monotonic()
        code = process.wait(timeout=60)
        seconds = time.monotonic() - began
        said = (folder / "output").read_text().strip().splitlines()[-1]
        print(f"{what} cut: exit code {code} after {seconds:.1f} s: {said}", flush=True)
        assert code and seconds < 30
        for line in lines:
            ip(line.replace(" down", " up").replace("route add", "route del"))
        kept = checkpoint.checkpoints(run)[0].name
        time.sleep(8)  # what the cut kept apart ends too
        process = start(folder, "--resume", "--out", run)
        if process.wait(timeout=200):
            sys.exit((folder / "output").read_text())
        pairs = list(zip(losses(folder / "one"), losses(run), strict=True))[:50]  # later, rounding has grown
        worst = max(abs(a - b) for a, b in pairs)
        print(
            f"    resumed after {kept}, to the end; 50 losses within {worst:.1e} of one process", flush=True
        )
        assert worst < 1e-5


def losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def main():
    folder = Path(tempfile.mkdtemp())
    try:
        make_network()
        show(folder)
    finally:
        remove_network()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
