"""openai-agents' default way: an agent that runs, a turn that knows the one before in both ways, a stream."""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled

set_tracing_disabled(True)  # it would go to OpenAI
# without a limit: of an answer that one cuts it makes an error
agent = Agent(name="conta", instructions="Conta.", model=os.environ["MODEL"])


async def main() -> None:  # one event loop, as the client keeps its connections
    first = await Runner.run(agent, "7")
    await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "8"}])
    await Runner.run(agent, "8", previous_response_id=first.last_response_id)
    async for _ in Runner.run_streamed(agent, "7").stream_events():
        pass


asyncio.run(main())
