"""What the official Python client sends to /v1/responses: turns, replies put back, streams, the store."""

import os

import openai

client = openai.OpenAI(max_retries=0)
how = {"model": os.environ["MODEL"], "max_output_tokens": 5}
asked = {"role": "user", "content": "7"}
first = client.responses.create(input="7", instructions="Conta.", metadata={"a": "b"}, **how)
second = client.responses.create(input=[asked], previous_response_id=first.id, truncation="auto", **how)
for reply in (first.output[0], first.output[0].model_dump()):
    client.responses.create(input=[asked, reply, asked], store=False, **how)
logprobs = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
list(client.responses.create(input="7", stream=True, **logprobs, **how))
nothing = {"tools": [], "tool_choice": "auto", "reasoning": {}, "text": {"format": {"type": "text"}}}
with client.responses.stream(model=how["model"], input="7", **nothing) as stream:
    stream.until_done()
client.responses.retrieve(second.id)
list(client.responses.input_items.list(second.id, order="asc"))
client.responses.delete(second.id)
