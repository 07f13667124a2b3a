"""JSON objects on disk."""

import json
from pathlib import Path

from npgpt.engine.types import Fields


def read_json(path: Path) -> Fields:
    """Return the JSON object that a file holds; ValueError where it holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8 or bad JSON
        raise ValueError(f"{path} must be JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value


def read_json_if_any(path: Path) -> Fields:
    """Return the JSON object of a file, an empty one without a file; ValueError where it holds none."""
    return read_json(path) if path.exists() else {}
