"""A run that goes on by itself: the parent of the training process, or of mpiexec, which starts it again.

Under mpiexec nobody else could: when one rank ends badly, mpiexec ends them all.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from npgpt.console.language import _
from npgpt.training import checkpoint

PAUSE = 2.0  # seconds in which the processes of a job that failed disappear
FINAL = (0, 2, 130)  # done, refused, interrupted


def supervise(command: list[str], folder: Path, restarts: int) -> int:
    """Run `command`, again with --resume up to `restarts` times while it fails -> its last exit code.

    It is not repeated once the run in `folder` has ended. SIGINT and SIGTERM go to the command, once.
    """
    signals: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        signals.append(number)
        if sys.platform != "win32":  # there Ctrl-C goes to the whole console by itself
            process.send_signal(number)

    for attempt in range(restarts + 1):
        process = subprocess.Popen([*command, *["--resume"] * (attempt > 0)], start_new_session=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        code = process.wait()
        code = 128 - code if code < 0 else code
        if code in FINAL or attempt == restarts or signals or _ended(folder):
            break
        again = _("npgpt train: ended with {code}; going on by itself, {n} of {restarts} times")
        print(again.format(code=code, n=attempt + 1, restarts=restarts), file=sys.stderr, flush=True)
        time.sleep(PAUSE)
        if signals:  # which came while there was nobody to pass them on to
            break
    return code


def _ended(folder: Path) -> bool:
    try:
        return checkpoint.load(checkpoint.choose(folder, ())[0])[0]["ended"] is not None
    except (ValueError, OSError):
        return False
