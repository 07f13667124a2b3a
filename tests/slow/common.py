"""What the slow scripts share: npgpt as a process, and the weights of a run."""

import os
import subprocess
import sys
from pathlib import Path

from npgpt.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def start(*args, env=None, **more) -> subprocess.Popen:
    """`npgpt ARGS...`, its output in pipes; `env`: variables besides those of this process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
    command = [sys.executable, "-m", "npgpt", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **(pipes | more))


def run(*args, expect=0, **more) -> str:
    """stdout of `npgpt ARGS...`, which must end with the code `expect`."""
    process = start(*args, **more)
    out, err = process.communicate()
    if process.returncode != expect:
        sys.exit(
            f"npgpt {' '.join(map(str, args))} ended with {process.returncode}, not {expect}:\n{out}{err}"
        )
    return out + err


def bits(folder: Path) -> tuple[bytes, bytes]:
    """Weights and moments of the newest whole checkpoint."""
    newest, _ = checkpoint.choose(folder, ())
    return tuple((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))
