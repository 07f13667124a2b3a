"""`npgpt.bench` measures every part beside every peer, and its file beside itself differs in nothing."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from npgpt.measure.peers import PARTS


def bench(*words):
    command = [sys.executable, "-m", "npgpt.bench", *map(str, words)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    if done.returncode or "is not measured" in done.stderr:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "here.json"
        print(bench("--turns", 2, "--out", file), flush=True)
        rows = json.loads(file.read_text())["rows"]
        for name, part in PARTS.items():
            found = [row for row in rows if row["part"] == name]
            assert {row["case"] for row in found} == set(part.cases), name
            for row in found:
                assert set(row["samples"]) == {"npgpt", *part.peers}, row
                assert all(n > 0 for turns in row["samples"].values() for turn in turns for n in turn), row
        print(table := bench("compare", file, file, "--json"))
        lines = json.loads(table.splitlines()[-1])
        assert len(lines) == 2 + sum(len(row["samples"]) for row in rows)
        assert all(line["ratio"] == 1 and line["low"] <= 1 <= line["high"] for line in lines)
        print(f"{len(rows)} measures of {len(PARTS)} parts, each beside all its peers")


if __name__ == "__main__":
    main()
