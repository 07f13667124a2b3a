"""Fixtures shared by all tests, and the rule of CI: with NPGPT_NO_SKIP=1 a skipped test is a failed test."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from npgpt.engine import kernels

for name in ("LANGUAGE", "LC_MESSAGES"):
    os.environ.pop(name, None)
os.environ["LC_ALL"] = "C.UTF-8"  # what commands print is checked in English

# The same examples on every run: a test fails because of a change, not because of the day.
# Choosing the kernels once per test, not once per example, is what the fixtures below intend.
settings.register_profile(
    "npgpt",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("npgpt")

COMPILED = [name for name in kernels.available() if name != "numpy"]


@pytest.fixture
def rng():
    return np.random.default_rng(1234)


@pytest.fixture(params=kernels.available())
def impl(request):
    """Runs the test once on each implementation this machine has, NumPy included -> its name."""
    with kernels.use(request.param):
        yield request.param


@pytest.fixture(params=COMPILED)
def isa(request):
    """Runs the test once on each compiled implementation -> its name. Without any, the test is skipped."""
    with kernels.use(request.param):
        yield request.param


@pytest.fixture
def threads():
    """kernels.set_num_threads, undone after the test."""
    before = kernels.get_num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real texts: NPGPT_DATA; skips without it."""
    folder = os.environ.get("NPGPT_DATA")
    if not folder:
        pytest.skip("NPGPT_DATA is not set")
    assert Path(folder).is_dir(), f"NPGPT_DATA must be a folder, got {folder}"
    return Path(folder).resolve()


MEASURED = {}  # what -> (worst error, allowed)


@pytest.fixture
def measured():
    """measured(what, error, allowed): the error is at most that; the worst of each is printed at the end."""

    def measure(what, error, allowed):
        assert error <= allowed, f"{what}: {error:.2e}, allowed {allowed:.0e}"
        _keep_worst(what, error, allowed)

    return measure


def _keep_worst(what, error, allowed):
    MEASURED[what] = (float(max(error, MEASURED.get(what, (0.0,))[0])), float(allowed))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist, whose own summary nobody sees
        session.config.workeroutput["measured"] = MEASURED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for what, (error, allowed) in getattr(node, "workeroutput", {}).get("measured", {}).items():
        _keep_worst(what, error, allowed)


def pytest_terminal_summary(terminalreporter):
    for what, (error, allowed) in MEASURED.items():
        terminalreporter.write_line(f"{what}: {error:.1e} at worst, {allowed:.0e} allowed")


def _no_skip(report, skip_is_expected=False):
    if report.skipped and not skip_is_expected and os.environ.get("NPGPT_NO_SKIP") == "1":
        report.outcome = "failed"
        report.longrepr = f"NPGPT_NO_SKIP=1, but {report.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _no_skip(report, skip_is_expected=hasattr(report, "wasxfail"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _no_skip(report)
