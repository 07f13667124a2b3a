"""`npgpt tune`: settings that `npgpt train` takes."""

import json
import tomllib
from pathlib import Path

from tests.commands.helpers import refused


def test_tune(command):
    Path("t.txt").write_bytes(b"the cat sat on the mat, the rat ate the hat, " * 30)
    code, out, err = command("tune", "t.txt", "--minutes", 0.03, "--json")
    assert code == 0 and err == "", err
    found = json.loads(out.splitlines()[-1])
    assert found["run"] == "runs/t-tune" and found["val_loss"] > 0
    left = {path.name for path in Path("runs/t-tune").iterdir()}
    assert left == {"config.toml", "lock", "report.html", "trials"}
    assert Path("runs/t-tune/trials/3-0/report.html").exists()
    code, out, _ = command("train", "t.txt", "--config", "runs/t-tune/config.toml")
    assert code == 0 and f"{found['steps']}/{found['steps']}" in out
    config = tomllib.loads(Path("runs/t/config.toml").read_text())
    assert {name: config[name] for name in found["settings"]} == found["settings"]
    Path("short.txt").write_bytes(b"a")
    refused(command("tune", "short.txt", "--minutes", 1), "must hold at least 2 tokens")
    refused(
        command("tune", "t.txt", "--minutes", 1, "--split", "1"), "must be long enough to leave something"
    )
    refused(command("tune", "t.txt"), "required: --minutes")
