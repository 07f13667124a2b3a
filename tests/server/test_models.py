"""Models opened, found and deleted at once: nobody waits for another's model, and none is left behind."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")

from npgpt.server.about import loss_curve
from npgpt.server.models import Models
from npgpt.server.schema import ApiError


class Opened:
    """Stands for a Scheduler."""

    def __init__(self):
        self.calls = []

    def start(self, loop):
        self.calls.append("start")

    def close(self, error):
        self.calls.append("close")


def request(method, name):
    return SimpleNamespace(method=method, path_params={"id": name})


def test_a_model_that_is_open_waits_for_none_and_one_deleted_while_it_opens_is_closed(tmp_path):
    opening, go_on, schedulers = threading.Event(), threading.Event(), []

    def open_scheduler(path):
        schedulers.append(Opened())
        if path.name == "slow":
            opening.set()
            assert go_on.wait(60)
        return schedulers[-1]

    async def scene():
        models = Models(tmp_path / "main", "main", open_scheduler)
        await models.find("main")
        models.add("slow", tmp_path / "slow")
        found = asyncio.create_task(models.find("slow"))
        await asyncio.to_thread(opening.wait, 60)
        await asyncio.wait_for(models.find("main"), 60)  # while the other still opens
        deleted = asyncio.create_task(models.one(request("DELETE", "slow")))
        await asyncio.sleep(0.05)
        go_on.set()
        await found
        await deleted
        assert list(models.all) == ["main"]

    asyncio.run(scene())
    assert schedulers[1].calls == ["start", "close"]


def test_a_model_that_a_job_begins_with_stays_and_one_that_cannot_go_is_served_on(tmp_path):
    async def scene():
        models = Models(tmp_path / "main", "main", lambda path: Opened())
        models.add("tuned", tmp_path / "tuned")
        models.is_base = lambda folder: True
        with pytest.raises(ApiError, match="a fine-tuning job begins with this model"):
            await models.one(request("DELETE", "tuned"))

        def remove(folder):
            raise PermissionError(13, "Permission denied")

        models.is_base, models.remove = (lambda folder: False), remove
        with pytest.raises(ApiError, match="the model's folder cannot be removed: Permission denied"):
            await models.one(request("DELETE", "tuned"))
        assert list(models.all) == ["main", "tuned"]

    asyncio.run(scene())


def test_checkpoints_go_with_their_model(tmp_path):
    async def scene():
        models = Models(tmp_path / "main", "main", lambda path: Opened())
        for name in ("a", "b"):
            models.add(name, tmp_path / name)
            models.add(f"{name}:1", tmp_path / name / "step-000001")
        opened = (await models.find("a:1")).scheduler
        with pytest.raises(ApiError, match="this is a checkpoint of a, and goes with it"):
            await models.one(request("DELETE", "a:1"))
        await models.one(request("DELETE", "a"))
        assert list(models.all) == ["main", "b", "b:1"] and opened.calls == ["start", "close"]

    asyncio.run(scene())


def test_a_model_that_cannot_be_opened_is_an_error_without_its_path(tmp_path):
    def open_scheduler(path):
        if path.name == "broken":
            raise ValueError(f"{path}/config.json: must be JSON")
        return Opened()

    async def scene():
        models = Models(tmp_path / "main", "main", open_scheduler)
        models.add("ft:main", tmp_path / "broken")
        with pytest.raises(ApiError) as error:
            await models.find("ft:main")
        assert str(error.value) == "the model cannot be opened: ft:main/config.json: must be JSON"

    asyncio.run(scene())


def test_half_a_line_of_metrics_is_no_trouble(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,val_loss\n1,5.5,\n2,nan,3.25\n3")
    assert loss_curve(path) == [[1, 5.5, None], [2, None, 3.25]]
    assert loss_curve(tmp_path / "none.csv") == []
