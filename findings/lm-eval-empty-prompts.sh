#!/usr/bin/env bash
# lm-evaluation-harness 0.4.13, local-completions with tokenizer_backend=huggingface: generate_until with a small
#   max_length, and everything else at its default.
# Guess: a prompt that fits max_length goes out whole, as with --model hf; a longer one loses what is too much from
#   its head; a reply that cannot fit is an error.
# Seen: the model takes 256 tokens for the reply, whatever max_length is, and cuts a prompt at max_length - 1 - 256.
#   With 128 that is -129, which Python's slice reads as "without the first 129": the server receives [] for 100
#   tokens, and the tail, 21 tokens, of 150. A warning says that contexts "were left truncated". Scores come out.
# Why it matters: a model with a short context, as small GPTs have, is graded on its answers to nothing.
#   max_gen_toks must be given among the model_args, and be less than max_length - 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH" HF_HUB_OFFLINE=1
pip install -q --no-compile --disable-pip-version-check "lm_eval[api]==0.4.13" transformers==5.24.0 tokenizers==0.23.3 \
    torch==2.13.0 numpy==2.4.6
cat >"$folder/look.py" <<'EOF'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

folder, sent = sys.argv[1], []
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(200)} | {"<unk>": 200, "<end>": 201}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)


class Server(BaseHTTPRequestHandler):
    """Answers every completion with one word, and notes the prompts."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent.extend(asked["prompt"])
        choices = [{"index": i, "text": " yes", "finish_reason": "stop"} for i in range(len(asked["prompt"]))]
        body = json.dumps({"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1/completions"
lengths = {}
for more in ({}, {"max_gen_toks": 16}):
    model = LocalCompletionsAPI(base_url=url, model=folder, tokenizer=folder, max_length=128, **more)
    for count in (100, 150):
        sent.clear()
        text = " ".join(f"w{i}" for i in range(count))
        request = Instance("generate_until", {}, (text, {"until": ["\n"]}), 0)
        model.generate_until([request], disable_tqdm=True)
        lengths[count, bool(more)] = [len(prompt) for prompt in sent]
        print(f"{count} tokens of prompt, {more or 'defaults'}: {[len(prompt) for prompt in sent]} tokens sent")
expected = {(100, False): [0], (150, False): [21], (100, True): [100], (150, True): [111]}
sys.exit(lengths != expected)
EOF
if python "$folder/look.py" "$folder/model"; then
    echo "OK: still so"
else
    echo "CHANGED: not as stated at the head of this file"
    exit 1
fi
