"""langchain-openai's default way: chats, a turn that knows the one before, a stream, a schema, embeddings."""

import os

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Answer(BaseModel):
    """What a reply must be."""

    yes: bool


model = os.environ["MODEL"]
chat = ChatOpenAI(model=model, max_tokens=5, max_retries=0)
first = chat.invoke([("system", "Conta."), ("user", "7")])
chat.invoke([("user", "7"), first, ("user", "8")])
list(chat.stream("7"))
whole = ChatOpenAI(model=model, max_retries=0).with_structured_output(Answer)
assert isinstance(whole.invoke("7"), Answer)
assert isinstance(OpenAI(model=model, max_tokens=5, max_retries=0).invoke("O sol"), str)
vectors = OpenAIEmbeddings(model=model, check_embedding_ctx_length=False)
assert len(vectors.embed_documents(["O sol", "o mar"])) == 2
