"""An hour of everything at once: training, fine-tuning, export, evaluation, a server with clients and jobs.

All lies on a small disk that fills and empties, under one limit of memory; processes are killed at random,
and clocks jump. What a seed decides is the same each time: weights, exported files, texts, losses. At the end
nothing is left that should not be: processes, sessions, descriptors, memory, locks, temporary files.

A tmpfs and a cgroup need root; without it the disk does not fill, and memory is limited for each process.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import soak
from common import ROOT, bits, start
from everything_place import Clock, Disk, Memory

from tests.server.process import Process

DISK_MB, MEMORY_MB = 160, 1500
TRAIN = (
    "--n-layer 2 --n-head 2 --n-embd 64 --block-size 32 --batch-size 4 --save-every 40 --eval-every 200 "
    "--steps 1200 --split 0.8,0.2 --seed 3 --threads 1"
).split()
TUNE = "--epochs 6 --batch-size 4 --eval-every 20 --seed 3 --threads 1".split()
FULL = "No space left on device"
CALM = 0.25  # the last share of the time: clients alone, which memory and descriptors are measured by


class Everything:
    """What goes on side by side until `end`, and what is found to be wrong."""

    def __init__(self, base: Path, disk: Disk, memory: Memory, clock: Clock, minutes: float):
        self.base, self.disk, self.memory, self.clock = base, disk, memory, clock
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes
        self.calm = self.end - 60 * minutes * CALM
        self.counts, self.found = Counter(), []
        self.alive, self.killed = {}, set()  # pid -> process; pids of those that were killed
        self.lock = threading.Lock()
        self.server, self.lives = None, 0

    def wrong(self, what: str) -> None:
        self.found.append(what)
        print(f"FOUND after {time.monotonic() - self.began:.0f} s: {what}", flush=True)

    # ------------------------------------------------------------------ commands, one after the other

    def command(self, *args) -> str | None:
        """stdout of a command that ended well; None where it was killed, or met a full disk and said so."""
        since = time.monotonic()
        with self.lock:
            process = start(*args, env=self.clock.variables, preexec_fn=self.memory.join)
            self.alive[process.pid] = process
        out, err = process.communicate()
        with self.lock:
            del self.alive[process.pid]
        kind, code = args[0], process.returncode
        if process.pid in self.killed and code == -9:
            self.counts[f"{kind} killed"] += 1
        elif code == 0:
            self.counts[f"{kind} done"] += 1
            return out
        elif code in (1, 2) and FULL in err.splitlines()[-1] and self.disk.was_full(since):
            self.counts[f"{kind} on a full disk"] += 1
        else:
            self.wrong(f"{' '.join(map(str, args))} ended with {code}: {err[-600:]}")
        return None

    def loop(self, do, *args) -> None:
        try:
            while time.monotonic() < self.calm:
                do(*args)
                time.sleep(0.2)
        except BaseException as error:
            self.wrong(f"{do.__name__} {args}: {type(error).__name__} {error}")

    def trained(self, expected: list, *args) -> None:
        """A run that goes on until it is done, through kills and full disks, to the same bits."""
        out = self.disk.path / args[0]
        while self.command(*args, "--out", out, "--resume") is None:
            if time.monotonic() > self.end + 300:
                raise AssertionError("the run comes to no end")
            time.sleep(0.3)
        if not expected:
            expected.append(bits(out))
        elif bits(out) != expected[0]:
            self.wrong(f"{args[0]}: the bits differ")
        shutil.rmtree(out)

    def exported(self, expected: dict) -> None:
        for kind, *flags in (["gguf", "--type", "q8_0"], ["gguf", "--type", "f32"], ["hf"], ["html"]):
            out = self.disk.path / f"exported-{kind}"
            done = self.command("export", self.base, "--to", kind, *flags, "-o", out)
            if done is not None or out.exists():  # what is there is whole, however its export ended
                digest = hashlib.sha256()
                for file in sorted(out.rglob("*")) if out.is_dir() else [out]:
                    digest.update(file.read_bytes())
                if expected.setdefault((kind, *flags), digest.digest()) != digest.digest():
                    self.wrong(
                        f"export --to {kind} {flags}, {'failed' if done is None else 'done'}: other bytes"
                    )
            for path in self.disk.path.glob(f"*exported-{kind}*"):  # of an export that was killed, too
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def evaluated(self, text: Path, expected: list) -> None:
        if (out := self.command("evaluate", self.base, text, "--json")) is not None:
            found = {
                name: value
                for name, value in json.loads(out.splitlines()[-1]).items()
                if "second" not in name
            }
            if not expected:
                expected.append(found)
            elif found != expected[0]:
                self.wrong(f"evaluate: {found}, not {expected[0]}")

    # ------------------------------------------------------------------ the server

    def serve(self) -> None:
        """Keep a server up: where it was killed, the next one begins."""
        variables = {"env": os.environ | {"PYTHONPATH": str(ROOT)} | self.clock.variables}
        how = variables | {"preexec_fn": self.memory.join}
        flags = "--sessions", 16, "--queue", 32, "--cache-mb", 8, "--store", self.disk.path / "store"
        while time.monotonic() < self.calm:
            try:
                server = Process(self.base, *flags, popen=how)
            except AssertionError as error:
                if FULL not in str(error):
                    self.wrong(f"the server does not start: {error}")
                    return
                time.sleep(1)
                continue
            with self.lock:
                self.server, self.lives = server, self.lives + 1
                self.alive[server.process.pid] = server.process
            while server.process.poll() is None and time.monotonic() < self.calm:
                time.sleep(0.05)
            with self.lock:
                del self.alive[server.process.pid]
            if (code := server.process.poll()) is None:
                return  # it stays for the calm end
            err = server.process.communicate()[1]
            if code != -9 or server.process.pid not in self.killed:
                self.wrong(f"the server ended with {code}: {err[-600:]}")
            self.counts["serve killed"] += 1

    async def client(self, number: int, expected: dict) -> None:
        dice = random.Random(number)
        while time.monotonic() < self.end:
            server, kind = self.server, dice.choice(soak.KINDS)
            since = time.monotonic()
            try:
                await soak.visit(server, kind, number, dice, expected)
                self.counts["requests"] += 1
            except ConnectionError:
                self.counts["connections lost"] += 1
                await asyncio.sleep(0.2)
            except (AssertionError, ValueError, KeyError, IndexError) as error:
                await asyncio.sleep(0.2)  # until the end of a process that was killed is seen
                if server.process.poll() is None and not (FULL in str(error) and self.disk.was_full(since)):
                    self.wrong(f"client {number}, {kind}: {type(error).__name__} {str(error)[:500]}")

    def clients(self, expected: dict) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self.client(number, expected) for number in range(soak.CLIENTS)))

        asyncio.run(all_of_them())

    def asked(self, path: str, body=b"", method="POST", **headers) -> tuple[int, dict]:
        """(status, answer) of the server that is up, (0, {}) where there is none."""
        try:
            return self.server.ask(path, body, method, **headers)[:2]
        except (OSError, ValueError) as error:  # http.client's errors for half an answer are of these kinds
            return 0, {"error": str(error)}
        except Exception as error:
            if type(error).__module__ != "http.client":
                raise
            return 0, {"error": str(error)}

    def job(self) -> None:
        """One fine-tuning job over HTTP to its end, through the ends of servers; its model is deleted."""
        since = time.monotonic()
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        status, file = self.asked("/v1/files", soak.FORM.encode(), **kind)
        if status != 200:
            return self.refused("an upload", status, file, since)
        asked = {"model": self.server.name, "training_file": file["id"], "seed": 4}
        asked["hyperparameters"] = {"n_epochs": 4}
        status, job = self.asked("/v1/fine_tuning/jobs", asked)
        if status != 200:
            return self.refused("a job", status, job, since)
        place = f"/v1/fine_tuning/jobs/{job['id']}"
        while time.monotonic() < self.end + 120:
            status, job = self.asked(place, method="GET")
            if status == 404:
                return self.wrong(f"a job is lost: {job}")
            if status == 200 and job["finished_at"] is not None:
                break
            time.sleep(0.5)
        self.counts[f"jobs {job.get('status')}"] += 1
        if job.get("status") != "succeeded":
            if FULL not in str(job.get("error")) or not self.disk.was_full(since):
                self.wrong(f"a job ended so: {job}")
            return None
        while (found := self.asked(f"/v1/models/{job['fine_tuned_model']}", method="DELETE"))[0] not in (
            200,
            404,
        ):
            if found[0] and FULL not in str(found[1]):
                return self.wrong(f"a model cannot be deleted: {found}")
            time.sleep(0.5)
        return None

    def refused(self, what: str, status: int, answer: dict, since: float) -> None:
        """Count what was not taken, because the server was gone, its files with it, or the disk full."""
        gone = status in (0, 404)
        if not gone and not (FULL in str(answer) and self.disk.was_full(since)):
            self.wrong(f"{what} is refused: {status} {answer}")
        self.counts["jobs not taken"] += 1

    # ------------------------------------------------------------------ what goes wrong

    def killer(self, dice: random.Random) -> None:
        time.sleep(dice.uniform(1, 8))
        with self.lock:
            if not (pids := sorted(self.alive)) or time.monotonic() > self.calm:
                return
            pid = dice.choice(pids)
            process = self.alive[pid]
            self.killed.add(pid)
            process.kill()
        self.counts["kills"] += 1

    def filler(self, dice: random.Random) -> None:
        time.sleep(dice.uniform(3, 12))
        self.disk.fill()
        self.counts["full disks"] += 1
        time.sleep(dice.uniform(0.5, 4))
        self.disk.empty()

    def jumper(self, dice: random.Random) -> None:
        time.sleep(dice.uniform(1, 6))
        self.clock.jump(dice.randint(-400_000, 400_000))
        self.counts["jumps of the clock"] += 1


def left_over(every: Everything, temporary: Path) -> None:
    """Whatever should not be there at the end is wrong."""
    for path in sorted(every.disk.path.iterdir()):
        if path.name not in ("base", "store"):
            every.wrong(f"left on the disk: {path.name}")
    inside = [path.name for path in (every.disk.path / "store").rglob("*") if path.name.endswith(".new")]
    inside += [path.name for path in every.base.parent.glob(".*")]
    if inside:
        every.wrong(f"left behind: {inside}")
    kills = every.counts["serve killed"]
    folders = [path for path in temporary.iterdir() if not path.name.startswith("npgpt-serve-")]
    if folders or len(list(temporary.iterdir())) > kills:  # uploads of a server that was killed
        every.wrong(f"left in the folder for temporary files: {[p.name for p in temporary.iterdir()]}")


def calm_state(every: Everything) -> dict:
    """The state of the last server while only clients ask; return it at the end of the time."""
    server = every.server
    time.sleep(min(20, (every.end - time.monotonic()) / 3))
    before = soak.state(server)
    while time.monotonic() < every.end:
        time.sleep(0.2)
    return before


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of what goes wrong, and when (default 0)")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        disk = stack.enter_context(Disk(work / "disk", DISK_MB))
        memory = stack.enter_context(Memory(MEMORY_MB))
        clock = Clock(work / "clock")
        (temporary := work / "temporary").mkdir()
        os.environ["TMPDIR"] = str(temporary)
        print(f"disk: {disk}; memory: {memory}; clock: {clock}", flush=True)
        return hour(work, disk, memory, clock, temporary, args)


def hour(work: Path, disk: Disk, memory: Memory, clock: Clock, temporary: Path, args) -> int:
    model, expected = soak.served(n_layer=2, n_embd=64)
    model.save_pretrained(disk.path / "base")
    text, data = work / "text.txt", work / "data.jsonl"
    text.write_bytes(b"the cat sat on the mat, the rat ate the hat, " * 60)
    data.write_text(soak.LINE.replace("8", "9") + "".join(soak.LINE.replace("7", str(n)) for n in range(60)))
    every = Everything(disk.path / "base", disk, memory, clock, args.minutes)
    loops = [
        (every.trained, [], "train", text, *TRAIN),
        (every.trained, [], "finetune", every.base, data, *TUNE),
        (every.exported, {}),
        (every.evaluated, text, []),
        (every.job,),
        *((do, random.Random(args.seed)) for do in (every.killer, every.filler, every.jumper)),
    ]
    threads = [threading.Thread(target=every.serve)]
    threads[0].start()
    while every.server is None:
        time.sleep(0.1)
    idle = soak.state(every.server)
    threads += [threading.Thread(target=every.loop, args=loop) for loop in loops]
    clients = threading.Thread(target=every.clients, args=(expected,))
    for thread in (*threads[1:], clients):
        thread.start()
    watched(every, threads)
    disk.empty()
    before = calm_state(every)
    clients.join()
    ended(every, idle, before)
    left_over(every, temporary)
    counts = ", ".join(f"{number:,} {what}" for what, number in sorted(every.counts.items()))
    print(counts)
    print(
        f"{args.minutes:g} minutes of everything, {every.counts['kills']} kills, "
        f"{every.counts['full disks']} full disks, {every.counts['jumps of the clock']} jumps of the clock: "
        + (f"{len(every.found)} things found" if every.found else "nothing lost, nothing left behind")
    )
    return 1 if every.found else 0


def watched(every: Everything, threads: list[threading.Thread]) -> None:
    """Wait for the loops, and say once a minute how far they are."""
    said = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if time.monotonic() - said >= 60:
            said += 60
            done = sum(number for what, number in every.counts.items() if what.endswith(" done"))
            print(
                f"{(said - every.began) / 60:3.0f} min: {every.counts['requests']:,} requests, "
                f"{done} commands done, {every.counts['kills']} kills, "
                f"{every.memory.used_mb():.0f} MB at most",
                flush=True,
            )


def ended(every: Everything, idle: dict, before: dict) -> None:
    """End the last server: what its clients took is back, and its exit code is right."""
    server = every.server
    server.settles("npgpt_sessions", lambda n: n == 0)
    server.settles("process_open_fds", lambda n: n <= idle["process_open_fds"] + 1)
    after = soak.state(server)
    for name in before:
        print(f"{name}: {before[name]:,.0f} before, {after[name]:,.0f} after")
    if after["npgpt_sessions"] or after["npgpt_waiting"]:
        every.wrong("the server still computes for somebody")
    if (grown := after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]) > 10e6:
        every.wrong(f"memory has grown by {grown / 1e6:.1f} MB")
    if (end := server.end()) != (0, ""):
        every.wrong(f"the server ended with {end}")
    if left := every.memory.processes():
        every.wrong(f"processes are left: {left}")


if __name__ == "__main__":
    raise SystemExit(main())
