#!/usr/bin/env bash
# inseq 0.7.1: its metadata asks for eleven nvidia-*-cu11 packages where sys_platform == "Linux".
# Guess: pip installs them on every Linux machine, gigabytes of CUDA 11 that a CPU has no use for; one needs --no-deps.
# Seen: it installs none, anywhere. sys_platform is "linux" in small letters, markers compare strings as they are, and
#   the name with a capital letter is platform_system's. pip says nothing of a marker that no system meets.
# Why it matters: --no-deps, which is the usual remedy, loses the packages that are needed; and a marker of one's own
#   with this spelling never installs what it asks for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check packaging==25.0
pip download -q --no-deps --disable-pip-version-check --dest "$folder" inseq==0.7.1
cat >"$folder/look.py" <<'EOF'
import email
import pathlib
import sys
import zipfile

from packaging.requirements import Requirement

wheel = zipfile.ZipFile(next(pathlib.Path(__file__).parent.glob("inseq-*.whl")))
(name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
asked = map(Requirement, email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist"))
cuda = [one for one in asked if one.name.startswith("nvidia-")]
met = {
    where: sum(one.marker.evaluate({"sys_platform": where}) for one in cuda)
    for where in ("linux", "darwin", "win32", "Linux")
}
print(f"CUDA packages asked for: {len(cuda)}; by sys_platform: {met}; here it is {sys.platform!r}")
sys.exit(not (len(cuda) == 11 and met == {"linux": 0, "darwin": 0, "win32": 0, "Linux": 11}))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
