"""`python tests/slow/clients/every.py [NAME...] [--keep FOLDER]`: each client in its default way, pinned.

Each gets an environment or a node folder of its own, is served on loopback by a model that has learnt
nothing, and must end without an error. FOLDER gets what they sent, as tests/data/clients has it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.models import model_with_roles

HERE = Path(__file__).resolve().parent
CLIENTS = {  # name of the recording -> its script, what is installed for it
    "openai-python-3.57": ("openai_python.py", "openai==3.57.0"),
    "openai-responses-3.57": ("openai_responses.py", "openai==3.57.0"),
    "openai-node-6.49": ("openai_node.mjs", "openai@6.49.0"),
    "openai-node-7.59": ("openai_node.mjs", "openai@7.59.0"),
    "openai-node-responses-6.49": ("openai_node_responses.mjs", "openai@6.49.0"),
    "ai-sdk-6.0": ("ai_sdk.mjs", "ai@6.0.325 @ai-sdk/openai@3.0.141"),
    "ai-sdk-7.0": ("ai_sdk.mjs", "ai@7.0.173 @ai-sdk/openai@4.0.118"),
    "pydantic-ai-2.68": ("pydantic_ai.py", "pydantic-ai-slim[openai]==2.68.0"),
    "openai-agents-0.24": ("openai_agents.py", "openai-agents==0.24.0"),
    "langchain-openai-1.7": ("langchain_openai_chat.py", "langchain-openai==1.7.4"),
    "llama-index-0.8": ("llama_index_openai_like.py", "llama-index-llms-openai-like==0.8.1"),
    "litellm-1.110": ("litellm_client.py", "litellm==1.110.0"),
    "llm-0.32": ("llm_command.py", "llm==0.32 httpx"),  # which it imports and does not name
    "aisuite-0.1.3": ("aisuite_client.py", "aisuite==0.1.3 openai==3.57.0 docstring_parser pydantic"),
    "dspy-3.4": ("dspy_program.py", "dspy==3.4.1"),
    "lm-eval-0.4.13": ("lm_evaluation.py", "lm-eval[api]==0.4.13"),
}
CONTEXT = {"dspy-3.4": 2048, "openai-agents-0.24": 16384}  # tokens, where 128 are too few for a client
OURS = ("lm-eval-0.4.13",)  # those that need npgpt and PyTorch too, from the environment of this process
LINE = '{"messages": [{"role": "user", "content": "7"}, {"role": "assistant", "content": "8"}]}\n'


def install(name: str, packages: str, folder: Path) -> list[str]:
    """The command that runs the client's script, installed into `folder`."""
    script = HERE / CLIENTS[name][0]
    if script.suffix == ".mjs":
        (folder / "package.json").write_text("{}")
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages.split()]
        subprocess.run(npm, cwd=folder, check=True)
        shutil.copy(script, folder)  # modules are looked for beside it
        return ["node", str(folder / script.name)]
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages.split()], check=True)
    if name in OURS:
        (site,) = folder.glob("lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({path!r})\n" for path in sys.path if "site-packages" in path]
        (site / "ours.pth").write_text("".join(lines) + f"{HERE.parents[2]}\n")
    return [str(python), str(script)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients (default: all)")
    parser.add_argument("--keep", metavar="FOLDER", help="where what they sent is written")
    args = parser.parse_args()
    if unknown := set(args.names) - set(CLIENTS):
        parser.error(f"no client is called {unknown.pop()}; there are: {', '.join(CLIENTS)}")
    failed = []
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "talk.jsonl"
        file.write_text(LINE * 20)
        for name in args.names or CLIENTS:
            folder = Path(work) / name
            folder.mkdir()
            model = folder / "models" / "praia"
            model_with_roles(CONTEXT.get(name, 128)).save_pretrained(model)
            command = install(name, CLIENTS[name][1], folder)
            kept = Path(args.keep or work) / f"{name}.json"
            record = [sys.executable, str(HERE / "record.py"), str(model), str(kept), "--", *command]
            environment = os.environ | {"FOLDER": str(model), "FILE": str(file)}
            done = subprocess.run(record, env=environment, capture_output=True, text=True, errors="replace")
            sent = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
            refused = [request for request in sent if request["status"] >= 400]
            good = done.returncode == 0 and sent and not refused
            print(f"{name}: {len(sent)} requests, {'all is well' if good else 'failed'}", flush=True)
            if not good:
                print(done.stderr[-2000:], *refused, sep="\n")
                failed.append(name)
            shutil.rmtree(folder)
    print(
        f"{len(failed)} clients failed: {', '.join(failed)}"
        if failed
        else "each client got what it asked for"
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
