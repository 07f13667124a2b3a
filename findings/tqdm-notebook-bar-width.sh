#!/usr/bin/env bash
# tqdm 4.70.1 with ipywidgets 8.1.9.
# Guess: a bar_format that tqdm's documentation allows, such as "{percentage:3.0f}% {bar:20} {n}/{total}", shows the
#   same parts in a notebook as on a terminal: tqdm.notebook puts its widget where the bar stands.
# Seen: it does so for "{bar}" alone. With a width the widget is still there, and a second bar, of text, is drawn to
#   the right of it together with everything that should stand on its left.
# Why it matters: one format for both, as tqdm.auto invites to, gives notebooks two bars. The width must be taken out
#   of the format before tqdm.notebook gets it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check tqdm==4.70.1 ipywidgets==8.1.9
cat >"$folder/look.py" <<'EOF'
import sys
from importlib.metadata import version

from tqdm.notebook import tqdm

print("tqdm", version("tqdm"), "ipywidgets", version("ipywidgets"))
seen = {}
for bar in ("{bar}", "{bar:20}"):
    shown = tqdm(total=10, bar_format="{percentage:3.0f}% " + bar + " {n}/{total}", display=False)
    shown.update(5)
    shown.refresh()
    left, widget, right = shown.container.children
    seen[bar] = [part.value.replace("\u2007", " ").strip() for part in (left, right)]
    print(f"{bar}: left {seen[bar][0]!r}, widget {type(widget).__name__} at {widget.value:g}, right {seen[bar][1]!r}")
wide = seen["{bar:20}"]
sys.exit(not (seen["{bar}"] == ["50%", "5/10"] and wide[0] == "" and wide[1].startswith("50% █") and "5/10" in wide[1]))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
