"""llm's documented way: models in extra-openai-models.yaml, the command, a conversation that goes on."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    model, base = os.environ["MODEL"], os.environ["OPENAI_BASE_URL"]
    lines = f"- model_id: mine\n  model_name: {model}\n  api_base: {base}\n"
    lines += f"- model_id: text\n  model_name: {model}\n  api_base: {base}\n  completion: true\n"
    Path(folder, "extra-openai-models.yaml").write_text(lines, encoding="utf-8")
    environment = os.environ | {"LLM_USER_PATH": folder}
    llm = [sys.executable, "-m", "llm", "-o", "max_tokens", "5"]
    for flags in (["-m", "mine", "-s", "Conta."], ["-c"], ["-m", "mine", "--no-stream"], ["-m", "text"]):
        subprocess.run([*llm[:3], "prompt", *flags, *llm[3:], "7"], env=environment, check=True)
