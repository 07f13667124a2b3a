"""What writes and is cut off: the commands that are recorded, and what must hold in each state of the disk.

A kind has a folder `work`: work/disk is what is recorded and cut, the rest is on another disk. `act` does the
work, in a process of its own. Of a state that lies in work/disk, `look` tells what is there, and `judge`
whether that may be so after so many calls; `finish` goes on to the end, which must be that of the recorded
run, to the bit.
"""

import asyncio
import contextlib
import csv
import io
import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = b"the cat sat on the mat, the rat ate the hat, " * 40
SIZE = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 2 --split 0.8,0.2".split()
SIZE += "--seed 3 --threads 1".split()
CLOCKS = ("seconds", "tokens_per_second")


class Violation(Exception):
    """A state after which something is lost, or cannot go on."""


class Refused(Violation):
    """A file of a state is refused in one line that names it, with exit code 2 or 1."""


def mark(work: Path, name: str):
    (work / "marks" / name).mkdir(parents=True)


def call(command: str, *argv) -> str:
    """Run a command in this process and return what it printed; Violation where it fails."""
    sys.modules["matplotlib"] = None  # its picture takes longer than all else
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = import_module(f"npgpt.{command}").main([str(word) for word in argv])
        except SystemExit as end:
            code = end.code
        except Exception as error:  # a bug: no traceback may come out
            raise Violation(f"{command}: {type(error).__name__}: {error}") from error
    if code:
        last = said.getvalue().strip().splitlines()[-1]
        raise (Refused if last.startswith("npgpt ") else Violation)(f"exit code {code}: {last}")
    return said.getvalue()


class Kind:
    """What is common: a folder, and the recording once there is one."""

    share = 1.0  # of the states
    only_reads = True  # look() changes nothing

    def __init__(self, work: Path):
        self.work, self.disk, self.out = work, work / "disk", work / "disk" / "out"

    def prepare(self):
        (self.work / "text.txt").write_bytes(TEXT)

    def learn(self, recording):
        """Keep the end of the recorded run, which lies in work/disk."""
        self.marks = {op.name: n for n, op in enumerate(recording.ops, 1) if op.kind == "mark"}

    def passed(self, n: int, name: str) -> bool:
        """Whether the moment of a mark lies behind after n calls."""
        return n >= self.marks[name]


# ---------------------------------------------------------------------------- runs


