"""What the official Python client is used for: chats, replies put back, streams, embeddings, fine-tuning."""

import os
import time

import openai

client = openai.OpenAI(max_retries=0)
model = os.environ["MODEL"]
LINES = "".join(
    f'{{"messages": [{{"role": "user", "content": "{n}"}}, {{"role": "assistant", "content": "{n + 1}"}}]}}\n'
    for n in range(20)
)

asked = {"role": "user", "content": "7"}
reply = client.chat.completions.create(model=model, messages=[asked], max_tokens=5)
assert reply._request_id.startswith("req_")
for message in (reply.choices[0].message, reply.choices[0].message.model_dump()):
    client.chat.completions.create(model=model, messages=[asked, message, asked], max_tokens=5)
nothing = {
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "stop": "",
    "tools": [],
}
nothing |= {"metadata": {"a": "b"}, "safety_identifier": "x", "user": "u", "store": False, "logit_bias": {}}
options = {"include_usage": True, "include_obfuscation": False}
list(
    client.chat.completions.create(
        model=model, messages=[asked], stream=True, stream_options=options, **nothing
    )
)
client.completions.create(model=model, prompt="O sol", max_tokens=5, suffix="", best_of=1, stop=["", "x"])
client.embeddings.create(model=model, input=["O sol", "o mar"] * 40)
client.embeddings.create(model=model, input="a b c " * 60)
client.models.list()

file = client.files.create(file=("talk.jsonl", LINES.encode()), purpose="fine-tune")
list(client.files.list(purpose="fine-tune", order="asc", limit=2))
job = client.fine_tuning.jobs.create(
    model=model,
    training_file=file.id,
    suffix="feito",
    seed=1,
    metadata={"who": "me"},
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": "auto"}}},
)
list(client.fine_tuning.jobs.list(metadata={"who": "me"}))
while (job := client.fine_tuning.jobs.retrieve(job.id)).finished_at is None:
    time.sleep(0.5)
list(client.fine_tuning.jobs.list_events(job.id, limit=100))
client.chat.completions.create(model=job.fine_tuned_model, messages=[asked], max_tokens=5)
client.models.delete(job.fine_tuned_model)
client.files.delete(file.id)
