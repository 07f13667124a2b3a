"""aisuite's default way: a chat, and a reply put back."""

import os

import aisuite

client = aisuite.Client({"openai": {"base_url": os.environ["OPENAI_BASE_URL"], "api_key": "none"}})
model, asked = f"openai:{os.environ['MODEL']}", {"role": "user", "content": "7"}
first = client.chat.completions.create(model=model, messages=[asked], max_tokens=5)
message = first.choices[0].message
again = [asked, message if isinstance(message, dict) else message.model_dump(), asked]
client.chat.completions.create(model=model, messages=again, max_tokens=5)
