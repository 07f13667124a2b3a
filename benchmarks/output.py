"""What the pages quote: commands, run for real, and what they print, into results/output-NAME.json.

    python -m benchmarks.output NAME ... [--no-save]        (--list: the names and about how long they take)

The names and their commands are in quotes.toml. All run one after another in one folder, which is gone at the
end; in it data, csrc, tests and examples are the repository's. NPGPT_DATA is where the real text lies.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from benchmarks import record
from benchmarks.decode import smollm2_or_exit

SENTIMENT = "xed-pt/xed_pt_binary.tsv"  # lines of label and text
QUOTES = tomllib.loads((Path(__file__).parent / "quotes.toml").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help="of what is quoted")
    parser.add_argument("--list", action="store_true", help="the names, seconds and commands")
    record.add_flags(parser)
    args = parser.parse_args()
    if args.list:
        for name, quote in QUOTES.items():
            print(f"{name}: about {quote['seconds']} s\n    " + "\n    ".join(quote["commands"]))
        return
    unknown = set(args.name) - set(QUOTES)
    if unknown or not args.name:
        parser.error(f"name must be of {', '.join(QUOTES)}, got {' '.join(sorted(unknown)) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        for name in args.name:
            rows = session.run(name)
            command = f"python -m benchmarks.output {name}"
            record.save(args, f"output-{name}", rows, QUOTES[name].get("packages", ()), command=command)


class Session:
    """A folder to run in, with links to the repository's; what has run there once is not run again."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, {}
        for name in ("data", "csrc", "tests", "examples"):
            (folder / name).symlink_to(record.ROOT / name)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        english = {"LC_ALL": "C.UTF-8", "LANGUAGE": "en", "PYTHONWARNINGS": "default"}
        self.environment = os.environ | {"PATH": path, "PYTHONPATH": str(record.ROOT)} | english

    def run(self, name: str) -> list[dict]:
        """[{"command", "output"}] of the quote; SystemExit where a command fails."""
        quote = QUOTES[name]
        if quote.get("after", name) not in (name, *self.done):
            self.run(quote["after"])
        if name == "finetune":
            self.write_sentiment()
        if name.startswith("smollm2"):
            file = smollm2_or_exit()
            if not (self.folder / file.name).exists():
                (self.folder / file.name).symlink_to(file)
        rows, servers = [], []
        folder = record.ROOT if quote.get("in_repository") else self.folder
        try:
            for command in map(str.strip, quote["commands"]):
                print(f"$ {command}", flush=True)
                rows.append({"command": command, "output": self.output(command, folder, servers)})
                print(rows[-1]["output"], flush=True)
        finally:
            for server in servers:
                server.terminate()
                server.communicate()
        self.done[name] = rows
        return rows

    def output(self, command: str, folder: Path, servers: list) -> str:
        how = {"cwd": folder, "env": self.environment, "text": True}
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        if command.endswith("&"):
            servers.append(subprocess.Popen(["bash", "-c", f"exec {command[:-1]}"], **how))
            lines = []
            for line in servers[-1].stdout:
                lines.append(line)
                if "http://" in line:
                    time.sleep(0.5)
                    return self.cleaned("".join(lines))
            raise SystemExit(f"{command} ended: {''.join(lines)}")
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], **how)
        if done.returncode:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}")
        return self.cleaned(done.stdout)

    def cleaned(self, text: str) -> str:
        """The output without folders of this machine."""
        names = {self.folder: ".", os.environ.get("NPGPT_DATA"): "$NPGPT_DATA", record.ROOT: "."}
        for path, name in names.items():
            text = text.replace(str(path), name) if path else text
        return re.sub(r"(?<![\w.])\./", "", text).rstrip("\n")

    def write_sentiment(self):
        """The labelled subtitles as `npgpt.finetune` reads them."""
        lines = (Path(os.environ["NPGPT_DATA"]) / SENTIMENT).read_text(encoding="utf-8").splitlines()
        pairs = (line.split("\t") for line in lines)
        examples = (json.dumps({"text": text, "label": label}) for label, text in pairs)
        (self.folder / "sentimento.jsonl").write_text("\n".join(examples) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
