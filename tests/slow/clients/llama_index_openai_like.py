"""llama-index's OpenAILike in its documented way: a text, a chat with a reply put back, streams."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

how = {"model": os.environ["MODEL"], "api_base": os.environ["OPENAI_BASE_URL"], "api_key": "none"}
how |= {"context_window": 128, "max_tokens": 5, "max_retries": 0}
text, chat = OpenAILike(**how), OpenAILike(**how, is_chat_model=True)
text.complete("O sol")
list(text.stream_complete("O sol"))
asked = ChatMessage(role="user", content="7")
first = chat.chat([asked])
chat.chat([asked, first.message, asked])
list(chat.stream_chat([asked]))
