"""POST /explain: the page of the model itself, bounded, authorised, one at a time."""

import base64
import json
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import npgpt
from tests.models import random_model
from tests.server.process import Process

pytest.importorskip("uvicorn")
KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "praia"
    random_model(block_size=32).save_pretrained(folder)
    return folder


def asked(server, headers=KEY, **fields):
    """(status, type, text) of the answer."""
    body = json.dumps({"model": "praia"} | fields).encode()
    request = urllib.request.Request(server.url + "/explain", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_page_is_of_the_last_tokens(folder):
    with Process(folder, "--api-key", "sesame", explain_tokens=24) as server:
        text = "O sol brilhava no céu de verão."
        assert asked(server, {}, text=text)[0] == 401
        status, kind, page = asked(server, text=text)
        assert (status, kind) == (200, "text/html; charset=utf-8")
        data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
        ids = list(text.encode())
        assert (data["ids"], data["dropped"], data["model"]) == (ids[-24:], len(ids) - 24, "praia")
        for one in data["targets"][0], data["targets"][-3]:
            found = npgpt.load(folder).explain(data["ids"][: one["at"]], one["id"], method="grad_x_input")
            scores = np.frombuffer(base64.b64decode(one["scores"]), "<i2") / 32767 * one["largest"]
            np.testing.assert_allclose(scores, found.scores, atol=1e-4 * one["largest"])
        assert json.loads(re.search(r'id="data">(.*?)</script>', asked(server, text=ids)[2])[1]) == data

        for fields, word in (
            ({"text": ""}, "text"),
            ({"text": [257]}, "0..256"),
            ({"text": "a", "method": "smooth"}, "method"),
            ({"text": "a", "model": "mar"}, "mar"),
            ({}, "text"),
        ):
            status, _, answer = asked(server, **fields)
            assert status in (400, 404) and word in json.loads(answer)["error"]["message"]

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda n: asked(server, text="a" * n), (20, 21, 22)))
        assert sorted({status for status, *_ in answers}) == [200, 429]
        assert asked(server, text="a")[0] == 200


def test_a_page_that_takes_too_long_is_given_up(folder):
    with Process(folder, explain_seconds=0.05) as server:
        begin = time.monotonic()
        status, _, answer = asked(server, {}, text="a")
        assert (status, json.loads(answer)["error"]["code"]) == (503, "timeout")
        assert time.monotonic() - begin < 10
        assert asked(server, {}, text="a")[0] == 503  # and not 429: nothing is left of the first