class Train(Kind):
    """A run: at least the last checkpoint that save() had returned from, and from there the same end."""

    share = 3.0
    extra = ("BEST", "LATEST", "samples.jsonl")

    def command(self) -> list:
        more = "--eval-every 2 --save-every 1 --steps 5 --keep 2 --dropout 0.1".split()
        return ["train", self.work / "text.txt", *SIZE, *more, "--out", self.out]

    def act(self):
        call(*self.command())
        mark(self.work, "done")

    def learn(self, recording):
        super().learn(recording)
        self.end, self.final = self.outcome(), self.whole()
        self.rows = (self.out / "metrics.csv").read_text().splitlines()[1:]
        self.begun, self.acked = {}, {}
        run = next(inode for op in recording.ops for slot, inode in op.entries if slot == (0, "out"))
        for n, op in enumerate(recording.ops, 1):
            for (folder, name), inode in op.entries:
                if folder == run and name.startswith("step-") and inode is not None:
                    self.begun.setdefault(int(name[5:]), n)
            if op.kind == "sync" and op.inode == run:
                self.acked |= {step: n for step in self.begun if step not in self.acked}

    def whole(self) -> dict[str, bytes]:
        """The files that are there whole or not at all."""
        found = [self.out / "report.html", *(self.out / "adapter").rglob("*")]
        return {str(path.relative_to(self.out)): path.read_bytes() for path in found if path.is_file()}

    def outcome(self):
        from npgpt.training import checkpoint

        newest, _ = checkpoint.choose(self.out, ())
        state, arrays = checkpoint.load(newest)
        weights = (
            (newest / "model.safetensors").read_bytes() if (newest / "model.safetensors").exists() else b""
        )
        arrays = {name: array.tobytes() for name, array in arrays.items()}
        with open(self.out / "metrics.csv", newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]
        for name in ("seconds", "budget"):
            state.pop(name, None)
        texts = [(self.out / name).read_text() if (self.out / name).exists() else None for name in self.extra]
        return {"weights": weights, "moments": arrays, "metrics": rows, "state": state, "files": texts}

    def look(self, emptied: bool) -> int:
        """The step from which a resume goes on; its rows are there, and the report is whole or missing."""
        from npgpt.training import checkpoint, recorder, run

        found = checkpoint.last(self.out)
        step = checkpoint.step_of(found[0]) if found else 0
        if found:
            run.read_config(self.out)
            recorder.check(self.out, step)
        rows = recorder.journals(self.out)[0].read(step)
        if (not emptied and rows != self.rows[: len(rows)]) or (len(rows) < step and not emptied):
            raise Violation(f"metrics.csv has {len(rows)} rows at step {step}")
        for path, data in self.final.items():
            if not emptied and (self.out / path).exists() and (self.out / path).read_bytes() != data:
                raise Violation(f"{path} is there, and not whole")
        return step

    def judge(self, n: int, step: int, emptied: bool) -> str | None:
        lowest = max((step for step, at in self.acked.items() if at <= n), default=0)
        highest = max((step for step, at in self.begun.items() if at <= n), default=0)
        if emptied:  # of the last checkpoint: the one before
            lowest = max((step for step, at in self.acked.items() if at <= n and step < lowest), default=0)
        return None if lowest <= step <= highest else f"goes on from step {step}, not {lowest} to {highest}"

    def finish(self, emptied: bool):
        call(*self.command(), "--resume")
        now = self.outcome()
        for what, value in self.end.items():
            if now[what] != value and not (emptied and what in ("metrics", "files")):
                raise Violation(f"{what} at the end are not those of the run that was never cut")
        self.check_end(emptied)

    def check_end(self, emptied: bool):
        for path, data in self.final.items():
            if not (self.out / path).exists():
                raise Violation(f"{path} is missing at the end")
            if path == "report.html":
                if b"</main>" not in (self.out / path).read_bytes() and not emptied:
                    raise Violation("report.html is not whole at the end")
            elif (self.out / path).read_bytes() != data and not emptied:
                raise Violation(f"{path} at the end is not that of the run that was never cut")


