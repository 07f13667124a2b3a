"""Coverage-guided fuzzing of the parsers with atheris (pip install atheris); not part of the test suite.

    python tests/fuzz/fuzz.py TARGET [-runs=200000] [libFuzzer's other flags]

Starts from valid files. What it finds lies in the working folder as crash-*: repair the parser, then keep the
file as tests/fuzz/corpus/TARGET-NAME, which test_findings.py reads.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["npgpt.interop", "npgpt.text"]):
    import targets

sys.modules["tensorflow"] = None  # what comes before it is ours


def main():
    name = sys.argv.pop(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        folders = targets.Folders(Path(root) / "t")
        seeds = Path(root) / "seeds"
        seeds.mkdir()
        for i, data in enumerate(folders.seeds[name]):
            (seeds / str(i)).write_bytes(data)
        atheris.Setup([*sys.argv, str(seeds)], lambda data: folders.run(name, data))
        with targets.little_memory(1 << 30):
            atheris.Fuzz()


if __name__ == "__main__":
    main()
