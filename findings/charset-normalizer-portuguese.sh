#!/usr/bin/env bash
# charset-normalizer 3.5.3: the encoding of a Portuguese sentence that was saved in Windows-1252.
# Guess: windows-1252, or another name under which the same text comes out.
# Seen: windows-1250, for each of six sentences: that is Central Europe's, and has other letters in the places
#   of ã, õ, ê and à. str(best()) reads "Năo" and "Vocę" where there stood "Não" and "Você", and no warning
#   comes. The same sentences in UTF-8 are read as they are.
# Why it matters: old Portuguese text is in Windows-1252, and this is what requests and many readers of files
#   ask. A model then learns letters that no Portuguese word has. Name the encoding where you know it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install -q --no-compile --disable-pip-version-check charset-normalizer==3.5.3
cat >"$folder/look.py" <<'EOF'
import sys

from charset_normalizer import from_bytes

SENTENCES = (
    "Não há mais ninguém à espera da ação.",
    "O coração não é de ninguém; a manhã vem, e o pão também.",
    "Olá, João! Você já está pronto? Então vamos à praia amanhã de manhã, que o verão não espera por ninguém.",
    "As crianças põem as mãos no chão, e os cães correm atrás dos balões.",
    "Três irmãs moram em São Paulo; a mãe delas está em Ribeirão Preto, onde a estação é quente e seca.",
    "A canção diz que o coração não tem razão, e que ninguém espera o verão em vão no sertão.",
)
right = {"cp1252": 0, "utf-8": 0}
for sentence in SENTENCES:
    for encoding in right:
        best = from_bytes(sentence.encode(encoding)).best()
        right[encoding] += str(best) == sentence
        print(f"{encoding}: taken for {best.encoding}: {str(best)[:40]}")
print(f"of {len(SENTENCES)} sentences read as written: {right}")
sys.exit(not (right["cp1252"] == 0 and right["utf-8"] == len(SENTENCES)))
EOF
if python "$folder/look.py"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
