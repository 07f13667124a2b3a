"""Jobs with a process of the test's own: what it prints decides how a job ends, and nothing of it is left."""

import asyncio
import io
import json
import sys
from asyncio.subprocess import PIPE

import pytest

pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")

from npgpt.server.files import Files
from npgpt.server.job import JOB_FILE, FinetuneJob, folder_of
from npgpt.server.jobs import Jobs, remove_model
from npgpt.server.schema import ApiError

STEP = "print('step 1/2: loss 5.5')\n"
DONE = STEP + "print(json.dumps({'tokens': 7, 'run': 'x'}))"
VALIDATION = (
    "print(json.dumps({'error': 'validation_file: line 1: label must be one', 'exit_code': 2})); sys.exit(2)"
)
REFUSED = (
    STEP + "print(json.dumps({'error': 'training_file: line 1: must be text', 'exit_code': 2})); sys.exit(2)"
)
CRASHED = "1 / 0"
KILLED = "import os; os.kill(os.getpid(), 9)"
NEVER = "print('begun', flush=True); import time; time.sleep(600)"


def run_job(tmp_path, code, scene=None, validation=None, check=None):
    """(job object, messages of its events, arguments, calls of done) of a job that runs this code."""
    given, made = [], []

    async def start(arguments):
        given.append(arguments)
        assert arguments.data.read_bytes() == b"{}"
        if validation:
            assert arguments.validation.read_bytes() == validation
            assert arguments.validation.parent == arguments.data.parent  # their names are those of errors
        arguments.out.mkdir()
        command = [sys.executable, "-c", "import json, sys\n" + code, str(arguments.out)]
        return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, limit=2**20)

    async def main():
        files = Files()
        jobs = Jobs(files, start, lambda name, folder: made.append((name, folder)), 256)
        file = files.add("d.jsonl", io.BytesIO(b"{}"))
        hyper = {"n_epochs": 2, "learning_rate_multiplier": 0.5}
        fields = {"model": "m", "training_file": file["id"], "hyperparameters": hyper, "seed": 3}
        if validation:
            fields["validation_file"] = files.add("v.jsonl", io.BytesIO(validation))["id"]
        id = jobs.create(fields, tmp_path / "base")["id"]
        if scene:
            await scene(jobs, id)
        while jobs.get(id)["finished_at"] is None or given[0].data.exists():
            await asyncio.sleep(0.01)
        await jobs.close()
        job, messages = jobs.get(id), [event["message"] for event in jobs.events(id)][::-1]
        left = [path.name for path in files.folder.iterdir()]
        kept = [fields[name] for name in fields if name.endswith("_file")] + job["result_files"]
        assert sorted(left) == sorted(kept)
        if check:
            check(jobs, files, job)
        files.close()
        assert not files.folder.exists()
        return job, messages

    job, messages = asyncio.run(asyncio.wait_for(main(), 60))
    json.dumps(job)
    assert given[0].out.exists() == (job["status"] == "succeeded")
    return job, messages, given[0], made


def test_a_job_that_succeeds(tmp_path):
    job, messages, arguments, made = run_job(tmp_path, DONE)
    name = f"ft:m:::{job['id'][-8:]}"
    assert (job["status"], job["trained_tokens"], job["fine_tuned_model"]) == ("succeeded", 7, name)
    assert made == [(name, arguments.out)] and arguments.out.parent == tmp_path
    assert arguments.base == tmp_path / "base" and arguments.seed == 3
    assert arguments.epochs == 2 and arguments.batch_size is None
    assert (arguments.multiplier, arguments.n_embd) == (0.5, 256)
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == [arguments.out.name]
    assert messages[2:] == ["step 1/2: loss 5.5", "metrics", "The job has successfully completed"]


