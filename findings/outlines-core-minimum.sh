#!/usr/bin/env bash
# outlines_core 0.2.14: a JSON schema made into a pattern that holds a model to it.
# Guess: what the pattern cannot express, such as "minimum": 5, is refused, as "not" is.
# Seen: minimum, maximum, multipleOf and uniqueItems are dropped in silence; {"type": "integer", "minimum": 5,
#   "maximum": 7} admits 900. And "pattern": "^ab", which by JSON Schema is any string that begins with ab,
#   becomes a pattern that no string meets; "pattern": "ab" admits "ab" alone.
# Why it matters: grades from 1 to 5, or ages, come back as any number although the output "is valid by
#   construction", and nobody checks it again. Validate the answer with jsonschema as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check outlines_core==0.2.14
cat >"$folder/look.py" <<'EOF'
import json
import re
import sys

from outlines_core.json_schema import build_regex_from_schema

cases = [
    ({"type": "integer", "minimum": 5, "maximum": 7}, "900", True),
    ({"type": "number", "multipleOf": 5}, "7", True),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1,1]", True),
    ({"type": "string", "maxLength": 2}, '"abc"', False),
    ({"type": "string", "pattern": "^ab"}, '"abc"', False),
    ({"type": "string", "pattern": "^ab"}, '"ab"', False),
    ({"type": "string", "pattern": "ab"}, '"cab"', False),
    ({"type": "string", "pattern": "ab"}, '"ab"', True),
]
right = True
for schema, text, wanted in cases:
    admitted = bool(re.fullmatch(build_regex_from_schema(json.dumps(schema)), text))
    print(f"{json.dumps(schema):75} {text:8} {'admitted' if admitted else 'not admitted'}")
    right &= admitted == wanted
try:
    build_regex_from_schema('{"not": {"type": "string"}}')
    right = False
except ValueError:
    print('{"not": {"type": "string"}} is refused')
sys.exit(not right)
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
