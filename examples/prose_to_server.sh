#!/bin/sh
# Portuguese prose to a served model in ten commands:
#   MINUTES=10 sh examples/prose_to_server.sh machado/*.txt
# Without a text it takes the sample's few lines, which are learnt by heart. What it makes lies in $OUT, which
# must not be there yet. Needs pip install "npgpt[server]"; ends the server that it started, by its number.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${MINUTES:=1}" "${EPOCHS:=200}" "${OUT:=runs/prose}" "${PYTHON:=python}"
[ $# -gt 0 ] || set -- "$here/../data/textosdetreinamento.txt"

# 1. train a base: from bytes to a model, with checkpoints and report.html
$PYTHON -m npgpt.train "$@" --minutes "$MINUTES" --out "$OUT/base"
# 2. measure it, beside what needs no model
$PYTHON -m npgpt.evaluate "$OUT/base"
# 3. let it write
$PYTHON -m npgpt.generate "$OUT/base" "O sol" --max-new-tokens 100 --seed 1
# 4. teach it to reply, by conversations, a JSON object a line; so few of them are learnt by heart, none held out
$PYTHON -m npgpt.finetune "$OUT/base" "$here/conversas.jsonl" --epochs "$EPOCHS" --val-fraction 0 -o "$OUT/chat"
# 5. talk with it
printf 'Qual é o seu nome?\n' | $PYTHON -m npgpt.chat "$OUT/chat" --max-new-tokens 40 --seed 1
# 6. ask it which of two texts is the likelier: log-probabilities, in nats
$PYTHON -c 'import npgpt, sys; print(npgpt.load(sys.argv[1]).score("O sol ", ["brilhava", "xqzkwvyj"]))' "$OUT/chat"
# 7. write it as Transformers reads it
$PYTHON -m npgpt.export "$OUT/chat" --to hf -o "$OUT/folder"
# 8. write it as libnpgpt and llama.cpp read it
$PYTHON -m npgpt.export "$OUT/chat" --to gguf --type q8_0 -o "$OUT/chat.gguf"
# 9. serve it as OpenAI's API, on a free port of this machine
$PYTHON -m npgpt.serve "$OUT/chat.gguf" --port 0 >"$OUT/serve.log" &
server=$!
trap 'kill $server && wait $server || :' EXIT
until url=$(grep -o 'http://[0-9.:]*' "$OUT/serve.log"); do
    kill -0 $server  # or it ended, having said why
    sleep 0.2
done
# 10. ask the server
$PYTHON - "$url/v1/chat/completions" <<'END'
import json, sys, urllib.request

body = {"model": "chat", "max_tokens": 40, "seed": 1, "messages": [{"role": "user", "content": "Bom dia!"}]}
request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"])
END
