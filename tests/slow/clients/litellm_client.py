"""litellm's default way: a chat, a reply put back, a stream, a text, embeddings."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices
import litellm

litellm.telemetry = False
model, text = f"openai/{os.environ['MODEL']}", f"text-completion-openai/{os.environ['MODEL']}"
asked = [{"role": "user", "content": "7"}]
base = {"api_base": os.environ["OPENAI_BASE_URL"], "num_retries": 0}
first = litellm.completion(model=model, messages=asked, max_tokens=5, **base)
again = [*asked, first.choices[0].message.model_dump(), *asked]
litellm.completion(model=model, messages=again, max_tokens=5, **base)
list(litellm.completion(model=model, messages=asked, max_tokens=5, stream=True, **base))
litellm.text_completion(model=text, prompt="O sol", max_tokens=5, **base)
assert len(litellm.embedding(model=model, input=["O sol", "o mar"], **base).data) == 2
