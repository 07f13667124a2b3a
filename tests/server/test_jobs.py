"""Jobs with a process of the test's own: what it prints decides how a job ends, and nothing of it is left."""

import asyncio
import io
import json
import sys
from asyncio.subprocess import PIPE

import pytest

pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")

from npgpt.server.files import Files
from npgpt.server.jobs import JOB_FILE, Jobs, remove_model
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
        jobs = Jobs(files, start, lambda name, folder: made.append((name, folder)))
        file = files.add("d.jsonl", io.BytesIO(b"{}"))
        fields = {"model": "m", "training_file": file["id"], "hyperparameters": {"n_epochs": 2}, "seed": 3}
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