@pytest.mark.parametrize(
    "code, expected, message",
    [
        (REFUSED, "invalid_training_file", "training_file: line 1: must be text"),
        (CRASHED, "failed", "ZeroDivisionError: division by zero"),
        (KILLED, "failed", "the worker ended with -9"),
        ("pass", "failed", "the worker could not be run: Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=("refused", "crashed", "killed", "silent"),
)
def test_a_job_that_fails(tmp_path, capsys, code, expected, message):
    job, messages, _, made = run_job(tmp_path, code)
    param = "training_file" if expected == "invalid_training_file" else None
    assert job["error"] == {"code": expected, "message": message, "param": param}
    assert job["status"] == "failed" and messages[-1] == message and made == []


def test_a_job_with_a_validation_file(tmp_path):
    job, _, arguments, made = run_job(tmp_path, DONE, validation=b"[]")
    assert job["status"] == "succeeded" and made
    assert job["validation_file"].startswith("file-") and arguments.validation.name == "validation_file"
    job, messages, _, made = run_job(tmp_path, VALIDATION, validation=b"[]")
    assert job["error"]["code"] == "invalid_validation_file" and job["error"]["param"] == "validation_file"
    assert messages[-1] == job["error"]["message"] and made == []
    assert run_job(tmp_path, DONE)[2].validation is None


def test_a_validation_file_that_is_not_there_makes_no_job(tmp_path):
    async def main():
        files = Files()
        jobs = Jobs(files, None, None)
        file = files.add("d.jsonl", io.BytesIO(b"{}"))
        fields = {"model": "m", "training_file": file["id"], "validation_file": "file-0"}
        with pytest.raises(ApiError, match="No such File object: file-0"):
            jobs.create(fields, tmp_path / "base")
        assert jobs.all() == [] and [path.name for path in files.folder.iterdir()] == [file["id"]]
        files.close()

    asyncio.run(main())


def test_what_a_job_says_has_no_paths_of_the_server(tmp_path):
    code = f"""
print('saved to {tmp_path}/base-tuned-1, drawn in /srv/mar/x/report.html; 1/8, http://a/b/c')
print("next: python -m npgpt.chat {tmp_path}/base")
print('reads {tmp_path}/base/config.json')
"""
    _, messages, _, _ = run_job(tmp_path, code + DONE)
    said = [message for message in messages if message.startswith(("saved", "next", "reads"))]
    assert said == [
        "saved to base-tuned-1, drawn in report.html; 1/8, http://a/b/c",
        "reads m/config.json",
    ]
    missing = f"open('{tmp_path}/base-x/y.bin')"
    assert "'y.bin'" in run_job(tmp_path, missing)[0]["error"]["message"]
    broken = f"raise OSError('no room in {tmp_path}/base-x/y.bin')"
    job, messages, _, _ = run_job(tmp_path, broken)
    assert job["error"]["message"] == messages[-1] == "OSError: no room in y.bin"


TRAINED = """
import pathlib
out = pathlib.Path(sys.argv[1])
(out / 'metrics.csv').write_text('step,train_loss,val_loss\\n1,5.5,\\n2,4.5,4.75\\n3,nan,\\n4,4.25,4.5\\n')
for name in ('step-000002', 'step-000004', 'step-x'):
    (out / name).mkdir()
print('step 2/4: loss 4.5000, val loss 4.7500, 605 tokens/s, 1 s left')
print('step 1,000/2,000: loss 4.5000, 605 tokens/s, 1 s left')
"""


def test_losses_and_checkpoints_of_a_job(tmp_path):
    def check(jobs, files, job):
        id, model = job["id"], job["fine_tuned_model"]
        (file,) = job["result_files"]
        assert files.get(file)["purpose"] == "fine-tune-results"
        assert (
            files.path(file).read_text()
            == "step,train_loss,valid_loss\n1,5.5,\n2,4.5,4.75\n3,,\n4,4.25,4.5\n"
        )
        last, before = jobs.checkpoints(id)
        assert last["metrics"] == {"step": 4, "train_loss": 4.25, "valid_loss": 4.5}
        assert (before["step_number"], before["fine_tuning_job_id"]) == (2, id)
        assert before["fine_tuned_model_checkpoint"] == f"{model}:ckpt-step-2"
        data = [event["data"] for event in jobs.events(id) if event["type"] == "metrics"][::-1]
        assert data[0] == {"step": 2, "total_steps": 4, "train_loss": 4.5, "valid_loss": 4.75}
        assert data[1] == {"step": 1000, "total_steps": 2000, "train_loss": 4.5}

    job, _, arguments, made = run_job(tmp_path, TRAINED + DONE, check=check)
    model, out = job["fine_tuned_model"], arguments.out
    names = {model: out} | {f"{model}:ckpt-step-{n}": out / f"step-00000{n}" for n in (2, 4)}
    assert dict(made) == names
    jobs, again = restored(tmp_path)
    assert dict(again) == names and len(jobs.checkpoints(job["id"])) == 2 and jobs.all() == [job]
    job, *_ = run_job(tmp_path, CRASHED, check=lambda jobs, files, job: jobs.checkpoints(job["id"]) == [])
    assert job["result_files"] == []


def test_a_job_that_begins_with_a_checkpoint_lies_beside_its_run(tmp_path):
    async def main():
        files = Files()
        jobs = Jobs(files, None, None)
        file = files.add("d.jsonl", io.BytesIO(b"{}"))
        (tmp_path / "base-a").mkdir()
        (tmp_path / "base-a" / JOB_FILE).write_text("{}")
        base = tmp_path / "base-a" / "step-000002"
        jobs.create({"model": "ft:base::a:1:ckpt-step-2", "training_file": file["id"]}, base)
        (job,) = jobs._jobs.values()
        assert job.arguments.out.parent == tmp_path and job.arguments.out.name.startswith("base-a-tuned-")
        assert jobs.is_base(tmp_path / "base-a") and jobs.is_base(base) and not jobs.is_base(tmp_path / "b")
        await jobs.close()
        files.close()

    asyncio.run(main())


def restored(tmp_path, name="m"):
    """(jobs, calls of done) of a server that begins."""
    made = []
    jobs = Jobs(Files(), None, lambda name, folder: made.append((name, folder)))
    jobs.restore(tmp_path / "base", name)
    jobs.files.close()
    return jobs, made


def test_a_server_that_begins_lists_jobs_and_models_again(tmp_path, caplog):
    job, messages, arguments, made = run_job(tmp_path, DONE)
    run_job(tmp_path, CRASHED)  # leaves no folder
    jobs, again = restored(tmp_path)
    assert jobs.all() == [job] and again == made
    assert [event["message"] for event in jobs.events(job["id"])][::-1] == messages
    moved = tmp_path / "base-moved"
    arguments.out.rename(moved)
    assert restored(tmp_path)[1] == [(job["fine_tuned_model"], moved)]
    assert restored(tmp_path, "another")[1] == []
    (tmp_path / "base-link").symlink_to(moved)
    assert len(restored(tmp_path)[1]) == 1 and not caplog.records
    for text in (
        "{",
        "[]",
        '{"job": {}}',
        '{"job": {"status": "failed"}, "name": "x", "events": []}',
        "[" * 10**5,
    ):
        (moved / JOB_FILE).write_text(text)
        assert restored(tmp_path)[1] == []
        assert caplog.records.pop().getMessage().endswith("its model is not served")


def test_only_a_folder_that_a_job_made_is_removed(tmp_path):
    _, _, arguments, _ = run_job(tmp_path, DONE)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    (arguments.out / "link").symlink_to(kept)
    link = tmp_path / "base-link"
    link.symlink_to(arguments.out)
    for folder in (link, kept, tmp_path / "none"):
        remove_model(folder)
    assert arguments.out.exists() and link.exists() and (kept / "file").exists()
    remove_model(arguments.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-link", "kept"]
    assert (kept / "file").read_text() == "mine"


def test_jobs_without_a_model_are_forgotten_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr("npgpt.server.jobs.MAX_JOBS", 2)

    async def main():
        files = Files()
        jobs = Jobs(files, None, None)
        file = files.add("d.jsonl", io.BytesIO(b"{}"))
        ids = [
            jobs.create({"model": "m", "training_file": file["id"]}, tmp_path / "base")["id"] for _ in "ab"
        ]
        assert jobs.is_base(tmp_path / "base") and not jobs.is_base(tmp_path / "other")
        with pytest.raises(ApiError, match="too many jobs"):
            jobs.create({"model": "m", "training_file": file["id"]}, tmp_path / "base")
        await jobs.cancel(ids[1])
        third = jobs.create({"model": "m", "training_file": file["id"]}, tmp_path / "base")["id"]
        assert [job["id"] for job in jobs.all()] == [third, ids[0]]
        await jobs.close()
        files.close()

    asyncio.run(main())


def test_a_job_that_is_cancelled_while_it_runs(tmp_path):
    async def scene(jobs, id):
        while "begun" not in [event["message"] for event in jobs.events(id)]:
            await asyncio.sleep(0.01)
        await jobs.cancel(id)
        with pytest.raises(ApiError, match="already completed"):
            await jobs.cancel(id)

    job, messages, _, made = run_job(tmp_path, NEVER, scene)
    assert job["status"] == "cancelled" and messages[-1] == "The job was cancelled" and made == []


class Server:
    """Jobs of a server, whose processes run a code of the test's."""

    def __init__(self, tmp_path, code):
        self.files, self.made, self.given, self.code = Files(), [], [], code
        self.jobs = Jobs(self.files, self.start, lambda name, folder: self.made.append(name), 64)
        self.jobs.restore(tmp_path / "base", "m")
        self.jobs.start()

    async def start(self, arguments):
        self.given.append(arguments)
        assert arguments.data.read_bytes() == b"{}" and arguments.validation.read_bytes() == b"[]"
        arguments.out.mkdir(exist_ok=True)
        command = [sys.executable, "-c", "import json, sys\n" + self.code, str(arguments.out)]
        return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)

    def create(self, base):
        files = {"training_file": b"{}", "validation_file": b"[]"}
        fields = {name: self.files.add(name, io.BytesIO(data))["id"] for name, data in files.items()}
        hyper = {"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 2}
        more = {"model": "m", "seed": 3, "hyperparameters": hyper, "metadata": {"a": "b"}}
        return self.jobs.create(fields | more, base, "owner")["id"]

    def messages(self, id):
        return [event["message"] for event in self.jobs.events(id)][::-1]

    async def until(self, holds):
        while not holds():
            await asyncio.sleep(0.01)

    async def end(self):
        await self.jobs.close()
        self.files.close()


def in_a_loop(scene):
    asyncio.run(asyncio.wait_for(scene(), 120))


def test_the_next_server_goes_on_with_jobs_that_ran_or_waited(tmp_path):
    async def scene():
        base = tmp_path / "base-before" / "step-000002"  # a checkpoint of a job before
        base.mkdir(parents=True)
        (base.parent / JOB_FILE).write_text("{}")
        one = Server(tmp_path, NEVER)
        ran, waits, left = one.create(base), one.create(tmp_path / "base"), one.create(tmp_path / "base")
        await one.until(lambda: "begun" in one.messages(ran))
        await one.jobs.cancel(left)
        other = Server(tmp_path, DONE)  # of the same model, beside it: the jobs are another's
        assert other.jobs.all() == []
        await other.end()
        before = one.jobs.get(ran).copy()
        await one.end()
        hidden = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))
        assert len(hidden) == 2 and all((tmp_path / name).stat().st_mode & 0o777 == 0o700 for name in hidden)

        two = Server(tmp_path, DONE)
        assert (
            two.jobs.get(ran) == before | {"status": "running"} and two.jobs.get(waits)["status"] == "queued"
        )
        assert two.jobs.is_base(base) and len(two.jobs.all()) == 2 and two.jobs.all("another") == []
        await two.until(lambda: two.jobs.get(waits)["finished_at"])
        again, first = two.given
        assert [again, first] == [*one.given[:1], first] and again.base == base and again.multiplier == 2
        assert (first.seed, first.epochs, first.batch_size, first.n_embd) == (3, 2, 3, 64)
        said = two.messages(ran)
        assert said[:2] == ["Created fine-tuning job", "Fine-tuning job started"]
        assert "The server has started again; the job goes on from its last checkpoint" in said
        assert two.messages(waits)[:2] == ["Created fine-tuning job", "Fine-tuning job started"]
        assert {two.jobs.get(id)["status"] for id in (ran, waits)} == {"succeeded"} and len(two.made) == 2
        await two.end()
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == sorted(["base-before", again.out.name, first.out.name])

    in_a_loop(scene)


def test_a_job_whose_worker_a_signal_ends_goes_on(tmp_path):
    code = """
import os, pathlib, signal
mark = pathlib.Path(sys.argv[1]) / 'mark'
times = len(mark.read_text()) if mark.exists() else 0
mark.write_text('x' * (times + 1))
if times == 0:
    sys.exit(130)
if times == 1:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
"""

    async def scene():
        server = Server(tmp_path, code + DONE)
        id = server.create(tmp_path / "base")
        await server.until(lambda: server.jobs.get(id)["finished_at"])
        assert server.jobs.get(id)["status"] == "succeeded" and len(server.given) == 3
        assert sum("stopped by a signal" in message for message in server.messages(id)) == 2
        await server.end()

    in_a_loop(scene)


def test_what_a_kill_left_of_a_job_that_had_ended_is_removed(tmp_path, caplog):
    async def scene():
        one = Server(tmp_path, DONE)
        id = one.create(tmp_path / "base")
        (job,) = one.jobs._jobs.values()
        out, folder = job.arguments.out, folder_of(job.arguments.out)
        running = json.loads((folder / JOB_FILE).read_text())
        await one.until(lambda: one.jobs.get(id)["finished_at"])
        await one.end()
        folder.mkdir()  # killed before the folder of the job had gone
        (folder / JOB_FILE).write_text(json.dumps(running))
        (folder / "training_file").write_bytes(b"{}")
        two = Server(tmp_path, CRASHED)
        assert two.jobs.get(id)["status"] == "succeeded" and not folder.exists() and out.exists()
        await two.end()

        (out / JOB_FILE).unlink()  # killed before the job had succeeded, when a client had cancelled it
        folder.mkdir()
        running["job"] |= {"status": "cancelled", "finished_at": 1}
        (folder / JOB_FILE).write_text(json.dumps(running))
        three = Server(tmp_path, CRASHED)
        assert three.jobs.all() == [] and not folder.exists() and not out.exists()
        await three.end()

        folder.mkdir()
        for change in ({"base": "../other"}, {"base": None}, {"epochs": "x"}):
            text = json.dumps(running | {"work": running["work"] | change})
            (folder / JOB_FILE).write_text(text)
            with pytest.raises(ValueError):
                FinetuneJob.load_waiting(folder)
        four = Server(tmp_path, CRASHED)
        assert four.jobs.all() == [] and folder.exists() and caplog.records  # it may be all that is left
        await four.end()

    in_a_loop(scene)


def test_a_job_that_cannot_be_kept_is_none(tmp_path):
    async def scene():
        server = Server(tmp_path, DONE)
        with pytest.raises(ApiError, match="cannot be kept beside its model: No such file"):
            server.create(tmp_path / "missing" / "base")
        assert server.jobs.all() == [] and list(tmp_path.iterdir()) == []
        await server.end()

    in_a_loop(scene)
