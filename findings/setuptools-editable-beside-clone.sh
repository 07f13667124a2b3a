#!/usr/bin/env bash
# setuptools 84.2.1, `pip install -e .` of a package that lies at the top of a clone of the same name.
# Guess: an installed package is imported from everywhere.
# Seen: a script beside the clone imports the clone's folder as an empty namespace package. The editable install
#   is a finder that Python asks after all of sys.path, and there the folder was found before. A plain install
#   wins, as a package on a path precedes a namespace. So does `package-dir = {"" = "."}` in pyproject.toml: it
#   says what was so anyway, but makes setuptools write a path instead of the finder.
# Why it matters: the folder above a clone is where people write their first script, and what it says,
#   "module has no attribute", names neither the install nor the folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check setuptools==84.2.1
python -c 'import setuptools; print("setuptools", setuptools.__version__)'
mkdir -p "$folder/clones/waves/waves"
echo 'HEIGHT = 3' >"$folder/clones/waves/waves/__init__.py"
cat >"$folder/clones/waves/pyproject.toml" <<'EOF'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "waves"
version = "1"
[tool.setuptools]
packages = ["waves"]
EOF
look() {
    pip install -q --no-build-isolation --disable-pip-version-check "$@" "$folder/clones/waves"
    (cd "$folder/clones" && python -c 'import waves; print(getattr(waves, "HEIGHT", "empty"))')
    pip uninstall -q -y waves
    rm -rf "$folder/clones/waves/build" "$folder/clones/waves"/*.egg-info
}
finder=$(look -e)
plain=$(look)
echo 'package-dir = { "" = "." }' >>"$folder/clones/waves/pyproject.toml"
path=$(look -e)
echo "editable: $finder; plain: $plain; editable, with package-dir: $path"
if [ "$finder $plain $path" = "empty 3 3" ]; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
