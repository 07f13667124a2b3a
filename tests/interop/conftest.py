"""Fixtures of these tests."""

import numpy as np
import pytest

from npgpt.engine import kernels


@pytest.fixture(autouse=True)
def memory_that_is_not_set(monkeypatch):
    """Weights that a reader forgets are no zeros by luck."""
    monkeypatch.setattr(kernels, "empty", lambda n, dtype=np.float32: np.full(n, np.nan, dtype))
