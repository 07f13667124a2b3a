"""Jobs of a real server that is killed: the next server goes on with them, to the same bits."""

import json
import os
import signal
import time

import numpy as np
import pytest

import npgpt
from tests.models import model_with_roles
from tests.server.process import Process

pytest.importorskip("uvicorn")
LINES = "".join(
    json.dumps({"prompt": f"{n} + {n} =", "completion": f" {2 * n}"}) + "\n" for n in range(40)
).encode()
JOBS = "/v1/fine_tuning/jobs"


def upload(server) -> str:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        + LINES
        + b"\r\n--x--\r\n"
    )
    status, file, _ = server.ask("/v1/files", form, **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 200, file
    return file["id"]


def create(server, **fields) -> dict:
    file = upload(server)
    asked = {"model": server.name, "training_file": file, "validation_file": file, "seed": 5} | fields
    status, job, _ = server.ask(JOBS, asked)
    assert status == 200, job
    return job


def get(server, id, path=""):
    return server.ask(f"{JOBS}/{id}{path}", b"", "GET")[1]


def messages(server, id) -> list[str]:
    return [event["message"] for event in get(server, id, "/events?limit=100")["data"]][::-1]


def wait(server, id, holds, seconds=120) -> dict:
    end = time.monotonic() + seconds
    while not holds(job := get(server, id)):
        assert time.monotonic() < end, (job, messages(server, id))
        time.sleep(0.02)
    return job


def steps(server, id) -> list[str]:
    return [message for message in messages(server, id) if message.startswith("step ")]


def children(pid) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def ended(pid) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(server, worker_too=False) -> None:
    """End the server by SIGKILL; its worker too, so that it saves no checkpoint."""
    pid = server.process.pid
    workers = children(pid)
    os.kill(pid, signal.SIGSTOP)
    for worker in workers if worker_too else []:
        os.kill(worker, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    server.process.wait()
    end = time.monotonic() + 60
    while not all(map(ended, workers)):  # a worker does not outlive its server
        assert time.monotonic() < end
        time.sleep(0.02)
    server.process.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="finds the worker in /proc")
def test_jobs_go_on_after_a_kill_to_the_same_bits(tmp_path):
    hyper = {"hyperparameters": {"n_epochs": 20, "batch_size": 4, "learning_rate_multiplier": 0.5}}
    short = {"hyperparameters": {"n_epochs": 1}, "suffix": "two"}
    whole, killed = tmp_path / "whole" / "praia", tmp_path / "killed" / "praia"
    for folder in (whole, killed):
        model_with_roles().save_pretrained(folder)
    with Process(whole) as server:
        first = create(server, **hyper)
        wait(server, first["id"], lambda job: job["finished_at"])
        expected = get(server, first["id"])
        assert expected["status"] == "succeeded", expected
    server = Process(killed)
    job, waiting = create(server, **hyper, metadata={"a": "b"}), create(server, **short)
    wait(server, job["id"], lambda job: len(steps(server, job["id"])) >= 2)
    kill(server)
    server = Process(killed)
    assert get(server, waiting["id"])["status"] == "queued" and get(server, job["id"])["status"] == "running"
    assert get(server, job["id"])["metadata"] == {"a": "b"}
    again = "The server has started again; the job goes on from its last checkpoint"
    wait(server, job["id"], lambda job: again in messages(server, job["id"]))
    seen = len(steps(server, job["id"]))
    wait(server, job["id"], lambda job: len(steps(server, job["id"])) > seen)
    said = messages(server, job["id"])
    assert any(message.startswith("going on after step") for message in said[said.index(again) :]), said
    kill(server, worker_too=True)
    server = Process(killed)
    wait(server, job["id"], lambda job: messages(server, job["id"]).count(again) == 2)
    assert server.end() == (0, "")  # in the middle too
    with Process(killed) as server:
        done = wait(server, job["id"], lambda job: job["finished_at"])
        assert done["status"] == "succeeded" and done["trained_tokens"] == expected["trained_tokens"]
        names = [model["id"] for model in json.loads(server.get("/v1/models"))["data"]]
        assert done["fine_tuned_model"] in names and f"{done['fine_tuned_model']}:ckpt-step-200" in names
        second = wait(server, waiting["id"], lambda job: job["finished_at"])
        assert second["status"] == "succeeded"
    found = [npgpt.load(folder).flat_params for folder in tmp_path.glob("*/praia-tuned-*")]
    assert len(found) == 2
    np.testing.assert_array_equal(*found)
    assert [path.name for path in killed.parent.glob(".*")] == []  # nothing is left but the models
