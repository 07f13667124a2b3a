#!/usr/bin/env bash
# @huggingface/jinja 0.5.11 (npm) and Jinja2 3.1.6: strip, lstrip and rstrip with characters, in a chat template.
# Guess: as in Python, which templates are written for, these characters go; or else the template is refused, as
#   it is for other methods that are not there.
# Seen: the characters are not looked at. rstrip('\n') takes blanks too, strip('-') takes no dash, and nothing is
#   said. Of "\n\n  a = 1  \n" strip('\n') leaves "a = 1" in place of "  a = 1  ".
# Why it matters: templates of reasoning models take lines off thoughts and answers by strip('\n'). A page that
#   renders a conversation by this library, as transformers.js does, sends other tokens than the server where
#   the model was tried: the indent of a program at the beginning of an answer is gone. It needs Node.js.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check jinja2==3.1.6
npm install --silent --no-fund --no-audit --prefix "$folder" @huggingface/jinja@0.5.11 >/dev/null
cat >"$folder/templates.json" <<'EOF'
["{{ '\\n\\n  a = 1  \\n'.strip('\\n') }}", "{{ ' a \\n'.rstrip('\\n') }}", "{{ '--a--'.strip('-') }}",
 "{{ 'xxa'.lstrip('x') }}", "{{ '  a '.strip() }}"]
EOF
cat >"$folder/render.mjs" <<'EOF'
import { readFileSync } from "fs";
import { Template } from "@huggingface/jinja";
const templates = JSON.parse(readFileSync("templates.json"));
console.log(JSON.stringify(templates.map((text) => new Template(text).render({}))));
EOF
(cd "$folder" && node render.mjs >seen.json)
cat >"$folder/look.py" <<'EOF'
import json
import sys
from pathlib import Path

import jinja2

here = Path(sys.argv[1])
templates, js = (json.loads((here / name).read_text()) for name in ("templates.json", "seen.json"))
python = [jinja2.Environment().from_string(text).render() for text in templates]
for text, one, other in zip(templates, python, js, strict=True):
    print(f"{text:48} Python {one!r:14} JavaScript {other!r}")
sys.exit(
    not (python == ["  a = 1  ", " a ", "a", "a", "a"] and js == ["a = 1", " a", "--a--", "xxa", "a"])
)
EOF
if python "$folder/look.py" "$folder"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
