"""Automatic restarts: the parent of the training process, or of mpiexec, starts it again when it fails.

A rank cannot do that: when one rank fails, mpiexec ends them all.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from npgpt.console.language import _
from npgpt.training import checkpoint

PAUSE = 2.0  # seconds for the processes of a failed job to end
FINAL = (0, 2, 130)  # done, refused, interrupted


def supervise(command: list[str], folder: Path, restarts: int) -> int:
    """Run `command`, while it fails again with --resume up to `restarts` times; return its last exit code.

    It is not repeated once the run in `folder` has ended. SIGINT, SIGTERM and SIGUSR1 are passed on to the
    command; a launcher gets SIGUSR1 for a SIGTERM, as Open MPI's leaves no time to save after that.
    """
    signals: list[int] = []
    passed = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM}
    if sys.platform != "win32":
        passed[signal.SIGUSR1] = signal.SIGUSR1
        if command[0] != sys.executable:
            passed[signal.SIGTERM] = signal.SIGUSR1

    def pass_on(number: int, frame: object) -> None:
        signals.append(number)
        if sys.platform != "win32":  # Windows sends Ctrl-C to all processes of the console
            process.send_signal(passed[signal.Signals(number)])

    for attempt in range(restarts + 1):
        process = subprocess.Popen([*command, *["--resume"] * (attempt > 0)], start_new_session=True)
        for number in passed:
            signal.signal(number, pass_on)
        code = process.wait()
        code = 128 - code if code < 0 else code
        if code in FINAL or attempt == restarts or signals or _ended(folder):
            break
        again = _("npgpt train: ended with {code}; going on by itself, {n} of {restarts} times")
        print(again.format(code=code, n=attempt + 1, restarts=restarts), file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        if signals:  # one that came while no process was there to receive it
            break
    return code


def _ended(folder: Path) -> bool:
    try:
        return checkpoint.load(checkpoint.choose(folder, ())[0])[0]["ended"] is not None
    except (ValueError, OSError):
        return False
