"""The systemd unit: sound, hardened, and told by the server that it goes on."""

import re
import shutil
import socket
import subprocess
import sys

import pytest

from npgpt.runtime import libnpgpt
from npgpt.server import scheduler as scheduler_module
from npgpt.server.scheduler import Scheduler
from tests.conftest import COMPILED
from tests.models import random_model
from tests.server.process import ROOT, Process

UNIT = ROOT / "examples" / "npgpt.service"
EXPOSURE = 15  # tenths


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_the_unit_is_sound_and_hardened(tmp_path):
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/npgpt/bin/python", sys.executable), encoding="utf-8")
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
    how = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", unit]
    said = subprocess.run(how, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    bare = tmp_path / "bare.service"
    bare.write_text(re.sub(r"(?m)^(Protect|Restrict|System|NoNew).*\n", "", text), encoding="utf-8")
    assert subprocess.run([*how[:-1], bare], capture_output=True).returncode


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_systemd_is_told_that_it_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("uvicorn")
    model = random_model(block_size=64)
    model.save_pretrained(tmp_path / "praia")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        with Process(tmp_path / "praia"):
            told = [systemd.recv(100) for _ in range(4)]
        assert told == [b"READY=1"] + 3 * [b"WATCHDOG=1"] and not systemd_has_more_than_ticks(systemd)


def systemd_has_more_than_ticks(systemd):
    systemd.settimeout(0.2)
    try:
        while True:
            if systemd.recv(100) != b"WATCHDOG=1":
                return True
    except TimeoutError:
        return False


@pytest.mark.skipif(not COMPILED, reason="there are no compiled kernels here")
def test_a_step_that_never_ends_is_no_health(monkeypatch):
    model = random_model()
    one = Scheduler(libnpgpt.Model.of(model), model.tokenizer, 1, 1)
    assert not one.goes_on  # it has not begun
    one.start(None)
    assert one.goes_on
    one.running, one._stepped_at = 1, one._stepped_at - 2 * scheduler_module.STALLED
    assert not one.goes_on
    one.running = 0
    assert one.goes_on
    one.close(RuntimeError("the end"))
    assert not one.goes_on
