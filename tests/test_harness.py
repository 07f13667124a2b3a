"""The rule of conftest.py: with NPGPT_NO_SKIP=1 whatever is skipped fails, a module, a test or a fixture."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SKIPPING = {
    "module": "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n",
    "test": "import pytest\ndef test_it(): pytest.skip('not today')\n",
    "fixture": "def test_it(data_dir): pass\n",
    "no_implementation": "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_it(x): pass\n",
}


def run_pytest(folder, **variables):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NPGPT_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."],
        env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_skip_is_a_failure_where_nothing_may_be_skipped(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    for name, code in SKIPPING.items():
        (tmp_path / f"test_{name}.py").write_text(code)
    allowed = run_pytest(tmp_path)
    assert allowed.returncode in (0, 5) and "4 skipped" in allowed.stdout, allowed.stdout
    forbidden = run_pytest(tmp_path, NPGPT_NO_SKIP="1")
    assert forbidden.returncode == 1 and "skipped in" not in forbidden.stdout, forbidden.stdout
    failed = set(re.findall(r"^(?:FAILED|ERROR) test_(\w+)\.py", forbidden.stdout, re.MULTILINE))
    assert failed == set(SKIPPING), forbidden.stdout