class Finetune(Train):
    """A run of finetune, all weights."""

    share = 2.0
    more = ()

    def prepare(self):
        from npgpt.text.examples import add_roles  # noqa: F401  (imported here: it is slow)

        super().prepare()
        call(
            "train",
            self.work / "text.txt",
            *SIZE,
            "--block-size",
            64,
            "--steps",
            2,
            "--out",
            self.work / "base",
        )
        lines = ({"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(12))
        (self.work / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def command(self) -> list:
        flags = ["--epochs", 2, "--batch-size", 2, "--threads", 1, "--seed", 5, *self.more]
        return ["finetune", self.work / "base", self.work / "examples.jsonl", *flags, "-o", self.out]


class LoRA(Finetune):
    """A run of finetune --lora, with the adapter that it leaves."""

    more = ("--lora", 2)


class Tune(Kind):
    """A search: trials are runs; its settings and its page are whole or missing."""

    share = 0.5

    def act(self):
        from npgpt.training import tuner

        tiny = {"n_layer": 1, "n_head": 2, "n_embd": 16, "batch_size": 2, "lr": 0.001, "dropout": 0.0}
        tuner.KEPT, tuner.SHARES = (2, 1), (0.5, 1.0)
        tuner.candidates = lambda plan, count, seed: [(tiny, 1.0), (tiny | {"lr": 0.002}, 1.0)]
        call("tune", self.work / "text.txt", "--minutes", 0.05, "--threads", 1, "--out", self.out)
        mark(self.work, "done")

    def learn(self, recording):
        super().learn(recording)
        self.whole = {name: (self.out / name).read_bytes() for name in ("config.toml", "report.html")}
        self.trials = sorted(path.name for path in (self.out / "trials").iterdir())

    def look(self, emptied: bool) -> int:
        from npgpt.training import checkpoint, recorder, run

        for folder in (self.out / "trials").glob("*"):
            if found := checkpoint.last(folder):
                run.read_config(folder)
                recorder.check(folder, checkpoint.step_of(found[0]))
        for name, data in self.whole.items():
            if not emptied and (self.out / name).exists() and (self.out / name).read_bytes() != data:
                raise Violation(f"{name} is there, and not whole")
        trials = sum((self.out / "trials" / name / "LATEST").exists() for name in self.trials)
        return trials + sum((self.out / name).exists() for name in self.whole)

    def judge(self, n: int, found: int, emptied: bool) -> str | None:
        lost = self.passed(n, "done") and found < len(self.trials) + len(self.whole)
        return "a file of a search that is done is missing" if lost else None

    def finish(self, emptied: bool):
        config = self.out / "config.toml"
        if config.exists():
            call(
                "train",
                self.work / "text.txt",
                "--config",
                config,
                "--steps",
                1,
                "--out",
                self.disk / "again",
            )
        for folder in (self.out / "trials").glob("*"):
            if (folder / "config.toml").exists() and (folder / "LATEST").exists():
                call("train", "--resume", "--out", folder)


# ---------------------------------------------------------------------------- the server


class Jobs(Finetune):
    """A job of the server: once accepted, it and its examples are never lost; then its model is not."""

    share, only_reads = 1.0, False

    def prepare(self):
        sys.path.insert(0, str(ROOT))
        from tests.models import model_with_roles

        super().prepare()
        self.disk.mkdir(exist_ok=True)
        model_with_roles(64).save_pretrained(self.disk / "base")

    def act(self):
        from npgpt.serve import start_finetune
        from npgpt.server.files import Files
        from npgpt.server.jobs import Jobs

        async def main():
            files = Files()
            jobs = Jobs(
                files,
                lambda given: start_finetune(given, {}),
                lambda *model: mark(self.work, "succeeded"),
                16,
            )
            file = files.add("a.jsonl", io.BytesIO((self.work / "examples.jsonl").read_bytes()))["id"]
            hyper = {"n_epochs": 2, "batch_size": 2}
            asked = {
                "model": "m",
                "training_file": file,
                "validation_file": file,
                "hyperparameters": hyper,
                "seed": 5,
            }
            job = jobs.create(asked, self.disk / "base")
            mark(self.work, "created")
            while not job["finished_at"] or any(self.disk.glob(".*.job")):
                await asyncio.sleep(0.01)
            assert job["status"] == "succeeded", (job, jobs.events(job["id"]))
            await jobs.close()
            files._temporary._finalizer.detach()  # the recording reads them
            mark(self.work, "done")

        real = Jobs._publish
        Jobs._publish = lambda jobs, job: (
            jobs.files.add_result,
            setattr(jobs, "_done", once(jobs._done)),
            real(jobs, job),
        )
        asyncio.run(main())

    def learn(self, recording):
        Kind.learn(self, recording)
        (self.model,) = self.disk.glob("base-*")
        self.end = self.weights()
        self.examples = (self.work / "examples.jsonl").read_bytes()

    def weights(self) -> bytes:
        import npgpt

        return npgpt.load(self.model).flat_params.tobytes()

    def open(self, start=None):
        from npgpt.server.files import Files
        from npgpt.server.jobs import Jobs

        jobs = Jobs(Files(), start, lambda *model: None, 16)
        jobs.restore(self.disk / "base", "m")
        return jobs

    def close(self, jobs):
        for job in jobs._jobs.values():
            job.release()
        jobs.files.close()

    def look(self, emptied: bool) -> str:
        jobs = self.open()
        try:
            for job in jobs._jobs.values():
                given = [path for path in (job.arguments.data, job.arguments.validation) if path]
                if job.status == "succeeded":
                    if self.weights() != self.end:
                        raise Violation("the job has succeeded, and its model is another one")
                elif not emptied and [path.read_bytes() for path in given] != 2 * [self.examples]:
                    raise Violation(f"the job is {job.status}, and its examples are not those that were sent")
                return job.status
            return "missing"
        finally:
            self.close(jobs)

    def judge(self, n: int, status: str, emptied: bool) -> str | None:
        if emptied:
            return None
        if self.passed(n, "succeeded") and status != "succeeded":
            return f"the job had succeeded, and is {status}"
        if self.passed(n, "created") and status == "missing":
            return "the job had been accepted, and is missing"
        return None

    def finish(self, emptied: bool):
        from npgpt.serve import start_finetune

        real = asyncio.subprocess.create_subprocess_exec

        async def main():
            jobs = self.open(lambda given: start_finetune(given, {}))
            jobs.start()
            while not all(job.ended for job in jobs._jobs.values()):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            ended = [(job.status, job.about["error"]) for job in jobs._jobs.values()]
            await jobs.close()
            self.close(jobs)
            return ended

        asyncio.subprocess.create_subprocess_exec = in_this_process
        try:
            ended = asyncio.run(main())
        finally:
            asyncio.subprocess.create_subprocess_exec = real
            os.chdir(self.work)
        for status, error in ended:
            if status != "succeeded" and not emptied:
                raise Violation(f"the job ended as {status}: {error}")
            if status == "succeeded" and not emptied and self.weights() != self.end:
                raise Violation("the job made another model than the one that was never cut")


def once(function):
    """The function the first time, nothing then."""
    calls = iter([function])
    return lambda *args: next(calls, lambda *args: None)(*args)


async def in_this_process(*command, cwd, **more):
    """A worker of the server as a call in this process: an ended asyncio Process."""
    os.chdir(cwd)
    done = type("Ended", (), {"returncode": 0})()
    try:
        said = call("finetune", *command[4:])
    except Violation as error:
        done.returncode, said = 1, json.dumps({"error": str(error)})

    async def wait():
        return done.returncode

    done.wait = wait
    for name, data in (("stdout", said.encode()), ("stderr", b"")):
        stream = asyncio.StreamReader(limit=2**20)
        stream.feed_data(data)
        stream.feed_eof()
        setattr(done, name, stream)
    return done


class Responses(Kind):
    """Answers that the server keeps: each whole or missing, and there once put() has returned."""

    share, only_reads = 2.0, False
    values = {f"resp_{i:048x}": {"text": "abc" * 300 * i, "n": i} for i in range(1, 6)}  # noqa: RUF012

    def store(self):
        from npgpt.server.store import Store

        return Store(self.out, 10**9, 10.0**9)

    def act(self):
        store = self.store()
        for id, value in self.values.items():
            store.put(id, "", value)
            mark(self.work, id)
        store.delete(next(iter(self.values)), "")
        mark(self.work, "deleted")

    def look(self, emptied: bool) -> set[str]:
        store, found = self.store(), set()
        for id, value in self.values.items():
            kept = store.get(id, "")
            if kept is not None and kept != value:
                raise Violation("an answer is there, and another one")
            found |= {id} if kept else set()
        return frozenset(found)

    def judge(self, n: int, found: set[str], emptied: bool) -> str | None:
        first, *_ = self.values
        lost = [id for id in self.values if self.passed(n, id) and id not in found and id != first]
        return f"{len(lost)} answers that were kept are missing" if lost and not emptied else None

    def finish(self, emptied: bool):
        store = self.store()
        for id, value in self.values.items():
            store.put(id, "", value)
        if self.look(emptied) != set(self.values):
            raise Violation("an answer that is put again is not there")


# ---------------------------------------------------------------------------- files that are made once


class Made(Kind):
    """Files that commands make: whole or missing, there once the command has ended; else made again."""

    def commands(self) -> dict[str, list]:
        """name of the output -> the command that makes it"""

    def prepare(self):
        super().prepare()
        call("train", self.work / "text.txt", *SIZE, "--steps", 2, "--out", self.work / "base")

    def act(self):
        for name, command in self.commands().items():
            call(*command)
            mark(self.work, name)

    def read(self, name: str):
        path = self.disk / name
        if path.is_dir():
            return {
                str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
            }
        return path.read_bytes() if path.exists() else None

    def learn(self, recording):
        super().learn(recording)
        self.whole = {name: self.read(name) for name in self.commands()}

    def look(self, emptied: bool) -> frozenset:
        found = {name: self.read(name) for name in self.whole}
        for name, data in found.items():
            if data is not None and data != self.whole[name] and not emptied:
                raise Violation(f"{name} is there, and not whole")
        return frozenset(name for name, data in found.items() if data is not None)

    def judge(self, n: int, found: frozenset, emptied: bool) -> str | None:
        lost = [name for name in self.whole if self.passed(n, name) and name not in found]
        return f"{', '.join(lost)}: was written, and is missing" if lost else None

    def finish(self, emptied: bool):
        for name, command in self.commands().items():
            if not (self.disk / name).exists():
                call(*command)
                if self.read(name) != self.whole[name]:
                    raise Violation(f"{name} made again is another one")


class Export(Made):
    """export: gguf, a Hugging Face folder (safetensors), html."""

    def commands(self) -> dict[str, list]:
        kinds = {"out.gguf": "gguf", "out": "hf", "out.html": "html"}
        return {
            name: ["export", self.work / "base", "--to", to, "-o", self.disk / name]
            for name, to in kinds.items()
        }


class Files(Made):
    """prepare, explain and compare: the files that they write."""

    share = 0.5

    def prepare(self):
        super().prepare()
        shutil.copytree(self.work / "base", self.work / "other")

    def commands(self) -> dict[str, list]:
        base, disk = self.work / "base", self.disk
        return {
            "out.txt": ["prepare", self.work / "text.txt", "-o", disk / "out.txt"],
            "out.jsonl": ["prepare", self.work / "text.txt", "-o", disk / "out.jsonl"],
            "out.json": ["explain", base, "the cat", "-o", disk / "out.json"],
            "out.csv": ["compare", base, self.work / "other", "--csv", disk / "out.csv"],
        }


class Caches(Kind):
    """The caches of tokens and indexes: whatever is left of them, a reader gets what it would make."""

    share, only_reads = 2.0, False

    def act(self):
        self.ids(), self.index()

    def ids(self) -> bytes:
        os.environ["NPGPT_CACHE"] = str(self.out)
        from npgpt.text.corpus import Corpus
        from npgpt.text.dataset import encode, make_corpus_tokenizer

        Corpus.in_memory = False  # as of a text larger than memory
        corpus = Corpus([str(self.work / "text.txt")])
        return encode(corpus, make_corpus_tokenizer("bpe:270", corpus, (1.0, 0.0, 0.0))).tobytes()

    def index(self) -> list:
        os.environ["NPGPT_CACHE"] = str(self.out)
        from npgpt.text.index_file import open_index

        found = open_index("a key", lambda: [[TEXT], [TEXT[:100]]])
        return [bytes(found.text[:]), list(found.ends), [list(block.suffixes) for block in found._blocks]]

    def learn(self, recording):
        super().learn(recording)
        self.end = self.ids(), self.index()

    def look(self, emptied: bool):
        if (self.ids(), self.index()) != self.end:
            raise Violation("the cache gives something else")

    def judge(self, n: int, found, emptied: bool):
        return None

    def finish(self, emptied: bool):
        self.look(emptied)  # of what the look before has made


KINDS = {
    "train": Train,
    "finetune": Finetune,
    "lora": LoRA,
    "tune": Tune,
    "jobs": Jobs,
    "responses": Responses,
}
KINDS |= {"export": Export, "files": Files, "caches": Caches}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2])).act()
