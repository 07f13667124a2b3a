"""Write runs-0.1.0.tar.xz and runs-0.1.0.json for test_old_runs.py: runs of npgpt 0.1.0 (commit b7b067b).

In a clone, with g++ and without matplotlib, whose pictures the runs do not need:

    git worktree add ../npgpt-0.1.0 b7b067b
    python3 -m venv ../venv-0.1.0 && ../venv-0.1.0/bin/pip install ../npgpt-0.1.0
    ../venv-0.1.0/bin/python tests/data/make_runs.py

The archive holds the runs. The JSON file holds the commands, and what 0.1.0 itself makes of the runs: the
sha256 of weights on each instruction set, greedy texts, losses. It needs a CPU with AVX-512 VNNI.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(
    "/tmp/npgpt-0.1.0"
)  # a run keeps the full path of its text, so the path is the same for everybody
TEXT = "textosdetreinamento.txt"  # from data/
KERNELS = ("avx512vnni", "avx2", "baseline")  # NumPy's bits depend on its BLAS

SIZE = "--n-layer 1 --block-size 16 --keep 1"
PARTS = f"{SIZE} --split 0.8,0.1,0.1 --dropout 0.1 --gradient-accumulation-steps 2 --eval-every 10 --steps 40"
TINY = f"{SIZE} --n-head 1 --n-embd 2"
RUNS = {  # name: (command, the step at which it is interrupted or None)
    "muon": (f"train {TEXT} --out muon {PARTS} --n-head 2 --n-embd 8", 20),
    "adamw": (
        f"train {TEXT} --out adamw {PARTS} --n-head 2 --n-embd 4 --optimizer adamw --engine gpt-3",
        23,
    ),
    "minutes": (f"train {TEXT} --out minutes {TINY} --split 0.8,0.2 --minutes 0.08", 60),
    "done": (f"train {TEXT} --out done {SIZE} --n-head 2 --n-embd 4 --steps 5", None),
    "memorised": (f"train {TEXT} --out memorised {TINY} --target-loss 5.4", None),
    "target": (f"train {TEXT} --out target {TINY} --split 0.8,0.2 --target-loss 5.4 --eval-every 5", None),
    "patience": (
        f"train {TEXT} --out patience {TINY} --split 0.8,0.2 --patience 1 --eval-every 5 --lr 0.4",
        None,
    ),
    "lora": ("finetune done examples.jsonl --out lora --lora 2 --epochs 4 --batch-size 4 --keep 1", 6),
    "tuned": ("finetune done examples.jsonl --out tuned --epochs 4 --batch-size 4 --keep 1", None),
}
WHOLE = {  # nothing of these is in the archive, but the sha256 of their weights is
    "default": f"train {TEXT} --out default --steps 20",
    "large": f"train {TEXT} --out large --steps 8 --optimizer adamw --engine gpt-3 --n-layer 3 --n-embd 96 "
    "--split 0.8,0.2 --dropout 0.1 --gradient-accumulation-steps 2 --schedule cosine",
}
EXAMPLES = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(5) for b in range(4)]

INTERRUPTED = """
import signal
from npgpt.training.progress import Progress
usual = Progress.step
def step(self, number, *more):
    usual(self, number, *more)
    if number == {at} - 1:  # it is asked whether to stop before the next step is shown
        signal.raise_signal(signal.SIGINT)
Progress.step = step
"""


def npgpt(command: str, kernels: str = KERNELS[0], at: int | None = None) -> str:
    """Run a command of npgpt in ROOT, interrupted at a step; return what it prints."""
    name, *args = command.split()
    code = INTERRUPTED.format(at=at) if at else ""
    code += f"from npgpt.{name} import main; raise SystemExit(main())"
    environment = os.environ | {"NPGPT_KERNELS": kernels, "LC_ALL": "C.UTF-8"}
    call = [sys.executable, "-c", code, *args]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != (130 if at else 0):
        raise SystemExit(f"{command}: {done.returncode}: {done.stderr}")
    return done.stdout


def last_line(command: str) -> dict:
    """Return the JSON object that a command ends with."""
    return dict(json.loads(npgpt(command).splitlines()[-1]))


def weights(run: str) -> str:
    """Return the sha256 of the weights in a run's last checkpoint."""
    last = (ROOT / run / "LATEST").read_text().strip()
    return hashlib.sha256((ROOT / run / last / "model.safetensors").read_bytes()).hexdigest()


def resume_command(run: str) -> str:
    """Return the command that resumes a run: finetune wants its model and its data again."""
    command = RUNS[run][0]
    return f"{command} --resume" if command.startswith("finetune") else f"train {TEXT} --out {run} --resume"


def expected() -> dict:
    """Return what 0.1.0 makes of its own runs, which are put back as they were."""
    shutil.copytree(ROOT, kept := ROOT.with_name("npgpt-0.1.0-kept"))
    greedy = {run: npgpt(f"generate {run} O --temperature 0 --max-new-tokens 20") for run in RUNS}
    losses = {run: last_line(f"evaluate {run} {TEXT} --json")["loss"] for run in RUNS}
    tested = last_line("evaluate adamw --json")
    found: dict = {"resumed": {}, "whole": {}}
    for kernels in KERNELS:
        for run, (command, at) in RUNS.items():
            if at and run != "minutes":  # whose steps depend on the clock
                shutil.rmtree(ROOT / run)
                shutil.copytree(kept / run, ROOT / run)
                npgpt(resume_command(run), kernels)
                found["resumed"].setdefault(kernels, {})[run] = weights(run)
                shutil.rmtree(ROOT / run)
                npgpt(command, kernels)
                found["whole"].setdefault(kernels, {})[run] = weights(run)
        for run, command in WHOLE.items():
            npgpt(command, kernels)
            found["whole"][kernels][run] = weights(run)
            shutil.rmtree(ROOT / run)
        if kernels == KERNELS[0]:
            assert found["resumed"][kernels].items() <= found["whole"][kernels].items(), found
    shutil.rmtree(ROOT)
    kept.rename(ROOT)
    commands = {run: command for run, (command, _) in RUNS.items()} | WHOLE
    return {
        "commands": commands,
        "resume": {run: resume_command(run) for run, (_, at) in RUNS.items() if at},
        "sha256": found,
        "greedy": greedy,
        "losses": losses,
        "tested": {name: tested[name] for name in ("part", "loss", "baselines")},
    }


def main() -> None:
    """Make the runs, ask 0.1.0 about them, and write both files beside this script."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    shutil.copy(HERE.parent.parent / "data" / TEXT, ROOT)
    lines = "".join(json.dumps(example) + "\n" for example in EXAMPLES)
    (ROOT / "examples.jsonl").write_text(lines)
    for command, at in RUNS.values():
        npgpt(command, at=at)
    for pattern in ("*/report.html", "*/*.png"):  # made again where they are missing
        for path in ROOT.glob(pattern):
            path.unlink()
    text = json.dumps(expected(), indent=1, ensure_ascii=False)
    (HERE / "runs-0.1.0.json").write_text(text + "\n", encoding="utf-8")

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(HERE / "runs-0.1.0.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(ROOT.iterdir()):
            if path.name != TEXT:
                archive.add(path, path.name, filter=anonymous)


if __name__ == "__main__":
    main()
