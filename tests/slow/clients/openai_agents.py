"""openai-agents' default way: an agent that runs, a turn that knows the one before in both ways, a stream."""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

set_tracing_disabled(True)  # it would go to OpenAI
# without a limit: of an answer that one cuts it makes an error
agent = Agent(name="conta", instructions="Conta.", model=os.environ["MODEL"])
first = Runner.run_sync(agent, "7")
Runner.run_sync(agent, [*first.to_input_list(), {"role": "user", "content": "8"}])
Runner.run_sync(agent, "8", previous_response_id=first.last_response_id)


async def stream() -> None:
    async for _ in Runner.run_streamed(agent, "7").stream_events():
        pass


asyncio.run(stream())
