"""Models that packages bring: NAME.gguf in the package npgpt_NAME is the model called NAME.

A package is found as `import` would find it, and is never run. In a clone the folder models/NAME, which such
a package is made from, is looked into as well.
"""

import importlib.util
import pkgutil
import re
from pathlib import Path

from npgpt.engine.types import PathLike

PREFIX = "npgpt_"
CLONE = Path(__file__).parents[2] / "models"


def located(path: PathLike) -> Path:
    """Return the file of the installed model that `path` names, or `path` itself where it names none.

    What lies in the current folder under this name comes first.

    >>> located("runs/mine")
    PosixPath('runs/mine')
    """
    name = str(path)
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or Path(name).exists():
        return Path(path)
    return _find(name) or Path(path)


def installed() -> dict[str, Path]:
    """Return the files of all installed models by their names, sorted."""
    packages = [found.name for found in pkgutil.iter_modules() if found.name.startswith(PREFIX)]
    names = {name.removeprefix(PREFIX) for name in packages} | {path.name for path in CLONE.glob("*")}
    return {name: file for name in sorted(names) if (file := _find(name))}


def _find(name: str) -> Path | None:
    """Return the file of the model of this name, an installed package's before a clone's."""
    package = PREFIX + name
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module of this name that was made by hand has no spec
        spec = None
    places = spec.submodule_search_locations if spec else None
    folders = [*map(Path, places or ()), CLONE / name / package]
    files = [folder / f"{name}.gguf" for folder in folders]
    return next((file for file in files if file.is_file()), None)
