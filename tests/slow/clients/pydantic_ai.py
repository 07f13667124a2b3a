"""pydantic-ai's default way: an agent with instructions, a turn that knows the one before, a stream."""

import asyncio
import os
import sys

sys.path.pop(0)  # this file has the package's name
from pydantic_ai import Agent

agent = Agent(f"openai:{os.environ['MODEL']}", instructions="Conta.", model_settings={"max_tokens": 5})
first = agent.run_sync("7")
agent.run_sync("8", message_history=first.all_messages())


async def stream() -> None:
    async with agent.run_stream("7") as result:
        async for _ in result.stream_text():
            pass


asyncio.run(stream())
